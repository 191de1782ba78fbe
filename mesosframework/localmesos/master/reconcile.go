package master

import (
	"bytes"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/mesosframework/localmesos/link"
)

// reconcile is RECONCILE: everything the framework has when it names nothing,
// else an answer per task.
func (m *Master) reconcile(f *framework, tasks []scheduler.Call_Reconcile_Task) {
	if len(tasks) == 0 {
		for _, t := range sortedTasks(f.tasks) {
			f.sendStatus(t.reconciled())
		}
		return
	}
	for _, t := range tasks {
		m.reconcileOne(f, t.TaskID.Value, t.AgentID)
	}
}

// reconciled is the answer for a task that the master knows: the last state
// that was forwarded, which may be older than the latest.
func (t *task) reconciled() mesos.TaskStatus {
	s := masterStatus(t.info.TaskID.Value, t.agent, t.forwarded(), mesos.REASON_RECONCILIATION, "Reconciliation: Latest task state")
	if t.last != nil {
		s.Healthy, s.CheckStatus, s.ContainerStatus = t.last.Healthy, t.last.CheckStatus, t.last.ContainerStatus
	}
	return s
}

// reconcileOne answers for one task; the first row of the table that fits.
func (m *Master) reconcileOne(f *framework, taskID string, agentID *mesos.AgentID) {
	if t := f.tasks[taskID]; t != nil {
		f.sendStatus(t.reconciled())
		return
	}
	agent := ""
	if agentID != nil {
		agent = agentID.Value
	}
	state, why := mesos.TASK_UNKNOWN, "Task is unknown"
	var since *mesos.TimeInfo
	switch {
	case agent == "":
	case m.agents[agent] != nil:
		state, why = mesos.TASK_GONE, "Task is unknown to the agent"
	case m.unreachable[agent] != nil:
		state, why = mesos.TASK_UNREACHABLE, "Task is unreachable"
		since = &mesos.TimeInfo{Nanoseconds: m.unreachable[agent].since.UnixNano()}
	case m.gone[agent] != nil:
		state, why = mesos.TASK_GONE_BY_OPERATOR, "Task is gone"
	}
	s := masterStatus(taskID, agent, f.orLost(state), mesos.REASON_RECONCILIATION, "Reconciliation: "+why)
	if agentID != nil {
		s.AgentID = agentID
	}
	s.UnreachableTime = since
	f.sendStatus(s)
}

// kill is KILL. A task that is not known is reconciled instead; one whose
// agent is away is killed when the agent comes back, but one whose agent is
// unreachable is not.
func (m *Master) kill(f *framework, call *scheduler.Call_Kill) {
	t := f.tasks[call.TaskID.Value]
	if t == nil {
		m.reconcileOne(f, call.TaskID.Value, call.AgentID)
		return
	}
	if call.AgentID != nil && call.AgentID.Value != t.agent {
		return
	}
	a := m.agents[t.agent]
	if a == nil {
		return
	}
	if !a.connected {
		if a.pendingKills[f.id] == nil {
			a.pendingKills[f.id] = map[string]bool{}
		}
		a.pendingKills[f.id][t.info.TaskID.Value] = true // without its policy, as Mesos
		return
	}
	a.handle.Kill(f.id, t.info.TaskID.Value, call.KillPolicy)
}

// acknowledge is ACKNOWLEDGE; what does not fit is ignored.
func (m *Master) acknowledge(f *framework, call *scheduler.Call_Acknowledge) {
	a := m.agents[call.AgentID.Value]
	if a == nil || !a.connected {
		return
	}
	if t := f.tasks[call.TaskID.Value]; t != nil && t.agent == a.id && t.last != nil &&
		bytes.Equal(t.last.UUID, call.UUID) && link.Terminal(*t.last.State) {
		f.complete(t)
		m.drained(a)
	}
	a.handle.Acknowledge(f.id, call.TaskID.Value, call.UUID)
}
