package engine

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// This file translates between the Deploy machine and the coordinator.

// report takes one report out of the inbox.
func (e *Engine) report(r any) {
	switch r := r.(type) {
	case txn.Status:
		e.txnChanged(r)
	case txn.Drained:
		e.release(r.Group, r.Released)
		if d := e.s.deploys.get(e.deployOf(r.App, r.Txn)); d != nil {
			e.feed(d, deploy.TxnDrained{ID: r.Txn, Group: r.Group, Done: r.Done, Forced: r.Forced, Waiting: r.Waiting})
		}
	case txn.Amended:
		e.amended(r)
	case ProbeEvent:
		e.probed(r)
	case func():
		r()
	}
}

// deployOf finds the Deploy of a transaction.
func (e *Engine) deployOf(app, id string) string {
	for d := range e.s.active {
		if rec := e.s.deploys.get(d); rec.Txn == id && (app == "" || rec.App == app) {
			return d
		}
	}
	return ""
}

func (e *Engine) txnChanged(s txn.Status) {
	d := e.s.deploys.get(s.Deploy)
	if d == nil {
		d = e.s.deploys.get(e.deployOf("", s.ID))
	}
	if d == nil || d.Txn != s.ID || !d.InTxn() {
		return
	}
	// Only the coordinator's word counts: an abort that was asked for may still be too late for a Commit.
	d.undoing = (s.Phase == txn.Restoring || s.Phase == txn.StuckRestoring) &&
		slices.ContainsFunc(s.Hosts, func(h txn.HostVote) bool { return h.SentActivate })
	if s.Phase == txn.RolledBack {
		e.undone(d)
	}
	e.feed(d, txnInput(d.Deploy, s))
}

// undone ends the holds of a Deploy's new tasks: every Host that was sent Activate has proved that it is back. A Host that
// was only prepared may still have them registered, out of traffic: their ports stay held until it says otherwise.
func (e *Engine) undone(d *deployRecord) {
	var tasks []*taskRecord
	for _, m := range d.Members {
		if t := e.s.task(m.Task); t != nil && t.Role == roleCandidate {
			e.unhold(t, d.Policy.Groups...)
			t.PortHeld = len(d.Policy.Groups) > 0
			tasks = append(tasks, t)
		}
	}
	e.askReleased(tasks)
}

var phases = map[txn.Phase]deploy.TxnPhase{
	txn.Waiting: deploy.TxnWaiting, txn.Preparing: deploy.TxnPreparing, txn.Activating: deploy.TxnActivating,
	txn.Deciding: deploy.TxnDeciding, txn.Committed: deploy.TxnCommitted, txn.Restoring: deploy.TxnRestoring,
	txn.RolledBack: deploy.TxnRolledBack, txn.StuckRestoring: deploy.TxnStuck,
}

func txnInput(d deploy.Deploy, s txn.Status) deploy.TxnChanged {
	in := deploy.TxnChanged{
		ID: s.ID, Phase: phases[s.Phase], Cause: string(s.Cause), Reason: s.Reason, Passing: passing(s), Order: s.Order,
		CommittedAt: s.CommittedAt, Next: s.Next,
	}
	target := map[string]bool{}
	for _, id := range d.Tasks() {
		target[deploy.UpstreamName(id)] = true
	}
	for _, h := range s.Hosts {
		in.Hosts = append(in.Hosts, hostView(h, d.App, s.Order, target))
	}
	for _, h := range s.Stuck {
		in.Stuck = append(in.Stuck, deploy.StuckView{Host: h.Host, Group: h.Group, Cause: h.Cause, What: h.What, Fix: h.Fix, Next: h.Next, Serves: servesViews(h.Serves)})
	}
	return in
}

// passing reports whether the cause of an abort may be gone when the same tasks try again: a leader that restarted, a Host
// that was away and restored by itself, a base that moved on.
func passing(s txn.Status) bool {
	switch s.Cause {
	case txn.CauseLeaderLost, txn.CauseBaseMismatch:
		return true
	case txn.CauseHostRefused:
	default:
		return false
	}
	refused := false
	for _, h := range s.Hosts {
		switch h.Refusal.GetReason() {
		case lbagentv1.RefusalReason_REFUSAL_REASON_UNSPECIFIED:
			if h.Refusal != nil {
				return false
			}
		case lbagentv1.RefusalReason_REFUSAL_REASON_ABORTED, lbagentv1.RefusalReason_REFUSAL_REASON_WRONG_STATE,
			lbagentv1.RefusalReason_REFUSAL_REASON_BASE_MISMATCH, lbagentv1.RefusalReason_REFUSAL_REASON_BUSY,
			lbagentv1.RefusalReason_REFUSAL_REASON_STALE_ORDER:
			refused = true
		default:
			return false
		}
	}
	return refused
}

func hostView(h txn.HostVote, app string, order uint64, target map[string]bool) deploy.HostView {
	v := deploy.HostView{Name: h.Host, Group: h.Group, Proxy: h.Proxy, Vote: deploy.Vote(h.Vote), Reason: h.Reason}
	if v.Vote == "" {
		v.Vote = deploy.VoteNone
	}
	switch {
	case h.Excluded:
		v.Standing = deploy.StandingExcluded
	case h.Unproven:
		v.Standing = deploy.StandingUnproven
	}
	if r := h.Refusal; r != nil {
		v.Output = r.GetOutput()
		if v.Reason == "" {
			v.Reason = r.GetMessage()
		}
	}
	for _, ev := range h.Evidence {
		if ev.GetApp() == app {
			v.Evidence = evidenceView(ev, order, target)
		}
	}
	return v
}

// servesViews is what a proxy was read to serve, apart from what is not registered any longer.
func servesViews(list []*lbagentv1.Evidence) []deploy.ServesView {
	var out []deploy.ServesView
	for _, ev := range list {
		v := deploy.ServesView{App: ev.GetApp(), ReadAt: ev.GetReadAt().AsTime(), ProxyPID: ev.GetProcess().GetWorkerPid(), Digest: ev.GetDigest(),
			Upstreams: []deploy.UpstreamView{}}
		for _, u := range ev.GetUpstreams() {
			if u.GetRegistered() {
				v.Upstreams = append(v.Upstreams, upstreamView(u))
			}
		}
		out = append(out, v)
	}
	return out
}

func evidenceView(ev *lbagentv1.Evidence, order uint64, target map[string]bool) *deploy.EvidenceView {
	out := &deploy.EvidenceView{
		Generation: order, Digest: ev.GetDigest(), ProxyPID: ev.GetProcess().GetWorkerPid(), ReadAt: ev.GetReadAt().AsTime(),
		Upstreams: []deploy.UpstreamView{},
	}
	if g := ev.GetOrder(); g != 0 {
		out.Generation = g
	} else if g := ev.GetVersion().GetTxn(); g != 0 {
		out.Generation = g
	}
	for _, u := range ev.GetUpstreams() {
		if view := upstreamView(u); target[view.Name] {
			out.Upstreams = append(out.Upstreams, view)
		} else {
			out.Others = append(out.Others, view)
		}
	}
	return out
}

var modes = map[lbagentv1.UpstreamMode]string{
	lbagentv1.UpstreamMode_UPSTREAM_MODE_WARM: "warm", lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING: "serving",
	lbagentv1.UpstreamMode_UPSTREAM_MODE_DRAINING: "draining",
}

func upstreamView(u *lbagentv1.UpstreamStatus) deploy.UpstreamView {
	return deploy.UpstreamView{
		Name: u.GetName(), Address: u.GetAddress(), Registered: u.GetRegistered(), Healthy: u.GetHealthy(), Status: u.GetStatus(),
		Mode: modes[u.GetMode()], Weight: u.GetWeight(), Sessions: u.GetSessions(),
	}
}

// proposal is the transaction of a Deploy: for each Group of base and target the App's new Section, or its removal.
func (e *Engine) proposal(d *deployRecord) (txn.Proposal, error) {
	p := txn.Proposal{
		ID: d.Txn, Deploy: d.ID, App: d.App, Deadline: d.Deadline, Rollback: d.Kind == deploy.KindRollback, Actor: d.Actor, Reason: d.Why,
	}
	if p.Reason == "" {
		p.Reason = fmt.Sprintf("%s of %s to spec %d", d.Kind, d.App, d.Spec)
	}
	note := commitNote{Deploy: d.ID, Kind: d.Kind, App: d.App, Spec: d.Spec, LastSpec: e.s.apps[d.App].LastSpec}
	sp, ok := e.s.specs.get(d.App, d.Spec)
	switch {
	case d.Kind == deploy.KindStop:
		for _, g := range d.Policy.Groups {
			p.Changes = append(p.Changes, txn.GroupChange{Group: g, App: d.App})
		}
	case !ok:
		return p, fmt.Errorf("revision %d of %s is not there", d.Spec, d.App)
	default:
		note.Source = sp.Canonical()
		named := sp.Groups()
		for _, g := range d.Policy.Groups {
			change := txn.GroupChange{Group: g, App: d.App}
			if contains(named, g) {
				section, err := e.section(d, sp, g)
				if err != nil {
					return p, err
				}
				change.Target = section
			}
			p.Changes = append(p.Changes, change)
		}
	}
	for _, m := range d.Members {
		if t := e.s.task(m.Task); t != nil {
			c := commitTask{ID: t.TaskID, Upstream: t.Upstream, Agent: t.AgentID, Host: t.Host}
			for _, port := range t.Ports {
				c.Ports = append(c.Ports, int(port))
			}
			note.Tasks = append(note.Tasks, c)
		}
	}
	record, err := json.Marshal(note)
	if err != nil {
		return p, err
	}
	p.Record = record
	return p, nil
}

func (e *Engine) section(d *deployRecord, sp spec.Spec, group string) (*lbagentv1.Section, error) {
	s := &lbagentv1.Section{App: d.App, Spec: d.Spec, Drain: durationpb.New(time.Duration(sp.Deploy.Drain))}
	for _, r := range sp.Routes {
		if r.Group == group {
			s.Routes = append(s.Routes, &lbagentv1.Route{Host: r.Host, Path: r.Path, Strip: r.Strip})
		}
	}
	for _, m := range d.Members {
		t := e.s.task(m.Task)
		if t == nil || t.ended() {
			continue // a kept one that died: an Amendment takes it out of the base as well
		}
		u, err := upstream(t, sp, group)
		if err != nil {
			return nil, err
		}
		s.Upstreams = append(s.Upstreams, u)
	}
	return s, nil
}

func upstream(t *taskRecord, sp spec.Spec, group string) (*lbagentv1.Upstream, error) {
	port := sp.RoutePort(group)
	if t.Host == "" || port >= len(t.Ports) {
		return nil, fmt.Errorf("it is not known where port %d of task %s is", port, t.TaskID)
	}
	return &lbagentv1.Upstream{
		Name: t.Upstream, Address: address(t.Host, t.Ports[port]), Weight: 100, TaskId: t.TaskID, Health: proxyHealth(sp.Health),
	}, nil
}

// proxyHealth is the same check as the orchestrator's own.
func proxyHealth(h *spec.Health) *lbagentv1.Health {
	if h == nil {
		return &lbagentv1.Health{Kind: lbagentv1.HealthKind_HEALTH_KIND_NONE}
	}
	out := &lbagentv1.Health{
		Kind: lbagentv1.HealthKind_HEALTH_KIND_TCP, Interval: durationpb.New(time.Duration(h.Interval)),
		Timeout: durationpb.New(time.Duration(h.Timeout)), Rise: uint32(h.Rise), Fall: uint32(h.Fall), // #nosec G115: 1 to 100
	}
	if h.HTTP != nil {
		out.Kind, out.Path = lbagentv1.HealthKind_HEALTH_KIND_HTTP, h.HTTP.Path
	}
	return out
}
