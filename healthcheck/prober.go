package healthcheck

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Target is one thing to probe.
type Target struct {
	// ID is the owner's name for it, unique in the Prober (say, a task id).
	ID string
	// Address is host:port.
	Address string
	Check   Check
	// Settled: it was healthy before, and nobody waits to hear so again. After a
	// restart of the owner there may be very many of these: their first probes are
	// spread, so that those of the others are not behind them.
	Settled bool
}

// settledPace is the time between the first probes of two settled targets.
const settledPace = 2 * time.Millisecond

// Event tells a change of one target. Its State is the target's at the time of
// the change.
type Event struct {
	ID      string
	Address string
	Change  Change
	// From is the phase before the change.
	From  Phase
	State State
}

// Options of a Prober. The zero value is usable.
type Options struct {
	// MaxInFlight bounds the probes that run at once; 256 by default. When all
	// are busy, due probes wait in the order in which they came due.
	MaxInFlight int
	// MaxTargets bounds the targets; 100,000 by default.
	MaxTargets int
	Logger     *slog.Logger
	// Probe replaces the network, for tests. It must return when ctx ends.
	Probe func(ctx context.Context, t Target) Result
}

// ErrStopped is returned when a Prober that was stopped is used.
var ErrStopped = errors.New("healthcheck: the prober is stopped")

// Prober probes any number of targets and tells their changes on Events. All
// methods are safe for concurrent use.
type Prober struct {
	opts   Options
	events chan Event
	wake   chan struct{} // cap 1: the heap changed
	ready  chan struct{} // cap 1: pending is not empty
	slots  chan struct{} // one token per probe in flight
	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	stopped bool
	targets map[string]*probed
	due     dueHeap
	// settledAt is when the first probe of the next settled target may start.
	settledAt time.Time
	// pending are targets with an undelivered event, in order. A target is in
	// it at most once: the queue is bounded by the number of targets.
	pending []*probed
}

// probed is a target with its state. Protected by Prober.mu.
type probed struct {
	target Target
	state  State
	at     time.Time // when to do something next
	index  int       // in the heap, -1 if not
	flying bool
	gone   bool
	queued bool // in Prober.pending
	// The undelivered event; its Change is None if there is none.
	event Event
}

// New returns a running Prober. Stop ends it.
func New(o Options) *Prober {
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 256
	}
	if o.MaxTargets <= 0 {
		o.MaxTargets = 100_000
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Probe == nil {
		o.Probe = newNetwork().probe
	}
	p := &Prober{
		opts: o, events: make(chan Event), wake: make(chan struct{}, 1), ready: make(chan struct{}, 1),
		slots: make(chan struct{}, o.MaxInFlight), targets: make(map[string]*probed),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.done.Add(2)
	go p.schedule()
	go p.deliver()
	return p
}

// Stop ends all probes and goroutines and closes Events. It is idempotent and
// takes no longer than one cancelled probe.
func (p *Prober) Stop() {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	p.cancel()
	p.done.Wait()
}

// Events is where changes are told, in order per target. A slow reader delays
// nothing but its own events: changes of a target that were not yet read are
// merged into the latest one (an intermediate flap is lost, the last state
// never is; a change back to where the last read event left off is dropped). It
// is closed by Stop.
func (p *Prober) Events() <-chan Event { return p.events }

// Add starts to probe a target, at once, or, if it is settled, within its
// interval; its grace begins then. Adding an ID again with the same address and
// check changes nothing; with another one the target starts anew.
func (p *Prober) Add(t Target) error {
	check, err := t.Check.Normalize()
	if err != nil {
		return fmt.Errorf("healthcheck: target %s: %w", t.ID, err)
	}
	t.Check = check
	if host, port, err := net.SplitHostPort(t.Address); err != nil || host == "" || port == "" || port == "0" {
		return fmt.Errorf("healthcheck: target %s: address %q is not host:port", t.ID, t.Address)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return ErrStopped
	}
	if old, ok := p.targets[t.ID]; ok {
		if old.target.Address == t.Address && old.target.Check == t.Check {
			return nil
		}
		p.drop(old)
	} else if len(p.targets) >= p.opts.MaxTargets {
		return fmt.Errorf("healthcheck: target %s: %d targets are probed already, the limit", t.ID, len(p.targets))
	}
	at := time.Now()
	if t.Settled {
		at = p.spread(at, check.Interval)
	}
	x := &probed{target: t, state: State{Since: at}, at: at, index: -1}
	p.targets[t.ID] = x
	p.push(x)
	return nil
}

// spread returns when the first probe of a settled target starts: settledPace
// after the one before it, and within its interval. p.mu must be held.
func (p *Prober) spread(now time.Time, interval time.Duration) time.Time {
	if p.settledAt.Before(now) {
		p.settledAt = now
	}
	at := now.Add(p.settledAt.Sub(now) % interval)
	p.settledAt = p.settledAt.Add(settledPace)
	return at
}

// Remove ends the probing of a target; an unknown one is ignored. At most one
// event that was already being handed over may still arrive.
func (p *Prober) Remove(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x, ok := p.targets[id]; ok {
		p.drop(x)
	}
}

// State returns what is known of a target now.
func (p *Prober) State(id string) (State, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x, ok := p.targets[id]
	if !ok {
		return State{}, false
	}
	return x.state, true
}

// Len returns the number of targets.
func (p *Prober) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.targets)
}

// drop removes a target. p.mu must be held.
func (p *Prober) drop(x *probed) {
	x.gone = true
	x.event = Event{}
	delete(p.targets, x.target.ID)
	if x.index >= 0 {
		heap.Remove(&p.due, x.index)
	}
}

// push puts a target into the heap and wakes the scheduler if it became the
// first. p.mu must be held.
func (p *Prober) push(x *probed) {
	if x.index >= 0 {
		heap.Fix(&p.due, x.index)
	} else {
		heap.Push(&p.due, x)
	}
	if p.due[0] == x {
		signal(p.wake)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// schedule starts each probe when it is due.
func (p *Prober) schedule() {
	defer p.done.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		x, wait := p.next()
		if x == nil {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-p.wake:
			case <-p.ctx.Done():
				return
			}
			continue
		}
		select {
		case p.slots <- struct{}{}:
		case <-p.ctx.Done():
			return
		}
		p.done.Add(1)
		go p.run(x)
	}
}

// next returns a target whose probe is due, marked as flying, or how long to
// wait. A flying target is due only for the end of its grace.
func (p *Prober) next() (*probed, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.due) > 0 {
		x := p.due[0]
		now := time.Now()
		if wait := x.at.Sub(now); wait > 0 {
			return nil, wait
		}
		heap.Pop(&p.due)
		if x.flying {
			p.apply(x, now, func() (State, Change) { return Expire(x.target.Check, x.state, now) })
			continue
		}
		x.flying = true
		if x.state.Phase == Starting && !x.state.GraceExpired {
			x.at = x.state.Since.Add(x.target.Check.Grace)
			p.push(x)
		}
		return x, 0
	}
	return nil, time.Hour
}

// run runs one probe and plans the next.
func (p *Prober) run(x *probed) {
	defer p.done.Done()
	defer func() { <-p.slots }()
	// The target's fields do not change while it is flying.
	start := time.Now()
	ctx, cancel := context.WithTimeout(p.ctx, x.target.Check.Timeout)
	r := p.opts.Probe(ctx, x.target)
	cancel()
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	x.flying = false
	if x.gone || p.ctx.Err() != nil {
		return
	}
	p.apply(x, now, func() (State, Change) { return Step(x.target.Check, x.state, r, now) })
	interval := x.target.Check.fast()
	if x.state.Phase != Starting {
		interval = x.target.Check.Interval
		interval += time.Duration(rand.Int64N(int64(interval)/10 + 1))
	}
	x.at = start.Add(interval)
	if x.at.Before(now) {
		x.at = now
	}
	p.push(x)
}

// apply moves a target to its next state and queues the event. p.mu must be
// held.
func (p *Prober) apply(x *probed, now time.Time, step func() (State, Change)) {
	from := x.state.Phase
	state, change := step()
	x.state = state
	if change == None {
		return
	}
	p.opts.Logger.Debug("health changed", "target", x.target.ID, "address", x.target.Address, "change", change.String(), "last_error", state.LastError)
	if x.event.Change == None {
		x.event = Event{ID: x.target.ID, Address: x.target.Address, Change: change, From: from, State: state}
		if !x.queued {
			x.queued = true
			p.pending = append(p.pending, x)
			signal(p.ready)
		}
		return
	}
	// The reader has not seen the former change yet: tell it the latest one,
	// from where it left off.
	x.event.Change, x.event.State = change, state
	if x.event.From == state.Phase && change != GraceExpired {
		x.event = Event{} // back where the reader believes it to be
	}
}

// deliver hands events over, one at a time.
func (p *Prober) deliver() {
	defer p.done.Done()
	defer close(p.events)
	for {
		select {
		case <-p.ready:
		case <-p.ctx.Done():
			return
		}
		for {
			e, more := p.take()
			if !more {
				break
			}
			if e.Change == None {
				continue
			}
			select {
			case p.events <- e:
			case <-p.ctx.Done():
				return
			}
		}
	}
}

// take removes the first pending event; it may be empty if it was merged away.
func (p *Prober) take() (Event, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.pending) == 0 {
		return Event{}, false
	}
	x := p.pending[0]
	p.pending[0] = nil
	p.pending = p.pending[1:]
	e := x.event
	x.event = Event{}
	x.queued = false
	return e, true
}

// dueHeap orders targets by when something is to be done with them.
type dueHeap []*probed

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *dueHeap) Push(v any) {
	x := v.(*probed)
	x.index = len(*h)
	*h = append(*h, x)
}

// Pop implements heap.Interface.
func (h *dueHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	x.index = -1
	return x
}
