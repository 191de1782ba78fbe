package lead

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/orchestrator/store"
)

// DefaultTTL is the shortest that Consul takes for a session unless it is told otherwise. It ends a session between one and two of them after the last
// renewal: that is how long a crash of the leader leaves the cluster without one.
const DefaultTTL = 10 * time.Second

// Deadlines of the calls of Consul.
const (
	callTimeout = 5 * time.Second
	// watchWait is how long Consul may hold back the answer of a watch, watchTimeout how long it may take in all.
	watchWait    = 10 * time.Second
	watchTimeout = 15 * time.Second
	// leaveTimeout bounds letting go of the lock: who waits for it waits for Consul to end the session then.
	leaveTimeout = 2 * time.Second
)

// maxLeaderBytes bounds what is read of the lock's value.
const maxLeaderBytes = 4 << 10

// ConsulOptions are what a Consul election is made of. All but TTL are required.
type ConsulOptions struct {
	Client *consul.Client
	// Key is the lock: every write of a term checks its session in the same step (consulstore).
	Key string
	// Self is what the others learn of this process while it leads.
	Self Leader
	// Store numbers the terms.
	Store  store.Store
	Logger *slog.Logger
	// TTL of the session; DefaultTTL by default.
	TTL time.Duration
}

// Consul elects one of several orchestrators by a session lock. One goroutine owns the pure core in election.go; calls of
// Consul run beside it and come back as events. Safe for concurrent use.
type Consul struct {
	opts   ConsulOptions
	events chan any
	holds  chan *hold
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex
	leader  Leader
	leads   bool          // somebody holds the lock
	heard   time.Time     // when Consul said last who holds it
	changed chan struct{} // closed and replaced when leader changes

	// Owned by run.
	e       election
	held    *hold              // in leading and leaving
	renewal context.CancelFunc // of the session's renewer
}

// hold is the lock while this process has it.
type hold struct {
	session string
	gone    chan struct{} // closed when lock and session are let go of

	mu   sync.Mutex
	term *Term
	lost error
}

// lose ends the term, also one that is still to be made.
func (h *hold) lose(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost == nil {
		h.lost = err
	}
	if h.term != nil {
		h.term.Fatal(err)
	}
}

// bind makes the term one that lose ends.
func (h *hold) bind(t *Term) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.term = t
	return h.lost
}

// NewConsul begins to watch the lock. It takes part in the election only while Acquire waits. The caller ends it with Close.
func NewConsul(opts ConsulOptions) (*Consul, error) {
	if opts.Client == nil || opts.Key == "" || opts.Self.Name == "" || opts.Self.URL == "" || opts.Store == nil || opts.Logger == nil {
		return nil, errors.New("lead: Client, Key, Self, Store and Logger are required")
	}
	opts.TTL = cmp.Or(opts.TTL, DefaultTTL)
	c := &Consul{
		opts: opts, events: make(chan any, 16), holds: make(chan *hold, 1), changed: make(chan struct{}),
		e: election{phase: away}, renewal: func() {},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.work.Go(c.run)
	c.work.Go(c.watch)
	return c, nil
}

// Close ends everything. A term that is not released yet is over, and its lock is let go of by Consul.
func (c *Consul) Close() {
	c.cancel()
	c.work.Wait()
}

// Leader returns who holds the lock, as far as is known, and a channel that is closed when that changes. false: nobody.
func (c *Consul) Leader() (leader Leader, known bool, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leader, c.leads, c.changed
}

// Heard is when Consul said last who holds the lock, even if it was nothing new: what Leader returns was true then. It says so
// every 10 s at least as long as it answers; zero: never.
func (c *Consul) Heard() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard
}

// Acquire waits until this process holds the lock, and begins a term. Only one call at a time. The caller ends the term
// with Release.
func (c *Consul) Acquire(ctx context.Context) (*Term, error) {
	var h *hold
	c.post(wanted{})
	select {
	case h = <-c.holds:
	case <-ctx.Done():
		// The owner decides which came first: a hold that was won all the same is let go of.
		c.post(unwanted{})
		c.settle()
		select {
		case h = <-c.holds:
			return nil, errors.Join(ctx.Err(), c.release(h))
		default:
			return nil, ctx.Err()
		}
	case <-c.ctx.Done():
		return nil, errors.New("the election is closed")
	}
	t := &Term{done: make(chan struct{}), release: func() error { return c.release(h) }}
	err := h.bind(t)
	if err == nil {
		t.fence.Session = h.session
		t.fence.Epoch, err = nextEpoch(ctx, c.opts.Store, h.session, 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin a term: %w", err), t.Release())
	}
	t.raise = func(ctx context.Context, above uint64) error {
		_, err := nextEpoch(ctx, c.opts.Store, t.fence.Session, above)
		return err
	}
	return t, nil
}

// release lets go of the lock, and waits for it.
func (c *Consul) release(h *hold) error {
	c.post(released{})
	select {
	case <-h.gone:
		return nil
	case <-c.ctx.Done():
		return nil
	case <-time.After(2*leaveTimeout + time.Second):
		return errors.New("lock: Consul has not answered; it ends the session by itself")
	}
}

// post hands an event to the owner.
func (c *Consul) post(ev any) {
	select {
	case c.events <- ev:
	case <-c.ctx.Done():
	}
}

// settle waits until the owner has handled what was posted before.
func (c *Consul) settle() {
	done := make(barrier)
	c.post(done)
	select {
	case <-done:
	case <-c.ctx.Done():
	}
}

// barrier is an event that changes nothing.
type barrier chan struct{}

// run is the owner of the core.
func (c *Consul) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	defer func() {
		c.renewal()
		if c.held != nil {
			c.held.lose(errors.New("the election is closed"))
		}
	}()
	for {
		var ev any
		select {
		case ev = <-c.events:
		case <-timer.C:
			ev = timePassed{}
		case <-c.ctx.Done():
			return
		}
		switch ev := ev.(type) {
		case barrier:
			close(ev)
			continue
		case sessionMade:
			c.startRenewing(ev)
		}
		before := c.e
		var effects []any
		c.e, effects = c.e.step(ev, time.Now())
		if before.phase != c.e.phase {
			c.opts.Logger.Debug("election", "from", before.phase, "to", c.e.phase)
		}
		c.publish()
		for _, effect := range effects {
			c.carryOut(effect)
		}
		if l, ok := ev.(left); ok {
			c.afterLeft(l)
		}
		if c.e.at.IsZero() {
			timer.Reset(time.Hour)
		} else {
			timer.Reset(max(time.Until(c.e.at), time.Millisecond))
		}
	}
}

// publish shows who holds the lock.
func (c *Consul) publish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	leads := c.e.holder != ""
	if c.leader == c.e.leader && c.leads == leads {
		return
	}
	c.leader, c.leads = c.e.leader, leads
	close(c.changed)
	c.changed = make(chan struct{})
	if leads {
		c.opts.Logger.Info("the cluster has a leader", "leader", c.leader.Name, "url", c.leader.URL)
	} else {
		c.opts.Logger.Info("the cluster has no leader")
	}
}

func (c *Consul) carryOut(effect any) {
	switch ef := effect.(type) {
	case makeSession:
		c.work.Go(func() { c.post(c.makeSession()) })
	case takeLock:
		c.work.Go(func() { c.post(c.takeLock(ef.session)) })
	case won:
		c.held = &hold{session: ef.session, gone: make(chan struct{})}
		c.holds <- c.held // never blocks: there is one hold at a time, and Acquire has taken the last
	case lost:
		c.held.lose(errors.New(string(ef.why)))
	case leave:
		c.renewal()
		c.work.Go(func() {
			c.leave(ef.session)
			c.post(left(ef))
		})
	}
}

// afterLeft tells the owner of a term that its lock is gone.
func (c *Consul) afterLeft(l left) {
	if c.held != nil && c.held.session == l.session {
		close(c.held.gone)
		c.held = nil
	}
}

// makeSession makes a session.
func (c *Consul) makeSession() any {
	ctx, cancel := context.WithTimeout(c.ctx, callTimeout)
	defer cancel()
	started := time.Now()
	id, _, err := c.opts.Client.Session().Create(&consul.SessionEntry{
		Name: "cutover " + c.opts.Self.Name, TTL: c.opts.TTL.String(), Behavior: consul.SessionBehaviorRelease, LockDelay: lockDelay,
	}, (&consul.WriteOptions{}).WithContext(ctx))
	if err != nil {
		c.opts.Logger.Warn("no session of Consul", "error", err)
		return sessionRefused{}
	}
	return sessionMade{id, started}
}

// startRenewing keeps a new session until leave.
func (c *Consul) startRenewing(s sessionMade) {
	c.renewal()
	ctx, cancel := context.WithCancel(c.ctx)
	c.renewal = cancel
	c.work.Go(func() { c.renew(ctx, s.id, s.at) })
}

// renew keeps a session until ctx ends, and says when it is lost: at the latest one TTL after the last renewal was begun,
// which is never after Consul has ended it.
func (c *Consul) renew(ctx context.Context, id string, last time.Time) {
	every := c.opts.TTL / 4
	for pause := every; ; {
		timer := time.NewTimer(min(pause, max(0, time.Until(last.Add(c.opts.TTL)))))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		started := time.Now()
		if started.Sub(last) >= c.opts.TTL {
			c.post(sessionLost{id})
			return
		}
		call, cancel := context.WithDeadline(ctx, last.Add(c.opts.TTL))
		entry, _, err := c.opts.Client.Session().Renew(id, (&consul.WriteOptions{}).WithContext(call))
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.opts.Logger.Warn("the session of Consul was not renewed", "since", started.Sub(last), "error", err)
			pause = every / 10
		case entry == nil:
			c.post(sessionLost{id})
			return
		default:
			last, pause = started, every
		}
	}
}

// takeLock tries to take the lock, and reads it back: the read is consistent, so nobody else holds it if we do.
func (c *Consul) takeLock(session string) any {
	ctx, cancel := context.WithTimeout(c.ctx, callTimeout)
	defer cancel()
	value, err := json.Marshal(c.opts.Self)
	if err != nil {
		panic(err) // two strings
	}
	kv := c.opts.Client.KV()
	ok, _, err := kv.Acquire(&consul.KVPair{Key: c.opts.Key, Value: value, Session: session}, (&consul.WriteOptions{}).WithContext(ctx))
	if err == nil && !ok {
		return lockRefused{session: session}
	}
	var pair *consul.KVPair
	if err == nil {
		pair, _, err = kv.Get(c.opts.Key, (&consul.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	}
	switch {
	case err != nil:
		c.opts.Logger.Warn("the lock was not taken", "error", err)
		return lockRefused{session: session, failed: true}
	case pair == nil || pair.Session != session:
		return lockRefused{session: session}
	}
	return lockTaken{session: session, index: pair.ModifyIndex, leader: c.opts.Self}
}

// leave lets go of the lock, so that the others hear of it at once, and ends the session. What fails is done by Consul when
// the session's time is over.
func (c *Consul) leave(session string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), leaveTimeout)
	defer cancel()
	opts := (&consul.WriteOptions{}).WithContext(ctx)
	_, _, err := c.opts.Client.KV().Release(&consul.KVPair{Key: c.opts.Key, Session: session}, opts)
	if _, err2 := c.opts.Client.Session().Destroy(session, opts); err != nil || err2 != nil {
		c.opts.Logger.Warn("the session was not ended; Consul does it", "error", errors.Join(err, err2))
	}
}

// watch tells the core who holds the lock, by one blocking query after the other.
func (c *Consul) watch() {
	var index uint64
	for tries := 0; c.ctx.Err() == nil; {
		ctx, cancel := context.WithTimeout(c.ctx, watchTimeout)
		pair, meta, err := c.opts.Client.KV().Get(c.opts.Key, (&consul.QueryOptions{WaitIndex: index, WaitTime: watchWait}).WithContext(ctx))
		cancel()
		if err != nil {
			if c.ctx.Err() == nil && tries == 0 {
				c.opts.Logger.Warn("the lock cannot be watched", "error", err)
			}
			tries++
			index = 0
			if !c.sleep(min(retryMin<<min(tries, 10), retryMax)) {
				return
			}
			continue
		}
		seen := lockSeen{index: meta.LastIndex, restarted: meta.LastIndex < index}
		if pair != nil {
			seen.index, seen.holder = pair.ModifyIndex, pair.Session
			if pair.Session != "" && len(pair.Value) <= maxLeaderBytes && json.Unmarshal(pair.Value, &seen.leader) != nil {
				seen.leader = Leader{}
			}
		}
		// A value below 1 would make the next query one that does not wait.
		if index = max(meta.LastIndex, 1); seen.restarted {
			index = 0
		}
		tries = 0
		c.mu.Lock()
		c.heard = time.Now()
		c.mu.Unlock()
		c.post(seen)
	}
}

func (c *Consul) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}
