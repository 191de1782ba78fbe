package orchestrator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/engine"
	"github.com/cutover/cutover/orchestrator/lead"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/boltstore"
	"github.com/cutover/cutover/orchestrator/txn"
	"github.com/cutover/cutover/orchestrator/txn/conductor"
)

// Bounds of starting and stopping.
const (
	leadTimeout = 10 * time.Second
	stopTimeout = 10 * time.Second
)

// TermOver is the error of Run when the term has ended and this process must end with it, at once, without finishing
// anything: it is alone and whether a write happened is unknown, or what belongs to the term does not end. Tasks,
// lbagents and proxies serve on; the next start reads what is durable.
type TermOver struct{ Err error }

// Error says why.
func (e *TermOver) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *TermOver) Unwrap() error { return e.Err }

// Orchestrator is the daemon. New opens what it needs, Start lets it lead, Stop ends it in order; Run is all three.
type Orchestrator struct {
	opts    Options
	store   store.Store // of one that is alone
	shared  *shared     // of one of several
	metrics *prometheus.Registry
	server  *http.Server

	term   atomic.Pointer[term] // nil while this process does not lead
	ended  chan error           // why leading has ended for good
	served chan error           // from the API's server

	work     sync.WaitGroup
	cleanups cleanups
	stopOnce sync.Once
}

var _ api.Service = (*engine.Engine)(nil)

// New opens the store, or connects to Consul, and makes the API. On error nothing is left open.
func New(ctx context.Context, opts Options) (_ *Orchestrator, err error) {
	if err := opts.validate(); err != nil {
		return nil, &deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: err.Error()}
	}
	o := &Orchestrator{opts: opts, metrics: prometheus.NewRegistry(), ended: make(chan error, 1), served: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Stop(context.WithoutCancel(ctx)))
		}
	}()
	o.cleanups.add("listener", func(context.Context) error { _ = opts.Listener.Close(); return nil })
	o.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	o.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "cutover_leader_epoch", Help: "The epoch of this orchestrator's term; 0 while it does not lead.",
	}, func() float64 {
		if t := o.term.Load(); t != nil {
			return float64(t.lead.Epoch())
		}
		return 0
	}))

	if opts.Shared != nil {
		o.shared, err = openShared(ctx, opts, &o.cleanups)
	} else {
		err = o.openEmbedded()
	}
	if err != nil {
		return nil, err
	}
	handler, err := api.New(api.Options{
		Standing: o.standing, Auth: opts.Tokens, Registry: o.metrics, Logger: opts.Logger.With("part", "api"), Version: opts.Version,
	})
	if err != nil {
		return nil, err
	}
	o.server = api.HTTPServer(handler)
	return o, nil
}

func (o *Orchestrator) openEmbedded() (err error) {
	if err := os.MkdirAll(o.opts.DataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	o.store, err = boltstore.Open(filepath.Join(o.opts.DataDir, "state.db"), boltstore.Options{})
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	o.cleanups.add("store", func(context.Context) error { return o.store.Close() })
	return nil
}

// Start serves the API and leads: one that is alone when it returns, one of several when it is elected.
func (o *Orchestrator) Start(ctx context.Context) error {
	if o.shared != nil {
		o.serve()
		campaigning, cancel := context.WithCancel(context.WithoutCancel(ctx))
		o.work.Go(func() { o.campaign(campaigning) })
		o.cleanups.add("leadership", func(context.Context) error { cancel(); o.work.Wait(); return nil })
		return nil
	}
	acquire, cancel := context.WithTimeout(ctx, leadTimeout)
	defer cancel()
	lt, err := lead.Acquire(acquire, o.opts.DataDir, o.store)
	if err != nil {
		return err
	}
	o.cleanups.add("leadership", func(context.Context) error { return lt.Release() })
	t, err := beginTerm(ctx, o.opts, o.store, lt, o.metrics)
	if err != nil {
		return err
	}
	o.cleanups.add("term", t.stop)
	o.term.Store(t)
	stopped := make(chan struct{})
	o.work.Go(func() {
		select {
		case <-lt.Done():
			o.ended <- &TermOver{lt.Err()}
		case <-t.framework.Done():
			o.ended <- fmt.Errorf("the Mesos framework has ended: %w", t.framework.Err())
		case <-stopped:
		}
	})
	o.cleanups.add("watch of the term", func(context.Context) error { close(stopped); o.work.Wait(); return nil })
	o.serve()
	return nil
}

// serve begins to answer.
func (o *Orchestrator) serve() {
	ln := o.opts.Listener
	if o.opts.Serve != nil {
		ln = tls.NewListener(ln, o.opts.Serve)
	}
	go func() { o.served <- o.server.Serve(ln) }()
	o.cleanups.add("api", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, stopTimeout/2)
		defer cancel()
		if err := o.server.Shutdown(ctx); err != nil {
			return o.server.Close()
		}
		return nil
	})
}

// standing says who answers a request now.
func (o *Orchestrator) standing() api.Standing {
	t := o.term.Load()
	switch {
	case t != nil && o.shared != nil:
		return api.Standing{Leads: true, Service: t.engine, Name: o.opts.Shared.Name, Leader: &wire.Leader{Name: o.opts.Shared.Name, URL: o.opts.Shared.Advertise}}
	case t != nil:
		return api.Standing{Leads: true, Service: t.engine}
	case o.shared != nil:
		return o.shared.standing()
	}
	return api.Standing{Why: "the orchestrator is starting: ask again"}
}

// Stop ends everything in the reverse order of its start. Open Deploys go on at the next start, or with the next leader. It is
// idempotent.
func (o *Orchestrator) Stop(ctx context.Context) (err error) {
	o.stopOnce.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		err = o.cleanups.run(ctx)
	})
	return err
}

// Wait blocks until ctx ends (nil), or something ends by itself that must not: *TermOver, or the framework's or the
// server's reason.
func (o *Orchestrator) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-o.ended:
		return err
	case err := <-o.served:
		return fmt.Errorf("the API has ended: %w", err)
	}
}

// Hosts returns the declared Hosts as they are now; nil while this process does not lead.
func (o *Orchestrator) Hosts() []txn.HostInfo {
	if t := o.term.Load(); t != nil {
		return t.conductor.Hosts()
	}
	return nil
}

// Run starts, waits for ctx, and stops. On *TermOver it returns at once without stopping anything: see there.
func (o *Orchestrator) Run(ctx context.Context) error {
	err := o.Start(ctx)
	if err == nil {
		err = o.Wait(ctx)
	}
	var over *TermOver
	if errors.As(err, &over) {
		return err
	}
	return errors.Join(err, o.Stop(context.WithoutCancel(ctx)))
}

// coordinator is the Conductor as the engine wants it: with the declared Groups.
type coordinator struct {
	*conductor.Conductor
	registry *registry.Registry
}

var _ engine.Coordinator = coordinator{}

func (c coordinator) Groups() []string { return c.registry.Groups() }
