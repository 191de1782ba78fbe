package actor

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ErrStopped says that the actor runs no more functions.
var ErrStopped = errors.New("actor: stopped")

// Limit bounds the functions that wait in one actor. It is far above what a
// machine full of tasks produces; only a bug reaches it.
const Limit = 1 << 18

// Actor is one queue with one goroutine. Its methods are safe for concurrent
// use.
type Actor struct {
	mu      sync.Mutex
	queue   []func()
	stopped bool
	wake    chan struct{}
	done    chan struct{}
}

// New starts an actor.
func New() *Actor {
	a := &Actor{wake: make(chan struct{}, 1), done: make(chan struct{})}
	go a.run()
	return a
}

func (a *Actor) run() {
	defer close(a.done)
	for {
		a.mu.Lock()
		batch := a.queue
		a.queue = nil
		stopped := a.stopped
		a.mu.Unlock()
		if stopped {
			return
		}
		for _, f := range batch {
			a.mu.Lock()
			stopped = a.stopped
			a.mu.Unlock()
			if stopped {
				return
			}
			f()
		}
		if len(batch) == 0 {
			<-a.wake
		}
	}
}

// Post queues f and reports whether it was taken: not after Stop, and not when
// the queue is full.
func (a *Actor) Post(f func()) bool {
	a.mu.Lock()
	if a.stopped || len(a.queue) >= Limit {
		a.mu.Unlock()
		return false
	}
	a.queue = append(a.queue, f)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
	return true
}

// Call runs f on the actor and waits for its end. It must not be called from
// the actor itself.
func (a *Actor) Call(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	if !a.Post(func() { defer close(ran); f() }) {
		return ErrStopped
	}
	select {
	case <-ran:
		return nil
	case <-a.done:
		select {
		case <-ran:
			return nil
		default:
			return ErrStopped
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop drops what waits, lets the running function finish, and returns when
// the goroutine has ended. It must not be called from the actor itself.
func (a *Actor) Stop() {
	a.mu.Lock()
	a.stopped = true
	a.queue = nil
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
	<-a.done
}

// Timer is a function that is due later on an actor.
type Timer struct {
	timer     *time.Timer
	mu        sync.Mutex
	cancelled bool
}

// After posts f once d has passed. Cancel it when it is no longer wanted.
func (a *Actor) After(d time.Duration, f func()) *Timer {
	t := &Timer{}
	t.timer = time.AfterFunc(d, func() {
		a.Post(func() {
			t.mu.Lock()
			cancelled := t.cancelled
			t.mu.Unlock()
			if !cancelled {
				f()
			}
		})
	})
	return t
}

// Cancel makes sure that the function does not run, when called on the actor;
// a nil timer is fine.
func (t *Timer) Cancel() {
	if t == nil {
		return
	}
	t.timer.Stop()
	t.mu.Lock()
	t.cancelled = true
	t.mu.Unlock()
}
