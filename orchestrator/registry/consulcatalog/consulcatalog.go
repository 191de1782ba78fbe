package consulcatalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/internal/consulclient"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/proto/announcement"
)

const (
	// maxAnswer bounds an answer of Consul.
	maxAnswer = 8 << 20
	// answerTime is what an answer may take besides the waiting that was asked for.
	answerTime = 5 * time.Second
)

// Options of a Catalog. Address, Cluster and Logger are required.
type Options struct {
	// Address of a Consul agent; see consulclient.CheckAddress.
	Address string
	Client  consulclient.Options
	// Service is the service's name; announcement.Service by default.
	Service string
	Cluster string
	Logger  *slog.Logger
	// Wait is how long a query waits in Consul for a change. Default 25 s.
	Wait time.Duration
}

// Check fills the defaults and says what is wrong.
func (o *Options) Check() error {
	o.Service, o.Wait = cmp.Or(o.Service, announcement.Service), cmp.Or(o.Wait, 25*time.Second)
	if strings.ContainsAny(o.Service, "/?#% ") || len(o.Service) > 128 {
		return fmt.Errorf("service %q of the catalog: want a name as in Consul", o.Service)
	}
	if o.Cluster == "" || o.Logger == nil {
		return errors.New("consulcatalog: Cluster and Logger are required")
	}
	return consulclient.CheckAddress(o.Address)
}

// Catalog is the catalog of one Consul. Safe for concurrent use; each Watch has queries of its own.
type Catalog struct {
	opts   Options
	client *api.Client
	close  func()
}

// New returns a Catalog. Nothing is asked yet.
func New(opts Options) (*Catalog, error) {
	if err := opts.Check(); err != nil {
		return nil, err
	}
	opts.Client.MaxAnswer = maxAnswer
	client, closeIdle, err := consulclient.New(opts.Address, opts.Client)
	if err != nil {
		return nil, err
	}
	return &Catalog{opts: opts, client: client, close: closeIdle}, nil
}

// Close closes idle connections; every Watch must have returned.
func (c *Catalog) Close() { c.close() }

// Watch calls hear with what the catalog announces, at first and whenever that changes, and with why it cannot be known; one call
// after the other, until ctx ends.
func (c *Catalog) Watch(ctx context.Context, hear func(registry.Listing)) {
	var at cursor
	var last registry.Listing
	told := false
	for ctx.Err() == nil {
		l, index, err := c.list(ctx, at.index)
		if ctx.Err() != nil {
			return
		}
		var pause time.Duration
		if err == nil {
			at, pause = at.answered(index)
		} else {
			at, pause = at.failed()
			l = registry.Listing{Err: fmt.Errorf("Consul at %s, service %s: %w", c.opts.Address, c.opts.Service, err)}
		}
		l.Source, l.At = registry.FromConsul, time.Now().UTC()
		// A failure that is not over is told once, until the catalog is read again.
		if !told || !same(last, l) {
			hear(l)
			last, told = l, true
		}
		sleep(ctx, pause)
	}
}

// same: nothing is to be told. That the catalog was read is told after a failure only.
func same(a, b registry.Listing) bool {
	place := func(x, y registry.Host) bool {
		return x.Name == y.Name && x.Group == y.Group && x.AgentURL == y.AgentURL
	}
	return (a.Err == nil) == (b.Err == nil) && slices.EqualFunc(a.Hosts, b.Hosts, place) && slices.Equal(a.Refused, b.Refused)
}

// list reads the catalog once, and waits until it has passed index.
func (c *Catalog) list(ctx context.Context, index uint64) (l registry.Listing, next uint64, err error) {
	// Consul adds up to a sixteenth to the time that it waits.
	ctx, cancel := context.WithTimeout(ctx, c.opts.Wait+c.opts.Wait/16+answerTime)
	defer cancel()
	entries, meta, err := c.client.Catalog().Service(c.opts.Service, "", (&api.QueryOptions{WaitIndex: index, WaitTime: c.opts.Wait}).WithContext(ctx))
	if err != nil {
		return l, 0, err
	}
	if !meta.KnownLeader {
		return l, 0, errors.New("the Consul servers have no leader")
	}
	if meta.ResultsFilteredByACLs {
		return l, 0, fmt.Errorf(`its access control hides entries from this token: it needs service "%s" { policy = "read" } and node_prefix "" { policy = "read" }`, c.opts.Service)
	}
	if l.Hosts, l.Refused, err = hostsOf(c.opts.Cluster, entries); err != nil {
		return l, 0, err
	}
	slices.SortFunc(l.Hosts, func(a, b registry.Host) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Group, b.Group), strings.Compare(a.AgentURL, b.AgentURL))
	})
	slices.Sort(l.Refused)
	return l, meta.LastIndex, nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
