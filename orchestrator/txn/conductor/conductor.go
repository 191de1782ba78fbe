package conductor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// Errors of the Conductor's methods.
var (
	ErrCommitted = errors.New("the transaction is committed: use a rollback")
	ErrUnknown   = errors.New("no such transaction")
	ErrExists    = errors.New("a transaction of this id exists")
	ErrTooMany   = errors.New("too many open transactions or amendments: try again later")
	ErrInvalid   = errors.New("invalid proposal")
	ErrStopped   = errors.New("the conductor has stopped")
	ErrNoHost    = errors.New("no such host")
)

// Options of a Conductor. Registry, Store, Fence, Listener, Fatal and Logger are required.
type Options struct {
	Registry *registry.Registry // started and stopped by the Conductor
	Store    store.Store
	Fence    store.Fence // of this term
	Listener txn.Listener
	// Fatal is told that the term is over: the process must end at once (lead.Term.Fatal).
	Fatal func(error)
	// HigherEpoch is told, once, that a Host follows a higher epoch than this term's: nothing of it counts there. Nil: only
	// the log says so.
	HigherEpoch func(host string, seen uint64)
	Logger      *slog.Logger
	// Source announces Hosts besides those that are declared; nil: nobody does.
	Source Source

	// Rules of the machine; the zero value means txn.DefaultRules.
	Rules txn.Rules
	// MaxOpen bounds open transactions and, apart, pending Amendments. Default 1024.
	MaxOpen int
	// KeepEnded is how many ended transactions Outcome still knows. Default 256.
	KeepEnded int
	// CallTimeout bounds one sending of Commit, Abort, Amend and Sync; they are repeated. Default 40 s, more than an
	// agent takes to say why it cannot answer.
	CallTimeout time.Duration
	// VerifyTimeout bounds one Verify. Default 8 s.
	VerifyTimeout time.Duration
	// Sweep is how often Hosts are compared with the committed state when nothing happens. Default 1 s.
	Sweep time.Duration
}

// fullSweep is in how many sweeps everything is compared with everything, a part in each: all at once would hold up every
// transaction for as long as it takes.
const fullSweep = 10

// callsPerHost bounds the calls of each sort on their way to one Host; queueLength the events that wait for the owner.
const (
	callsPerHost = 64
	queueLength  = 1024
)

// Conductor conducts all transactions of the cluster. Safe for concurrent use.
type Conductor struct {
	opts  Options
	rules txn.Rules
	log   *slog.Logger
	reg   *registry.Registry

	queue  chan func()
	ctx    context.Context // ends with Stop or a fatal error
	cancel context.CancelFunc
	ended  chan struct{} // closed when the owner has returned
	work   sync.WaitGroup
	once   sync.Once
	ahead  sync.Once // for HigherEpoch

	// Owned by the goroutine in run.
	txns     map[string]*transaction
	parts    map[string]*transaction // by the id of each proposal, what carries it now
	joints   uint64                  // transactions of several proposals so far
	locks    txn.LockTable
	sections map[txn.SectionKey]*section
	// passedOrders is the highest order number that a Host may have passed, by Section.
	passedOrders map[txn.SectionKey]uint64
	hosts        map[string]*host // by name; written under hostsMu, so that others may read it
	hostsMu      sync.RWMutex
	changes      map[string][]*memberChange // by Group, in their order
	orders       orders
	amends       map[string]*amendment
	collects     map[string]*collect // by Group
	drains       map[string]*drain
	past         pastTxns
	unended      map[string]*unended
	writes       writes
	sweeps       int
}

// section is one committed Section.
type section struct {
	committed *lbagentv1.CommittedSection // never changed in place
	revision  store.Revision
}

// host is what the owner knows of one Host.
type host struct {
	link  *registry.Link
	group string
	name  string
	// slots bounds its calls; warming those that take as long as an App needs to be warm, so that none of them is in the way of
	// an Abort (ROLLBACK-IS-FREE).
	slots, warming chan struct{}
	up             bool
	downAt         time.Time // since when it is not up
	state          *lbagentv1.HostState
	reports        txn.HostReports
	// standing in its Group. directing: an order about its traffic is on its way; directAt: not before.
	standing  registry.Standing
	directing bool
	directAt  time.Time
	// suspects are the Apps to compare with the committed state: something about them changed.
	suspects map[string]bool
	// agreed is what was compared last and agreed, by App: the same two need not be compared again.
	agreed map[string]agreement

	// forgot is what this Host holds and the store does not know, or "". Written by the loop, read by Hosts.
	forgot atomic.Pointer[string]
	// lacking is what a joining Host lacks to be a member, or "". As forgot.
	lacking   atomic.Pointer[string]
	look      bool // something happened to it: see refresh
	syncing   bool
	syncTries int
	syncAt    time.Time // not before
	verify    verifyQueue
	// inDoubt are calls that settle transactions which the Host reports and nobody here has open.
	inDoubt map[string]*settling
}

// New checks the options. Nothing is read or sent before Start.
func New(opts Options) (*Conductor, error) {
	if opts.Registry == nil || opts.Store == nil || opts.Listener == nil || opts.Fatal == nil || opts.Logger == nil {
		return nil, errors.New("conductor: Registry, Store, Listener, Fatal and Logger are required")
	}
	def := txn.DefaultRules()
	r := opts.Rules
	r.Fresh = cmp.Or(r.Fresh, def.Fresh)
	r.HostWait = cmp.Or(r.HostWait, def.HostWait)
	r.ProxyWait = cmp.Or(r.ProxyWait, def.ProxyWait)
	r.Restore = cmp.Or(r.Restore, def.Restore)
	r.Tidy = cmp.Or(r.Tidy, def.Tidy)
	r.RetryMin = cmp.Or(r.RetryMin, def.RetryMin)
	r.RetryMax = cmp.Or(r.RetryMax, def.RetryMax)
	if r.StartCommand == nil {
		r.StartCommand = def.StartCommand
	}
	if r.RestartCommand == nil {
		r.RestartCommand = def.RestartCommand
	}
	opts.MaxOpen = cmp.Or(opts.MaxOpen, 1024)
	opts.KeepEnded = cmp.Or(opts.KeepEnded, 256)
	opts.CallTimeout = cmp.Or(opts.CallTimeout, 40*time.Second)
	opts.VerifyTimeout = cmp.Or(opts.VerifyTimeout, 8*time.Second)
	opts.Sweep = cmp.Or(opts.Sweep, time.Second)
	c := &Conductor{
		opts: opts, rules: r, log: opts.Logger, reg: opts.Registry,
		queue: make(chan func(), queueLength), ended: make(chan struct{}),
		txns: map[string]*transaction{}, sections: map[txn.SectionKey]*section{}, passedOrders: map[txn.SectionKey]uint64{}, hosts: map[string]*host{},
		parts:  map[string]*transaction{},
		amends: map[string]*amendment{}, drains: map[string]*drain{}, collects: map[string]*collect{}, changes: map[string][]*memberChange{},
		past: newPastTxns(opts.KeepEnded), unended: map[string]*unended{},
	}
	c.writes.busy = map[txn.SectionKey]bool{}
	for _, l := range opts.Registry.Links() {
		c.addHost(l)
	}
	return c, nil
}

// Start loads what earlier terms left, connects to the Hosts, and goes on with every open transaction. The Listener
// hears of those too. It returns when everything is loaded.
func (c *Conductor) Start(ctx context.Context) error {
	c.ctx, c.cancel = context.WithCancel(ctx)
	if err := c.load(c.ctx); err != nil {
		c.cancel()
		close(c.ended)
		return fmt.Errorf("load the transactions: %w", err)
	}
	c.work.Go(c.run)
	c.reg.Start(c.ctx, c)
	c.watchSource()
	return nil
}

// Stop ends everything and returns when it has ended. Open transactions stay as the store has them: the next Start
// takes them up.
func (c *Conductor) Stop() {
	c.once.Do(func() {
		if c.cancel == nil {
			return
		}
		c.cancel()
		c.reg.Stop()
		c.work.Wait()
	})
}

// run is the owner of the state.
func (c *Conductor) run() {
	defer close(c.ended)
	sweep := time.NewTicker(c.opts.Sweep)
	defer sweep.Stop()
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	c.resume()
	for {
		c.lookAtHosts()
		c.advanceChanges()
		c.armWake(wake)
		select {
		case f := <-c.queue:
			if c.ctx.Err() != nil {
				return // the term is over: nothing is begun any more
			}
			f()
			c.drainQueue()
		case <-wake.C:
			c.tick()
		case <-sweep.C:
			c.sweep()
		case <-c.ctx.Done():
			return
		}
	}
}

// drainQueue runs what else waits, so that the wake time is computed once for a burst.
func (c *Conductor) drainQueue() {
	for range queueLength {
		if c.ctx.Err() != nil {
			return
		}
		select {
		case f := <-c.queue:
			f()
		default:
			return
		}
	}
}

// armWake sets the timer to the earliest deadline of all.
func (c *Conductor) armWake(wake *time.Timer) {
	var at time.Time
	earliest := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	for _, o := range c.txns {
		earliest(c.rules.NextWake(o.state))
	}
	for _, a := range c.amends {
		earliest(c.amendmentWake(a))
	}
	for _, h := range c.hosts {
		if h.up && !h.syncing && h.syncTries > 0 {
			earliest(h.syncAt)
		}
	}
	if at.IsZero() {
		wake.Reset(time.Hour)
		return
	}
	// Not less than a millisecond: a time that has come and moved nothing must not make this loop spin.
	wake.Reset(max(time.Until(at), time.Millisecond))
}

// tick lets time pass for everything that waits.
func (c *Conductor) tick() {
	for _, id := range sortedKeys(c.txns) {
		if o := c.txns[id]; o != nil {
			c.step(o, txn.Tick{})
		}
	}
	for _, id := range sortedKeys(c.amends) {
		if a := c.amends[id]; a != nil {
			c.advanceAmendment(a)
		}
	}
	for _, name := range sortedKeys(c.hosts) {
		c.reconcile(c.hosts[name])
	}
}

// agreement is a Host's report of an App and the committed Section that it agreed with. Neither is ever changed in place.
type agreement struct {
	report  *lbagentv1.SectionReport
	section *section
}

// sweep is the safety net below the events.
func (c *Conductor) sweep() {
	c.sweeps++
	c.suspectPart(c.sweeps % fullSweep)
	c.tick()
	for _, name := range sortedKeys(c.hosts) {
		c.noteTrouble(c.hosts[name])
		c.settleInDoubt(c.hosts[name])
		c.refresh(c.hosts[name])
	}
	c.recordEnds()
	c.collectTombstones()
	c.admitAnnounced()
}

// post hands f to the owner; false if the Conductor ends first.
func (c *Conductor) post(f func()) bool {
	select {
	case c.queue <- f:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// ask runs f in the owner and waits for it.
func (c *Conductor) ask(ctx context.Context, f func()) error {
	if c.ctx == nil || c.ctx.Err() != nil {
		return ErrStopped
	}
	done := make(chan struct{})
	select {
	case c.queue <- func() { f(); close(done) }:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ended:
		return ErrStopped
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ended:
		return ErrStopped
	}
}

// fatal ends the term: nothing is decided, sent or written any more.
func (c *Conductor) fatal(err error) {
	c.log.Error("the term is over", "error", err)
	c.cancel()
	c.opts.Fatal(err)
}

// Hosts returns the Hosts as they are now, sorted by Group and name.
func (c *Conductor) Hosts() []txn.HostInfo {
	members := c.reg.Members()
	out := make([]txn.HostInfo, 0, len(members))
	for _, m := range members {
		if m.Standing == registry.Removed && !m.Announced {
			continue // remembered only so that it does not come back by itself
		}
		info := txn.HostInfo{Name: m.Host, Group: m.Group, AgentURL: m.AgentURL, Membership: c.membership(m)}
		if l := c.reg.Link(m.Host); l != nil {
			i := l.Info()
			info.Connected, info.Problem, info.LastSeen, info.State, info.Sections = i.Connected, i.Problem, i.LastSeen, i.State, i.Sections
			info.SentAt = i.SentAt
		} else if m.Standing == registry.Announced {
			info.Problem = fmt.Sprintf("announced at %s, not admitted: cutover lb admit %s", m.AgentURL, m.Host)
		}
		c.hostsMu.RLock()
		h := c.hosts[m.Host]
		c.hostsMu.RUnlock()
		if h != nil && info.Problem == "" {
			if why := h.forgot.Load(); why != nil {
				info.Problem = *why
			}
		}
		if h != nil && m.Standing == registry.Joining {
			if why := h.lacking.Load(); why != nil {
				info.Membership.Waiting = *why
			}
		}
		if info.Problem == "" && !m.Announced && m.Source == registry.FromFile {
			info.Problem = "no longer declared, and still " + string(m.Standing) + ": declare it again, or take it out with cutover lb remove " + m.Host
		}
		out = append(out, info)
	}
	return out
}

func (c *Conductor) membership(m registry.Membership) txn.Membership {
	v, _ := c.reg.View(m.Group)
	g, _ := c.reg.Group(m.Group)
	out := txn.Membership{
		Standing: string(m.Standing), Drained: m.Drained, Announced: m.Announced, Source: string(m.Source), Notice: m.Notice, View: v.Number, Policy: g.Policy.String(),
		Actor: m.Last.Actor, Reason: m.Last.Reason, At: m.Last.At,
	}
	if m.Proof != nil {
		out.Proof = m.Proof.Text
	}
	return out
}

// HostDrift asks one Host for every difference between what is committed, on disk and running, now. ErrNoHost if it is not
// declared.
func (c *Conductor) HostDrift(ctx context.Context, name string) (*lbagentv1.ShowResponse, error) {
	return c.show(ctx, name, &lbagentv1.ShowRequest{Drift: true})
}

// ShowHost asks one Host for its committed and its running state, now. ErrNoHost if it is not declared.
func (c *Conductor) ShowHost(ctx context.Context, name string) (*lbagentv1.ShowResponse, error) {
	return c.show(ctx, name, &lbagentv1.ShowRequest{})
}

func (c *Conductor) show(ctx context.Context, name string, what *lbagentv1.ShowRequest) (*lbagentv1.ShowResponse, error) {
	l := c.reg.Link(name)
	if l == nil {
		return nil, fmt.Errorf("host %q: %w", name, ErrNoHost)
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.VerifyTimeout)
	defer cancel()
	resp, err := l.Client().Show(ctx, connect.NewRequest(what))
	if err != nil {
		return nil, fmt.Errorf("host %s does not answer (%s): start its lbagent with `%s`, or kill -9 it if it hangs", name, registry.Plain(err), c.rules.StartCommand(name))
	}
	return resp.Msg, nil
}

// HasGroup says whether the Group is declared, with or without Hosts.
func (c *Conductor) HasGroup(group string) bool {
	_, ok := c.reg.View(group)
	return ok
}
