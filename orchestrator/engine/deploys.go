package engine

import (
	"context"
	"slices"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/scheduler"
	"github.com/cutover/cutover/orchestrator/txn"
)

// This file drives the Deploy machine: inputs in, effects out.

// feedApp gives an input to the App's open Deploy, if there is one.
func (e *Engine) feedApp(app string, in deploy.Input) {
	if a := e.s.apps[app]; a != nil && a.Open != "" {
		e.feed(e.s.deploys.get(a.Open), in)
	}
}

// feed takes one step of a Deploy and carries out its effects.
func (e *Engine) feed(d *deployRecord, in deploy.Input) {
	next, effects := deploy.Step(d.Deploy, in, e.batch.now)
	d.Deploy = next
	e.batch.deploys[d.ID] = true
	e.batch.look[d.App] = true
	var events []deploy.Event
	for _, eff := range effects {
		switch eff := eff.(type) {
		case deploy.Emit:
			events = append(events, eff.Event)
		case deploy.LaunchTasks:
			for _, m := range eff.Members {
				e.launch(m.Task, d.App, d.Spec, m.Instance, roleCandidate, d.ID)
			}
		case deploy.KillTasks:
			for _, id := range eff.Tasks {
				if t := e.s.task(id); t != nil {
					e.retire(t, "")
				}
			}
		case deploy.BeginTxn:
			e.begin(d)
		case deploy.AbortTxn:
			e.abortTxn(d, eff)
		case deploy.FetchOutput:
			e.fetchOutput(d.ID, eff.Task)
		case deploy.Adopt:
			e.adopt(d)
		case deploy.End:
			e.metrics.ended(d.Deploy)
		}
	}
	if len(events) > 0 {
		view := e.view(d)
		for _, ev := range events {
			e.emit(d, ev, &view)
		}
	}
	if d.Step == deploy.StepDone {
		delete(e.s.active, d.ID)
		for _, t := range e.s.sorted(d.App) {
			if t.Role == roleCandidate && t.Deploy == d.ID {
				e.retire(t, "") // a task that the machine has replaced and that did not end yet
			}
		}
	}
	if a := e.s.apps[d.App]; a.Open == d.ID && !d.Open() {
		e.closed(a)
	}
}

// closed makes room for the next Deploy of the App; a waiting rollback goes first (ROLLBACK-IS-FREE).
func (e *Engine) closed(a *appRecord) {
	w := e.s.deploys.get(a.Waiting)
	a.Open, a.Waiting, a.UpdatedAt = "", "", e.batch.now
	e.batch.apps[a.Name] = true
	if w == nil || !w.Open() {
		e.unpark(a)
		return
	}
	a.Open = w.ID
	e.retarget(a, w)
	e.feed(w, deploy.Cleared{})
}

// retarget computes what depends on the committed state at the moment when a Deploy really starts.
func (e *Engine) retarget(a *appRecord, d *deployRecord) {
	d.FromSpec = a.Committed
	d.Members = nil
	d.Policy.Groups = e.groups(a, d)
	sp, ok := e.s.specs.get(d.App, d.Spec)
	if !ok || d.Kind == deploy.KindStop {
		d.Wanted = 0
		return
	}
	d.Wanted = sp.Instances
	template := sp.TemplateDigest()
	taken := map[int]bool{}
	for _, t := range e.s.sorted(a.Name) {
		// Draining tasks are not taken back: their release may be on its way. Nor is what a replacement is about to take out.
		if t.Moving != "" || t.Role != roleCommitted || t.ended() || t.KillOrdered || t.State.Away() || t.Template != template ||
			t.Instance >= d.Wanted || taken[t.Instance] || t.State != Running {
			continue
		}
		taken[t.Instance] = true
		state := deploy.MemberHealthy
		if t.health == scheduler.Failing {
			state = deploy.MemberRunning
		}
		d.Members = append(d.Members, deploy.Member{Task: t.TaskID, Instance: t.Instance, Kept: true, State: state})
	}
}

// groups are those that base or target name, in order.
func (e *Engine) groups(a *appRecord, d *deployRecord) []string {
	var out []string
	if sp, ok := e.s.specs.get(a.Name, a.Committed); ok && a.Committed != 0 {
		out = append(out, sp.Groups()...)
	}
	if sp, ok := e.s.specs.get(a.Name, d.Spec); ok && d.Kind != deploy.KindStop {
		out = append(out, sp.Groups()...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// emit numbers, stores and shows one event.
func (e *Engine) emit(d *deployRecord, ev deploy.Event, view *deploy.View) {
	if ev.Type != "step" && ev.Type != "end" {
		if d.notes++; d.notes > maxEvents {
			return
		}
	}
	d.Seq++
	e.batch.deploys[d.ID] = true
	ev.Seq, ev.At, ev.Deploy, ev.App = d.Seq, e.batch.now, d.ID, d.App
	e.batch.early = append(e.batch.early, putOrDelete(keyEvent(d.ID, d.Seq), &ev))
	if ev.Type == "step" || ev.Type == "host" || ev.Type == "end" {
		ev.View = view
	}
	id := d.ID
	e.batch.do(func() { e.fan.send(id, ev) })
	if d.Lockstep != "" {
		e.emitTogether(d, ev, ev.View != nil)
	}
}

// begin marks what the transaction will name as held, and gives the Proposal to the coordinator after the Commit. While an
// insertion is under way it waits: the insertion would otherwise come after the transaction, into a Section that is not its
// own. A rollback does not wait: the coordinator gives the insertion up for it.
func (e *Engine) begin(d *deployRecord) {
	d.deferred = false
	switch {
	case e.together != nil:
		e.together = append(e.together, d)
	case d.Kind != deploy.KindRollback && e.inserting(d.App):
		d.deferred = true
	default:
		e.beginAll([]*deployRecord{d})
	}
}

// beginAll gives the Proposals of Deploys that commit together, or of one, to the coordinator after the Commit.
func (e *Engine) beginAll(all []*deployRecord) {
	var proposals []txn.Proposal
	var failed error
	for _, d := range all {
		p, err := e.proposal(d)
		if err != nil && failed == nil {
			failed = err
		}
		proposals = append(proposals, p)
	}
	if failed != nil {
		e.batch.do(func() {
			for _, p := range proposals {
				e.inbox.put(refusedTxn(p, failed))
			}
		})
		return
	}
	for _, d := range all {
		for _, m := range d.Members {
			if t := e.s.task(m.Task); t != nil && !t.ended() {
				e.hold(t, d.Policy.Groups)
			}
		}
	}
	e.batch.do(func() {
		e.coord.push(func() {
			ctx, cancel := context.WithTimeout(e.ctx, e.opts.CallTimeout)
			defer cancel()
			if err := e.ports.Coordinator.Begin(ctx, proposals...); err != nil && e.ctx.Err() == nil {
				e.log.Warn("the coordinator refused a transaction", "txn", proposals[0].ID, "error", err)
				for _, p := range proposals {
					e.beginFailed(p, err)
				}
			}
		})
	})
}

// beginFailed finds out whether the transaction was begun in spite of the error.
func (e *Engine) beginFailed(p txn.Proposal, cause error) {
	ctx, cancel := context.WithTimeout(e.ctx, e.opts.CallTimeout)
	defer cancel()
	st, found, err := e.ports.Coordinator.Outcome(ctx, p.ID)
	switch {
	case err != nil:
		e.fail(err) // not known: the next term finds out
	case found:
		e.inbox.put(st)
	default:
		e.inbox.put(refusedTxn(p, cause))
	}
}

// refusedTxn is the end of a transaction that no Host ever heard of.
func refusedTxn(p txn.Proposal, err error) txn.Status {
	return txn.Status{ID: p.ID, Deploy: p.Deploy, Phase: txn.RolledBack, Reason: "the transaction was refused: " + err.Error()}
}

func (e *Engine) abortTxn(d *deployRecord, eff deploy.AbortTxn) {
	if d.deferred {
		// It was never given to the coordinator.
		d.deferred = false
		id := eff.ID
		e.batch.do(func() {
			e.inbox.put(txn.Status{ID: id, Phase: txn.RolledBack, Cause: txn.Cause(eff.Cause), Reason: eff.Reason})
		})
		return
	}
	e.batch.do(func() {
		e.coord.push(func() {
			ctx, cancel := context.WithTimeout(e.ctx, e.opts.CallTimeout)
			defer cancel()
			// After Commit this is refused, and the Status says Committed: nothing to do here.
			if err := e.ports.Coordinator.Abort(ctx, eff.ID, txn.Cause(eff.Cause), eff.Reason); err != nil && e.ctx.Err() == nil {
				e.log.Info("an abort was not taken", "txn", eff.ID, "error", err)
			}
		})
	})
}

// adopt makes the target the committed set, and retires what it replaced.
func (e *Engine) adopt(d *deployRecord) {
	a := e.s.apps[d.App]
	// An insertion that a rollback overtook is given up by the coordinator, and must not be sent again after a restart.
	for _, id := range sortedKeys(e.s.amends) {
		if rec := e.s.amends[id]; rec.App == d.App && len(rec.Insert) > 0 {
			e.moved(rec)
			delete(e.s.amends, id)
			e.batch.amends[id] = true
		}
	}
	target := map[string]bool{}
	for _, id := range d.Tasks() {
		target[id] = true
	}
	for _, t := range e.s.sorted(d.App) {
		switch {
		case target[t.TaskID]:
			t.Role = roleCommitted
			e.dirty(t)
		case t.Role == roleCommitted, t.Role == roleReplacement:
			e.retire(t, d.ID)
		}
	}
	a.Stopped = d.Kind == deploy.KindStop
	a.Committed = d.Spec
	if a.Stopped {
		a.Committed = 0
	}
	a.CommittedBy, a.CommittedTxn, a.UpdatedAt = d.ID, d.Txn, e.batch.now
	a.History = append(a.History, a.Committed)
	if over := len(a.History) - keepHistory; over > 0 {
		a.History = slices.Clone(a.History[over:])
	}
	a.Backoff = nil
	if sp, ok := e.s.specs.get(d.App, d.Spec); ok && !a.Stopped {
		a.Kind = sp.Kind
	}
	e.batch.apps[a.Name] = true
}

// settleOld tells Deploys when what they replaced is released, and when it has ended.
func (e *Engine) settleOld() {
	for _, id := range e.activeDeploys() {
		d := e.s.deploys.get(id)
		if d.State != deploy.Succeeded || d.Step == deploy.StepDone {
			continue
		}
		left, held := false, map[string]bool{}
		for _, t := range e.s.tasksOf[d.App] {
			if t.RetiredBy != id {
				continue
			}
			left = left || !t.ended()
			for g := range t.Holds {
				held[g] = true
			}
		}
		// A Group that holds nothing of what was replaced is drained, whether or not the coordinator had anything to say.
		for _, g := range d.Policy.Groups {
			if !held[g] && !d.Drains[g].Done {
				e.feed(d, deploy.TxnDrained{ID: d.Txn, Group: g, Done: true, Forced: d.Drains[g].Forced})
			}
		}
		if !left && !d.OldGone {
			e.feed(d, deploy.OldTasksGone{})
		}
	}
}

func (e *Engine) activeDeploys() []string {
	out := make([]string, 0, len(e.s.active))
	for id := range e.s.active {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// due feeds what time brings.
func (e *Engine) due() {
	now := e.batch.now
	for _, id := range e.activeDeploys() {
		d := e.s.deploys.get(id)
		if d.Step == deploy.StepLaunching || d.Step == deploy.StepChecking {
			e.alive(d)
			e.askPending(d)
		}
		if wake := d.Wake(); !wake.IsZero() && !wake.After(now) {
			e.lastWords(d)
			e.feed(d, deploy.Tick{})
		}
	}
	e.relaunch(false)
	e.safety()
	for _, a := range e.s.apps {
		if !a.wake.IsZero() && !a.wake.After(now) {
			e.batch.look[a.Name] = true
		}
	}
}

// alive counts tasks without a health check as healthy once they run for a while.
func (e *Engine) alive(d *deployRecord) {
	for _, m := range d.Members {
		t := e.s.task(m.Task)
		if t == nil || t.health == scheduler.Healthy || t.State != Running || !e.unchecked(t) {
			continue
		}
		if e.batch.now.Sub(t.RunningAt) >= e.opts.AliveAfter {
			t.health, t.changed = scheduler.Healthy, e.batch.now
			e.feed(d, deploy.TaskHealthy{Task: m.Task})
		}
	}
}

func (e *Engine) unchecked(t *taskRecord) bool {
	sp, ok := e.s.specs.get(t.App, t.Spec)
	return ok && sp.Health == nil
}

// pendingEvery is how often the framework is asked why tasks of a Deploy are not placed.
const pendingEvery = 2 * time.Second

func (e *Engine) askPending(d *deployRecord) {
	now := e.batch.now
	if d.Step != deploy.StepLaunching || now.Sub(d.StepAt) < pendingEvery || now.Sub(d.asked) < pendingEvery {
		return
	}
	d.asked = now
	e.batch.do(func() {
		e.runner.push(func() {
			pending := e.ports.Runner.Pending()
			e.post(func() {
				for _, p := range pending {
					if t := e.s.task(p.TaskID); t != nil && t.State == Queued {
						t.why, t.unplaced = p.Why, true
						e.feedApp(t.App, deploy.TaskUnplaced{Task: p.TaskID, Why: p.Why})
					}
				}
			})
		})
	})
}

// lastWords gives the Deploy what the prober knows about its tasks just before its deadline.
func (e *Engine) lastWords(d *deployRecord) {
	if d.Step != deploy.StepLaunching && d.Step != deploy.StepChecking {
		return
	}
	for _, m := range d.Members {
		if m.State != deploy.MemberRunning {
			continue
		}
		if why := e.ports.Prober.LastError(m.Task); why != "" {
			e.feed(d, deploy.TaskUnhealthy{Task: m.Task, Why: why})
		}
	}
}
