package engine

import (
	"fmt"
	"slices"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// This file is the lock-step: Deploys of several Apps that commit in one decision, or not at all. Each has its own machine,
// tasks and record; what they share is an id, a deadline, one transaction, and their end before Commit. After it each App is
// by itself again.

// lockstepRecord is a lock-step. Stored at lockstep/<id>. Its events are those of its Deploys, numbered anew.
type lockstepRecord struct {
	ID      string   `json:"id"`
	Deploys []string `json:"deploys"`
	Seq     uint64   `json:"seq"` // last event
}

// submitTogether starts a Deploy of each Spec. Nothing is started unless all can be.
func (e *Engine) submitTogether(specs []spec.Spec, meta api.Meta) (string, error) {
	if err := e.distinct(specs); err != nil {
		return "", err
	}
	deadline := specs[0].Deploy.Deadline
	for _, sp := range specs {
		if err := e.admissible(sp); err != nil {
			return "", err
		}
		if a := e.s.apps[sp.Name]; a != nil {
			if err := e.lock(a); err != nil {
				return "", err
			}
		} else if len(e.s.apps) >= e.opts.MaxApps {
			return "", refused(deploy.RefusedState, "there are %d Apps already, which is the limit", len(e.s.apps))
		}
		deadline = max(deadline, sp.Deploy.Deadline)
	}
	l := &lockstepRecord{ID: e.newID()}
	e.s.locksteps[l.ID] = l
	e.batch.locksteps[l.ID] = true
	var started []*deployRecord
	for _, sp := range specs {
		a := e.s.apps[sp.Name]
		if a == nil {
			a = &appRecord{Name: sp.Name, Kind: sp.Kind}
			e.s.apps[a.Name] = a
		}
		if have, ok := e.s.specs.get(a.Name, a.Committed); ok && a.Committed != 0 && have.Digest() == sp.Digest() {
			d := e.unchanged(a, deploy.KindDeploy, meta)
			d.Lockstep = l.ID
			l.Deploys = append(l.Deploys, d.ID)
			continue
		}
		// All have the time of the one that has most: a rollback of one is of all.
		shared := sp
		shared.Deploy.Deadline = deadline
		d := e.record(a, deploy.KindDeploy, sp, shared, meta)
		d.Lockstep = l.ID
		l.Deploys = append(l.Deploys, d.ID)
		started = append(started, d)
	}
	for _, d := range started {
		e.open(e.s.apps[d.App], d)
	}
	return l.ID, nil
}

// distinct refuses Specs that cannot commit together: the same App or the same route twice, or too many.
func (e *Engine) distinct(specs []spec.Spec) error {
	if len(specs) > txn.MaxMergedWeight {
		return refused(deploy.RefusedInvalid, "%d Apps in lock-step: at most %d are possible", len(specs), txn.MaxMergedWeight)
	}
	var problems []deploy.Problem
	apps, routes := map[string]bool{}, map[string]string{}
	for _, sp := range specs {
		if apps[sp.Name] {
			problems = append(problems, deploy.Problem{Field: "name", Reason: fmt.Sprintf("App %s is there twice", sp.Name)})
		}
		apps[sp.Name] = true
		for _, r := range sp.Routes {
			if other := routes[r.Key()]; other != "" && other != sp.Name {
				problems = append(problems, deploy.Problem{Field: "routes", Reason: fmt.Sprintf("route %s is wanted by App %s and by App %s", r, other, sp.Name)})
			}
			routes[r.Key()] = sp.Name
		}
	}
	if len(problems) > 0 {
		return invalid(problems...)
	}
	return nil
}

// peers are the Deploys of the lock-step that are still kept.
func (e *Engine) peers(id string) []*deployRecord {
	l := e.s.locksteps[id]
	if l == nil {
		return nil
	}
	var out []*deployRecord
	for _, id := range l.Deploys {
		if d := e.s.deploys.get(id); d != nil {
			out = append(out, d)
		}
	}
	return out
}

// gather lets every lock-step go on of which all are ready, and ends those of which one has ended.
func (e *Engine) gather() {
	seen := map[string]bool{}
	for _, id := range e.activeDeploys() {
		d := e.s.deploys.get(id)
		if d.Lockstep == "" || seen[d.Lockstep] {
			continue
		}
		seen[d.Lockstep] = true
		peers := e.peers(d.Lockstep)
		if i := slices.IndexFunc(peers, func(p *deployRecord) bool { return p.Step == deploy.StepDone && p.State != deploy.Succeeded }); i >= 0 {
			in := deploy.PeerEnded{App: peers[i].App, Reason: peers[i].Reason, Outcome: peers[i].State}
			for _, p := range peers {
				if p.Open() {
					e.feed(p, in)
				}
			}
			continue
		}
		open := slices.DeleteFunc(peers, func(p *deployRecord) bool { return !p.Open() })
		if len(open) == 0 || slices.ContainsFunc(open, func(p *deployRecord) bool { return p.Step != deploy.StepGathering || e.inserting(p.App) }) {
			continue
		}
		e.together = []*deployRecord{}
		for _, p := range open {
			e.feed(p, deploy.Gathered{}) // each asks for its transaction, which begin collects
		}
		all := e.together
		e.together = nil
		e.beginAll(all)
	}
}

// inserting: an insertion of the App is under way; a transaction of it waits.
func (e *Engine) inserting(app string) bool {
	for _, am := range e.s.amends {
		if am.App == app && len(am.Insert) > 0 && !am.Parked {
			return true
		}
	}
	return false
}

// abortPeers asks the others of the lock-step what was asked of d: an abort of one is of all.
func (e *Engine) abortPeers(d *deployRecord, ask deploy.Ask) {
	for _, p := range e.peers(d.Lockstep) {
		if p != d && p.Open() {
			e.feed(p, deploy.AbortAsked{Ask: ask})
		}
	}
}

// viewOf is the View of a Deploy, or of a lock-step.
func (e *Engine) viewOf(id string) (deploy.View, bool) {
	if d := e.s.deploys.get(id); d != nil {
		return e.view(d), true
	}
	peers := e.peers(id)
	if len(peers) == 0 {
		return deploy.View{}, false
	}
	var views []deploy.View
	for _, d := range peers {
		views = append(views, e.view(d))
	}
	return deploy.Together(id, views), true
}

// emitTogether tells an event of one Deploy as one of its lock-step. The last end is the end of all.
func (e *Engine) emitTogether(d *deployRecord, ev deploy.Event, told bool) {
	l := e.s.locksteps[d.Lockstep]
	if l == nil {
		return
	}
	l.Seq++
	e.batch.locksteps[l.ID] = true
	ev.Seq, ev.Deploy, ev.View = l.Seq, l.ID, nil
	if ev.Type == "end" && slices.ContainsFunc(e.peers(l.ID), func(p *deployRecord) bool { return p.Step != deploy.StepDone }) {
		ev.Type = "step"
	}
	e.batch.early = append(e.batch.early, putOrDelete(keyEvent(l.ID, l.Seq), &ev))
	if told {
		if v, ok := e.viewOf(l.ID); ok {
			ev.View = &v
		}
	}
	e.batch.do(func() { e.fan.send(l.ID, ev) })
}

// pruneLockstep forgets a lock-step when the last of its Deploys is forgotten.
func (e *Engine) pruneLockstep(id string) {
	l := e.s.locksteps[id]
	if l == nil || len(e.peers(id)) > 0 {
		return
	}
	for seq := uint64(1); seq <= l.Seq; seq++ {
		e.batch.early = append(e.batch.early, store.Op{Kind: store.Delete, Key: keyEvent(id, seq)})
	}
	delete(e.s.locksteps, id)
	e.batch.locksteps[id] = true
}
