package engine

import (
	"slices"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
)

// TestRestartAnywhere is drill 7: in whatever step the orchestrator is killed, the Deploy ends by itself, correctly.
func TestRestartAnywhere(t *testing.T) {
	for name, c := range map[string]struct {
		arm   func(w *world)
		spec  string
		step  deploy.StepName
		after func(w *world)
		end   deploy.State
	}{
		"launching": {step: deploy.StepLaunching, arm: func(w *world) { w.mesos.configure(func(m *fakeMesos) { m.full = true }) }, after: func(w *world) {
			w.mesos.configure(func(m *fakeMesos) { m.full = false })
			for _, id := range w.mesos.in(Queued) {
				go w.mesos.place(id)
			}
		}},
		"launched, not running": {spec: "command: slow", step: deploy.StepLaunching, after: func(w *world) {
			for _, id := range w.mesos.in(Launching) {
				w.mesos.run(id)
			}
		}},
		"checking":               {spec: "command: sick", step: deploy.StepChecking, end: deploy.RolledBack},
		"waiting":                {step: deploy.StepPreparing, arm: func(w *world) { w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Waiting }) }},
		"preparing":              {step: deploy.StepPreparing, arm: func(w *world) { w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Preparing }) }},
		"activating":             {step: deploy.StepActivating, arm: func(w *world) { w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Activating }) }},
		"committing":             {step: deploy.StepCommitting, arm: func(w *world) { w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Deciding }) }},
		"not told of the commit": {step: deploy.StepCommitting, arm: func(w *world) { w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Deciding }) }, after: func(w *world) {}},
		"draining":               {step: deploy.StepDraining, arm: func(w *world) { w.coord.set(func(c *fakeCoordinator) { c.holdDrain = true }) }},
		"restoring": {step: deploy.StepRestoring, end: deploy.RolledBack, arm: func(w *world) {
			w.coord.setEnd(func(s *txn.Status) { s.Phase, s.Cause, s.Reason = txn.Restoring, txn.CauseHostRefused, "lb2 refused" })
		}, after: func(w *world) {
			for _, p := range w.coord.proposals() {
				w.coord.finish(p.ID, func(s *txn.Status) {
					if s.Phase == txn.Restoring {
						s.Phase = txn.RolledBack
					}
				})
			}
		}},
		"done": {step: deploy.StepDone},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.submit(yamlSpec("shop", 2))
				if c.arm != nil {
					c.arm(w)
				}
				source := yamlSpec("shop", 2, "version: v2")
				if c.spec != "" {
					source = yamlSpec("shop", 2, c.spec)
				}
				v := w.submit(source)
				if v.Step != string(c.step) {
					t.Fatalf("in step %s, want %s", v.Step, c.step)
				}
				if name == "not told of the commit" {
					w.coord.mu.Lock()
					x := w.coord.txns[v.Txn]
					x.st.Phase = txn.Committed
					w.coord.commit(x)
					w.coord.mu.Unlock()
				}
				w.restart()
				if c.after != nil {
					c.after(w)
				}
				w.coord.let()
				w.pass(30 * time.Second)
				end, spec := deploy.Succeeded, uint64(2)
				if c.end != "" {
					end, spec = c.end, 1
				}
				v = w.want(v, end, deploy.StepDone)
				alive := w.mesos.alive("shop")
				if len(alive) != 2 || !slices.Equal(alive, w.serving("shop")) {
					t.Fatalf("alive %v, serving %v", alive, w.serving("shop"))
				}
				if a := w.app("shop"); a.Spec != spec || a.OpenDeploy != "" {
					t.Fatalf("%+v", a)
				}
				// And once more: nothing is done twice.
				launches := w.mesos.launched()
				w.restart()
				w.pass(time.Minute)
				w.want(v, end, deploy.StepDone)
				if got := w.mesos.alive("shop"); !slices.Equal(got, alive) || w.mesos.launched() != launches {
					t.Fatalf("a restart changed the tasks: %v, then %v", alive, got)
				}
			})
		})
	}
}

// Mesos is asked first about the tasks that a Deploy waits for.
func TestUnendedTasksInOrder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.submit(yamlSpec("archive", 2))
		w.submit(yamlSpec("shop", 2))
		w.submit(yamlSpec("shop", 2, "command: slow")) // its tasks do not run yet
		refs, err := w.e.Unended(t.Context())
		if err != nil || len(refs) != 6 {
			t.Fatalf("%v, %v", refs, err)
		}
		for i, r := range refs {
			if want := map[bool]string{true: "shop", false: "archive"}[i < 4]; r.App != want {
				t.Errorf("task %d is %s, not of %s", i, r.TaskID, want)
			}
		}
	})
}
