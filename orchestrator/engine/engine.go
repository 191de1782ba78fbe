package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/cutover/cutover/internal/crashpoint"
	"github.com/cutover/cutover/orchestrator/store"
)

// ErrStopped is returned by calls to an engine that stopped, or whose term is over.
var ErrStopped = errors.New("engine: stopped")

// Engine is the heart of the orchestrator. Create it with New, give it its neighbours with Start. All exported methods are
// safe for concurrent use.
type Engine struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics
	ports   Ports

	queue chan *item
	inbox *inbox
	fan   *fanout
	used  *usedPorts

	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup
	over   chan struct{} // closed when the loop ended
	runner *lane
	coord  *lane
	slots  chan struct{} // outputs that are read at once

	mu      sync.Mutex
	started bool
	stopped bool
	fatal   error

	// frozen: there is no loop, and s, which mu protects then, changes only by what is read of it.
	frozen bool

	// Owned by the loop.
	s     *state
	batch *batch
	// together collects the Deploys of a lock-step that begin their transaction in this moment; nil otherwise.
	together []*deployRecord
	ids      *ulid.MonotonicEntropy
}

// item is one caller's turn in the loop.
type item struct {
	run  func() error
	err  error
	done chan struct{}
}

// New returns an engine that does nothing yet: calls wait until Start.
func New(opts Options) (*Engine, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(opts.Registerer)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		opts: opts, log: opts.Logger, metrics: m,
		queue: make(chan *item, opts.MaxQueue), inbox: newInbox(), fan: newFanout(), used: &usedPorts{},
		over: make(chan struct{}), runner: newLane(), coord: newLane(),
		slots: make(chan struct{}, 4), ids: ulid.Monotonic(opts.Entropy, 0),
	}
	if r := opts.Registerer; r != nil {
		if err := errors.Join(r.Register(newDriftCollector(e)), r.Register(newSourceCollector(e))); err != nil {
			return nil, err
		}
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e, nil
}

// Start loads the state, resumes what was going on and begins to work. The coordinator must have loaded its own state by
// then: Start asks it for the outcome of open transactions. It is called once.
func (e *Engine) Start(ctx context.Context, p Ports) error {
	if p.Runner == nil || p.Prober == nil || p.Coordinator == nil || p.Logs == nil {
		return errors.New("engine: Start needs all Ports")
	}
	e.mu.Lock()
	if e.started || e.stopped {
		e.mu.Unlock()
		return errors.New("engine: started twice, or after Stop")
	}
	e.started, e.ports = true, p // together: metrics are asked for at any time
	e.mu.Unlock()
	s, err := load(ctx, e.opts.Store, e.log)
	if err != nil {
		return fmt.Errorf("engine: loading the state: %w", err)
	}
	e.s = s
	e.used.reset(s.tasks)
	e.done.Add(3)
	go func() { defer e.done.Done(); e.runner.run() }()
	go func() { defer e.done.Done(); e.coord.run() }()
	if err := e.resume(ctx); err != nil {
		e.done.Done()
		e.Stop()
		return fmt.Errorf("engine: resuming: %w", err)
	}
	go func() { defer e.done.Done(); e.loop() }()
	return nil
}

// Stop ends the loop and everything that the engine started. Deploys go on at the next start. It is idempotent.
func (e *Engine) Stop() {
	e.mu.Lock()
	already := e.stopped
	e.stopped = true
	e.mu.Unlock()
	e.cancel()
	e.runner.close()
	e.coord.close()
	e.done.Wait()
	if !already {
		e.fan.close()
	}
}

// Err says why the engine stopped by itself, or nil.
func (e *Engine) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.fatal
}

// fail ends the term: what is in memory is ahead of the store.
func (e *Engine) fail(err error) {
	e.mu.Lock()
	first := e.fatal == nil
	if first {
		e.fatal = err
	}
	e.mu.Unlock()
	if first {
		e.log.Error("the term is over: restart the orchestrator", "error", err)
		e.cancel()
		e.opts.Fatal(err)
	}
}

// do runs f in the loop and returns when what it changed is durable. Once it is queued it is not given up: f runs exactly
// once, or never if the engine stops first. f must not keep what belongs to the state.
func (e *Engine) do(ctx context.Context, f func() error) error {
	if e.frozen {
		e.mu.Lock()
		defer e.mu.Unlock()
		return f()
	}
	it := &item{done: make(chan struct{}), run: func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return f()
	}}
	select {
	case e.queue <- it:
	case <-ctx.Done():
		return ctx.Err()
	case <-e.ctx.Done():
		return ErrStopped
	}
	select {
	case <-it.done:
		return it.err
	case <-e.over:
	}
	select { // the loop may have answered as its last act
	case <-it.done:
		return it.err
	default:
		return ErrStopped
	}
}

// post runs f in the loop later, for answers of neighbours. It never blocks, so the loop itself may use it.
func (e *Engine) post(f func()) { e.inbox.put(f) }

func (e *Engine) now() time.Time { return e.opts.Now().UTC() }

func (e *Engine) newID() string {
	id, err := ulid.New(ulid.Timestamp(e.now()), e.ids)
	if err != nil { // the same millisecond gave out 2^80 ids, or the system has no randomness: no id may repeat
		id = ulid.Make()
	}
	return lower(id.String())
}

// loop is the one goroutine that owns the state.
func (e *Engine) loop() {
	defer close(e.over)
	defer e.cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var first *item
		select {
		case <-e.ctx.Done():
			return
		case first = <-e.queue:
		case <-e.inbox.ready:
		case <-timer.C:
		}
		if err := e.turn(first); err != nil {
			e.fail(err)
			return
		}
		wait := e.opts.SafetyInterval
		if w := e.s.wake; !w.IsZero() {
			wait = max(0, w.Sub(e.now()))
		}
		timer.Reset(wait)
	}
}

// maxBatch bounds the callers whose changes share one Commit.
const maxBatch = 128

// turn is one batch: change, commit, then answer, act and tell.
func (e *Engine) turn(first *item) error {
	e.batch = newBatch(e.now())
	var answered []*item
	take := func(it *item) {
		it.err = it.run()
		answered = append(answered, it)
	}
	if first != nil {
		take(first)
	}
	for _, report := range e.inbox.take() {
		e.report(report)
	}
drain:
	for len(answered) < maxBatch && e.batch.size() < store.MaxOps/2 {
		select {
		case it := <-e.queue:
			take(it)
		default:
			break drain
		}
	}
	e.due()
	e.settle()
	if err := e.commit(); err != nil {
		for _, it := range answered {
			it.err = fmt.Errorf("%w: %w", ErrStopped, err)
			close(it.done)
		}
		return err
	}
	for _, it := range answered {
		close(it.done)
	}
	for _, act := range e.batch.after {
		act()
	}
	return nil
}

// commit writes all that the batch changed. Tasks, Amendments and events go first if one Commit cannot hold everything: a
// Deploy that is loaded without the step that made them makes them again, under the same names; tasks of one that is not there
// at all are given up (disown). What belongs to one App follows, Deploys before Apps (heal).
func (e *Engine) commit() error {
	groups := e.batch.ops(e.s)
	for _, ops := range groups {
		// Stop must not cut a Commit short: its outcome would be unknown.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), e.opts.StoreTimeout)
		crashpoint.At("before-write-engine")
		_, err := e.opts.Store.Commit(ctx, e.opts.Fence, ops...)
		crashpoint.At("after-write-engine")
		cancel()
		if err != nil {
			return fmt.Errorf("writing %d records: %w", len(ops), err)
		}
	}
	if len(groups) > 0 {
		e.used.update(e.batch.tasks, e.s.tasks)
	}
	return nil
}
