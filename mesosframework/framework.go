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

	"github.com/avast/retry-go/v4"
	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"
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

// run makes one subscription after another.
func (f *Framework) run() {
	for f.ctx.Err() == nil {
		// Never at once: a cluster of schedulers would storm a new master.
		st, err := f.connect()
		if err == nil {
			err = f.runSession(st)
		}
		if f.ctx.Err() != nil {
			return
		}
		f.noteError(err)
		if isFatal(err) {
			f.log.Error("the framework ends", "error", err)
			f.mu.Lock()
			f.err = err
			f.mu.Unlock()
			f.cancel(err)
			return
		}
		f.log.Warn("the subscription ended; another one follows", "error", err)
		pause := time.NewTimer(time.Duration(rand.Int64N(int64(f.opts.BackoffBase) + 1)))
		select {
		case <-pause.C:
		case <-f.ctx.Done():
			pause.Stop()
		}
	}
}

// connect subscribes, with full jitter between attempts, until it works or a
// fatal error or Stop ends it.
func (f *Framework) connect() (*stream, error) {
	var st *stream
	err := retry.Do(func() error {
		f.mu.Lock()
		call := f.subscribeCall()
		f.mu.Unlock()
		var err error
		st, err = f.masters.subscribe(f.ctx, f.subClient, call, f.opts.CallTimeout)
		return err
	},
		retry.Context(f.ctx), retry.Attempts(0), retry.LastErrorOnly(true),
		retry.Delay(f.opts.BackoffBase), retry.MaxDelay(f.opts.BackoffMax), retry.DelayType(retry.FullJitterBackoffDelay),
		retry.RetryIf(func(err error) bool { return !isFatal(err) }),
		retry.OnRetry(func(n uint, err error) {
			f.noteError(err)
			f.log.Warn("cannot subscribe", "attempt", n+1, "error", err)
		}))
	return st, err
}

// subscribeCall describes us to the master. f.mu must be held.
func (f *Framework) subscribeCall() *scheduler.Call {
	o := &f.opts
	timeout, checkpoint := o.FailoverTimeout.Seconds(), true
	info := &mesos.FrameworkInfo{
		User: o.User, Name: o.Name, FailoverTimeout: &timeout, Checkpoint: &checkpoint, Roles: []string{o.Role},
		Capabilities: []mesos.FrameworkInfo_Capability{
			{Type: mesos.FrameworkInfo_Capability_PARTITION_AWARE},
			{Type: mesos.FrameworkInfo_Capability_TASK_KILLING_STATE},
			{Type: mesos.FrameworkInfo_Capability_MULTI_ROLE},
			{Type: mesos.FrameworkInfo_Capability_RESERVATION_REFINEMENT},
			{Type: mesos.FrameworkInfo_Capability_REGION_AWARE},
		},
	}
	if o.Hostname != "" {
		info.Hostname = &o.Hostname
	}
	if o.WebUIURL != "" {
		info.WebUiURL = &o.WebUIURL
	}
	if o.Credentials != nil {
		info.Principal = &o.Credentials.Principal
	}
	call := calls.Subscribe(info)
	if id := f.core.frameworkID; id != "" {
		call = call.With(calls.SubscribeTo(id))
	}
	if f.core.startSuppressed() {
		call.Subscribe.SuppressedRoles = []string{o.Role}
	}
	return call
}

// runSession lives one subscription and says why it ended.
func (f *Framework) runSession(st *stream) error {
	f.number++
	s := &session{
		f: f, number: f.number, stream: st, client: newClient(f.opts.TLS, 1),
		events: make(chan *scheduler.Event, f.opts.MaxEvents), notify: make(chan struct{}, 1),
	}
	s.ctx, s.cancel = context.WithCancelCause(f.ctx)
	var workers sync.WaitGroup
	workers.Go(s.read)
	workers.Go(s.makeCalls)
	// The body's Close makes a blocked read return.
	unblock := context.AfterFunc(s.ctx, func() { _ = st.body.Close() })

	connected, err := f.process(s)
	s.end(err)
	if !isFatal(err) {
		err = context.Cause(s.ctx)
	}
	f.mu.Lock()
	f.session = nil
	f.mu.Unlock()
	workers.Wait()
	if unblock() {
		_ = st.body.Close()
	}
	if !connected {
		return err
	}
	f.decide(func(c *core, _ time.Time) { c.disconnect() })
	f.mu.Lock()
	f.state.Connected, f.state.Since = false, time.Now()
	f.mu.Unlock()
	// Also on the way out: the Listener should know.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), f.opts.StoreTimeout)
	defer cancel()
	f.opts.Listener.HandleDisconnected(ctx, err)
	return err
}

// process takes the events of a session, until it ends.
func (f *Framework) process(s *session) (connected bool, err error) {
	// SUBSCRIBED or ERROR must come first, and soon.
	select {
	case e := <-s.events:
		if err := f.subscribed(s, e); err != nil {
			return false, err
		}
	case <-time.After(f.opts.CallTimeout):
		return false, fmt.Errorf("the master accepted the subscription, then sent no event within %s", f.opts.CallTimeout)
	case <-s.ctx.Done():
		// An ERROR event and the end of the stream come together.
		select {
		case e := <-s.events:
			if e.Type == scheduler.Event_ERROR {
				return false, f.event(e)
			}
		default:
		}
		return false, context.Cause(s.ctx)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case e := <-s.events:
			if err := f.event(e); err != nil {
				return true, err
			}
		case <-timer.C:
			f.decide((*core).tick)
		case <-f.wake:
		case <-s.ctx.Done():
			// What the master said last explains the end better than the end does.
			for {
				select {
				case e := <-s.events:
					if err := f.event(e); err != nil && isFatal(err) {
						return true, err
					}
					continue
				default:
				}
				return true, context.Cause(s.ctx)
			}
		}
		f.mu.Lock()
		wait := f.core.nextTick(time.Now(), tickInterval)
		f.mu.Unlock()
		timer.Reset(wait)
	}
}

// subscribed takes up a subscription: the id is made durable first, then the
// owner's tasks are asked for, and only then offers and updates are looked at.
func (f *Framework) subscribed(s *session, e *scheduler.Event) error {
	if e.Type != scheduler.Event_SUBSCRIBED {
		if err := f.event(e); err != nil {
			return err
		}
		return fmt.Errorf("the master's first event is %s, not SUBSCRIBED", e.Type)
	}
	sub := e.GetSubscribed()
	id := sub.GetFrameworkID().GetValue()
	f.mu.Lock()
	had := f.core.frameworkID
	f.mu.Unlock()
	if had != "" && had != id {
		return fatal(ErrRefused, "subscribed as %s, the master says %q", had, id)
	}
	if err := validID(id); err != nil {
		return fatal(ErrRefused, "framework id of the master: %w", err)
	}
	if err := f.saveID(s.ctx, id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, f.opts.StoreTimeout)
	defer cancel()
	info := Subscription{FrameworkID: id, Master: s.stream.base.String(), Number: s.number, MasterVersion: sub.GetMasterInfo().GetVersion()}
	refs, err := f.opts.Listener.HandleSubscribed(ctx, info)
	if err != nil {
		return fmt.Errorf("the tasks to reconcile cannot be read: %w", err)
	}
	f.mu.Lock()
	f.session = s
	f.state.Connected, f.state.Since, f.state.Master = true, time.Now(), info.Master
	f.mu.Unlock()
	f.log.Info("subscribed", "master", info.Master, "framework", id, "tasks", len(refs))
	f.decide(func(c *core, now time.Time) { c.subscribe(id, refs, now) })
	return nil
}

func (f *Framework) saveID(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, f.opts.StoreTimeout)
	defer cancel()
	saved, err := f.opts.Journal.FrameworkID(ctx)
	if err == nil && saved == id {
		return nil
	}
	if err == nil && saved != "" {
		return fatal(ErrRefused, "the journal has framework id %s, the master says %s", saved, id)
	}
	if err == nil {
		err = f.opts.Journal.SaveFrameworkID(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("the framework id cannot be saved: %w", err)
	}
	return nil
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

// event takes one event of the stream. An error ends the session.
func (f *Framework) event(e *scheduler.Event) error {
	switch e.Type {
	case scheduler.Event_OFFERS:
		f.decide(func(c *core, now time.Time) { c.takeOffers(e.GetOffers().GetOffers(), now) })
	case scheduler.Event_RESCIND:
		f.decide(func(c *core, _ time.Time) { c.rescind(e.GetRescind().GetOfferID().Value) })
	case scheduler.Event_UPDATE:
		status := e.GetUpdate().GetStatus()
		f.decide(func(c *core, now time.Time) { c.update(&status, now) })
	case scheduler.Event_FAILURE:
		if x := e.GetFailure(); x != nil && x.ExecutorID == nil && x.AgentID != nil {
			f.decide(func(c *core, now time.Time) { c.agentGone(x.AgentID.Value, now) })
		}
	case scheduler.Event_ERROR:
		return streamError(e.GetError().GetMessage())
	}
	// Inverse offers, messages, operations and what newer masters may send need
	// nothing from us.
	return nil
}
