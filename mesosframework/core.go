package mesosframework

import (
	"fmt"
	"maps"
	"slices"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"

	"github.com/cutover/cutover/mesosframework/placement"
)

// core holds what the framework knows and makes all its decisions. Its methods
// take an event and the time, change the state and append to effects what is to
// be done; they do no I/O and read no clock. The shell runs effects in order.
// Protected by Framework.mu.
type core struct {
	opts *Options // read only

	frameworkID string
	subscribed  bool
	classes     placement.Classes
	agents      map[string]*agent
	offers      map[string]*offer
	gather      time.Time // when gathered offers are placed at the latest; zero if none are held

	pending     []*pendingTask
	pendingByID map[string]*pendingTask
	tasks       map[string]*task
	timed       map[string]*task // those with a deadline
	population  *placement.Population
	ports       map[string]map[uint16]string // agent -> port -> the task that holds it

	suppressed bool // what the master was last told
	reviveNow  bool
	tokens     float64 // for REVIVE calls
	tokensAt   time.Time

	round reconciliation
	seed  uint64
	stats Stats

	effects []effect
}

// Stats counts what happened since the Framework was made.
type Stats struct {
	Subscriptions, Offers, Declined, Placed, Launched, LaunchesRefused, LaunchesUnknown uint64
	Updates, UpdatesRepeated, UpdatesStale, Acknowledged, Kills, Reconciled, Lost       uint64
	CallsRefused                                                                        uint64
}

// agent is what is known of an agent from its offers.
type agent struct {
	id, hostname string
	host, url    string
	class        *placement.Class
	offers       []*offer
}

type offer struct {
	id          string
	agent       *agent
	resources   []mesos.Resource // the usable ones
	unavailable bool
}

// pendingTask is a task that waits for an agent.
type pendingTask struct {
	spec      TaskSpec
	since     time.Time
	notBefore time.Time
	passes    int
	refusals  int // launches that the master refused
	refusal   *placement.Refusal
	note      string
}

// task is a task that was, or is being, launched.
type task struct {
	ref  TaskRef
	spec *TaskSpec // while the launch is not confirmed, to place it anew
	// state is the last one heard, committed the last that the Listener took.
	state, committed TaskState
	healthy          *bool
	inFlight         map[string]bool // uuids that the Listener works on
	committedUUID    string
	known            bool
	refusals         int

	// Launching: heard of nothing yet. deadline is when to ask, asks how often.
	launching bool
	deadline  time.Time
	asks      int
	// fetchBy is when TASK_STAGING, which goes on without a subscription, has lasted for too long; zero: it was not heard of.
	fetchBy time.Time

	killing  bool
	killedAt time.Time // when the last KILL was made
	killNext time.Time
	killWait time.Duration
}

// effect is something for the shell to do.
type effect interface{ isEffect() }

type (
	// callEffect makes a call, in order with the other calls and launches.
	callEffect struct{ call *scheduler.Call }
	// launchEffect saves the launches, then makes the ACCEPT calls.
	launchEffect struct {
		launches []Launch
		accepts  []acceptCall
	}
	// updateEffect hands an update to the Listener and acknowledges it.
	updateEffect struct {
		update Update
		uuid   []byte
	}
	// lossEffect tells the Listener of a loss.
	lossEffect struct{ loss Loss }
)

// acceptCall is one ACCEPT: one agent.
type acceptCall struct {
	taskIDs  []string
	offerIDs []string
	call     *scheduler.Call
}

func (callEffect) isEffect()   {}
func (launchEffect) isEffect() {}
func (updateEffect) isEffect() {}
func (lossEffect) isEffect()   {}

// Waits of the core.
const (
	killRetryFirst   = 5 * time.Second
	killRetryMax     = time.Minute
	killRetryMin     = time.Second // between KILLs caused by updates
	askAgain         = 10 * time.Second
	maxAsks          = 3
	maxRefusals      = 3
	refusedPause     = time.Second
	saveFailedPause  = time.Second
	reviveBurst      = 50
	revivePerSecond  = 5
	filterIdle       = 2 * time.Minute
	filterPending    = 5 * time.Second
	filterBlocked    = time.Second
	reconcileBatch   = 500
	reconcileFirst   = 2 * time.Second
	reconcileMaxWait = 30 * time.Second
	maxExamples      = 20
)

func newCore(o *Options) *core {
	return &core{
		opts: o, agents: make(map[string]*agent), offers: make(map[string]*offer),
		pendingByID: make(map[string]*pendingTask), tasks: make(map[string]*task), timed: make(map[string]*task),
		population: placement.NewPopulation(), ports: make(map[string]map[uint16]string),
		tokens: reviveBurst, seed: o.Seed,
	}
}

// take returns the effects and empties the list.
func (c *core) take() []effect {
	e := c.effects
	c.effects = nil
	return e
}

func (c *core) emit(e effect) { c.effects = append(c.effects, e) }

// call makes a call of the current subscription.
func (c *core) call(call *scheduler.Call) {
	call.FrameworkID = &mesos.FrameworkID{Value: c.frameworkID}
	c.emit(callEffect{call})
}

// startSuppressed says whether the next subscription asks for offers.
func (c *core) startSuppressed() bool {
	c.suppressed = len(c.pending) == 0
	return c.suppressed
}

// subscribe takes up a new subscription with all tasks that have not ended.
func (c *core) subscribe(frameworkID string, refs []TaskRef, now time.Time) {
	c.subscribed, c.frameworkID = true, frameworkID
	c.stats.Subscriptions++
	first := make([]string, 0, len(refs))
	for _, r := range refs {
		c.adopt(r, now)
		first = append(first, r.TaskID)
	}
	for _, t := range c.tasks {
		if t.launching {
			// Without a subscription nothing could be heard. What is missing comes now.
			t.deadline, t.asks = now.Add(c.opts.LaunchTimeout), 0
			if t.state == Staging && t.fetchBy.After(t.deadline) {
				t.deadline = t.fetchBy
			}
		}
	}
	c.startRound(first, now)
	for _, id := range slices.Sorted(maps.Keys(c.timed)) {
		if t := c.timed[id]; t.killing {
			c.kill(t, now)
		}
	}
	// Filters survive on a master that did not notice our absence.
	c.reviveNow = len(c.pending) > 0
	c.adjust(now)
}

// adopt makes the framework know a task that was launched before.
func (c *core) adopt(r TaskRef, now time.Time) {
	if _, ok := c.pendingByID[r.TaskID]; ok || r.TaskID == "" || r.State.Terminal() {
		return // a pending one was never sent to a master
	}
	t, ok := c.tasks[r.TaskID]
	if !ok {
		t = &task{ref: r, state: r.State, committed: r.State, known: true}
		if r.State == "" || r.State == Staging {
			t.launching = true
			t.deadline = now.Add(c.opts.LaunchTimeout)
		}
		if r.State == Staging {
			c.staging(t, now)
		}
		c.hold(t)
	}
	if r.Kill && !t.killing {
		t.killing, t.killWait = true, killRetryFirst
	}
	c.time(t)
}

// disconnect ends the subscription: offers are gone, tasks are not.
func (c *core) disconnect() {
	c.subscribed = false
	c.dropOffers()
	c.round = reconciliation{}
	for _, t := range c.tasks {
		t.inFlight = nil
		if t.state != t.committed {
			// What the Listener did not take will be told again, and must then
			// not pass for old news.
			t.state = t.committed
			t.launching = t.state == "" || t.state == Staging
			c.time(t)
		}
	}
}

// launch queues tasks; all or none.
func (c *core) launch(specs []TaskSpec, now time.Time) error {
	if len(c.pending)+len(specs) > c.opts.MaxPending {
		return fmt.Errorf("%w: %d, with %d more the limit of %d is passed", ErrTooManyPending, len(c.pending), len(specs), c.opts.MaxPending)
	}
	seen := make(map[string]bool, len(specs))
	for i := range specs {
		id := specs[i].ID
		if seen[id] || c.pendingByID[id] != nil || c.tasks[id] != nil {
			return fmt.Errorf("%w: %s", ErrDuplicateTask, id)
		}
		seen[id] = true
	}
	for i := range specs {
		c.enqueue(&pendingTask{spec: specs[i], since: now})
	}
	c.reviveNow = true
	c.adjust(now)
	return nil
}

func (c *core) enqueue(p *pendingTask) {
	c.pending = append(c.pending, p)
	c.pendingByID[p.spec.ID] = p
}

// cancel takes a task out of the queue. It reports whether it was there.
func (c *core) cancel(id string, now time.Time) bool {
	p, ok := c.pendingByID[id]
	if !ok {
		return false
	}
	delete(c.pendingByID, id)
	c.pending = slices.DeleteFunc(c.pending, func(x *pendingTask) bool { return x == p })
	if len(c.pending) == 0 && len(c.offers) > 0 {
		c.place(now) // offers are not held for nobody: declines them
	}
	c.adjust(now)
	return true
}

// killTask orders a task killed, until it has ended.
func (c *core) killTask(id string, now time.Time) error {
	if p, ok := c.pendingByID[id]; ok {
		c.cancel(id, now)
		c.lose(TaskRef{TaskID: id, App: p.spec.App, Group: p.spec.Group, Kill: true}, LossNotLaunched, "it was killed while it waited for an offer")
		return nil
	}
	t, ok := c.tasks[id]
	if !ok {
		return ErrUnknownTask
	}
	if t.killing && now.Sub(t.killedAt) < killRetryMin {
		return nil
	}
	t.killing, t.killWait = true, killRetryFirst
	c.kill(t, now)
	return nil
}

// kill makes a KILL call and plans the next.
func (c *core) kill(t *task, now time.Time) {
	if !c.subscribed {
		c.time(t)
		return
	}
	t.killedAt, t.killNext = now, now.Add(t.killWait)
	t.killWait = min(2*t.killWait, killRetryMax)
	c.stats.Kills++
	c.call(calls.Kill(t.ref.TaskID, t.ref.AgentID))
	c.time(t)
}

func (c *core) lose(ref TaskRef, reason LossReason, detail string) {
	c.stats.Lost++
	c.emit(lossEffect{Loss{Task: ref, Reason: reason, Detail: detail}})
}

// hold makes a task known: counted for constraints, its ports its own.
func (c *core) hold(t *task) {
	c.tasks[t.ref.TaskID] = t
	a := placement.Agent{ID: t.ref.AgentID, Hostname: t.ref.Hostname}
	if known := c.agents[t.ref.AgentID]; known != nil {
		a.Hostname, a.Class = known.hostname, known.class
	} else {
		a.Class = c.classes.Class(t.ref.Attributes)
	}
	if t.ref.App != "" && t.ref.AgentID != "" {
		c.population.Add(t.ref.TaskID, t.ref.App, t.ref.Group, a)
	}
	held := c.ports[t.ref.AgentID]
	if held == nil && len(t.ref.Ports) > 0 {
		held = make(map[uint16]string)
		c.ports[t.ref.AgentID] = held
	}
	for _, p := range t.ref.Ports {
		held[p] = t.ref.TaskID
	}
	c.time(t)
}

// forget drops a task that has ended durably, or was never launched.
func (c *core) forget(t *task) {
	id := t.ref.TaskID
	delete(c.tasks, id)
	delete(c.timed, id)
	delete(c.round.waiting, id)
	c.population.Remove(id)
	held := c.ports[t.ref.AgentID]
	for _, p := range t.ref.Ports {
		if held[p] == id {
			delete(held, p)
		}
	}
	if held != nil && len(held) == 0 {
		delete(c.ports, t.ref.AgentID)
	}
}

// time keeps a task among the timed ones while it has a deadline.
func (c *core) time(t *task) {
	if (t.killing || t.launching) && c.tasks[t.ref.TaskID] == t {
		c.timed[t.ref.TaskID] = t
	} else {
		delete(c.timed, t.ref.TaskID)
	}
}

// tick does what is due.
func (c *core) tick(now time.Time) {
	if !c.subscribed {
		return
	}
	if !c.gather.IsZero() && !now.Before(c.gather) {
		c.place(now)
	}
	// A stable order makes what goes over the wire reproducible.
	due := make([]string, 0, 8)
	for id, t := range c.timed {
		if t.killing && !now.Before(t.killNext) || t.launching && !now.Before(t.deadline) {
			due = append(due, id)
		}
	}
	slices.Sort(due)
	for _, id := range due {
		t := c.timed[id]
		switch {
		case t.killing && !t.state.Terminal():
			if !now.Before(t.killNext) {
				c.kill(t, now)
			}
		case t.launching:
			c.overdue(t, now)
		}
	}
	c.tickRound(now)
	for _, p := range c.pending {
		if !p.notBefore.IsZero() && !now.Before(p.notBefore) {
			p.notBefore, c.reviveNow = time.Time{}, true
		}
	}
	c.adjust(now)
}

// staging starts the time that the task has for fetching, once: another subscription does not prolong it, or a task would be
// staged for ever behind a Mesos that comes and goes (EVERY-STATE-ENDS).
func (c *core) staging(t *task, now time.Time) {
	if t.fetchBy.IsZero() {
		t.fetchBy = now.Add(c.opts.StagingTimeout)
	}
	t.deadline = t.fetchBy
}

// overdue asks Mesos about a task that should have been heard of, and gives it
// up when there is no answer.
func (c *core) overdue(t *task, now time.Time) {
	if t.state == Staging {
		c.giveUp(t, LossStagingTimeout, "it was still in TASK_STAGING after "+c.opts.StagingTimeout.String(), now)
		return
	}
	if t.asks < maxAsks {
		t.asks++
		t.deadline = now.Add(askAgain)
		c.ask([]string{t.ref.TaskID}, now)
		return
	}
	c.giveUp(t, LossLaunchTimeout, "Mesos sent no status update within "+c.opts.LaunchTimeout.String()+" and did not answer when asked about the task", now)
}

func (c *core) giveUp(t *task, reason LossReason, detail string, now time.Time) {
	t.launching = false
	if !t.killing {
		t.killing, t.killWait = true, killRetryFirst
	}
	c.kill(t, now)
	ref := t.ref
	ref.State, ref.Kill = t.state, true
	c.lose(ref, reason, detail)
}

// nextTick is when tick should be called next, at the latest.
func (c *core) nextTick(now time.Time, usual time.Duration) time.Duration {
	wait := usual
	if !c.gather.IsZero() {
		wait = min(wait, max(0, c.gather.Sub(now)))
	}
	return wait
}
