package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cutover/cutover/healthcheck"
	"github.com/cutover/cutover/mesosframework"
	"github.com/cutover/cutover/orchestrator/engine"
	"github.com/cutover/cutover/orchestrator/lead"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/registry/consulcatalog"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
	"github.com/cutover/cutover/orchestrator/txn/conductor"
)

// raiseTimeout bounds raising the epoch above one that a Host has seen.
const raiseTimeout = 10 * time.Second

// errStillRuns is wrapped when something of a term has not ended in time.
var errStillRuns = errors.New("the term has not ended: a call of the store has not returned")

// term is everything that exists only while this process leads. It is made anew for each term, from what is durable.
type term struct {
	lead      *lead.Term
	engine    *engine.Engine
	conductor *conductor.Conductor
	registry  *registry.Registry
	framework *mesosframework.Framework
	cleanups  cleanups
}

// beginTerm wires and starts a term: it resumes every open Deploy. The framework may still be on its way to the master
// when it returns. On error everything but the lock is stopped.
func beginTerm(ctx context.Context, opts Options, st store.Store, lt *lead.Term, metrics prometheus.Registerer) (_ *term, err error) {
	t := &term{lead: lt}
	defer func() {
		if err != nil {
			stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			err = errors.Join(err, t.stop(stopping))
		}
	}()
	own := &registrations{Registerer: metrics}
	t.cleanups.add("metrics", func(context.Context) error { own.unregister(); return nil })
	if err := t.wire(ctx, opts, st, own); err != nil {
		return nil, err
	}
	return t, t.start(ctx, opts)
}

func (t *term) wire(ctx context.Context, opts Options, st store.Store, metrics prometheus.Registerer) (err error) {
	fence := t.lead.Fence()
	t.engine, err = engine.New(engine.Options{
		Store: st, Fence: fence, Logger: opts.Logger.With("part", "engine"), Registerer: metrics, Fatal: t.lead.Fatal,
	})
	if err != nil {
		return err
	}
	hosts := make([]registry.Host, len(opts.Hosts))
	for i, h := range opts.Hosts {
		hosts[i] = registry.Host{Name: h.Name, Group: h.Group, AgentURL: h.AgentURL, TLS: opts.TLS}
	}
	t.registry, err = registry.New(ctx, registry.Options{
		Cluster: opts.Cluster, Groups: opts.Groups, Hosts: hosts, Exact: opts.ExactHosts, Catalog: opts.Catalog != nil, TLS: opts.TLS, Store: st, Fence: fence, Logger: opts.Logger.With("part", "registry"),
	})
	if err != nil {
		return err
	}
	source, err := t.source(opts)
	if err != nil {
		return err
	}
	t.conductor, err = conductor.New(conductor.Options{
		Registry: t.registry, Source: source, Store: st, Fence: fence, Listener: t.engine, Fatal: t.lead.Fatal, Logger: opts.Logger.With("part", "txn"),
		Rules:       txn.Rules{Restore: opts.RestoreDeadline, StartCommand: opts.StartCommand, RestartCommand: opts.RestartCommand},
		HigherEpoch: t.raise,
	})
	if err != nil {
		return err
	}
	events := &taskEvents{engine: t.engine}
	t.framework, err = mesosframework.New(mesosframework.Options{
		Masters: opts.Masters, Name: "cutover-" + opts.Cluster, Journal: events, Listener: events, Logger: opts.Logger.With("part", "mesos"),
		PortBlocked: func(_, host string, port uint16) bool { return t.engine.PortBlocked(host, port) },
	})
	return err
}

// source is the catalog that announces Hosts, or nil.
func (t *term) source(opts Options) (conductor.Source, error) {
	if opts.Catalog == nil {
		return nil, nil
	}
	conf, err := opts.catalog()
	if err != nil {
		return nil, err
	}
	c, err := consulcatalog.New(conf)
	if err != nil {
		return nil, err
	}
	t.cleanups.add("catalog", func(context.Context) error { c.Close(); return nil })
	return c, nil
}

func (t *term) start(ctx context.Context, opts Options) error {
	prober := healthcheck.New(healthcheck.Options{Logger: opts.Logger.With("part", "prober")})
	told := make(chan struct{})
	t.cleanups.add("prober", func(context.Context) error { prober.Stop(); <-told; return nil })
	go func() {
		defer close(told)
		for e := range prober.Events() {
			if p, ok := probeEvent(e); ok {
				t.engine.HandleProbe(p)
			}
		}
	}()
	// The coordinator first: the engine asks it for the outcome of open transactions.
	if err := t.conductor.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	t.cleanups.add("coordinator", func(context.Context) error { t.conductor.Stop(); return nil })
	runner := tasks{t.framework}
	if err := t.engine.Start(ctx, engine.Ports{Runner: runner, Logs: runner, Prober: probes{prober}, Coordinator: coordinator{t.conductor, t.registry}}); err != nil {
		return err
	}
	t.cleanups.add("engine", func(context.Context) error { t.engine.Stop(); return nil })
	if err := t.framework.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	t.cleanups.add("framework", t.framework.Stop)
	return nil
}

// raise ends the term because a Host has seen a higher epoch, and lets the next one begin above it.
func (t *term) raise(host string, seen uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), raiseTimeout)
	defer cancel()
	if err := t.lead.Raise(ctx, seen); err != nil {
		// Most of all when another orchestrator leads: then the store says so, too.
		t.lead.Fatal(fmt.Errorf("host %s has seen epoch %d: %w", host, seen, err))
	}
}

// stop ends everything, in the reverse order of its start. Nothing is finished, and nothing is written that was not begun:
// open Deploys go on in the next term. It returns at the latest when ctx ends; with an error, something may still run.
func (t *term) stop(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- t.cleanups.run(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errStillRuns, ctx.Err())
	}
}
