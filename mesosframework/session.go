package mesosframework

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/avast/retry-go/v4"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// session is one subscription from SUBSCRIBE to its end. Its goroutines (the
// reader and the one that makes ordered calls) end with its context.
type session struct {
	f      *Framework
	number uint64
	stream *stream
	ctx    context.Context
	cancel context.CancelCauseFunc
	events chan *scheduler.Event

	// calls are made by one goroutine on one connection: a master keeps order
	// per connection only.
	client *http.Client
	mu     sync.Mutex
	calls  []effect
	closed bool
	notify chan struct{}
}

// maxCalls bounds the calls that wait for the master.
const maxCalls = 10_000

// defaultHeartbeat is assumed until SUBSCRIBED says otherwise.
const defaultHeartbeat = 15 * time.Second

// end ends the session; the first reason counts.
func (s *session) end(reason error) { s.cancel(reason) }

// read decodes the stream into events. It never waits for their processing.
func (s *session) read() {
	heartbeat := defaultHeartbeat
	watchdog := time.AfterFunc(5*heartbeat, func() { s.end(errHeartbeat) })
	defer watchdog.Stop()
	records := newRecordReader(s.stream.body, s.f.opts.MaxRecord)
	for {
		b, err := records.next()
		if err != nil {
			if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				err = errStreamOver
			}
			s.end(err)
			return
		}
		e, err := decodeEvent(b)
		if err != nil {
			s.end(err)
			return
		}
		if sub := e.GetSubscribed(); sub != nil && sub.GetHeartbeatIntervalSeconds() > 0 {
			heartbeat = time.Duration(min(sub.GetHeartbeatIntervalSeconds(), 3600) * float64(time.Second))
		}
		watchdog.Reset(5 * heartbeat)
		if e.Type == scheduler.Event_HEARTBEAT {
			continue
		}
		select {
		case s.events <- e:
		default:
			s.end(fmt.Errorf("%w (%d events wait)", errBacklog, len(s.events)))
			return
		}
	}
}

// enqueue adds an ordered call or launch. It reports false if the session is
// over: the effect was not and will not be done.
func (s *session) enqueue(e effect) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if len(s.calls) >= maxCalls {
		s.end(fmt.Errorf("%w (%d calls wait)", errBacklog, len(s.calls)))
	}
	s.calls = append(s.calls, e)
	select {
	case s.notify <- struct{}{}:
	default:
	}
	return true
}

// dequeue returns the next effect, nil if there is none.
func (s *session) dequeue() effect {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.calls) == 0 {
		return nil
	}
	e := s.calls[0]
	s.calls[0] = nil
	s.calls = s.calls[1:]
	return e
}

// makeCalls makes the ordered calls until the session ends. Launches that were
// not made by then are told to the core.
func (s *session) makeCalls() {
	defer s.client.CloseIdleConnections()
	for s.ctx.Err() == nil {
		e := s.dequeue()
		if e == nil {
			select {
			case <-s.notify:
			case <-s.ctx.Done():
			}
			continue
		}
		switch e := e.(type) {
		case callEffect:
			s.makeCall(e.call)
		case launchEffect:
			s.makeLaunch(e)
		}
	}
	s.mu.Lock()
	s.closed = true
	left := s.calls
	s.calls = nil
	s.mu.Unlock()
	for _, e := range left {
		if l, ok := e.(launchEffect); ok {
			s.f.launchesOver(l.accepts, unsent, "the subscription ended first")
		}
	}
}

// makeCall makes a call that may be repeated. What the master refuses is logged
// and counted; the subscription stays.
func (s *session) makeCall(call *scheduler.Call) {
	err := retry.Do(func() error { return s.post(call) },
		retry.Context(s.ctx), retry.Attempts(3), retry.Delay(50*time.Millisecond), retry.LastErrorOnly(true),
		retry.OnRetry(func(n uint, err error) {
			s.f.log.Warn("a call is repeated", "call", call.Type.String(), "attempt", n+1, "error", err)
		}),
		retry.RetryIf(func(err error) bool {
			var ce *callError
			return errors.As(err, &ce) && (ce.verdict == unsent || ce.verdict == ambiguous)
		}))
	if err == nil || s.ctx.Err() != nil {
		return
	}
	s.failed(err)
}

// failed draws the consequence of a call that was not accepted.
func (s *session) failed(err error) {
	var ce *callError
	if !errors.As(err, &ce) {
		s.end(err)
		return
	}
	switch ce.verdict {
	case refused:
		s.f.countRefused()
		s.f.log.Warn("the master refused a call", "call", ce.what, "status", ce.status, "detail", ce.detail)
	case unauthorized:
		s.end(fatal(ErrUnauthorized, "%w", err))
	default:
		// A lost DECLINE would hold offers for ever: a new subscription frees all.
		s.end(err)
	}
}

// post makes one call.
func (s *session) post(call *scheduler.Call) error {
	ctx, cancel := context.WithTimeout(s.ctx, s.f.opts.CallTimeout)
	defer cancel()
	return post(ctx, s.client, s.stream.base, s.stream.cred, s.stream.id, call)
}

// makeLaunch saves the launches, then makes their ACCEPT calls: never the other
// way round, and each at most once.
func (s *session) makeLaunch(e launchEffect) {
	ctx, cancel := context.WithTimeout(s.ctx, s.f.opts.StoreTimeout)
	err := s.f.opts.Journal.SaveLaunching(ctx, e.launches)
	cancel()
	if err != nil {
		s.f.log.Error("launches cannot be saved, so they are not made", "tasks", len(e.launches), "error", err)
		s.f.launchesOver(e.accepts, unsent, "the launch cannot be saved: "+err.Error())
		return
	}
	for i := range e.accepts {
		if s.ctx.Err() != nil {
			s.f.launchesOver(e.accepts[i:], unsent, "the subscription ended first")
			return
		}
		v, detail := accepted, ""
		if err := s.post(e.accepts[i].call); err != nil {
			v, detail = ambiguous, err.Error()
			var ce *callError
			if errors.As(err, &ce) {
				v = ce.verdict
			}
			s.f.log.Warn("a launch was not accepted", "tasks", e.accepts[i].taskIDs, "verdict", v.String(), "error", err)
			switch v {
			case ambiguous:
				// A late copy of the call must not find its stream alive.
				s.end(fmt.Errorf("%w: %w", errOutcome, err))
			case unsent:
				s.end(err)
			default:
				s.failed(err)
			}
		}
		s.f.launchesOver(e.accepts[i:i+1], v, detail)
	}
}
