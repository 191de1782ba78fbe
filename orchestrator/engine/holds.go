package engine

import (
	"context"

	"github.com/cutover/cutover/internal/crashpoint"
)

// This file is NO-ORPHAN-KILL: who may still know a task's upstream, and when the task may be killed.

// retire gives a task up: it is killed as soon as no Host may know it any longer.
func (e *Engine) retire(t *taskRecord, by string) {
	if t.Role == roleRetiring {
		return
	}
	t.Role, t.RetiredBy = roleRetiring, by
	e.dirty(t)
	e.maybeKill(t)
}

// maybeKill orders the kill of a retiring task that nothing holds (NO-ORPHAN-KILL).
func (e *Engine) maybeKill(t *taskRecord) {
	if t.Role != roleRetiring || len(t.Holds) > 0 || t.ended() || t.KillOrdered {
		return
	}
	t.KillOrdered = true
	e.dirty(t)
	if _, waits := e.s.relaunch[t.TaskID]; waits { // the framework does not know it
		delete(e.s.relaunch, t.TaskID)
		e.taskEnded(t.TaskID, Killed, "not launched")
		return
	}
	e.sendKill(t)
}

func (e *Engine) sendKill(t *taskRecord) {
	id := t.TaskID
	e.batch.do(func() {
		e.ports.Prober.Remove(id)
		e.runner.push(func() {
			ctx, cancel := context.WithTimeout(e.ctx, e.opts.CallTimeout)
			defer cancel()
			crashpoint.At("before-kill")
			defer crashpoint.At("after-kill")
			if err := e.ports.Runner.Kill(ctx, id); err != nil && e.ctx.Err() == nil {
				e.log.Warn("a kill failed and is repeated", "task", id, "error", err)
			}
		})
	})
}

// release ends the holds of a Group on upstreams, unless the committed or an open target names them there again.
func (e *Engine) release(group string, names []string) {
	for _, name := range names {
		t := e.s.task(e.s.upstreams[name])
		if t == nil || !t.Holds[group] || e.wanted(t, group) {
			continue
		}
		e.unhold(t, group)
	}
}

// unhold ends holds by the word of every Host of the Groups: the last one frees the ports too.
func (e *Engine) unhold(t *taskRecord, groups ...string) {
	for _, g := range groups {
		delete(t.Holds, g)
	}
	t.PortHeld = len(t.Holds) > 0
	e.dirty(t)
	e.maybeKill(t)
}

// askReleased asks the coordinator about the given tasks, in case its word on them was lost, or comes later than the kill
// of a task needs it.
func (e *Engine) askReleased(tasks []*taskRecord) {
	var names []string
	for _, t := range tasks {
		names = append(names, t.Upstream)
	}
	if len(names) == 0 {
		return
	}
	e.batch.do(func() {
		e.coord.push(func() {
			ctx, cancel := context.WithTimeout(e.ctx, e.opts.CallTimeout)
			defer cancel()
			released, err := e.ports.Coordinator.Released(ctx, names)
			if err != nil {
				if e.ctx.Err() == nil {
					e.log.Warn("the coordinator does not say what is released", "error", err)
				}
				return
			}
			e.post(func() {
				for _, name := range released {
					if t := e.s.task(e.s.upstreams[name]); t != nil {
						e.allReleased(t)
					}
				}
			})
		})
	})
}

// allReleased ends all holds of a task that is not wanted in any Group.
func (e *Engine) allReleased(t *taskRecord) {
	for g := range t.Holds {
		if e.wanted(t, g) {
			return
		}
	}
	if t.PortHeld || len(t.Holds) > 0 {
		e.unhold(t, sortedKeys(t.Holds)...)
	}
}

// held are tasks that only wait for a Host's word.
func (e *Engine) held() []*taskRecord {
	var out []*taskRecord
	for _, id := range sortedKeys(e.s.tasks) {
		t := e.s.task(id)
		if (t.PortHeld || len(t.Holds) > 0) && (t.Role == roleRetiring || t.Removed || t.ended()) {
			out = append(out, t)
		}
	}
	return out
}

// wanted reports whether the task's upstream belongs on the Group's Hosts now, or may soon.
func (e *Engine) wanted(t *taskRecord, group string) bool {
	a := e.s.apps[t.App]
	if t.Moving != "" && !t.ended() {
		return true
	}
	if a == nil {
		return false // its App was never stored (disown)
	}
	if t.Role == roleCommitted && !t.Removed && a.Committed != 0 {
		if sp, ok := e.s.specs.get(t.App, a.Committed); ok && contains(sp.Groups(), group) {
			return true
		}
	}
	if a.Open == "" {
		return false
	}
	d := e.s.deploys.get(a.Open)
	if !d.InTxn() {
		return false
	}
	for _, m := range d.Members {
		if m.Task == t.TaskID {
			return true
		}
	}
	return t.Role == roleCommitted
}

func (e *Engine) hold(t *taskRecord, groups []string) {
	if t.Holds == nil {
		t.Holds = map[string]bool{}
	}
	for _, g := range groups {
		t.Holds[g], t.PortHeld = true, true
	}
	e.dirty(t)
}
