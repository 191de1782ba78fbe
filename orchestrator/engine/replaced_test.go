package engine

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// An App is scaled while a replacement goes in for a task that fails its checks: what is being taken out, and is killed then, is no
// target (NO-ORPHAN-KILL).
func TestScaleWhileATaskIsReplaced(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.want(w.submit(yamlSpec("shop", 1)), deploy.Succeeded, deploy.StepDone)
		old := w.mesos.alive("shop")[0]
		w.coord.set(func(c *fakeCoordinator) { c.holdAmend = true })
		w.e.HandleProbe(ProbeEvent{Task: old, Verdict: ProbeUnhealthy, Why: "500"})
		w.pass(20 * time.Second)
		if len(w.coord.amendments()) != 1 {
			t.Fatalf("amendments: %+v", w.coord.amendments())
		}
		w.mesos.configure(func(m *fakeMesos) { m.full, m.stubborn = true, true })
		v, err := w.e.Scale(context.Background(), "shop", 2, ana)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.coord.let()
		w.mesos.configure(func(m *fakeMesos) { m.full = false })
		for _, id := range w.mesos.in(Queued) {
			go w.mesos.place(id)
		}
		w.pass(time.Second)
		w.mesos.configure(func(m *fakeMesos) { m.stubborn = false })
		w.mesos.set(old, Killed, "at last")
		w.pass(time.Minute)
		w.want(v, deploy.Succeeded, deploy.StepDone)
		alive := slices.DeleteFunc(w.mesos.alive("shop"), w.mesos.told)
		if len(alive) != 2 || !slices.Equal(alive, w.serving("shop")) {
			t.Errorf("alive %v, serving %v", alive, w.serving("shop"))
		}
	})
}

// told: the task was ordered killed.
func (m *fakeMesos) told(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.kills, id)
}

// A replacement is in service in one Group and was refused in the other, while a Deploy is open that is undone then: the other
// Group gets it all the same, and loses what it replaced.
func TestHalfInsertedWhileADeployIsUndone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.coord.set(func(c *fakeCoordinator) { c.groups = []string{"public", "internal"} })
		both := "routes: [{group: public, path: /shop}, {group: internal, path: /shop}]"
		w.want(w.submit(yamlSpec("shop", 1, both)), deploy.Succeeded, deploy.StepDone)
		old := w.mesos.alive("shop")[0]
		w.coord.set(func(c *fakeCoordinator) { c.holdAmend, c.noInsert = true, "internal" })
		w.e.HandleProbe(ProbeEvent{Task: old, Verdict: ProbeUnhealthy, Why: "500"})
		w.pass(20 * time.Second)
		if n := len(w.coord.amendments()); n != 2 {
			t.Fatalf("%d amendments", n)
		}
		w.mesos.configure(func(m *fakeMesos) { m.full = true })
		v := w.submit(yamlSpec("shop", 1, both, "version: v2"))
		w.coord.let()
		w.coord.set(func(c *fakeCoordinator) { c.noInsert = "" })
		if _, err := w.e.Abort(t.Context(), v.DeployID, ana); err != nil {
			t.Fatal(err)
		}
		w.mesos.configure(func(m *fakeMesos) { m.full = false })
		w.pass(2 * time.Minute)
		alive := w.mesos.alive("shop")
		if len(alive) != 1 || alive[0] == old {
			t.Errorf("alive %v, and %s was replaced", alive, old)
		}
		for _, group := range []string{"public", "internal"} {
			if got := w.servingIn(group, "shop"); fmt.Sprint(got) != fmt.Sprint(alive) {
				t.Errorf("group %s serves %v, alive %v", group, got, alive)
			}
		}
	})
}
