package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/cutover/cutover/healthcheck"
	"github.com/cutover/cutover/mesosframework"
	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/engine"
	"github.com/cutover/cutover/orchestrator/lead"
	"github.com/cutover/cutover/orchestrator/registry"
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

// Orchestrator is the daemon. New wires it, Start lets it lead, Stop ends it in order; Run is all three.
type Orchestrator struct {
	opts      Options
	term      *lead.Term
	engine    *engine.Engine
	conductor *conductor.Conductor
	registry  *registry.Registry
	framework *mesosframework.Framework
	prober    *healthcheck.Prober
	server    *http.Server

	served   chan error // from the API's server
	wg       sync.WaitGroup
	cleanups []cleanup // run in reverse
	stopOnce sync.Once
}

// cleanup is one named step of stopping.
type cleanup struct {
	name string
	do   func(context.Context) error
}

var _ api.Service = (*engine.Engine)(nil)

// New takes the lock, opens the store and wires everything. On error nothing is left open.
func New(ctx context.Context, opts Options) (_ *Orchestrator, err error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	o := &Orchestrator{opts: opts, served: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.cleanup(context.WithoutCancel(ctx)))
		}
	}()
	o.onStop("listener", func(context.Context) error { _ = opts.Listener.Close(); return nil })

	st, err := boltstore.Open(filepath.Join(opts.DataDir, "state.db"), boltstore.Options{})
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	o.onStop("store", func(context.Context) error { return st.Close() })
	acquire, cancel := context.WithTimeout(ctx, leadTimeout)
	defer cancel()
	if o.term, err = lead.Acquire(acquire, opts.DataDir, st); err != nil {
		return nil, err
	}
	o.onStop("leadership", func(context.Context) error { return o.term.Release() })

	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if o.engine, err = engine.New(engine.Options{Store: st, Fence: o.term.Fence(), Logger: opts.Logger.With("part", "engine"), Registerer: metrics, Fatal: o.term.Fatal}); err != nil {
		return nil, err
	}
	hosts := make([]registry.Host, len(opts.Hosts))
	for i, h := range opts.Hosts {
		hosts[i] = registry.Host{Name: h.Name, Group: h.Group, AgentURL: h.AgentURL, TLS: opts.TLS}
	}
	o.registry, err = registry.New(ctx, registry.Options{
		Cluster: opts.Cluster, Groups: opts.Groups, Hosts: hosts, Store: st, Fence: o.term.Fence(), Logger: opts.Logger.With("part", "registry"),
	})
	if err != nil {
		return nil, err
	}
	o.conductor, err = conductor.New(conductor.Options{
		Registry: o.registry, Store: st, Fence: o.term.Fence(), Listener: o.engine, Fatal: o.term.Fatal, Logger: opts.Logger.With("part", "txn"),
		Rules: txn.Rules{Restore: opts.RestoreDeadline, StartCommand: opts.StartCommand},
	})
	if err != nil {
		return nil, err
	}
	events := &taskEvents{engine: o.engine}
	o.framework, err = mesosframework.New(mesosframework.Options{
		Masters: opts.Masters, Name: "cutover-" + opts.Cluster, Journal: events, Listener: events, Logger: opts.Logger.With("part", "mesos"),
		PortBlocked: func(_, host string, port uint16) bool { return o.engine.PortBlocked(host, port) },
	})
	if err != nil {
		return nil, err
	}
	handler, err := api.New(api.Options{Service: o.engine, Auth: opts.Tokens, Registry: metrics, Logger: opts.Logger.With("part", "api"), Version: opts.Version})
	if err != nil {
		return nil, err
	}
	o.server = api.HTTPServer(handler)
	return o, nil
}

func (o *Orchestrator) onStop(name string, do func(context.Context) error) {
	o.cleanups = append(o.cleanups, cleanup{name, do})
}

// Start resumes every open Deploy and serves the API. It returns once the API answers; the framework may still be on its
// way to the master.
func (o *Orchestrator) Start(ctx context.Context) error {
	o.prober = healthcheck.New(healthcheck.Options{Logger: o.opts.Logger.With("part", "prober")})
	o.onStop("prober", func(context.Context) error { o.prober.Stop(); o.wg.Wait(); return nil })
	o.wg.Go(func() {
		for e := range o.prober.Events() {
			if p, ok := probeEvent(e); ok {
				o.engine.HandleProbe(p)
			}
		}
	})
	// The coordinator first: the engine asks it for the outcome of open transactions.
	if err := o.conductor.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	o.onStop("coordinator", func(context.Context) error { o.conductor.Stop(); return nil })
	t := tasks{o.framework}
	if err := o.engine.Start(ctx, engine.Ports{Runner: t, Logs: t, Prober: probes{o.prober}, Coordinator: coordinator{o.conductor, o.registry}}); err != nil {
		return err
	}
	o.onStop("engine", func(context.Context) error { o.engine.Stop(); return nil })
	if err := o.framework.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	o.onStop("framework", o.framework.Stop)
	go func() { o.served <- o.server.Serve(o.opts.Listener) }()
	o.onStop("api", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, stopTimeout/2)
		defer cancel()
		if err := o.server.Shutdown(ctx); err != nil {
			return o.server.Close()
		}
		return nil
	})
	return nil
}

// Stop ends everything in the reverse order of its start. Open Deploys go on at the next start. It is idempotent.
func (o *Orchestrator) Stop(ctx context.Context) (err error) {
	o.stopOnce.Do(func() { err = o.cleanup(ctx) })
	return err
}

func (o *Orchestrator) cleanup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	var errs []error
	for _, c := range slices.Backward(o.cleanups) {
		if err := c.do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", c.name, err))
		}
	}
	o.cleanups = nil
	return errors.Join(errs...)
}

// Wait blocks until ctx ends (nil), or something ends by itself that must not: *TermOver, or the framework's or the
// server's reason.
func (o *Orchestrator) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-o.term.Done():
		return &TermOver{o.term.Err()}
	case <-o.framework.Done():
		return fmt.Errorf("the Mesos framework has ended: %w", o.framework.Err())
	case err := <-o.served:
		return fmt.Errorf("the API has ended: %w", err)
	}
}

// Hosts returns the declared Hosts as they are now.
func (o *Orchestrator) Hosts() []txn.HostInfo { return o.conductor.Hosts() }

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
