package mesosframework

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/avast/retry-go/v4"
	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"
)

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
				return false, f.events(e, nil)
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
			if err := f.events(e, s.events); err != nil {
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
					if err := f.events(e, nil); err != nil && isFatal(err) {
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
		if err := f.events(e, nil); err != nil {
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

// eventsAtOnce bounds the events that are taken in one decision: after a
// reconciliation of very many tasks, one at a time would let every other user of
// the lock in between.
const eventsAtOnce = 64

// events takes an event of the stream and, if more is given, those that wait
// behind it. An error ends the session.
func (f *Framework) events(e *scheduler.Event, more <-chan *scheduler.Event) (err error) {
	f.decide(func(c *core, now time.Time) {
		for n := 1; ; n++ {
			if err = c.event(e, now); err != nil || n == eventsAtOnce {
				return
			}
			select {
			case e = <-more:
			default:
				return
			}
		}
	})
	return err
}

// event takes one event of the stream.
func (c *core) event(e *scheduler.Event, now time.Time) error {
	switch e.Type {
	case scheduler.Event_OFFERS:
		c.takeOffers(e.GetOffers().GetOffers(), now)
	case scheduler.Event_RESCIND:
		c.rescind(e.GetRescind().GetOfferID().Value)
	case scheduler.Event_UPDATE:
		status := e.GetUpdate().GetStatus()
		c.update(&status, now)
	case scheduler.Event_FAILURE:
		if x := e.GetFailure(); x != nil && x.ExecutorID == nil && x.AgentID != nil {
			c.agentGone(x.AgentID.Value, now)
		}
	case scheduler.Event_ERROR:
		return streamError(e.GetError().GetMessage())
	default:
		// Inverse offers, messages, operations and what newer masters may send need
		// nothing from us.
	}
	return nil
}
