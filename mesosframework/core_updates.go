package mesosframework

import (
	"encoding/hex"
	"maps"
	"math"
	"slices"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"
)

// update takes a status update in.
func (c *core) update(s *mesos.TaskStatus, now time.Time) {
	u := fromStatus(s)
	c.stats.Updates++
	if c.pendingByID[u.TaskID] != nil {
		if u.UUID == "" {
			// An answer about an earlier attempt that was never sent.
			c.stats.UpdatesStale++
			return
		}
		// It runs after all: it must not be launched again.
		c.unqueue(c.pendingByID[u.TaskID])
		c.compact()
	}
	t := c.tasks[u.TaskID]
	if t == nil {
		t = c.stranger(&u)
	}
	if t == nil {
		c.emit(updateEffect{update: u, uuid: s.UUID})
		return
	}
	delete(c.round.waiting, u.TaskID)
	if t.ref.AgentID == "" {
		t.ref.AgentID = u.AgentID
	}
	u.Known, u.Ports = t.known, slices.Clone(t.ref.Ports)
	if u.Host == "" {
		u.Host = t.ref.Host
	} else if u.State == Running {
		t.ref.Host = u.Host
	}
	if u.AgentID == "" {
		u.AgentID = t.ref.AgentID
	}
	if c.dismiss(t, &u) {
		if t.launching && u.State == Staging && t.state == Staging && !now.Before(t.fetchBy) {
			c.overdue(t, now) // what was missed without a subscription is only that it still fetches
		}
		return
	}
	c.heard(t, u.State, now)
	t.healthy = u.Healthy
	if u.UUID != "" {
		if t.inFlight == nil {
			t.inFlight = make(map[string]bool)
		}
		t.inFlight[u.UUID] = true
	}
	c.emit(updateEffect{update: u, uuid: s.UUID})
	if t.killing && u.State != Killing && !u.State.Terminal() && now.Sub(t.killedAt) >= killRetryMin {
		// A KILL is forgotten by agents that were away: say it again.
		c.kill(t, now)
	}
}

// stranger remembers a living task that the framework was not told of, so that
// its owner can have it killed. What is not alive is only passed on.
func (c *core) stranger(u *Update) *task {
	if u.AgentID == "" || u.State.rank() == 0 {
		return nil
	}
	t := &task{ref: TaskRef{TaskID: u.TaskID, AgentID: u.AgentID, Host: u.Host}}
	if a := c.agents[u.AgentID]; a != nil {
		t.ref.Hostname, t.ref.AgentURL = a.hostname, a.url
	}
	c.hold(t)
	return t
}

// dismiss reports whether an update says nothing new: a copy of one that the
// Listener works on or took, or an answer of the master that is older than what
// is known or equal to it.
func (c *core) dismiss(t *task, u *Update) bool {
	if u.UUID != "" {
		if t.inFlight[u.UUID] {
			c.stats.UpdatesRepeated++
			return true // acknowledged when the Listener is done
		}
		return false
	}
	if u.Reason != ReasonReconciliation {
		return false
	}
	stale := t.state.Terminal() || u.State.rank() > 0 && u.State.rank() < t.state.rank()
	same := u.State == t.state && u.State == t.committed && (u.Healthy == nil || t.healthy != nil && *u.Healthy == *t.healthy)
	if stale || same {
		c.stats.UpdatesStale++
	}
	return stale || same
}

// heard moves the deadlines of a task that Mesos spoke of.
func (c *core) heard(t *task, s TaskState, now time.Time) {
	switch {
	case s == Staging:
		if t.state != Staging {
			t.launching = true
			c.staging(t, now)
		}
	case s.Away():
		// It says nothing about the launch; what comes next does.
		if t.state == "" {
			t.deadline = now.Add(c.opts.LaunchTimeout)
		}
	default:
		t.launching = false
	}
	if !s.Away() || t.state != "" {
		t.state = s
	}
	t.spec = nil // it reached Mesos: never to be placed again
	c.time(t)
}

// taken reports whether the Listener took this very update before: then it is
// only acknowledged.
func (c *core) taken(taskID, uuid string) bool {
	t := c.tasks[taskID]
	if t == nil || uuid == "" || t.committedUUID != uuid {
		return false
	}
	delete(t.inFlight, uuid)
	return true
}

// committed notes that the Listener took an update durably.
func (c *core) committed(u *Update, now time.Time) {
	t := c.tasks[u.TaskID]
	if t == nil {
		return
	}
	t.committed = u.State
	if u.UUID != "" {
		t.committedUUID = u.UUID
		delete(t.inFlight, u.UUID)
	}
	if u.State.Terminal() {
		c.forget(t)
		if len(c.pending) > 0 {
			c.reviveNow = true // its resources and ports are free
			c.adjust(now)
		}
	}
}

// uncommitted notes that the Listener did not take an update. With a uuid it
// comes again by itself; else Mesos is asked.
func (c *core) uncommitted(u *Update, now time.Time) {
	t := c.tasks[u.TaskID]
	if t == nil {
		return
	}
	if u.UUID != "" {
		delete(t.inFlight, u.UUID)
		return
	}
	if t.state == u.State {
		t.state = t.committed
	}
	c.round.add(u.TaskID, now)
}

// reconciliation is the one round of questions about tasks that is open.
type reconciliation struct {
	waiting map[string]bool // tasks without an answer
	next    time.Time       // when to ask again
	wait    time.Duration
	full    time.Time // when the next full round begins
}

func (r *reconciliation) add(id string, now time.Time) {
	if r.waiting == nil {
		r.waiting = make(map[string]bool)
	}
	if len(r.waiting) == 0 || r.wait == 0 {
		r.wait, r.next = reconcileFirst, now.Add(reconcileFirst)
	}
	r.waiting[id] = true
}

// startRound asks for all tasks: for some of them first, in their order, and for
// the others by name.
func (c *core) startRound(first []string, now time.Time) {
	c.round = reconciliation{full: now.Add(c.opts.ReconcileInterval)}
	early := make(map[string]bool, len(first))
	ids := make([]string, 0, len(c.tasks))
	for _, id := range first {
		if c.tasks[id] != nil && !early[id] {
			early[id] = true
			ids = append(ids, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.tasks)) {
		if !early[id] {
			ids = append(ids, id)
		}
	}
	c.ask(ids, now)
}

// ask asks for some tasks now, in their order, and again until there is an answer.
func (c *core) ask(ids []string, now time.Time) {
	if !c.subscribed || len(ids) == 0 {
		return
	}
	for _, id := range ids {
		c.round.add(id, now)
	}
	for batch := range slices.Chunk(ids, reconcileBatch) {
		tasks := make(map[string]string, len(batch))
		for _, id := range batch {
			agentID := ""
			if t := c.tasks[id]; t != nil {
				agentID = t.ref.AgentID
			}
			tasks[id] = agentID
		}
		c.stats.Reconciled += uint64(len(batch))
		c.call(calls.Reconcile(calls.ReconcileTasks(tasks)))
	}
}

// tickRound repeats unanswered questions and begins full rounds.
func (c *core) tickRound(now time.Time) {
	if !c.round.full.IsZero() && !now.Before(c.round.full) {
		// First what we do not know of, then what we do.
		c.call(calls.Reconcile())
		c.startRound(nil, now)
		return
	}
	if len(c.round.waiting) == 0 || now.Before(c.round.next) {
		return
	}
	ids := make([]string, 0, len(c.round.waiting))
	for id := range c.round.waiting {
		if c.tasks[id] == nil {
			delete(c.round.waiting, id) // ended meanwhile, or nobody's
			continue
		}
		ids = append(ids, id)
	}
	c.round.wait = min(2*c.round.wait, reconcileMaxWait)
	c.round.next = now.Add(c.round.wait)
	slices.Sort(ids)
	c.ask(ids, now)
}

// fromStatus translates a status.
func fromStatus(s *mesos.TaskStatus) Update {
	u := Update{
		TaskID:  s.TaskID.Value,
		AgentID: s.GetAgentID().GetValue(),
		Message: s.GetMessage(),
		Healthy: s.Healthy,
		UUID:    hex.EncodeToString(s.UUID),
		Host:    containerIP(s),
	}
	if s.State != nil {
		u.State = TaskState(s.State.String())
	}
	if s.Reason != nil {
		u.Reason = Reason(s.Reason.String())
	}
	if s.Source != nil {
		u.Source = Source(s.Source.String())
	}
	if s.Timestamp != nil && *s.Timestamp > 0 && *s.Timestamp < math.MaxInt64/1e9 {
		u.Timestamp = time.Unix(0, int64(*s.Timestamp*1e9)).UTC()
	}
	return u
}

// containerIP is the address of the task's container: its own on a named
// network, else its agent's. Empty if the status does not say.
func containerIP(s *mesos.TaskStatus) string {
	if s.ContainerStatus == nil {
		return ""
	}
	for _, n := range s.ContainerStatus.NetworkInfos {
		for _, a := range n.IPAddresses {
			if ip := a.GetIPAddress(); ip != "" {
				return ip
			}
		}
	}
	return ""
}
