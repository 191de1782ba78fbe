package master

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/reply"
	"github.com/cutover/cutover/mesosframework/localmesos/resource"
	"github.com/cutover/cutover/mesosframework/localmesos/statedoc"
)

// doc is a JSON object of the state endpoints.
type doc = map[string]any

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// serveState is /state. Reading it changes nothing, so POST is as good as GET,
// as in Mesos.
func (m *Master) serveState(w http.ResponseWriter, r *http.Request) {
	var d doc
	if m.ask(w, r, func() { d = m.stateDoc() }) {
		reply.JSON(w, r, d)
	}
}

func (m *Master) stateDoc() doc {
	active, inactive := 0, 0
	for _, a := range m.agents {
		if a.connected && !a.deactivated {
			active++
		} else {
			inactive++
		}
	}
	frameworks, completed := []any{}, []any{}
	for _, f := range m.sortedFrameworks() {
		frameworks = append(frameworks, m.frameworkDoc(f))
	}
	for _, id := range m.removedOrder {
		completed = append(completed, m.frameworkDoc(m.removed[id]))
	}
	d := doc{
		"version": m.opts.Version, "build_user": "", "start_time": seconds(m.start), "elected_time": seconds(m.start),
		"id": m.info.ID, "pid": m.info.GetPID(), "hostname": m.info.GetHostname(), "capabilities": []string{"AGENT_UPDATE", "AGENT_DRAINING"},
		"activated_slaves": float64(active), "deactivated_slaves": float64(inactive), "unreachable_slaves": float64(len(m.unreachable)),
		"leader":      m.info.GetPID(),
		"leader_info": doc{"id": m.info.ID, "pid": m.info.GetPID(), "port": m.info.GetPort(), "hostname": m.info.GetHostname()},
		"flags": doc{
			"allocation_interval": m.opts.AllocationInterval.String(), "agent_ping_timeout": m.opts.PingTimeout.String(),
			"max_agent_ping_timeouts": strconv.Itoa(m.opts.MaxPings),
		},
		"slaves": m.agentDocs(""), "recovered_slaves": []any{}, "frameworks": frameworks, "completed_frameworks": completed,
		"orphan_tasks": []any{}, "unregistered_frameworks": []any{},
	}
	if m.opts.Cluster != "" {
		d["cluster"] = m.opts.Cluster
	}
	return d
}

// agentDocs lists the agents, or the one with that id.
func (m *Master) agentDocs(id string) []any {
	out := []any{}
	for _, a := range m.sortedAgents() {
		if id != "" && a.id != id {
			continue
		}
		d := doc{
			"id": a.id, "hostname": a.info.Hostname, "port": a.info.GetPort(), "attributes": statedoc.Attributes(a.info.Attributes),
			"pid": a.pid, "registered_time": seconds(a.registered), "resources": statedoc.Resources(a.total),
			"used_resources": statedoc.Resources(a.used), "offered_resources": statedoc.Resources(a.offered),
			"reserved_resources": doc{}, "unreserved_resources": statedoc.Resources(a.total),
			"active": a.connected && !a.deactivated, "deactivated": a.deactivated, "version": m.opts.Version,
			"capabilities":            []string{"MULTI_ROLE", "AGENT_DRAINING"},
			"reserved_resources_full": doc{}, "unreserved_resources_full": statedoc.Full(a.total.Mesos("")),
			"used_resources_full": statedoc.Full(a.used.Mesos("*")), "offered_resources_full": statedoc.Full(a.offered.Mesos("*")),
		}
		if !a.reregistered.IsZero() {
			d["reregistered_time"] = seconds(a.reregistered)
		}
		out = append(out, d)
	}
	return out
}

func (m *Master) frameworkDoc(f *framework) doc {
	used, offered := f.used(), resource.Set{}
	offers := []any{}
	for _, o := range m.sortedOffers() {
		if o.framework != f {
			continue
		}
		offered = offered.Add(o.resources)
		offers = append(offers, doc{
			"id": o.id, "framework_id": f.id, "allocation_info": doc{"role": o.role}, "slave_id": o.agent.id,
			"resources": statedoc.Resources(o.resources),
		})
	}
	capabilities := []string{}
	for _, c := range f.info.Capabilities {
		capabilities = append(capabilities, c.Type.String())
	}
	list := func(tasks []*task) []any {
		out := []any{}
		for _, t := range tasks {
			out = append(out, t.doc())
		}
		return out
	}
	d := doc{
		"id": f.id, "name": f.info.Name, "used_resources": statedoc.Resources(used), "offered_resources": statedoc.Resources(offered),
		"capabilities": capabilities, "hostname": f.info.GetHostname(), "webui_url": f.info.GetWebUiURL(),
		"active": f.connected(), "connected": f.connected(), "recovered": f.recovered, "user": f.info.User,
		"failover_timeout": f.info.GetFailoverTimeout(), "checkpoint": f.info.GetCheckpoint(),
		"registered_time": seconds(f.registered), "unregistered_time": seconds(f.unregistered),
		"resources": statedoc.Resources(used.Add(offered)), "tasks": list(sortedTasks(f.tasks)),
		"unreachable_tasks": list(sortedTasks(f.unreachable)), "completed_tasks": list(f.completed),
		"offers": offers, "executors": []any{}, "offer_constraints": doc{},
	}
	if f.has(mesos.FrameworkInfo_Capability_MULTI_ROLE) {
		d["roles"] = f.roles()
	} else {
		d["role"] = f.roles()[0]
	}
	return d
}

func (t *task) doc() doc {
	return statedoc.Task(t.framework, t.role, &t.info, t.state, t.statuses)
}

func (m *Master) serveSlaves(w http.ResponseWriter, r *http.Request) {
	var d doc
	if m.ask(w, r, func() { d = doc{"slaves": m.agentDocs(r.URL.Query().Get("slave_id")), "recovered_slaves": []any{}} }) {
		reply.JSON(w, r, d)
	}
}

func (m *Master) serveFrameworks(w http.ResponseWriter, r *http.Request) {
	var d doc
	ok := m.ask(w, r, func() {
		s := m.stateDoc()
		d = doc{"frameworks": s["frameworks"], "completed_frameworks": s["completed_frameworks"], "unregistered_frameworks": []any{}}
	})
	if ok {
		reply.JSON(w, r, d)
	}
}

// serveTasks is /tasks: running and ended ones, newest first unless order=asc.
func (m *Master) serveTasks(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	number := func(name string, def int) int {
		if n, err := strconv.Atoi(q.Get(name)); err == nil && n >= 0 {
			return n
		}
		return def
	}
	limit, offset := number("limit", 100), number("offset", 0)
	rows := []any{}
	ok := m.ask(w, r, func() {
		var all []*task
		for _, f := range m.sortedFrameworks() {
			all = append(append(all, sortedTasks(f.tasks)...), f.completed...)
		}
		began := func(t *task) float64 {
			if len(t.statuses) == 0 {
				return 0
			}
			return t.statuses[0].GetTimestamp()
		}
		slices.SortStableFunc(all, func(a, b *task) int {
			if q.Get("order") == "asc" {
				return cmp.Compare(began(a), began(b))
			}
			return cmp.Compare(began(b), began(a))
		})
		for i := offset; i < len(all) && i < offset+limit; i++ {
			rows = append(rows, all[i].doc())
		}
	})
	if ok {
		reply.JSON(w, r, doc{"tasks": rows})
	}
}

// serveMetrics is /metrics/snapshot: the keys that monitoring looks at.
func (m *Master) serveMetrics(w http.ResponseWriter, r *http.Request) {
	d := doc{}
	ok := m.ask(w, r, func() {
		d["master/elected"], d["master/uptime_secs"] = 1.0, time.Since(m.start).Seconds()
		var total, used resource.Set
		counts := map[string]int{}
		for _, a := range m.agents {
			total, used = total.Add(a.total), used.Add(a.used)
			if a.connected {
				counts["slaves_connected"]++
			} else {
				counts["slaves_disconnected"]++
			}
			if a.connected && !a.deactivated {
				counts["slaves_active"]++
			} else {
				counts["slaves_inactive"]++
			}
		}
		counts["slaves_unreachable"] = len(m.unreachable)
		counts["outstanding_offers"] = len(m.offers)
		for _, f := range m.frameworks {
			if f.connected() {
				counts["frameworks_active"]++
				counts["frameworks_connected"]++
			} else {
				counts["frameworks_inactive"]++
				counts["frameworks_disconnected"]++
			}
			for _, t := range f.tasks {
				counts[stateKey(t.state)]++
			}
			for _, t := range f.completed {
				counts[stateKey(t.state)]++
			}
			counts["tasks_unreachable"] += len(f.unreachable)
		}
		for _, k := range []string{"slaves_connected", "slaves_disconnected", "slaves_active", "slaves_inactive", "slaves_unreachable",
			"frameworks_active", "frameworks_connected", "frameworks_inactive", "frameworks_disconnected", "outstanding_offers",
			"tasks_staging", "tasks_starting", "tasks_running", "tasks_killing", "tasks_finished", "tasks_failed", "tasks_killed",
			"tasks_lost", "tasks_error", "tasks_dropped", "tasks_gone", "tasks_gone_by_operator", "tasks_unreachable"} {
			d["master/"+k] = float64(counts[k])
		}
		for _, n := range []string{"cpus", "mem", "disk"} {
			t, u := total.Scalar(n), used.Scalar(n)
			d["master/"+n+"_total"], d["master/"+n+"_used"], d["master/"+n+"_percent"] = t, u, 0.0
			if t > 0 {
				d["master/"+n+"_percent"] = u / t
			}
		}
	})
	if ok {
		reply.JSON(w, r, d)
	}
}

// stateKey is "tasks_running" for TASK_RUNNING.
func stateKey(s mesos.TaskState) string {
	b := []byte("tasks_" + s.String()[len("TASK_"):])
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
