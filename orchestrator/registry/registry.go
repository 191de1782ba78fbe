package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/store"
)

// Options of a Registry. Cluster, Store and Logger are required.
type Options struct {
	Cluster string
	Groups  []Group // a Group may be declared without Hosts; those that Hosts name need not be listed
	Hosts   []Host
	// Exact: Hosts that are not declared have been taken down by whoever declares them, so they are removed for good.
	// Otherwise they stay what they are until an operator takes them out.
	Exact bool
	// Catalog: a catalog announces Hosts too; see Hear. Then a Host that was removed is remembered although nobody announces
	// it at the moment, so that it does not come back by itself when a catalog names it again.
	Catalog bool
	// TLS is the client's configuration for Hosts that are admitted at runtime; see Host.TLS.
	TLS    *tls.Config
	Store  store.Store
	Fence  store.Fence // of this term
	Logger *slog.Logger

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

// Registry holds the Groups, their Views and their Hosts. Safe for concurrent use; changes of membership come one after the
// other, from the Conductor.
type Registry struct {
	opts   Options
	groups map[string]Group

	mu      sync.RWMutex
	views   map[string]View
	members map[string]Membership // by Host
	stored  map[string]string     // Host -> Group of the record in the store
	heard   catalog
	links   map[string]*Link

	// Set by Start: what a link that comes later needs.
	ctx     context.Context
	cancel  context.CancelFunc
	handler Handler
	running map[string]watching
	done    sync.WaitGroup
}

// watching is the goroutine of a Host's link, or of one that it had before: stop tells it to end, ended is closed when it has.
type watching struct {
	stop  context.CancelFunc
	ended chan struct{}
}

// New reads who is a member, takes in what is declared, and makes the outcome durable before anybody relies on it. A Host that
// is declared no longer stays what it is: only an operator takes it out, with proof that it gets no traffic.
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
	r := &Registry{
		opts: opts, groups: map[string]Group{}, views: map[string]View{}, members: map[string]Membership{}, links: map[string]*Link{},
		running: map[string]watching{}, stored: map[string]string{},
	}
	for _, g := range opts.Groups {
		if err := checkName("group", g.Name); err != nil {
			return nil, err
		}
		r.addGroup(g)
	}
	seen := map[string]bool{}
	for _, h := range opts.Hosts {
		if err := CheckHost(h); err != nil {
			return nil, err
		}
		if seen[h.Name] {
			return nil, fmt.Errorf("host %s is declared twice: names are unique in the cluster", h.Name)
		}
		seen[h.Name] = true
		if _, ok := r.groups[h.Group]; !ok {
			r.addGroup(Group{Name: h.Group})
		}
	}
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	if err := r.declare(ctx); err != nil {
		return nil, err
	}
	for _, m := range r.members {
		if m.Standing.linked() {
			r.links[m.Host] = newLink(r.host(m), opts)
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

// load reads the Views and the Memberships of earlier terms.
func (r *Registry) load(ctx context.Context) error {
	records, err := r.opts.Store.List(ctx, prefixView, "", 0)
	if err != nil {
		return fmt.Errorf("read the views: %w", err)
	}
	for _, rec := range records {
		group, host := splitKey(rec.Key)
		if _, ok := r.groups[group]; !ok {
			r.addGroup(Group{Name: group}) // declared no longer, and still served
		}
		if host == "" {
			v := View{}
			if err := json.Unmarshal(rec.Value, &v); err != nil {
				return fmt.Errorf("record %q is damaged: %w", rec.Key, err)
			}
			v.Revision = rec.Revision
			r.views[group] = v
			continue
		}
		m := Membership{}
		if err := json.Unmarshal(rec.Value, &m); err != nil {
			return fmt.Errorf("record %q is damaged: %w", rec.Key, err)
		}
		r.members[host], r.stored[host] = m, group
	}
	return nil
}

// declare takes in the declared Hosts, and writes what is new: Memberships first, then the Views that name them or do so no
// longer, then what is forgotten. So a View never names a Host of which nothing is known, wherever the term dies meanwhile.
func (r *Registry) declare(ctx context.Context) error {
	now := time.Now().UTC()
	var takenIn, takenDown [][]store.Op // by Host
	next := maps.Clone(r.views)
	for _, h := range r.opts.Hosts {
		var old *Membership
		if m, ok := r.members[h.Name]; ok {
			old = &m
		}
		was := r.views[h.Group]
		m, what, err := declared(old, h, r.groups[h.Group].Admit, was.Number == 0 || slices.Contains(was.Hosts, h.Name), now)
		if err != nil {
			return err
		}
		r.members[h.Name] = m
		var ops []store.Op
		if was := r.stored[h.Name]; was != "" && was != m.Group {
			ops = append(ops, store.Op{Kind: store.Delete, Key: memberKey(was, m.Host)})
		}
		if what != "" {
			ops = append(ops, store.Op{Kind: store.Put, Key: memberKey(m.Group, m.Host), Value: encode(m)})
			r.stored[m.Host] = m.Group
		}
		takenIn = append(takenIn, ops)
		if v, changed := nextView(next[h.Group], m); changed {
			v.Number = r.views[h.Group].Number + 1
			next[h.Group] = v
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.members)) {
		m := r.members[name]
		if m.Declared || m.Standing == Removed && r.opts.Catalog || m.Standing != Removed && (!r.opts.Exact || m.Source != FromFile) {
			continue
		}
		delete(r.members, name)
		delete(r.stored, name)
		forget := store.Op{Kind: store.Delete, Key: memberKey(m.Group, name)}
		if m.Standing == Removed {
			takenDown = append(takenDown, []store.Op{forget})
			continue
		}
		entry := AuditEntry{Format: membershipFormat, Group: m.Group, Host: name, What: "remove", From: string(m.Standing), To: string(Removed),
			Change: Change{Actor: "cutover", Reason: "it was taken down by whoever declares the hosts", At: now}}
		m.Standing = Removed
		if v, changed := nextView(next[m.Group], m); changed {
			v.Number = r.views[m.Group].Number + 1
			next[m.Group] = v
			entry.View = v.Number
		}
		takenDown = append(takenDown, []store.Op{forget, {Kind: store.Put, Key: auditKey(now, name), Value: encode(entry)}})
	}
	if err := r.write(ctx, takenIn); err != nil {
		return err
	}
	for _, g := range slices.Sorted(maps.Keys(next)) {
		v := next[g]
		if v.Number == 0 {
			v.Number = 1 // a Group without Hosts has a View too
		}
		if v.Number == r.views[g].Number {
			continue
		}
		rev, err := r.opts.Store.Commit(ctx, r.opts.Fence, viewOp(v))
		if err != nil {
			return fmt.Errorf("view of group %s: %w", g, err)
		}
		v.Revision = rev
		r.views[g] = v
		r.opts.Logger.Info("membership of the group changed", "group", g, "view", v.Number, "hosts", v.Hosts)
	}
	return r.write(ctx, takenDown)
}

// write makes the changes of Hosts durable, those of one Host in one Commit.
func (r *Registry) write(ctx context.Context, hosts [][]store.Op) error {
	for part := range slices.Chunk(hosts, store.MaxOps/4) { // at most two operations each
		ops := slices.Concat(part...)
		if len(ops) == 0 {
			continue
		}
		if _, err := r.opts.Store.Commit(ctx, r.opts.Fence, ops...); err != nil {
			return fmt.Errorf("write the declared hosts: %w", err)
		}
	}
	return nil
}

// host is what a link needs.
func (r *Registry) host(m Membership) Host {
	h := Host{Name: m.Host, Group: m.Group, AgentURL: m.AgentURL, TLS: r.opts.TLS}
	for _, d := range r.opts.Hosts {
		if d.Name == m.Host {
			h.TLS = d.TLS
		}
	}
	return h
}

// Change returns the operations that make the Membership what m says, with its audit entry, and what to call with the
// revision when they are durable. One Host of a Group is changed at a time.
func (r *Registry) Change(m Membership, what string) (ops []store.Op, install func(store.Revision)) {
	r.mu.RLock()
	old, view, was := r.members[m.Host], r.views[m.Group], r.stored[m.Host]
	r.mu.RUnlock()
	m.Format, m.Announced = membershipFormat, old.Announced
	view.Group = m.Group
	next, changed := nextView(view, m)
	entry := AuditEntry{Format: membershipFormat, Group: m.Group, Host: m.Host, What: what, From: string(old.Standing), To: string(m.Standing),
		View: next.Number, AgentURL: m.AgentURL, Change: m.Last, Proof: m.Proof}
	ops = []store.Op{{Kind: store.Put, Key: auditKey(m.Last.At, m.Host), Value: encode(entry)}}
	forget := m.Standing == Removed && !m.Announced && !r.opts.Catalog
	if forget {
		ops = append(ops, store.Op{Kind: store.Delete, Key: memberKey(m.Group, m.Host)})
	} else {
		ops = append(ops, store.Op{Kind: store.Put, Key: memberKey(m.Group, m.Host), Value: encode(m)})
	}
	if was != "" && was != m.Group { // it was removed there before
		ops = append(ops, store.Op{Kind: store.Delete, Key: memberKey(was, m.Host)})
	}
	if changed {
		ops = append(ops, viewOp(next))
	}
	return ops, func(rev store.Revision) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if changed {
			next.Revision = rev
			r.views[m.Group] = next
			r.opts.Logger.Info("membership of the group changed", "group", m.Group, "view", next.Number, "hosts", next.Hosts, "host", m.Host,
				"what", what, "actor", m.Last.Actor, "reason", m.Last.Reason)
		}
		r.members[m.Host], r.stored[m.Host] = r.heard.tell(m), m.Group
		if forget {
			delete(r.members, m.Host)
			delete(r.stored, m.Host)
		}
		r.relink(m)
	}
}

// relink starts or stops the link of a Host whose standing changed; mu is held.
func (r *Registry) relink(m Membership) {
	l := r.links[m.Host]
	switch {
	case m.Standing.linked() && l == nil:
		r.links[m.Host] = newLink(r.host(m), r.opts)
		r.run(r.links[m.Host])
	case !m.Standing.linked() && l != nil:
		delete(r.links, m.Host)
		if w, ok := r.running[m.Host]; ok {
			w.stop()
		}
		l.http.CloseIdleConnections()
	}
}

// Start connects to every Host and delivers to h until Stop.
func (r *Registry) Start(ctx context.Context, h Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ctx, r.cancel = context.WithCancel(ctx)
	r.handler = h
	for _, name := range slices.Sorted(maps.Keys(r.links)) {
		r.run(r.links[name])
	}
}

// run starts the goroutine of a link; mu is held. Before Start and after Stop there is nothing to run.
func (r *Registry) run(l *Link) {
	if r.ctx == nil || r.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	before, ended := r.running[l.host.Name].ended, make(chan struct{})
	r.running[l.host.Name] = watching{cancel, ended}
	request := &lbagentv1.WatchRequest{Fence: r.fenceOf(l.host.Group), Drift: r.groups[l.host.Group].Drift.policy()}
	r.done.Go(func() {
		defer close(ended)
		defer cancel()
		if before != nil {
			<-before // what an earlier link says last must not be taken for this one's
		}
		l.run(ctx, r.handler, request)
	})
}

// Stop ends all streams and closes all connections. Calls that are on their way end with their own context.
func (r *Registry) Stop() {
	r.mu.Lock()
	if r.cancel != nil {
		r.cancel()
	}
	r.mu.Unlock()
	r.done.Wait()
	for _, l := range r.Links() {
		l.http.CloseIdleConnections()
	}
}

// View returns the Group's View; false if there is no such Group.
func (r *Registry) View(group string) (View, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	v, ok := r.views[group]
	return v, ok
}

// Group returns how the Group is declared; false if there is no such Group.
func (r *Registry) Group(name string) (Group, bool) {
	g, ok := r.groups[name]
	return g, ok
}

// Groups returns the names of all Groups, sorted.
func (r *Registry) Groups() []string { return slices.Sorted(maps.Keys(r.groups)) }

// Member returns what is known of a Host; false if nothing is.
func (r *Registry) Member(host string) (Membership, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	m, ok := r.members[host]
	return m, ok
}

// Members returns all Hosts that are known, sorted by Group and name.
func (r *Registry) Members() []Membership {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := slices.Collect(maps.Values(r.members))
	slices.SortFunc(out, func(a, b Membership) int {
		return cmp.Or(strings.Compare(a.Group, b.Group), strings.Compare(a.Host, b.Host))
	})
	return out
}

// Link returns the link to a Host, or nil.
func (r *Registry) Link(host string) *Link {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.links[host]
}

// Links returns all links, sorted by Group and name.
func (r *Registry) Links() []*Link {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := slices.Collect(maps.Values(r.links))
	slices.SortFunc(out, func(a, b *Link) int {
		return cmp.Or(strings.Compare(a.host.Group, b.host.Group), strings.Compare(a.host.Name, b.host.Name))
	})
	return out
}

// FenceOf returns what every message to a Host of the Group carries.
func (r *Registry) FenceOf(group string) *lbagentv1.Fence {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.fenceOf(group)
}

func (r *Registry) fenceOf(group string) *lbagentv1.Fence {
	return &lbagentv1.Fence{Cluster: r.opts.Cluster, Group: group, Epoch: r.opts.Fence.Epoch, View: r.views[group].Number}
}

// History returns the newest audit entries of membership, newest first, at most limit of them.
func (r *Registry) History(ctx context.Context, limit int) ([]AuditEntry, error) {
	records, err := r.opts.Store.List(ctx, prefixAudit, "", 0)
	if err != nil {
		return nil, fmt.Errorf("read the changes of membership: %w", err)
	}
	var out []AuditEntry
	for _, rec := range slices.Backward(records) {
		if len(out) == limit {
			break
		}
		var e AuditEntry
		if err := json.Unmarshal(rec.Value, &e); err != nil {
			return nil, fmt.Errorf("record %q is damaged: %w", rec.Key, err)
		}
		out = append(out, e)
	}
	return out, nil
}
