package mesosframework

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// Framework runs tasks on a Mesos cluster. Its methods are safe for concurrent
// use. Make it with New, then Start and Stop it once, or Run it.
type Framework struct {
	opts      Options
	log       *slog.Logger
	masters   *masters
	subClient *http.Client
	ackClient *http.Client
	lanes     []chan laneJob
	sandbox   *http.Client

	ctx    context.Context // of everything; ended by Stop or a fatal error
	cancel context.CancelCauseFunc
	group  sync.WaitGroup
	done   chan struct{}

	mu      sync.Mutex
	core    *core
	session *session // nil while disconnected
	wake    chan struct{}
	started bool
	state   State
	number  uint64
	err     error
}

// State is a snapshot of a Framework for humans and metrics.
type State struct {
	Connected   bool
	FrameworkID string
	// Master is the leading master's base URL while connected.
	Master string
	// Since is when the connection was made or lost.
	Since time.Time
	// LastError says why the last subscription or attempt ended, and LastErrorAt when.
	LastError   string
	LastErrorAt time.Time
	// Suppressed says that no offers are wanted.
	Suppressed bool
	// Pending tasks wait for offers, Tasks are launched and not durably ended,
	// Unreconciled ones were asked about without an answer yet.
	Pending, Tasks, Unreconciled, Agents int
	Stats                                Stats
}

// tickInterval is how often deadlines are looked at; no deadline needs better.
const tickInterval = 100 * time.Millisecond

// New checks the options and makes a Framework; nothing runs yet.
func New(o Options) (*Framework, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64()
	}
	m, err := newMasters(&o)
	if err != nil {
		return nil, err
	}
	f := &Framework{
		opts: o, log: o.Logger, masters: m,
		subClient: newClient(o.TLS, 0), ackClient: newClient(o.TLS, o.Lanes), sandbox: newClient(o.TLS, 8),
		done: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	f.core = newCore(&f.opts)
	for range o.Lanes {
		f.lanes = append(f.lanes, make(chan laneJob, o.MaxUpdates))
	}
	f.state.Since = time.Now()
	return f, nil
}

// Start loads the framework id and begins to subscribe, for as long as it takes.
// ctx bounds the start only.
func (f *Framework) Start(ctx context.Context) error {
	f.mu.Lock()
	if f.started {
		f.mu.Unlock()
		return errors.New("mesosframework: started twice")
	}
	f.started = true
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	f.mu.Unlock()

	id, err := f.opts.Journal.FrameworkID(ctx)
	if err != nil {
		f.cancel(nil)
		close(f.done)
		return fmt.Errorf("mesosframework: load the framework id: %w", err)
	}
	if id == "" {
		id = f.opts.FrameworkID
	}
	f.mu.Lock()
	f.core.frameworkID = id
	f.mu.Unlock()
	for _, lane := range f.lanes {
		f.group.Go(func() { f.runLane(lane) })
	}
	f.group.Go(f.run)
	go func() {
		f.group.Wait()
		for _, c := range []*http.Client{f.subClient, f.ackClient, f.sandbox, f.masters.client} {
			c.CloseIdleConnections()
		}
		close(f.done)
	}()
	return nil
}

// Stop ends the subscription and waits for all goroutines, as long as ctx
// lasts. Tasks stay: the master keeps them for Options.FailoverTimeout.
func (f *Framework) Stop(ctx context.Context) error {
	f.mu.Lock()
	started := f.started
	f.mu.Unlock()
	if !started {
		return nil
	}
	f.cancel(ErrStopped)
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("mesosframework: stop: a call of the Journal or the Listener has not returned: %w", ctx.Err())
	}
}

// Run starts the Framework, waits until ctx ends or the Framework fails for
// good, and stops it. It returns nil when ctx ended.
func (f *Framework) Run(ctx context.Context) error {
	if err := f.Start(ctx); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-f.ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.opts.StoreTimeout+f.opts.CallTimeout)
	defer cancel()
	return errors.Join(f.Stop(stop), f.Err())
}

// Done is closed when the Framework has ended, by Stop or by a fatal error.
func (f *Framework) Done() <-chan struct{} { return f.done }

// Err returns why the Framework ended by itself: ErrFailedOver,
// ErrFrameworkRemoved, ErrUnauthorized or ErrRefused; nil while it runs and
// after Stop.
func (f *Framework) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// decide lets the core make a decision and starts its effects.
func (f *Framework) decide(decision func(*core, time.Time)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	decision(f.core, time.Now())
	f.dispatch()
}

// dispatch starts the effects of a decision, without waiting for any. f.mu must
// be held: that keeps effects in the order of the decisions.
func (f *Framework) dispatch() {
	s := f.session
	for _, e := range f.core.take() {
		switch e := e.(type) {
		case callEffect:
			if s != nil {
				s.enqueue(e)
			}
		case launchEffect:
			if s == nil || !s.enqueue(e) {
				// Told to the core by a goroutine of its own: the lock is held.
				f.group.Go(func() { f.launchesOver(e.accepts, unsent, "the subscription ended first") })
			}
		case updateEffect:
			if s == nil {
				continue // it comes again
			}
			select {
			case f.lane(e.update.TaskID) <- laneJob{update: &e, from: s}:
			default:
				s.end(fmt.Errorf("%w (%d updates wait)", errBacklog, f.opts.MaxUpdates))
			}
		case lossEffect:
			l := e.loss
			select {
			case f.lane(l.Task.TaskID) <- laneJob{loss: &l}:
			default:
				// A loss must not get lost: wait for room beside the lock.
				f.group.Go(func() {
					select {
					case f.lane(l.Task.TaskID) <- laneJob{loss: &l}:
					case <-f.ctx.Done():
					}
				})
			}
		}
	}
	select {
	case f.wake <- struct{}{}: // deadlines may have changed
	default:
	}
}

// launchesOver tells the core the outcome of ACCEPT calls.
func (f *Framework) launchesOver(accepts []acceptCall, v verdict, detail string) {
	f.decide(func(c *core, now time.Time) {
		for i := range accepts {
			c.launched(accepts[i].taskIDs, accepts[i].offerIDs, v, detail, now)
		}
	})
}

func (f *Framework) taken(taskID, uuid string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.core.taken(taskID, uuid)
}

func (f *Framework) countRefused() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.core.stats.CallsRefused++
}

func (f *Framework) frameworkIDProto() mesos.FrameworkID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return mesos.FrameworkID{Value: f.core.frameworkID}
}

func (f *Framework) noteError(err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.LastError, f.state.LastErrorAt = err.Error(), time.Now()
}
