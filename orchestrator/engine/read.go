package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/scheduler"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// This file is the reading half of the API's Service.

// maxList bounds a list of Deploys.
const maxList = 500

// view is a Deploy with its tasks as they are now.
func (e *Engine) view(d *deployRecord) deploy.View {
	var tasks []deploy.TaskView
	seen := map[string]bool{}
	for _, m := range d.Members {
		seen[m.Task] = true
		role := "new"
		if m.Kept {
			role = "kept"
		}
		t := e.s.task(m.Task)
		if t == nil { // forgotten since
			tasks = append(tasks, deploy.TaskView{ID: m.Task, App: d.App, Spec: d.Spec, Instance: m.Instance, State: string(m.State), Health: "unknown", Role: role, Message: m.Why, Kept: m.Kept})
			continue
		}
		v := e.taskView(t)
		v.Role, v.Kept = role, m.Kept
		if v.Message == "" {
			v.Message = m.Why
		}
		tasks = append(tasks, v)
	}
	if d.Step != deploy.StepDone {
		for _, t := range e.s.sorted(d.App) {
			old := t.Role == roleCommitted || t.RetiredBy == d.ID
			if old && !t.ended() && !seen[t.TaskID] {
				v := e.taskView(t)
				v.Role = "old"
				tasks = append(tasks, v)
			}
		}
	}
	return d.View(tasks)
}

func (e *Engine) taskView(t *taskRecord) deploy.TaskView {
	v := deploy.TaskView{
		ID: t.TaskID, App: t.App, Spec: t.Spec, Instance: t.Instance, State: viewState(t), Health: "unknown", Agent: t.Hostname,
		Upstream: t.Upstream, Message: t.Message,
	}
	if v.Agent == "" {
		v.Agent = t.AgentID
	}
	switch t.Role {
	case roleCandidate:
		v.Role = "new"
	case roleCommitted:
		v.Role = "kept"
	case roleReplacement:
		v.Role = "replacement"
	default:
		v.Role = "old"
	}
	if !t.ended() {
		switch t.health {
		case scheduler.Healthy:
			v.Health = "healthy"
		case scheduler.Failing:
			v.Health = "unhealthy"
		case scheduler.Unknown:
		}
		if v.Message == "" {
			v.Message = t.why
		}
	}
	if sp, ok := e.s.specs.get(t.App, t.Spec); ok && t.Host != "" {
		port := 0
		if g := sp.Groups(); len(g) > 0 {
			port = sp.RoutePort(g[0])
		}
		if port < len(t.Ports) {
			v.Address = address(t.Host, t.Ports[port])
		}
	}
	if !t.RunningAt.IsZero() {
		at := t.RunningAt
		v.StartedAt = &at
	}
	return v
}

// viewState is the closed vocabulary of TaskView.State.
func viewState(t *taskRecord) string {
	switch {
	case t.State.Away():
		return "lost"
	case t.State == Errored, t.State == Dropped, t.State == Gone:
		return "failed"
	case t.KillOrdered && !t.ended():
		return "killing"
	}
	return string(t.State)
}

// Deploy returns one Deploy.
func (e *Engine) Deploy(ctx context.Context, id string) (view deploy.View, err error) {
	err = e.do(ctx, func() error {
		v, ok := e.viewOf(id)
		if !ok {
			_, err := e.findDeploy(id)
			return err
		}
		view = v
		return nil
	})
	return view, e.refuse(err)
}

// Deploys lists newest first, of one App or of all (""), at most limit.
func (e *Engine) Deploys(ctx context.Context, app string, limit int) (views []deploy.View, err error) {
	if limit <= 0 || limit > maxList {
		limit = maxList
	}
	views = []deploy.View{}
	err = e.do(ctx, func() error {
		var ids []string
		if app != "" {
			a, err := e.findApp(app)
			if err != nil {
				return err
			}
			ids = slices.Clone(a.Deploys)
		} else {
			ids = e.s.deploys.ids()
		}
		slices.Sort(ids) // ids sort by time
		slices.Reverse(ids)
		for _, id := range ids[:min(limit, len(ids))] {
			views = append(views, e.view(e.s.deploys.get(id)))
		}
		return nil
	})
	return views, e.refuse(err)
}

// Apps lists all Apps by name, without their tasks.
func (e *Engine) Apps(ctx context.Context) (views []deploy.AppView, err error) {
	views = []deploy.AppView{}
	err = e.do(ctx, func() error {
		for _, name := range sortedKeys(e.s.apps) {
			views = append(views, e.appView(e.s.apps[name], false))
		}
		return nil
	})
	return views, e.refuse(err)
}

// App returns one App with its tasks.
func (e *Engine) App(ctx context.Context, name string) (view deploy.AppView, err error) {
	err = e.do(ctx, func() error {
		a, err := e.findApp(name)
		if err == nil {
			view = e.appView(a, true)
		}
		return err
	})
	return view, e.refuse(err)
}

func (e *Engine) appView(a *appRecord, full bool) deploy.AppView {
	v := deploy.AppView{Name: a.Name, Kind: a.Kind, State: "new", Spec: a.Committed, OpenDeploy: a.Open, Routes: []string{}, UpdatedAt: a.UpdatedAt}
	if n := len(a.Deploys); n > 0 {
		v.LastDeploy = slices.Max(a.Deploys)
	}
	switch {
	case a.Committed != 0:
		v.State = "running"
	case a.Stopped:
		v.State = "stopped"
	}
	if sp, ok := e.s.specs.get(a.Name, a.Committed); ok && a.Committed != 0 {
		v.Version, v.Instances = sp.Version, sp.Instances
		for _, r := range sp.Routes {
			v.Routes = append(v.Routes, r.String())
		}
	}
	if full {
		e.s.readOver(a.Name)
	}
	for _, t := range e.s.sorted(a.Name) {
		if t.Role == roleCommitted && !t.ended() {
			if t.health == scheduler.Healthy || t.health == scheduler.Unknown && t.State == Running && e.unchecked(t) {
				v.Healthy++
			}
			if t.State.Away() || t.health == scheduler.Failing {
				v.Problems = append(v.Problems, fmt.Sprintf("task %s is %s: %s", t.TaskID, viewState(t), firstOf(t.why, t.Message)))
			}
		}
		if full && (!t.ended() || e.batch.now.Sub(t.EndedAt) < time.Hour) {
			v.Tasks = append(v.Tasks, e.taskView(t))
		}
	}
	for i, b := range a.Backoff {
		if b.NotBefore.After(e.batch.now) {
			v.Problems = append(v.Problems, fmt.Sprintf("instance %d ended %d times in a row: next start at %s", i, b.Deaths, b.NotBefore.Format(time.RFC3339)))
		}
	}
	slices.Sort(v.Problems)
	return v
}

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return "no reason known"
}

// Tasks lists the tasks of one App, or of all (""), ended ones that are still kept included.
func (e *Engine) Tasks(ctx context.Context, app string) (views []deploy.TaskView, err error) {
	views = []deploy.TaskView{}
	err = e.do(ctx, func() error {
		names := []string{app}
		if app == "" {
			names = sortedKeys(e.s.apps)
		} else if _, err := e.findApp(app); err != nil {
			return err
		}
		for _, name := range names {
			e.s.readOver(name)
			for _, t := range e.s.sorted(name) {
				views = append(views, e.taskView(t))
			}
		}
		return nil
	})
	return views, e.refuse(err)
}

// maxLog bounds one piece of a log.
const maxLog = 256 << 10

// Logs reads up to limit bytes of a task's sandbox file from offset; offset -1 means the last limit bytes.
func (e *Engine) Logs(ctx context.Context, task, file string, offset int64, limit int) (api.LogChunk, error) {
	if file != "stdout" && file != "stderr" {
		return api.LogChunk{}, refused(deploy.RefusedInvalid, "file %q: only stdout and stderr can be read", clip(file))
	}
	if offset < -1 {
		return api.LogChunk{}, refused(deploy.RefusedInvalid, "offset %d: it must be -1 or more", offset)
	}
	if limit <= 0 || limit > maxLog {
		limit = maxLog
	}
	if e.frozen {
		return api.LogChunk{}, errFrozen()
	}
	var r TaskRef
	err := e.do(ctx, func() error {
		t := e.s.task(task)
		if t == nil {
			return refused(deploy.RefusedNotFound, "there is no task %q, or it is no longer kept", clip(task))
		}
		if t.AgentID == "" {
			return refused(deploy.RefusedState, "task %s was not placed on an agent: it has no output", task)
		}
		r = ref(t)
		return nil
	})
	if err != nil {
		return api.LogChunk{}, e.refuse(err)
	}
	data, at, err := e.ports.Logs.ReadOutput(ctx, r, file, offset, limit)
	if err != nil {
		return api.LogChunk{}, refused(deploy.RefusedUnavailable, "%s of task %s cannot be read: %v", file, task, err)
	}
	return api.LogChunk{Data: strings.ToValidUTF8(string(data), "?"), Offset: at, Next: at + int64(len(data))}, nil
}

// Hosts lists the Hosts that are known, and what announces them.
func (e *Engine) Hosts(ctx context.Context) (wire.HostList, error) {
	if err := e.Ready(ctx); err != nil {
		return wire.HostList{}, err
	}
	out := []api.Host{}
	for _, h := range e.ports.Coordinator.Hosts() {
		out = append(out, hostInfo(h))
	}
	slices.SortFunc(out, func(a, b api.Host) int { return strings.Compare(a.Group+"/"+a.Name, b.Group+"/"+b.Name) })
	return wire.HostList{Hosts: out, Sources: sourceInfos(e.ports.Coordinator.Sources())}, nil
}

func hostInfo(h txn.HostInfo) api.Host {
	out := api.Host{
		Name: h.Name, Group: h.Group, AgentURL: h.AgentURL, Connected: h.Connected, Membership: membershipInfo(h.Membership), Traffic: trafficInfo(h.State.GetTraffic(), h.SentAt), OpenTxns: []string{}, Problems: []string{}, Limits: []string{},
	}
	if !h.LastSeen.IsZero() {
		at := h.LastSeen
		out.LastSeen = &at
	}
	if h.Problem != "" {
		out.Problems = append(out.Problems, h.Problem)
	}
	if st := h.State; st != nil {
		out.Proxy, out.ProxyVersion = st.GetProxy(), st.GetProcess().GetVersion()
		out.ProxyPID = st.GetProcess().GetMasterPid()
		if out.ProxyPID == 0 {
			out.ProxyPID = st.GetProcess().GetWorkerPid()
		}
		out.Limits = append(out.Limits, st.GetLimits()...)
		for _, p := range st.GetProblems() {
			if !slices.Contains(out.Problems, p) {
				out.Problems = append(out.Problems, p)
			}
		}
	}
	out.Drift = driftCount(h)
	for _, s := range h.Sections {
		if !s.GetRemoved() {
			out.Sections++
		}
		if id := s.GetOpen().GetTxnId(); id != "" && !slices.Contains(out.OpenTxns, id) {
			out.OpenTxns = append(out.OpenTxns, id)
		}
	}
	return out
}

// ShowHost reads the committed and the running state of one Host, now.
func (e *Engine) ShowHost(ctx context.Context, name string) (api.HostShow, error) {
	if err := e.Ready(ctx); err != nil {
		return api.HostShow{}, err
	}
	hosts := e.ports.Coordinator.Hosts()
	i := slices.IndexFunc(hosts, func(h txn.HostInfo) bool { return h.Name == name })
	if i < 0 {
		return api.HostShow{}, refused(deploy.RefusedNotFound, "there is no host %q: cutover lb hosts lists them", clip(name))
	}
	if err := asked(hosts[i]); err != nil {
		return api.HostShow{}, err
	}
	answer, err := e.ports.Coordinator.ShowHost(ctx, name)
	if err != nil {
		return api.HostShow{}, refused(deploy.RefusedUnavailable, "%v", err)
	}
	info := hosts[i]
	if st := answer.GetHost(); st != nil {
		info.State = st
	}
	out := api.HostShow{Host: hostInfo(info), Sections: []api.SectionShow{}}
	open := map[string]*lbagentv1.OpenTxn{}
	for _, s := range info.Sections {
		open[s.GetApp()] = s.GetOpen()
	}
	for _, s := range answer.GetSections() {
		out.Sections = append(out.Sections, sectionShow(s, open[s.GetApp()]))
	}
	slices.SortFunc(out.Sections, func(a, b api.SectionShow) int { return strings.Compare(a.App, b.App) })
	return out, nil
}

func sectionShow(s *lbagentv1.SectionShow, open *lbagentv1.OpenTxn) api.SectionShow {
	committed, running := s.GetCommitted(), s.GetRunning()
	out := api.SectionShow{
		App: s.GetApp(), Spec: committed.GetSection().GetSpec(), Agrees: s.GetAgrees(), Difference: s.GetDifference(),
		Version: fmt.Sprintf("%d.%d", committed.GetVersion().GetTxn(), committed.GetVersion().GetAmendments()),
		Routes:  []string{}, Committed: []deploy.UpstreamView{}, Running: []deploy.UpstreamView{}, Digest: running.GetDigest(),
	}
	if at := running.GetReadAt(); at != nil {
		t := at.AsTime()
		out.ReadAt = &t
	}
	if open.GetTxnId() != "" {
		out.Open = open.GetTxnId() + " " + lower(strings.TrimPrefix(open.GetPhase().String(), "TXN_PHASE_"))
	}
	for _, r := range committed.GetSection().GetRoutes() {
		out.Routes = append(out.Routes, r.GetHost()+r.GetPath())
	}
	for _, u := range committed.GetSection().GetUpstreams() {
		out.Committed = append(out.Committed, deploy.UpstreamView{Name: u.GetName(), Address: u.GetAddress(), Weight: u.GetWeight()})
	}
	for _, u := range running.GetUpstreams() {
		// A Host goes on reporting what it has released, until everyone knows; the proxy holds no such row any longer.
		if u.GetRegistered() {
			out.Running = append(out.Running, upstreamView(u))
		}
	}
	return out
}

// Ready says why the orchestrator cannot take Deploys now, or nil.
func (e *Engine) Ready(ctx context.Context) error {
	e.mu.Lock()
	started, fatal := e.started, e.fatal
	e.mu.Unlock()
	switch {
	case e.frozen:
		return errFrozen()
	case fatal != nil:
		return refused(deploy.RefusedUnavailable, "the orchestrator's term is over (%v): it restarts", fatal)
	case !started:
		return refused(deploy.RefusedUnavailable, "the orchestrator is starting: try again")
	}
	return e.refuse(e.do(ctx, func() error { return nil }))
}
