package engine

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
)

// dieInActivate deploys v1, brings v2 into activating, and lets every task of v1 die.
func dieInActivate(t *testing.T, w *world) deploy.View {
	t.Helper()
	w.submit(yamlSpec("shop", 2))
	old := w.mesos.alive("shop")
	w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Activating })
	v := w.want(w.submit(yamlSpec("shop", 2, "version: v2")), deploy.Running, deploy.StepActivating)
	for _, id := range old {
		w.mesos.set(id, Failed, "oom")
	}
	synctest.Wait()
	return v
}

// undos are the insertions for the undo of the transaction.
func (c *fakeCoordinator) undos(id string) []txn.Amendment {
	return slices.DeleteFunc(c.amendments(), func(a txn.Amendment) bool { return a.Undo != id })
}

func (w *world) restoring(v deploy.View) {
	w.coord.finish(v.Txn, func(s *txn.Status) { s.Phase, s.Cause, s.Reason = txn.Restoring, txn.CauseHostRefused, "lb2 failed" })
}

func (w *world) rolledBack(v deploy.View) {
	w.coord.finish(v.Txn, func(s *txn.Status) { s.Phase = txn.RolledBack })
}

// wantOld requires that exactly two tasks of the first Spec are left, and that they are what serves.
func (w *world) wantOld(t *testing.T) {
	t.Helper()
	alive := w.mesos.alive("shop")
	if len(alive) != 2 || !slices.Equal(alive, w.serving("shop")) {
		t.Fatalf("alive %v, serving %v", alive, w.serving("shop"))
	}
	for _, id := range alive {
		if !strings.HasPrefix(id, "shop.1.") {
			t.Errorf("%s is not of the first Spec", id)
		}
	}
}

// TestUndoToNothing: the old tasks die while the new ones are in service; the undo gets replacements, all at once.
func TestUndoToNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		v := dieInActivate(t, w)
		w.pass(time.Second)
		if all := w.mesos.alive("shop"); len(all) != 4 {
			t.Fatalf("replacements are started in case the Deploy fails: %v", all)
		}
		if u := w.coord.undos(v.Txn); len(u) != 0 {
			t.Fatalf("inserted before the transaction is undone: %+v", u)
		}
		w.restoring(v)
		u := w.coord.undos(v.Txn)
		if len(u) != 1 || len(u[0].Insert) != 2 {
			t.Fatalf("want one insertion of both: %+v", u)
		}
		// The undo may be over when it is taken, and another Spec committed when it has its turn.
		if u[0].Spec != 1 {
			t.Errorf("it says that it is of spec %d", u[0].Spec)
		}
		if n := len(w.mesos.in(Killed)); n != 0 {
			t.Fatalf("%d tasks killed before every Host is back (NO-ORPHAN-KILL)", n)
		}
		w.rolledBack(v)
		w.want(v, deploy.RolledBack, deploy.StepDone)
		w.wantOld(t)
		if n := len(w.coord.undos(v.Txn)); n != 1 {
			t.Errorf("told %d times", n)
		}
	})
}

// TestUndoToNothingSurvivesARestart: the next term goes on with what was recorded.
func TestUndoToNothingSurvivesARestart(t *testing.T) {
	for name, before := range map[string]func(t *testing.T, w *world, v deploy.View){
		"before the undo": func(_ *testing.T, w *world, v deploy.View) {
			w.coord.set(func(c *fakeCoordinator) { c.txns[v.Txn].st.Phase = txn.Restoring })
		},
		"with replacements on their way": func(t *testing.T, w *world, v deploy.View) {
			w.coord.set(func(c *fakeCoordinator) { c.holdAmend = true })
			w.restoring(v)
			if n := len(w.coord.undos(v.Txn)); n != 1 {
				t.Fatalf("told %d times", n)
			}
		},
		"with the answer lost": func(_ *testing.T, w *world, v deploy.View) {
			w.coord.set(func(c *fakeCoordinator) { c.holdAmend = true })
			w.restoring(v)
			w.coord.set(func(c *fakeCoordinator) { c.answers, c.holdAmend = nil, false })
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				v := dieInActivate(t, w)
				w.pass(time.Second)
				before(t, w, v)
				w.coord.set(func(c *fakeCoordinator) { c.stopAt = 0 })
				w.restart()
				w.pass(time.Second)
				if n := len(w.coord.undos(v.Txn)); n == 0 {
					t.Fatal("the undo got no replacements")
				}
				w.coord.set(func(c *fakeCoordinator) { c.holdAmend = false })
				w.rolledBack(v)
				w.coord.let()
				w.pass(time.Minute)
				w.want(v, deploy.RolledBack, deploy.StepDone)
				w.wantOld(t)
			})
		})
	}
}

// TestReplacementOfAnUndoDies: it leaves at once, and a further one follows those on their way.
func TestReplacementOfAnUndoDies(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		v := dieInActivate(t, w)
		w.pass(time.Second)
		w.coord.set(func(c *fakeCoordinator) { c.holdAmend = true })
		w.restoring(v)
		first := w.coord.undos(v.Txn)
		if len(first) != 1 {
			t.Fatalf("%+v", first)
		}
		victim := first[0].Insert[0]
		w.mesos.set(victim.GetTaskId(), Failed, "oom")
		w.pass(time.Minute)
		if !slices.ContainsFunc(w.coord.amendments(), func(a txn.Amendment) bool { return slices.Contains(a.Remove, victim.GetName()) }) {
			t.Error("the dead replacement was not removed: Hosts would wait for it")
		}
		if u := w.coord.undos(v.Txn); len(u) != 2 || len(u[1].Insert) != 1 {
			t.Fatalf("want a second insertion of one: %+v", u)
		}
		w.coord.set(func(c *fakeCoordinator) { c.stopAt = 0 })
		w.rolledBack(v)
		w.coord.let()
		w.pass(time.Minute)
		w.want(v, deploy.RolledBack, deploy.StepDone)
		w.wantOld(t)
	})
}

// TestAbortThatComesTooLate: while an abort is only asked for, the Commit may still win, and no old task may enter then.
func TestAbortThatComesTooLate(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		v := dieInActivate(t, w)
		w.pass(time.Second)
		w.coord.set(func(c *fakeCoordinator) { c.deaf = true })
		if _, err := w.e.Abort(t.Context(), "shop", ana); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Second)
		w.want(v, deploy.Running, deploy.StepRestoring)
		if u := w.coord.undos(v.Txn); len(u) != 0 {
			t.Fatalf("the coordinator did not say that it is undone: %+v", u)
		}
		w.coord.let()
		w.want(v, deploy.Succeeded, deploy.StepDone)
		if all := w.mesos.alive("shop"); len(all) != 2 || !slices.Equal(all, w.serving("shop")) {
			t.Fatalf("alive %v, serving %v", all, w.serving("shop"))
		}
	})
}
