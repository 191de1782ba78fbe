package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/scheduler"
	"github.com/cutover/cutover/orchestrator/spec"
	"github.com/cutover/cutover/orchestrator/txn"
)

// This file is what happens between Deploys: the scheduler's plans and their Amendments.

// settle ends a turn: everything that follows from what the turn changed.
func (e *Engine) settle() {
	e.settleOld()
	e.gather()
	for _, name := range slices.Sorted(maps.Keys(e.batch.look)) {
		if a := e.s.apps[name]; a != nil {
			e.schedule(a)
			e.prune(a)
		}
		e.pruneTasks(name)
	}
	e.settleOld()
	e.s.wake = e.nextWake()
}

// nextWake is the earliest time at which something is due; zero if only events and the safety look change anything.
func (e *Engine) nextWake() (wake time.Time) {
	for id := range e.s.active {
		d := e.s.deploys.get(id)
		earliest(&wake, d.Wake())
		if d.Step != deploy.StepLaunching && d.Step != deploy.StepChecking {
			continue
		}
		if d.Step == deploy.StepLaunching {
			earliest(&wake, e.batch.now.Add(pendingEvery))
		}
		for _, m := range d.Members {
			if t := e.s.task(m.Task); t != nil && t.State == Running && t.health != scheduler.Healthy && e.unchecked(t) {
				earliest(&wake, t.RunningAt.Add(e.opts.AliveAfter))
			}
		}
	}
	for _, a := range e.s.apps {
		earliest(&wake, a.wake)
	}
	for _, at := range e.s.relaunch {
		earliest(&wake, at)
	}
	earliest(&wake, e.batch.now.Add(e.opts.SafetyInterval))
	return wake
}

func earliest(wake *time.Time, t time.Time) {
	if !t.IsZero() && (wake.IsZero() || t.Before(*wake)) {
		*wake = t
	}
}

// repeatAfter is when an order without an answer is given again.
const repeatAfter = 30 * time.Second

// safety looks at everything now and then, in case an event or an answer was lost: polling is a safety net only.
func (e *Engine) safety() {
	if e.batch.now.Sub(e.s.looked) < e.opts.SafetyInterval {
		return
	}
	e.s.looked = e.batch.now
	for name := range e.s.apps {
		e.batch.look[name] = true
	}
	if e.batch.now.Sub(e.s.repeated) < repeatAfter {
		return
	}
	e.s.repeated = e.batch.now
	for _, id := range sortedKeys(e.s.tasks) {
		if t := e.s.task(id); t.KillOrdered && !t.ended() {
			e.sendKill(t)
		}
	}
	e.askReleased(e.held())
	for _, id := range sortedKeys(e.s.amends) {
		if rec := e.s.amends[id]; len(rec.Remove) > 0 && e.batch.now.Sub(rec.At) > repeatAfter {
			e.sendAmend(rec)
		}
	}
}

// schedule carries out the scheduler's plan for one App.
func (e *Engine) schedule(a *appRecord) {
	a.wake = time.Time{}
	in := scheduler.App{Name: a.Name, Frozen: a.Open != "" || a.Waiting != "", Backoff: a.Backoff}
	sp, ok := e.s.specs.get(a.Name, a.Committed)
	if ok && a.Committed != 0 {
		in.Desired = sp.Instances
	}
	undo := e.undo(a)
	in.Undoing = undo != ""
	for _, t := range e.s.sorted(a.Name) {
		if t.Role != roleCommitted && t.Role != roleReplacement {
			continue
		}
		if t.health == scheduler.Unknown && t.State == Running && e.unchecked(t) && e.batch.now.Sub(t.RunningAt) >= e.opts.AliveAfter {
			t.health, t.changed = scheduler.Healthy, e.batch.now
		}
		in.Tasks = append(in.Tasks, scheduler.Task{
			ID: t.TaskID, Instance: t.Instance, Liveness: t.liveness(), Health: t.health, Since: t.changed,
			Replacement: t.Role == roleReplacement, Moving: t.Moving != "", Removed: t.Removed,
		})
	}
	plan := scheduler.Reconcile(in, e.batch.now, e.opts.Scheduler)
	a.wake = plan.Wake
	for _, id := range plan.Remove {
		e.remove(e.s.task(id))
	}
	for _, id := range plan.Discard {
		e.retire(e.s.task(id), "")
	}
	for _, s := range plan.Start {
		id := deploy.TaskID(a.Name, a.Committed, s.Instance, e.newID())
		e.log.Info("a replacement is started", "app", a.Name, "task", id, "reason", s.Reason)
		e.metrics.replacements.WithLabelValues(string(s.Reason)).Inc()
		e.launch(id, a.Name, a.Committed, s.Instance, roleReplacement, "")
	}
	switch {
	case len(plan.Insert) == 0:
	case in.Undoing:
		e.replaceOld(a, sp, plan.Insert, undo)
	default:
		for _, ins := range plan.Insert {
			e.insert(sp, []scheduler.Insert{ins}, &amendRecord{
				App: a.Name, Reason: fmt.Sprintf("task %s replaces instance %d", ins.Task, e.s.task(ins.Task).Instance),
			})
		}
	}
	if t := e.aliveSoon(a); !t.IsZero() && (a.wake.IsZero() || t.Before(a.wake)) {
		a.wake = t
	}
}

// aliveSoon is when a replacement without a health check counts as healthy.
func (e *Engine) aliveSoon(a *appRecord) (wake time.Time) {
	for _, t := range e.s.tasksOf[a.Name] {
		if t.Role == roleReplacement && t.State == Running && t.health == scheduler.Unknown && e.unchecked(t) {
			earliest(&wake, t.RunningAt.Add(e.opts.AliveAfter))
		}
	}
	return wake
}

// remove takes a terminally dead task out of every proxy, at once.
func (e *Engine) remove(t *taskRecord) {
	t.Removed = true
	e.dirty(t)
	if len(t.Holds) == 0 {
		return
	}
	e.amend(&amendRecord{
		ID: e.newID(), App: t.App, Pending: maps.Clone(t.Holds), Remove: []string{t.TaskID}, At: e.batch.now,
		Reason: "task " + t.TaskID + " ended: " + t.Message,
	})
}

// undo is the transaction of the App's open Deploy, while it is being undone; "" otherwise.
func (e *Engine) undo(a *appRecord) string {
	if d := e.s.deploys.get(a.Open); d != nil && d.undoing && d.InTxn() {
		return d.Txn
	}
	return ""
}

// replaceOld brings the replacements of all that died into the proxies before the Deploy is undone: the new tasks serve
// until then, and there is nothing else to go back to (NEVER-ZERO).
func (e *Engine) replaceOld(a *appRecord, sp spec.Spec, set []scheduler.Insert, undo string) {
	reason := fmt.Sprintf("no task of spec %d can serve: hosts go back to %d that replace them", a.Committed, len(set))
	d := e.s.deploys.get(a.Open)
	e.emit(d, deploy.Event{Type: "note", Code: string(d.Code), Msg: reason}, nil)
	e.insert(sp, set, &amendRecord{App: a.Name, Undo: undo, Reason: reason})
}

// insert brings healthy replacements into the proxies; what they replace drains once they are verified there. The record
// has App, Reason and Undo.
func (e *Engine) insert(sp spec.Spec, set []scheduler.Insert, rec *amendRecord) {
	groups := sp.Groups()
	rec.ID, rec.At, rec.Pending = e.newID(), e.batch.now, map[string]bool{}
	for _, ins := range set {
		rec.Insert = append(rec.Insert, ins.Task)
		t := e.s.task(ins.Task)
		t.Moving = rec.ID
		e.hold(t, groups)
		if old := e.s.task(ins.Retire); old != nil {
			rec.Retire = append(rec.Retire, old.TaskID)
			old.Moving = rec.ID
			e.dirty(old)
		}
	}
	for _, g := range groups {
		rec.Pending[g] = true
	}
	if len(groups) == 0 {
		e.s.amends[rec.ID] = rec
		e.amendOver(rec)
		return
	}
	e.amend(rec)
}

// amend records an Amendment and gives it to the coordinator after the Commit.
func (e *Engine) amend(rec *amendRecord) {
	e.s.amends[rec.ID] = rec
	e.batch.amends[rec.ID] = true
	e.sendAmend(rec)
}

// sendAmend may be repeated after a restart: an Amendment is idempotent by its content.
func (e *Engine) sendAmend(rec *amendRecord) {
	for _, g := range slices.Sorted(maps.Keys(rec.Pending)) {
		am := txn.Amendment{
			ID: rec.ID + "." + g, Group: g, App: rec.App, Remove: e.names(rec.Remove), Retire: e.names(rec.Retire),
			Undo: rec.Undo, Actor: "scheduler", Reason: rec.Reason,
		}
		inserts := e.living(rec)
		if len(inserts) == 0 && len(rec.Insert) > 0 {
			e.batch.do(func() {
				e.inbox.put(txn.Amended{ID: am.ID, Group: g, App: rec.App, Reason: "every replacement has ended"})
			})
			continue
		}
		for _, t := range inserts {
			sp, ok := e.s.specs.get(rec.App, t.Spec)
			if !ok {
				continue
			}
			u, err := upstream(t, sp, g)
			if err != nil {
				e.batch.do(func() { e.inbox.put(txn.Amended{ID: am.ID, Group: g, App: rec.App, Reason: err.Error()}) })
				continue
			}
			am.Insert = append(am.Insert, u)
			am.Deadline = e.batch.now.Add(e.opts.InsertTimeout)
			am.Spec = t.Spec
		}
		if len(inserts) != len(am.Insert) {
			continue
		}
		e.batch.do(func() {
			e.coord.push(func() {
				ctx, cancel := context.WithTimeout(e.ctx, e.opts.CallTimeout)
				defer cancel()
				if err := e.ports.Coordinator.Amend(ctx, am); err != nil && e.ctx.Err() == nil {
					e.log.Warn("an amendment was not taken", "app", am.App, "group", am.Group, "error", err)
					if len(am.Remove) == 0 {
						e.inbox.put(txn.Amended{ID: am.ID, Group: am.Group, App: am.App, Reason: err.Error()})
					} // a removal is sent again by the safety look
				}
			})
		})
	}
}

// living are the tasks to insert; those of a set that have ended are not told again after a restart.
func (e *Engine) living(rec *amendRecord) []*taskRecord {
	var out []*taskRecord
	for _, id := range rec.Insert {
		if t := e.s.task(id); t != nil && (rec.Undo == "" || !t.ended()) {
			out = append(out, t)
		}
	}
	return out
}

func (e *Engine) names(tasks []string) []string {
	var out []string
	for _, id := range tasks {
		if t := e.s.task(id); t != nil {
			out = append(out, t.Upstream)
		}
	}
	return out
}

// amended takes the coordinator's word on one Group of an Amendment.
func (e *Engine) amended(a txn.Amended) {
	id, group := cutGroup(a.ID, a.Group)
	rec := e.s.amends[id]
	if rec != nil && rec.Pending[group] {
		delete(rec.Pending, group)
		e.batch.amends[rec.ID] = true
		if a.Done {
			if rec.Done == nil {
				rec.Done = map[string]bool{}
			}
			rec.Done[group] = true
		} else {
			rec.Failed = a.Reason
			if rec.Failed == "" {
				rec.Failed = "the insertion did not succeed"
			}
		}
		if len(rec.Pending) == 0 {
			e.amendOver(rec)
		}
	}
	e.release(group, a.Released)
}

func cutGroup(id, group string) (string, string) {
	if n := len(id) - len(group) - 1; n > 0 && id[n:] == "."+group {
		return id[:n], group
	}
	return id, group
}

// amendOver ends an Amendment that every Group has answered.
func (e *Engine) amendOver(rec *amendRecord) {
	delete(e.s.amends, rec.ID)
	e.batch.amends[rec.ID] = true
	e.batch.look[rec.App] = true
	e.moved(rec)
	if len(rec.Insert) > 0 {
		if rec.Failed == "" {
			e.inserted(rec)
		} else {
			e.notInserted(rec)
		}
	}
	if a := e.s.apps[rec.App]; a != nil && a.Open != "" {
		if d := e.s.deploys.get(a.Open); d.deferred {
			e.begin(d)
		}
	}
}

func (e *Engine) inserted(rec *amendRecord) {
	for _, id := range rec.Insert {
		if t := e.s.task(id); t != nil && t.Role == roleReplacement {
			t.Role = roleCommitted
			e.dirty(t)
		}
	}
	for _, id := range rec.Retire {
		if t := e.s.task(id); t != nil && t.Role == roleCommitted {
			e.retire(t, "")
			e.feedApp(t.App, deploy.TaskEnded{Task: id, Why: "it was replaced"}) // no target of a transaction to come
		}
	}
}

// notInserted gives the replacement up. Where it was inserted in some Groups and not in others, it stays: it serves there,
// and the others are tried again, when no Deploy is about to replace it everywhere. Hosts that it was not inserted on say
// so in Released; until then its hold keeps it alive.
func (e *Engine) notInserted(rec *amendRecord) {
	e.log.Warn("a replacement was not inserted", "app", rec.App, "tasks", rec.Insert, "reason", rec.Failed)
	a := e.s.apps[rec.App]
	// Another Spec was committed meanwhile: its Commit has replaced these tasks in every Group.
	stale := rec.Undo == "" && slices.ContainsFunc(rec.Insert, func(id string) bool { t := e.s.task(id); return t != nil && t.Spec != a.Committed })
	open := a.Open != "" || a.Waiting != ""
	switch {
	case len(rec.Done) == 0 || stale:
	case open && rec.Undo != "":
		e.inserted(rec)
		return
	default:
		e.insertAgain(rec, open)
		return
	}
	e.giveUpInserts(rec, stale)
}

// insertAgain tries the Groups again that have not taken the replacement. parked: not before the App has no open Deploy. One
// that has ended counts as inserted: what replaces it goes into all Groups.
func (e *Engine) insertAgain(rec *amendRecord, parked bool) {
	again := &amendRecord{
		ID: e.newID(), App: rec.App, Pending: map[string]bool{}, Done: rec.Done, Insert: rec.Insert, Retire: rec.Retire,
		Undo: rec.Undo, Reason: rec.Reason, At: e.batch.now, Parked: parked,
	}
	for _, id := range append(slices.Clone(rec.Insert), rec.Retire...) {
		t := e.s.task(id)
		if t == nil {
			continue
		}
		t.Moving = again.ID
		e.dirty(t)
		for g := range t.Holds {
			if !rec.Done[g] {
				again.Pending[g] = true
			}
		}
	}
	switch t := e.s.task(rec.Insert[0]); {
	case t == nil || t.ended() || len(again.Pending) == 0:
		e.moved(again)
		e.inserted(rec)
	case parked:
		e.s.amends[again.ID] = again
		e.batch.amends[again.ID] = true
	default:
		e.amend(again)
	}
}

// unpark goes on with insertions that waited for the App's Deploy, which has ended without Commit.
func (e *Engine) unpark(a *appRecord) {
	for _, id := range sortedKeys(e.s.amends) {
		rec := e.s.amends[id]
		if rec.App != a.Name || !rec.Parked {
			continue
		}
		rec.Parked, rec.At = false, e.batch.now
		e.batch.amends[id] = true
		if t := e.s.task(rec.Insert[0]); t != nil && !t.ended() {
			e.sendAmend(rec)
			continue
		}
		delete(e.s.amends, id)
		e.moved(rec)
		e.inserted(rec)
	}
}

// giveUpInserts ends replacements that serve nowhere.
func (e *Engine) giveUpInserts(rec *amendRecord, stale bool) {
	a := e.s.apps[rec.App]
	if a.Backoff == nil {
		a.Backoff = map[int]scheduler.Backoff{}
	}
	for _, id := range rec.Insert {
		if t := e.s.task(id); t != nil {
			e.retire(t, "")
			if stale {
				continue
			}
			a.Backoff[t.Instance] = a.Backoff[t.Instance].After(0, e.batch.now, e.opts.Scheduler)
			e.batch.apps[rec.App] = true
		}
	}
}

// moved ends what the Amendment says about its tasks.
func (e *Engine) moved(rec *amendRecord) {
	for _, id := range append(slices.Clone(rec.Insert), rec.Retire...) {
		if t := e.s.task(id); t != nil && t.Moving == rec.ID {
			t.Moving = ""
			e.dirty(t)
		}
	}
}
