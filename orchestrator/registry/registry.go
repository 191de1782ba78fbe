package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/store"
)

// Host is one declared load-balancer Host. Names are unique in the cluster.
type Host struct {
	Name     string
	Group    string
	AgentURL string // of its lbagent: https, or http on a loopback address
	// TLS is the client's configuration for https (mutual TLS: with the orchestrator's certificate); nil means the
	// system's roots and no client certificate.
	TLS *tls.Config
}

// Options of a Registry. Cluster, Store and Logger are required.
type Options struct {
	Cluster string
	Groups  []Group // a Group may be declared without Hosts; those that Hosts name need not be listed
	Hosts   []Host
	Store   store.Store
	Fence   store.Fence // of this term
	Logger  *slog.Logger

	// Heartbeat is how long a Watch stream may say nothing. Default 3 s; agents send one message a second.
	Heartbeat time.Duration
	// BackoffMin and BackoffMax bound the pause between attempts to connect. Defaults 25 ms, 250 ms.
	BackoffMin, BackoffMax time.Duration
	// DialTimeout bounds one attempt to connect. Default 2 s.
	DialTimeout time.Duration

	// Transport carries the calls to a Host; nil: HTTP over TCP. For tests.
	Transport func(Host) http.RoundTripper
	// Jitter returns a random part of a duration; nil: rand.N. For tests.
	Jitter func(time.Duration) time.Duration
}

// View is the numbered membership of a Group. Hosts are sorted.
type View struct {
	Group  string   `json:"group"`
	Number uint64   `json:"number"`
	Hosts  []string `json:"hosts"`
	// Revision of its record in the store, for checks in the same Commit as a decision.
	Revision store.Revision `json:"-"`
}

// ViewKey is the key of the record that holds a Group's View.
func ViewKey(group string) string { return "view/" + group }

// Handler hears what Hosts say. See the package for ordering; ctx ends when the registry stops.
type Handler interface {
	// HostConnected: a new stream stands, first is its complete report.
	HostConnected(ctx context.Context, host string, first *lbagentv1.WatchResponse)
	// HostReported: a later message of the same stream.
	HostReported(ctx context.Context, host string, report *lbagentv1.WatchResponse)
	// HostDisconnected: the stream ended. Called only after HostConnected.
	HostDisconnected(ctx context.Context, host string, reason string)
	// HostAhead: the Host refuses this term's epoch, because it has seen a higher one. It is called at each attempt.
	HostAhead(ctx context.Context, host string, seen uint64)
}

// Registry holds the declared Groups and Hosts. Safe for concurrent use.
type Registry struct {
	opts   Options
	groups map[string]Group
	views  map[string]View
	links  map[string]*Link
	names  []string // of Hosts, sorted by Group and name

	cancel context.CancelFunc
	done   sync.WaitGroup
}

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)

// New checks the declaration and makes the Views durable: a Group whose Hosts changed gets the next number.
func New(ctx context.Context, opts Options) (*Registry, error) {
	opts.Heartbeat = cmp.Or(opts.Heartbeat, 3*time.Second)
	opts.BackoffMin = cmp.Or(opts.BackoffMin, 25*time.Millisecond)
	opts.BackoffMax = max(cmp.Or(opts.BackoffMax, 250*time.Millisecond), opts.BackoffMin)
	opts.DialTimeout = cmp.Or(opts.DialTimeout, 2*time.Second)
	if opts.Transport == nil {
		opts.Transport = opts.tcp
	}
	if opts.Jitter == nil {
		opts.Jitter = rand.N[time.Duration]
	}
	r := &Registry{opts: opts, groups: map[string]Group{}, views: map[string]View{}, links: map[string]*Link{}}
	for _, g := range opts.Groups {
		if err := checkName("group", g.Name); err != nil {
			return nil, err
		}
		r.addGroup(g)
	}
	for _, h := range opts.Hosts {
		if err := r.declare(h); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(r.names, func(a, b string) int {
		ga, gb := r.links[a].host.Group, r.links[b].host.Group
		return cmp.Or(strings.Compare(ga, gb), strings.Compare(a, b))
	})
	for g := range r.views {
		if err := r.persistView(ctx, g); err != nil {
			return nil, fmt.Errorf("view of group %s: %w", g, err)
		}
	}
	return r, nil
}

// addGroup notes a Group with its defaults filled in.
func (r *Registry) addGroup(g Group) {
	g.Admit, g.Drift = cmp.Or(g.Admit, AdmitDeclared), cmp.Or(g.Drift, DriftRepair)
	r.groups[g.Name] = g
	r.views[g.Name] = View{Group: g.Name}
}

func checkName(what, name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%s name %q: use 1 to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends", what, name)
	}
	return nil
}

func (r *Registry) declare(h Host) error {
	if err := checkName("host", h.Name); err != nil {
		return err
	}
	if err := checkName("group", h.Group); err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	if r.links[h.Name] != nil {
		return fmt.Errorf("host %s is declared twice: names are unique in the cluster", h.Name)
	}
	if err := checkURL(h.AgentURL); err != nil {
		return fmt.Errorf("host %s: agent URL %q: %w", h.Name, h.AgentURL, err)
	}
	if _, ok := r.groups[h.Group]; !ok {
		r.addGroup(Group{Name: h.Group})
	}
	v := r.views[h.Group]
	v.Hosts = append(v.Hosts, h.Name)
	slices.Sort(v.Hosts)
	r.views[h.Group] = v
	r.links[h.Name] = newLink(h, r.opts)
	r.names = append(r.names, h.Name)
	return nil
}

// checkURL refuses what would carry decisions in the clear over a network.
func checkURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("want http://ADDRESS:PORT or https://ADDRESS:PORT: %w", err)
	}
	if u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return errors.New("want http://ADDRESS:PORT or https://ADDRESS:PORT")
	}
	if u.Scheme == "http" {
		ip := net.ParseIP(u.Hostname())
		if u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return errors.New("http is for loopback addresses only: use https with client certificates")
		}
	}
	return nil
}

func (r *Registry) persistView(ctx context.Context, group string) error {
	view := r.views[group]
	op := store.Op{Kind: store.Create, Key: ViewKey(group)}
	rec, err := r.opts.Store.Get(ctx, op.Key)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return err
	default:
		var old View
		if err := json.Unmarshal(rec.Value, &old); err != nil {
			return fmt.Errorf("record %q is damaged: %w", op.Key, err)
		}
		view.Number, view.Revision = old.Number, rec.Revision
		if slices.Equal(old.Hosts, view.Hosts) {
			r.views[group] = view
			return nil
		}
		op.Kind, op.Expect = store.Replace, rec.Revision
	}
	view.Number++
	if op.Value, err = json.Marshal(view); err != nil {
		return err
	}
	if view.Revision, err = r.opts.Store.Commit(ctx, r.opts.Fence, op); err != nil {
		return err
	}
	r.views[group] = view
	r.opts.Logger.Info("membership of the group changed", "group", group, "view", view.Number, "hosts", view.Hosts)
	return nil
}

// Start connects to every Host and delivers to h until Stop.
func (r *Registry) Start(ctx context.Context, h Handler) {
	ctx, r.cancel = context.WithCancel(ctx)
	for _, name := range r.names {
		l := r.links[name]
		request := &lbagentv1.WatchRequest{Fence: r.FenceOf(l.host.Group)}
		r.done.Go(func() { l.run(ctx, h, request) })
	}
}

// Stop ends all streams and closes all connections. Calls that are on their way end with their own context.
func (r *Registry) Stop() {
	if r.cancel != nil {
		r.cancel()
	}
	r.done.Wait()
	for _, l := range r.links {
		l.http.CloseIdleConnections()
	}
}

// View returns the Group's View; false if there is no such Group.
func (r *Registry) View(group string) (View, bool) {
	v, ok := r.views[group]
	return v, ok
}

// Group returns how the Group is declared; false if there is no such Group.
func (r *Registry) Group(name string) (Group, bool) {
	g, ok := r.groups[name]
	return g, ok
}

// Groups returns the names of all Groups, sorted.
func (r *Registry) Groups() []string {
	var out []string
	for g := range r.views {
		out = append(out, g)
	}
	slices.Sort(out)
	return out
}

// Link returns the link to a Host, or nil.
func (r *Registry) Link(host string) *Link { return r.links[host] }

// Links returns all links, sorted by Group and name.
func (r *Registry) Links() []*Link {
	out := make([]*Link, len(r.names))
	for i, n := range r.names {
		out[i] = r.links[n]
	}
	return out
}

// FenceOf returns what every message to a Host of the Group carries.
func (r *Registry) FenceOf(group string) *lbagentv1.Fence {
	return &lbagentv1.Fence{Cluster: r.opts.Cluster, Group: group, Epoch: r.opts.Fence.Epoch, View: r.views[group].Number}
}
