package master

import (
	"cmp"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	masterapi "github.com/mesos/mesos-go/api/v1/lib/master"

	"github.com/cutover/cutover/mesosframework/localmesos/reply"
	"github.com/cutover/cutover/mesosframework/localmesos/resource"
)

// serveOperator is the operator API at /api/v1, as far as it goes.
func (m *Master) serveOperator(w http.ResponseWriter, r *http.Request) {
	if !reply.Post(w, r) {
		return
	}
	var call masterapi.Call
	if _, ok := reply.Decode(w, r, &call); !ok {
		return
	}
	if bad := invalidOperator(&call); bad != "" {
		reply.Text(w, http.StatusBadRequest, "Failed to validate master::Call: %s", bad)
		return
	}
	media, ok := reply.Accepts(w, r)
	if !ok {
		return
	}
	resp := masterapi.Response{}
	var a *answer
	known := true
	if !m.ask(w, r, func() { a, known = m.operate(&call, &resp) }) {
		return
	}
	switch {
	case !known:
		reply.NotImplemented(w, "the master call "+call.Type.String())
	case a != nil && a.text != "":
		reply.Text(w, a.status, "%s", a.text)
	case a != nil:
		reply.Empty(w, a.status)
	default:
		reply.Message(w, media, &resp)
	}
}

func invalidOperator(c *masterapi.Call) string {
	need := func(there bool, name string) string {
		if there {
			return ""
		}
		return "Expecting '" + name + "' to be present"
	}
	switch c.Type {
	case masterapi.Call_UNKNOWN:
		return need(false, "type")
	case masterapi.Call_TEARDOWN:
		return need(c.Teardown != nil, "teardown")
	case masterapi.Call_DRAIN_AGENT:
		return need(c.DrainAgent != nil, "drain_agent")
	case masterapi.Call_DEACTIVATE_AGENT:
		return need(c.DeactivateAgent != nil, "deactivate_agent")
	case masterapi.Call_REACTIVATE_AGENT:
		return need(c.ReactivateAgent != nil, "reactivate_agent")
	case masterapi.Call_MARK_AGENT_GONE:
		return need(c.MarkAgentGone != nil, "mark_agent_gone")
	default:
		return ""
	}
}

// operate takes an operator call: it fills resp, or returns an answer without
// a message. On the actor.
func (m *Master) operate(c *masterapi.Call, resp *masterapi.Response) (a *answer, known bool) {
	switch c.Type {
	case masterapi.Call_GET_HEALTH:
		resp.Type = masterapi.Response_GET_HEALTH
		resp.GetHealth = &masterapi.Response_GetHealth{Healthy: true}
	case masterapi.Call_GET_VERSION:
		resp.Type = masterapi.Response_GET_VERSION
		resp.GetVersion = &masterapi.Response_GetVersion{VersionInfo: mesos.VersionInfo{Version: m.opts.Version}}
	case masterapi.Call_GET_MASTER:
		start := float64(m.start.UnixNano()) / 1e9
		info := m.info
		resp.Type = masterapi.Response_GET_MASTER
		resp.GetMaster = &masterapi.Response_GetMaster{MasterInfo: &info, StartTime: &start, ElectedTime: &start}
	case masterapi.Call_GET_AGENTS:
		resp.Type = masterapi.Response_GET_AGENTS
		resp.GetAgents = m.getAgents()
	case masterapi.Call_GET_FRAMEWORKS:
		resp.Type = masterapi.Response_GET_FRAMEWORKS
		resp.GetFrameworks = m.getFrameworks()
	case masterapi.Call_GET_TASKS:
		resp.Type = masterapi.Response_GET_TASKS
		resp.GetTasks = m.getTasks()
	case masterapi.Call_TEARDOWN:
		return m.teardown(c.Teardown.FrameworkID.Value), true
	case masterapi.Call_DRAIN_AGENT:
		var grace *time.Duration
		if g := c.DrainAgent.MaxGracePeriod; g != nil {
			d := time.Duration(g.Seconds)*time.Second + time.Duration(g.Nanos)
			grace = &d
		}
		return m.onAgent(c.DrainAgent.AgentID.Value, func(a *agent) { m.drain(a, grace, c.DrainAgent.GetMarkGone()) }), true
	case masterapi.Call_DEACTIVATE_AGENT:
		return m.onAgent(c.DeactivateAgent.AgentID.Value, m.deactivate), true
	case masterapi.Call_REACTIVATE_AGENT:
		return m.reactivate(c.ReactivateAgent.AgentID.Value), true
	case masterapi.Call_MARK_AGENT_GONE:
		return m.markGone(c.MarkAgentGone.AgentID.Value), true
	default:
		return nil, false
	}
	return nil, true
}

func (m *Master) onAgent(id string, do func(*agent)) *answer {
	a := m.agents[id]
	if a == nil {
		return &answer{http.StatusBadRequest, "Unknown agent"}
	}
	do(a)
	return &answer{status: http.StatusOK}
}

func (m *Master) reactivate(id string) *answer {
	a := m.agents[id]
	switch {
	case a == nil || !a.deactivated:
		return &answer{http.StatusBadRequest, "Agent is not deactivated"}
	case a.draining && !a.drained:
		return &answer{http.StatusBadRequest, "Agent is still in the DRAINING state"}
	}
	a.deactivated, a.draining, a.drained, a.markGone = false, false, false, false
	m.allocate(time.Now())
	return &answer{status: http.StatusOK}
}

func (m *Master) markGone(id string) *answer {
	switch {
	case m.agents[id] != nil:
		m.goneByOperator(m.agents[id])
	case m.unreachable[id] != nil:
		m.gone[id] = m.unreachable[id]
		delete(m.unreachable, id)
	case m.gone[id] == nil:
		return &answer{http.StatusNotFound, "Agent '" + id + "' not found"}
	}
	return &answer{status: http.StatusOK}
}

func (m *Master) teardown(id string) *answer {
	f := m.frameworks[id]
	if f == nil {
		return &answer{http.StatusBadRequest, "No framework found with specified ID"}
	}
	m.remove(f)
	return &answer{status: http.StatusOK}
}

// serveTeardown is POST /teardown with a form.
func (m *Master) serveTeardown(w http.ResponseWriter, r *http.Request) {
	if !reply.Post(w, r) {
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	form, perr := url.ParseQuery(string(body))
	id := form.Get("frameworkId")
	if err != nil || perr != nil || id == "" {
		reply.Text(w, http.StatusBadRequest, "Missing 'frameworkId' query parameter in the request body")
		return
	}
	var a *answer
	if !m.ask(w, r, func() { a = m.teardown(id) }) {
		return
	}
	if a.text != "" {
		reply.Text(w, a.status, "%s", a.text)
		return
	}
	reply.Empty(w, a.status)
}

func timeInfo(t time.Time) *mesos.TimeInfo {
	if t.IsZero() {
		return nil
	}
	return &mesos.TimeInfo{Nanoseconds: t.UnixNano()}
}

func (m *Master) sortedAgents() []*agent {
	out := make([]*agent, 0, len(m.agents))
	for _, a := range m.agents {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *agent) int { return cmp.Compare(a.number, b.number) })
	return out
}

func (m *Master) sortedFrameworks() []*framework {
	out := make([]*framework, 0, len(m.frameworks))
	for _, f := range m.frameworks {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *framework) int { return cmp.Compare(a.id, b.id) })
	return out
}

func (m *Master) getAgents() *masterapi.Response_GetAgents {
	out := &masterapi.Response_GetAgents{Agents: []masterapi.Response_GetAgents_Agent{}, RecoveredAgents: []mesos.AgentInfo{}}
	for _, a := range m.sortedAgents() {
		deactivated, pid := a.deactivated, a.pid
		row := masterapi.Response_GetAgents_Agent{
			AgentInfo: a.info, Active: a.connected && !a.deactivated, Deactivated: &deactivated, Version: m.opts.Version, PID: &pid,
			RegisteredTime: timeInfo(a.registered), ReregisteredTime: timeInfo(a.reregistered),
			TotalResources: a.total.Mesos(""), AllocatedResources: a.used.Mesos("*"), OfferedResources: a.offered.Mesos("*"),
			Capabilities: []mesos.AgentInfo_Capability{{Type: mesos.AgentInfo_Capability_MULTI_ROLE}, {Type: mesos.AgentInfo_Capability_AGENT_DRAINING}},
		}
		if a.draining {
			gone := a.markGone
			row.DrainInfo = &mesos.DrainInfo{State: mesos.DrainState_DRAINING, Config: mesos.DrainConfig{MaxGracePeriod: a.drainGrace, MarkGone: &gone}}
			row.EstimatedDrainStartTime = timeInfo(a.drainStart)
			if a.drained {
				row.DrainInfo.State = mesos.DrainState_DRAINED
			}
		}
		out.Agents = append(out.Agents, row)
	}
	return out
}

func (m *Master) getFrameworks() *masterapi.Response_GetFrameworks {
	out := &masterapi.Response_GetFrameworks{
		Frameworks: []masterapi.Response_GetFrameworks_Framework{}, CompletedFrameworks: []masterapi.Response_GetFrameworks_Framework{},
	}
	row := func(f *framework) masterapi.Response_GetFrameworks_Framework {
		d := masterapi.Response_GetFrameworks_Framework{
			FrameworkInfo: f.info, Active: f.connected(), Connected: f.connected(), Recovered: f.recovered,
			RegisteredTime: timeInfo(f.registered), ReregisteredTime: timeInfo(f.reregistered), UnregisteredTime: timeInfo(f.unregistered),
			AllocatedResources: f.used().Mesos("*"),
		}
		for _, o := range m.sortedOffers() {
			if o.framework == f {
				d.Offers = append(d.Offers, m.offerMessage(o))
			}
		}
		return d
	}
	for _, f := range m.sortedFrameworks() {
		out.Frameworks = append(out.Frameworks, row(f))
	}
	for _, id := range m.removedOrder {
		out.CompletedFrameworks = append(out.CompletedFrameworks, row(m.removed[id]))
	}
	return out
}

func (f *framework) used() resource.Set {
	var s resource.Set
	for _, t := range f.tasks {
		if t.held {
			s = s.Add(t.resources())
		}
	}
	return s
}

func (t *task) message() mesos.Task {
	state := t.state
	d := mesos.Task{
		Name: t.info.Name, TaskID: t.info.TaskID, FrameworkID: mesos.FrameworkID{Value: t.framework}, AgentID: t.info.AgentID,
		State: &state, Resources: t.info.Resources, Statuses: t.statuses, Labels: t.info.Labels, Discovery: t.info.Discovery,
		Container: t.info.Container, HealthCheck: t.info.HealthCheck, KillPolicy: t.info.KillPolicy,
	}
	if t.last != nil {
		last := *t.last.State
		d.StatusUpdateState, d.StatusUpdateUUID = &last, t.last.UUID
	}
	return d
}

func (m *Master) getTasks() *masterapi.Response_GetTasks {
	out := &masterapi.Response_GetTasks{Tasks: []mesos.Task{}, UnreachableTasks: []mesos.Task{}, CompletedTasks: []mesos.Task{}}
	all := m.sortedFrameworks()
	for _, id := range m.removedOrder {
		all = append(all, m.removed[id])
	}
	for _, f := range all {
		for _, t := range sortedTasks(f.tasks) {
			out.Tasks = append(out.Tasks, t.message())
		}
		for _, t := range sortedTasks(f.unreachable) {
			out.UnreachableTasks = append(out.UnreachableTasks, t.message())
		}
		for _, t := range f.completed {
			out.CompletedTasks = append(out.CompletedTasks, t.message())
		}
	}
	return out
}
