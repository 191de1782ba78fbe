package orchestrator

import (
	"context"
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

// TermOver is the error of Run when the term has ended: whether a write happened is unknown, so the process must end
// at once, without finishing anything. Tasks, lbagents and proxies serve on; the next start reads what is durable.
type TermOver struct{ Err error }

// Error says why.
func (e *TermOver) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *TermOver) Unwrap() error { return e.Err }

// Orchestrator is the daemon. New opens what it needs, Start lets it lead, Stop ends it in order; Run is all three.
type Orchestrator struct {
	opts    Options
	store   store.Store
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

// New opens the store and makes the API. On error nothing is left open.
func New(ctx context.Context, opts Options) (_ *Orchestrator, err error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	o := &Orchestrator{opts: opts, metrics: prometheus.NewRegistry(), ended: make(chan error, 1), served: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Stop(context.WithoutCancel(ctx)))
		}
	}()
	o.cleanups.add("listener", func(context.Context) error { _ = opts.Listener.Close(); return nil })
	o.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	o.store, err = boltstore.Open(filepath.Join(opts.DataDir, "state.db"), boltstore.Options{})
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	o.cleanups.add("store", func(context.Context) error { return o.store.Close() })
	handler, err := api.New(api.Options{
		Standing: o.standing, Auth: opts.Tokens, Registry: o.metrics, Logger: opts.Logger.With("part", "api"), Version: opts.Version,
	})
	if err != nil {
		return nil, err
	}
	o.server = api.HTTPServer(handler)
	return o, nil
}

// Start takes the lock, resumes every open Deploy and serves the API. It returns once the API answers.
func (o *Orchestrator) Start(ctx context.Context) error {
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
	go func() { o.served <- o.server.Serve(o.opts.Listener) }()
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
	if t := o.term.Load(); t != nil {
		return api.Standing{Leads: true, Service: t.engine}
	}
	return api.Standing{Why: "the orchestrator is starting"}
}

// Stop ends everything in the reverse order of its start. Open Deploys go on at the next start. It is idempotent.
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
