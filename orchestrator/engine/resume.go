package engine

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/scheduler"
	"github.com/cutover/cutover/orchestrator/store"
)

func isNotFound(err error) bool { return errors.Is(err, store.ErrNotFound) }

// resume picks up what was going on when the last term ended. It runs before the loop, as its first turn. What was an
// effect of a stored state is done again; what a neighbour knows is asked.
func (e *Engine) resume(ctx context.Context) error {
	e.batch = newBatch(e.now())
	now := e.batch.now
	if err := e.rebuild(ctx); err != nil {
		return err
	}
	e.s.looked, e.s.repeated = now, now
	for _, t := range e.s.tasks {
		// The prober starts anew: nothing is known, and nothing is replaced for that.
		t.health, t.changed = scheduler.Unknown, now
	}
	e.heal()
	if err := e.outcomes(ctx); err != nil {
		return err
	}
	e.disown()
	for _, id := range slices.Sorted(maps.Keys(e.s.tasks)) {
		t := e.s.task(id)
		if t.ended() {
			continue
		}
		sp, ok := e.s.specs.get(t.App, t.Spec)
		switch {
		case t.KillOrdered && t.State == Queued:
			e.taskEnded(id, Killed, "not launched") // a launch is recorded before it is sent
		case t.KillOrdered:
			e.sendKill(t)
		case t.State == Queued && ok:
			e.sendLaunch(t, sp)
		case t.State == Running:
			e.probe(t, t.Role == roleCommitted || t.Role == roleRetiring)
		}
		e.maybeKill(t)
	}
	e.askReleased(e.held())
	for _, id := range slices.Sorted(maps.Keys(e.s.amends)) {
		if rec := e.s.amends[id]; !rec.Parked {
			e.sendAmend(rec)
		}
	}
	for _, id := range e.activeDeploys() {
		d := e.s.deploys.get(id)
		e.log.Info("a Deploy goes on", "deploy", id, "app", d.App, "step", d.Step)
		if v := d.Verdict; d.Step == deploy.StepExplaining && v != nil && !v.Answered {
			e.fetchOutput(id, v.Culprit)
		}
		if d.Step == deploy.StepLaunching || d.Step == deploy.StepChecking || d.Step == deploy.StepGathering {
			e.missed(d)
		}
	}
	for name := range e.s.apps {
		e.batch.look[name] = true
	}
	e.settle()
	if err := e.commit(); err != nil {
		return err
	}
	for _, act := range e.batch.after {
		act()
	}
	return nil
}

// heal brings Apps up to the Deploy that they call their open one, in case the term ended between the Commit of its end and
// theirs: many that end in one moment do not fit one Commit.
func (e *Engine) heal() {
	for _, name := range sortedKeys(e.s.apps) {
		a := e.s.apps[name]
		if a.Open == "" {
			continue
		}
		d := e.s.deploys.get(a.Open)
		if d == nil {
			e.log.Error("the record of an open Deploy is not there: the App takes the next one", "app", name, "deploy", a.Open)
		} else if d.Open() {
			continue
		}
		e.log.Warn("an App was behind its Deploy", "app", name, "deploy", a.Open)
		if d != nil && d.State == deploy.Succeeded && a.CommittedBy != d.ID {
			e.adopt(d)
		}
		if w := e.s.deploys.get(a.Waiting); w != nil && w.Open() && w.Step != deploy.StepWaiting && w.Step != deploy.StepWaitStuck {
			a.Open, a.Waiting, a.UpdatedAt = w.ID, "", e.batch.now // it has begun
			e.batch.apps[name] = true
			continue
		}
		e.closed(a)
	}
}

// disown gives up tasks of Deploys that are not there or are over, in case the term ended between the Commit of such a task and
// its Deploy's. What a Host may know of them only the coordinator can say (NO-ORPHAN-KILL): they are held until then.
func (e *Engine) disown() {
	for _, id := range sortedKeys(e.s.tasks) {
		t := e.s.task(id)
		if t.Role != roleCandidate {
			continue
		}
		if d := e.s.deploys.get(t.Deploy); d != nil && d.Step != deploy.StepDone {
			continue
		}
		if sp, ok := e.s.specs.get(t.App, t.Spec); ok && !t.ended() {
			t.holdIn(sp.Groups())
		}
		e.log.Warn("a task is of no Deploy", "task", id, "deploy", t.Deploy)
		e.retire(t, "")
	}
}

// outcomes asks the coordinator what became of every transaction that a Deploy waits for.
func (e *Engine) outcomes(ctx context.Context) error {
	for _, id := range e.activeDeploys() {
		d := e.s.deploys.get(id)
		if d.State == deploy.Succeeded && d.Txn != "" {
			// Asking makes the coordinator tell again how far the draining is.
			if _, _, err := e.ports.Coordinator.Outcome(ctx, d.Txn); err != nil {
				return err
			}
		}
		if !d.InTxn() {
			continue
		}
		st, found, err := e.ports.Coordinator.Outcome(ctx, d.Txn)
		if err != nil {
			return err
		}
		if found {
			e.txnChanged(st)
			continue
		}
		e.undone(d)
		e.feed(d, deploy.TxnUnknown{ID: d.Txn})
	}
	return nil
}

// missed tells a Deploy what is stored about its tasks, in case the term ended between a task's record and the Deploy's.
func (e *Engine) missed(d *deployRecord) {
	for _, m := range d.Members {
		t := e.s.task(m.Task)
		switch {
		case t == nil:
			if m.State != deploy.MemberEnded && !m.Kept {
				e.launch(m.Task, d.App, d.Spec, m.Instance, roleCandidate, d.ID)
			}
		case t.ended():
			e.feed(d, deploy.TaskEnded{Task: m.Task, Why: t.Message})
		case t.State == Running:
			e.feed(d, deploy.TaskRunning{Task: m.Task})
		}
	}
}
