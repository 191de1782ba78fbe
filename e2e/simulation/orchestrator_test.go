package simulation

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/cutover/cutover/orchestrator/engine"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn/conductor"
)

// incarnation is one orchestrator process in one term: the engine, the conductor and the registry of production.
type incarnation struct {
	w     *world
	epoch uint64
	ctx   context.Context
	die   context.CancelFunc
	tried chan struct{} // closed when the start has come to an end

	mu        sync.Mutex
	engine    *engine.Engine
	conductor *conductor.Conductor
	started   bool
}

func (i *incarnation) isDead() bool { return i.ctx.Err() != nil }

// live is the engine, while the process lives.
func (i *incarnation) live() *engine.Engine {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.isDead() || !i.started {
		return nil
	}
	return i.engine
}

// lead begins the next term, whatever the one before is doing: its epoch is what shuts that one out.
func (w *world) lead() {
	w.mu.Lock()
	if w.ending {
		w.mu.Unlock()
		return
	}
	w.epoch++
	inc := &incarnation{w: w, epoch: w.epoch, tried: make(chan struct{})}
	w.mu.Unlock()
	inc.ctx, inc.die = context.WithCancel(context.Background())
	w.mu.Lock()
	w.now = inc
	w.terms = append(w.terms, inc)
	w.mu.Unlock()
	err := inc.start()
	close(inc.tried)
	if err != nil {
		w.tell("orchestrator e%d does not start: %v", inc.epoch, err)
		inc.crash()
		w.leadAgain(time.Second)
	}
}

// leadAgain starts an orchestrator after a while, if none lives then.
func (w *world) leadAgain(d time.Duration) {
	w.after(d, "lead", func() {
		if inc := w.leader(); inc == nil || inc.isDead() {
			w.lead()
		}
	})
}

func (i *incarnation) start() error {
	w := i.w
	log := slog.New(&storyteller{s: w.schedule, who: fmt.Sprintf("e%d", i.epoch), alive: i.ctx})
	fence := store.Fence{Epoch: i.epoch}
	st := &fencedStore{Store: w.store, inc: i}
	fatal := func(err error) {
		w.tell("e%d: the term is over: %v", i.epoch, err)
		i.crash()
		w.leadAgain(between(w.chance("term"), 100*time.Millisecond, 2*time.Second))
	}
	e, err := engine.New(engine.Options{Store: st, Fence: fence, Logger: log, Fatal: fatal, Entropy: dice{w.chance("ids")}})
	if err != nil {
		return err
	}
	var hosts []registry.Host
	for _, h := range w.hosts {
		hosts = append(hosts, registry.Host{Name: h.name, Group: group, AgentURL: "http://127.0.0.1:1"})
	}
	reg, err := registry.New(i.ctx, registry.Options{
		Cluster: cluster, Hosts: hosts, Store: st, Fence: fence, Logger: log,
		Transport: func(h registry.Host) http.RoundTripper { return &wire{w: w, from: i, to: w.host(h.Name)} },
		Jitter: func(d time.Duration) time.Duration {
			return between(w.chance("jitter"), 0, d)
		},
	})
	if err != nil {
		return err
	}
	c, err := conductor.New(conductor.Options{Registry: reg, Store: st, Fence: fence, Listener: e, Fatal: fatal, Logger: log})
	if err != nil {
		return err
	}
	if err := c.Start(i.ctx); err != nil {
		return err
	}
	i.mu.Lock()
	i.conductor = c
	i.mu.Unlock()
	r := runner{w.mesos, i}
	p := &prober{m: w.mesos, inc: i, targets: map[string]*probed{}}
	i.mu.Lock()
	i.engine = e
	i.mu.Unlock()
	if err := e.Start(i.ctx, engine.Ports{Runner: r, Logs: r, Prober: p, Coordinator: coordinator{c, reg}}); err != nil {
		return err
	}
	i.mu.Lock()
	i.started = true
	i.mu.Unlock()
	go r.reconcile(i.ctx, e)
	return nil
}

// crash is kill -9: no message and no write of this process has any effect from now on.
func (i *incarnation) crash() {
	i.die()
	i.w.stops.Go(func() {
		<-i.tried
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.engine != nil {
			i.engine.Stop()
		}
		if i.conductor != nil {
			i.conductor.Stop()
		}
	})
}

// coordinator is the conductor with the declared Groups.
type coordinator struct {
	*conductor.Conductor
	registry *registry.Registry
}

// Groups implements engine.Coordinator.
func (c coordinator) Groups() []string { return c.registry.Groups() }

// dice is a source of entropy.
type dice struct{ *rand.Rand }

// Read implements io.Reader.
func (d dice) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(d.Uint32())
	}
	return len(p), nil
}

// fencedStore is the store as one process sees it: it takes its time, and now and then does not answer.
type fencedStore struct {
	store.Store
	inc *incarnation
}

// Commit implements store.Store.
func (s *fencedStore) Commit(ctx context.Context, f store.Fence, ops ...store.Op) (store.Revision, error) {
	w := s.inc.w
	key := fmt.Sprintf("commit e%d %s %d", s.inc.epoch, ops[0].Key, len(ops))
	dice := w.chance(key)
	if err := w.pause(s.inc.ctx, between(dice, 100*time.Microsecond, 8*time.Millisecond)); err != nil {
		return 0, fmt.Errorf("%w: %w", store.ErrUnknown, errDied)
	}
	if oneIn(dice, w.faults().store) {
		if oneIn(dice, 2) {
			w.tell("the store does not answer e%d: not written: %s", s.inc.epoch, ops[0].Key)
			return 0, fmt.Errorf("simulated: %w", store.ErrUnknown)
		}
		_, err := s.Store.Commit(ctx, f, ops...)
		w.tell("the store does not answer e%d: written (%v): %s", s.inc.epoch, err, ops[0].Key)
		w.decided(ops, err)
		return 0, fmt.Errorf("simulated: %w", store.ErrUnknown)
	}
	rev, err := s.Store.Commit(ctx, f, ops...)
	w.step(key)
	w.decided(ops, err)
	if err == nil { // the answer takes its time too, and may never come
		if werr := w.pause(s.inc.ctx, between(dice, 50*time.Microsecond, 4*time.Millisecond)); werr != nil {
			return 0, fmt.Errorf("%w: %w", store.ErrUnknown, errDied)
		}
	}
	return rev, err
}

// Get implements store.Store.
func (s *fencedStore) Get(ctx context.Context, key string) (store.Record, error) {
	if s.inc.isDead() {
		return store.Record{}, errDied
	}
	return s.Store.Get(ctx, key)
}

// List implements store.Store.
func (s *fencedStore) List(ctx context.Context, prefix, after string, limit int) ([]store.Record, error) {
	if s.inc.isDead() {
		return nil, errDied
	}
	return s.Store.List(ctx, prefix, after, limit)
}
