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
	if err := e.outcomes(ctx); err != nil {
		return err
	}
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
		e.sendAmend(e.s.amends[id])
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
