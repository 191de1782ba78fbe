package master

import (
	"fmt"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/mesosframework/localmesos/actor"
	"github.com/cutover/cutover/mesosframework/localmesos/link"
	"github.com/cutover/cutover/mesosframework/localmesos/resource"
)

// agent is a registered agent, connected or for the moment not.
type agent struct {
	id           string
	number       int
	info         mesos.AgentInfo
	pid, addr    string
	handle       Agent
	connected    bool
	deactivated  bool // by an operator
	draining     bool
	drained      bool
	markGone     bool
	drainGrace   *mesos.DurationInfo // as asked; see drain
	drainStart   time.Time
	total        resource.Set
	used         resource.Set
	offered      resource.Set
	pendingKills map[string]map[string]bool // framework -> tasks
	registered   time.Time
	reregistered time.Time
	silent       bool // pings go unanswered
	missed       int
	ping         *actor.Timer
}

// lostAgent is an agent that is unreachable or marked gone.
type lostAgent struct {
	info  mesos.AgentInfo
	since time.Time
}

// offerable: a silent agent is, since the master cannot know better until its
// pings have been missed.
func (a *agent) offerable() bool { return a.connected && !a.deactivated }

// Register takes an agent in, or back. handle reaches it.
func (m *Master) Register(r link.Registration, handle Agent) {
	m.actor.Post(func() { m.register(r, handle) })
}

func (m *Master) register(r link.Registration, handle Agent) {
	id := r.Info.ID.GetValue()
	if m.gone[id] != nil && id != "" {
		handle.Leave()
		return
	}
	if id == "" {
		id = fmt.Sprintf("%s-S%d", m.info.ID, m.nextAgent)
	}
	a := m.agents[id]
	wasUnreachable, wasConnected := m.unreachable[id] != nil, a != nil && a.connected
	if a == nil {
		a = &agent{id: id, number: m.nextAgent, pendingKills: map[string]map[string]bool{}, registered: time.Now()}
		m.nextAgent++
		m.agents[id] = a
		delete(m.unreachable, id)
	} else {
		a.reregistered = time.Now()
	}
	r.Info.ID = &mesos.AgentID{Value: id}
	a.info, a.pid, a.handle = r.Info, r.PID, handle
	_, a.addr, _ = cutPID(r.PID)
	a.total = resource.Of(r.Info.Resources)
	a.connected, a.silent, a.missed = true, false, 0
	a.ping.Cancel()
	m.adopt(a, r, wasUnreachable, wasConnected)
	handle.Registered(id)
	for fid, tasks := range a.pendingKills {
		for tid := range tasks {
			handle.Kill(fid, tid, nil)
		}
	}
	a.pendingKills = map[string]map[string]bool{}
	m.log.Info("agent registered", "agent", id, "hostname", a.info.Hostname, "tasks", len(r.Tasks))
	m.allocate(time.Now())
}

// cutPID splits "slave(1)@host:port".
func cutPID(pid string) (name, addr string, ok bool) {
	for i := range pid {
		if pid[i] == '@' {
			return pid[:i], pid[i+1:], true
		}
	}
	return "", pid, false
}

// adopt brings the tasks of an agent and of its frameworks into line.
func (m *Master) adopt(a *agent, r link.Registration, wasUnreachable, wasConnected bool) {
	for _, info := range r.Frameworks {
		id := info.ID.GetValue()
		switch {
		case m.removed[id] != nil:
			a.handle.FrameworkRemoved(id)
		case m.frameworks[id] == nil:
			f := newFramework(id, info)
			f.recovered = true
			m.frameworks[id] = f
		}
	}
	a.used = resource.Set{}
	told := map[*task]bool{}
	for _, rt := range r.Tasks {
		f := m.frameworks[rt.FrameworkID]
		if f == nil {
			continue
		}
		t := f.tasks[rt.Info.TaskID.Value]
		if t == nil {
			t = &task{info: rt.Info, framework: f.id, agent: a.id, role: taskRole(rt.Info)}
			f.tasks[rt.Info.TaskID.Value] = t
			if rt.Forwarded != nil {
				t.note(*rt.Forwarded)
			}
		}
		delete(f.unreachable, rt.Info.TaskID.Value)
		t.state = rt.State
		t.held = !link.Terminal(t.state)
		if t.held {
			a.used = a.used.Add(t.resources())
		}
		told[t] = true
		if wasUnreachable {
			s := masterStatus(t.info.TaskID.Value, a.id, t.forwarded(), mesos.REASON_AGENT_REREGISTERED, "Unreachable agent re-reregistered")
			if t.last != nil {
				s.Healthy, s.CheckStatus, s.ContainerStatus = t.last.Healthy, t.last.CheckStatus, t.last.ContainerStatus
			}
			f.sendStatus(s)
		}
	}
	if wasConnected {
		return // an order may still be on its way
	}
	// Tasks that the master gave to the agent and that never reached it.
	for _, f := range m.frameworks {
		for _, t := range sortedTasks(f.tasks) {
			if t.agent != a.id || told[t] {
				continue
			}
			t.held = false
			s := masterStatus(t.info.TaskID.Value, a.id, f.orLost(mesos.TASK_DROPPED), mesos.REASON_RECONCILIATION,
				"Reconciliation: task unknown to the agent")
			t.state = *s.State
			t.note(s)
			f.complete(t)
			f.sendStatus(s)
		}
	}
}

func taskRole(info mesos.TaskInfo) string {
	for _, r := range info.Resources {
		if r.AllocationInfo != nil && r.AllocationInfo.Role != nil {
			return *r.AllocationInfo.Role
		}
	}
	return "*"
}

// AgentDisconnected tells that the connection to an agent broke: it may come
// back, or become unreachable when its pings stay unanswered.
func (m *Master) AgentDisconnected(id string) {
	m.actor.Post(func() {
		a := m.agents[id]
		if a == nil || !a.connected {
			return
		}
		a.connected = false
		m.rescindAll(a)
		for _, f := range m.frameworks {
			if f.info.GetCheckpoint() {
				continue
			}
			for _, t := range f.tasksOf(a) {
				m.lose(f, t, mesos.TASK_LOST, mesos.REASON_AGENT_DISCONNECTED, fmt.Sprintf("Agent %s disconnected", a.info.Hostname), nil)
			}
		}
		m.miss(a)
	})
}

// AgentSilent tells that an agent answers nothing for now, or again.
func (m *Master) AgentSilent(id string, silent bool) {
	m.actor.Post(func() {
		a := m.agents[id]
		if a == nil {
			return
		}
		a.silent = silent
		if silent {
			m.miss(a)
		} else if a.connected {
			a.ping.Cancel()
			a.missed = 0
		}
	})
}

// miss counts unanswered pings of an agent, whether it is silent or dead.
func (m *Master) miss(a *agent) {
	a.ping.Cancel()
	a.missed = 0
	var next func()
	next = func() {
		if m.agents[a.id] != a || a.connected && !a.silent {
			return
		}
		if a.missed++; a.missed >= m.opts.MaxPings {
			m.lost(a)
			return
		}
		a.ping = m.actor.After(m.opts.PingTimeout, next)
	}
	a.ping = m.actor.After(m.opts.PingTimeout, next)
}

// MarkUnreachable makes an agent unreachable now.
func (m *Master) MarkUnreachable(id string) {
	m.actor.Post(func() {
		if a := m.agents[id]; a != nil {
			m.lost(a)
		}
	})
}

// lost makes an agent unreachable.
func (m *Master) lost(a *agent) {
	since := time.Now()
	m.log.Warn("agent is unreachable", "agent", a.id, "hostname", a.info.Hostname)
	for _, f := range m.frameworks {
		for _, t := range f.tasksOf(a) {
			m.lose(f, t, f.orLost(mesos.TASK_UNREACHABLE), mesos.REASON_AGENT_REMOVED, "health check timed out",
				&mesos.TimeInfo{Nanoseconds: since.UnixNano()})
		}
	}
	m.rescindAll(a)
	m.drop(a)
	m.unreachable[a.id] = &lostAgent{info: a.info, since: since}
}

// drop takes an agent off the list and tells every framework.
func (m *Master) drop(a *agent) {
	a.ping.Cancel()
	delete(m.agents, a.id)
	for _, f := range m.frameworks {
		f.send(&scheduler.Event{Type: scheduler.Event_FAILURE, Failure: &scheduler.Event_Failure{AgentID: &mesos.AgentID{Value: a.id}}})
	}
}

func (f *framework) tasksOf(a *agent) []*task {
	var out []*task
	for _, t := range sortedTasks(f.tasks) {
		if t.agent == a.id {
			out = append(out, t)
		}
	}
	return out
}

// lose takes a task off a framework and tells it why; since is given when the
// task may come back. A task whose end is only not acknowledged yet is told
// nothing.
func (m *Master) lose(f *framework, t *task, state mesos.TaskState, reason mesos.TaskStatus_Reason, text string, since *mesos.TimeInfo) {
	m.release(t)
	if link.Terminal(t.state) {
		f.complete(t)
		return
	}
	s := masterStatus(t.info.TaskID.Value, t.agent, state, reason, text)
	s.UnreachableTime = since
	f.sendStatus(s)
	if since != nil {
		delete(f.tasks, t.info.TaskID.Value)
		if len(f.unreachable) < maxCompleted {
			f.unreachable[t.info.TaskID.Value] = t
		}
		return
	}
	t.state = state
	t.note(s)
	f.complete(t)
}

func (m *Master) rescindAll(a *agent) {
	for _, o := range m.sortedOffers() {
		if o.agent == a {
			m.rescind(o)
		}
	}
}

// deactivate stops offers of an agent.
func (m *Master) deactivate(a *agent) {
	a.deactivated = true
	m.rescindAll(a)
}

// drain kills the tasks of an agent and keeps it from offers. The grace is
// that of each task: the default command executor takes no other.
func (m *Master) drain(a *agent, grace *time.Duration, markGone bool) {
	m.deactivate(a)
	if !a.draining {
		a.drainStart = time.Now()
	}
	a.draining, a.markGone, a.drained, a.drainGrace = true, markGone, false, nil
	if grace != nil {
		a.drainGrace = &mesos.DurationInfo{Nanoseconds: grace.Nanoseconds()}
	}
	for _, f := range m.frameworks {
		for _, t := range f.tasksOf(a) {
			m.kill(f, &scheduler.Call_Kill{TaskID: t.info.TaskID})
		}
	}
	m.drained(a)
}

// drained notes the end of a drain: no task is left, not even one whose end is
// not acknowledged.
func (m *Master) drained(a *agent) {
	if !a.draining || a.drained {
		return
	}
	for _, f := range m.frameworks {
		if len(f.tasksOf(a)) > 0 {
			return
		}
	}
	a.drained = true
	if a.markGone {
		m.goneByOperator(a)
	}
}

// goneByOperator is MARK_AGENT_GONE.
func (m *Master) goneByOperator(a *agent) {
	for _, f := range m.frameworks {
		for _, t := range f.tasksOf(a) {
			m.lose(f, t, f.orLost(mesos.TASK_GONE_BY_OPERATOR), mesos.REASON_AGENT_REMOVED_BY_OPERATOR, "Agent has been marked gone", nil)
		}
	}
	m.rescindAll(a)
	m.drop(a)
	m.gone[a.id] = &lostAgent{info: a.info, since: time.Now()}
	a.handle.Leave()
}

// RescindOffers takes back every offer that a framework holds.
func (m *Master) RescindOffers() {
	m.actor.Post(func() {
		for _, o := range m.sortedOffers() {
			m.rescind(o)
		}
	})
}
