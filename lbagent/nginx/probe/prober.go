package probe

import (
	"container/heap"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Target is one upstream to check.
type Target struct {
	Name    string
	Address netip.AddrPort
	Health  driver.Health
}

// Config is what a Prober needs.
type Config struct {
	Client *Client
	// Alive says whether the workers answer at all. It is asked before a timeout is held against an upstream.
	Alive func(context.Context) bool
	// Changed is called, one call at a time for all Apps, when the set of red upstreams of an App changed. It may be called
	// more often than needed. Keep it short; it must honour its context. An error is tried again after a while.
	Changed func(ctx context.Context, app string) error
	// Generation names the worker generation of a result; "" makes it count for nothing. Nil: what the worker said in its
	// header.
	Generation func(Result) string
	// Concurrency bounds the checks in flight.
	Concurrency int
	Logger      *slog.Logger
}

// Prober checks upstreams all the time. All methods are safe for concurrent use.
type Prober struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // buffered, 1: the heap has an earlier head
	dirty  chan struct{} // buffered, 1: changed is not empty
	slots  chan struct{}

	mu         sync.Mutex
	apps       map[string]map[string]*entry
	queue      queue
	generation string
	changed    map[string]bool
}

// entry is one upstream. Protected by Prober.mu; index is -1 while it is not in the queue.
type entry struct {
	app    string
	target Target
	tally  tally
	due    time.Time
	index  int
	busy   bool
	gone   bool
	again  bool // something changed while a check was in flight: check once more at once
}

// New starts a Prober. Close ends it.
func New(cfg Config) *Prober {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Prober{
		cfg: cfg, ctx: ctx, cancel: cancel,
		wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1), slots: make(chan struct{}, max(1, cfg.Concurrency)),
		apps: make(map[string]map[string]*entry), changed: make(map[string]bool),
	}
	p.wg.Go(p.schedule)
	p.wg.Go(p.tell)
	return p
}

// Close ends the checks and waits for those in flight, which end with their context.
func (p *Prober) Close() {
	p.cancel()
	p.wg.Wait()
}

// Set makes targets the upstreams of the App that are checked. One that was there with the same name, address and check
// keeps its count.
func (p *Prober) Set(app string, targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	old := p.apps[app]
	next := make(map[string]*entry, len(targets))
	for _, t := range targets {
		e := old[t.Name]
		if e == nil || e.target.Address != t.Address || e.target.Health.Kind != t.Health.Kind || e.target.Health.Path != t.Health.Path {
			e = &entry{app: app, target: t, tally: newTally(t.Health, now), due: now, index: -1}
			e.tally.generation = p.generation
			heap.Push(&p.queue, e)
		} else {
			delete(old, t.Name)
			e.target = t
			e.tally.health = normal(t.Health)
			if soon := now.Add(e.tally.health.Interval); e.index >= 0 && soon.Before(e.due) {
				e.due = soon
				heap.Fix(&p.queue, e.index)
			}
		}
		next[t.Name] = e
	}
	for _, e := range old {
		e.gone = true
		if e.index >= 0 {
			heap.Remove(&p.queue, e.index)
		}
	}
	if len(next) == 0 {
		delete(p.apps, app)
	} else {
		p.apps[app] = next
	}
	poke(p.wake)
}

// Reconcile compares the red upstreams that the proxy holds for an App with the verdicts. An upstream that is red there and
// was never green here stays red (a new agent must not send traffic to what the last one took out); any other difference
// is told to the proxy again.
func (p *Prober) Reconcile(app string, redThere []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	differs := false
	there := make(map[string]bool, len(redThere))
	for _, name := range redThere {
		there[name] = true
		e := p.apps[app][name]
		if e != nil && !e.tally.risen {
			e.tally.red = true
		}
	}
	for name, e := range p.apps[app] {
		differs = differs || e.tally.red != there[name]
	}
	if differs {
		p.markLocked(app)
	}
}

// Generation tells which worker generation runs now. At a new one every count of successes starts again, and every
// upstream is checked at once.
func (p *Prober) Generation(generation string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if generation == "" || generation == p.generation {
		return
	}
	p.generation = generation
	now := time.Now()
	for app, entries := range p.apps {
		for _, e := range entries {
			if e.tally.red {
				p.markLocked(app) // a restarted nginx has lost what it was told
			}
			e.tally = e.tally.enter(generation, now)
			if e.busy {
				e.again = true
				continue
			}
			e.due = now
			if e.index >= 0 {
				heap.Fix(&p.queue, e.index)
			} else {
				heap.Push(&p.queue, e)
			}
		}
	}
	poke(p.wake)
}

// State sums up the checks of one upstream as seen by the generation. An upstream that is not checked is neither green nor
// red.
func (p *Prober) State(app, name, generation string) State {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.apps[app][name]; e != nil {
		return e.tally.state(generation)
	}
	return State{Status: "not checked"}
}

// Red lists the red upstreams of an App, sorted.
func (p *Prober) Red(app string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for name, e := range p.apps[app] {
		if e.tally.red {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Target returns what is checked under a name.
func (p *Prober) Target(app, name string) (Target, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.apps[app][name]; e != nil {
		return e.target, true
	}
	return Target{}, false
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// schedule starts each check when it is due and a slot is free.
func (p *Prober) schedule() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		p.mu.Lock()
		wait := time.Hour
		if len(p.queue) > 0 {
			wait = time.Until(p.queue[0].due)
		}
		p.mu.Unlock()
		if wait > 0 {
			timer.Reset(wait)
			select {
			case <-p.ctx.Done():
				return
			case <-p.wake:
			case <-timer.C:
			}
			continue
		}
		select {
		case <-p.ctx.Done():
			return
		case p.slots <- struct{}{}:
		}
		p.mu.Lock()
		if len(p.queue) == 0 || time.Until(p.queue[0].due) > 0 {
			p.mu.Unlock()
			<-p.slots
			continue
		}
		e := heap.Pop(&p.queue).(*entry)
		e.busy = true
		target, health := e.target, e.tally.health
		p.mu.Unlock()
		p.wg.Go(func() {
			start := time.Now()
			r := p.check(target, health)
			<-p.slots
			p.done(e, r, start)
		})
	}
}

func (p *Prober) check(t Target, h driver.Health) Result {
	r := p.cfg.Client.check(p.ctx, t.Address, h)
	if r.Generation != "" && p.cfg.Generation != nil {
		if r.Generation = p.cfg.Generation(r); r.Generation == "" {
			return Result{Verdict: Unknown, Text: "answered by a worker that is not a current one"}
		}
	}
	if r.Verdict == Failed && r.Generation == "" {
		// Nobody answered in time. It is the upstream's fault only if the workers themselves are well.
		ctx, cancel := context.WithTimeout(p.ctx, time.Second)
		defer cancel()
		if p.ctx.Err() != nil || !p.cfg.Alive(ctx) {
			return Result{Verdict: Unknown, Text: "nginx does not answer"}
		}
	}
	return r
}

func (p *Prober) done(e *entry, r Result, start time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.busy = false
	if e.gone || p.ctx.Err() != nil {
		return
	}
	now := time.Now()
	was := e.tally
	e.tally = was.observe(r, now)
	if e.tally.red != was.red {
		p.cfg.Logger.Info("upstream changed", "app", e.app, "upstream", e.target.Name, "red", e.tally.red, "status", e.tally.text)
		p.markLocked(e.app)
	}
	due, ok := e.tally.next(start, now)
	if e.again {
		e.again, due, ok = false, now, true
	}
	if ok {
		e.due = due
		heap.Push(&p.queue, e)
		if e.index == 0 {
			poke(p.wake)
		}
	}
}

// markLocked notes that the red set of the App is to be told. p.mu must be held.
func (p *Prober) markLocked(app string) {
	if p.cfg.Changed == nil {
		return
	}
	p.changed[app] = true
	poke(p.dirty)
}

// tell hands changed Apps to Config.Changed, one at a time.
func (p *Prober) tell() {
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.dirty:
		}
		for {
			p.mu.Lock()
			var app string
			found := false
			for app = range p.changed {
				found = true
				delete(p.changed, app)
				break
			}
			p.mu.Unlock()
			if !found {
				break
			}
			ctx, cancel := context.WithTimeout(p.ctx, 5*time.Second)
			err := p.cfg.Changed(ctx, app)
			cancel()
			if err == nil {
				continue
			}
			p.cfg.Logger.Debug("red upstreams not told to nginx, will try again", "app", app, "error", err)
			p.mu.Lock()
			p.markLocked(app)
			p.mu.Unlock()
			select {
			case <-p.ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}

// queue is a heap of entries by due time.
type queue []*entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push is for container/heap.
func (q *queue) Push(x any) {
	e := x.(*entry)
	e.index = len(*q)
	*q = append(*q, e)
}

// Pop is for container/heap.
func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	e.index = -1
	return e
}
