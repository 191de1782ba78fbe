package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
)

// TestChaos throws requests, deaths, refusals, delays and restarts at an engine in random (but repeatable) order. All along,
// the fakes watch NO-ORPHAN-KILL; when the trouble ends, every Deploy must end, and exactly the committed Spec must run and
// serve.
func TestChaos(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				c := chaos{w: w, rng: rand.New(rand.NewPCG(uint64(seed), 7))} // #nosec G115 G404: a test that repeats
				for range 40 {
					c.step()
					synctest.Wait()
				}
				c.heal()
				c.check(t)
			})
		})
	}
}

type chaos struct {
	w       *world
	rng     *rand.Rand
	version int
}

func (c *chaos) step() {
	w, ctx := c.w, context.Background()
	app := []string{"shop", "blog"}[c.rng.IntN(2)]
	switch c.rng.IntN(14) {
	case 0, 1, 2:
		c.version++
		command := []string{"run", "run", "run", "exit", "sick", "slow"}[c.rng.IntN(6)]
		_, _ = w.e.Submit(ctx, []byte(yamlSpec(app, c.rng.IntN(4), fmt.Sprintf("version: v%d", c.version), "command: "+command)), ana)
	case 3:
		_, _ = w.e.Scale(ctx, app, c.rng.IntN(4), ana)
	case 4:
		_, _ = w.e.Rollback(ctx, app, uint64(c.rng.IntN(3)), ana) // #nosec G115
	case 5:
		_, _ = w.e.Abort(ctx, app, ana)
	case 6:
		if c.rng.IntN(3) == 0 {
			_, _ = w.e.StopApp(ctx, app, ana)
		}
	case 7, 8:
		if alive := w.mesos.alive(app); len(alive) > 0 {
			w.mesos.set(alive[c.rng.IntN(len(alive))], []TaskState{Failed, Unreachable, Lost}[c.rng.IntN(3)], "chaos")
		}
	case 9:
		if alive := w.mesos.alive(app); len(alive) > 0 {
			w.e.HandleProbe(ProbeEvent{Task: alive[c.rng.IntN(len(alive))], Verdict: ProbeUnhealthy, Why: "chaos"})
		}
	case 10:
		w.coord.set(func(f *fakeCoordinator) {
			f.stopAt = txn.Phase(c.rng.IntN(5)) // #nosec G115
			f.holdDrain, f.holdAmend = c.rng.IntN(2) == 0, c.rng.IntN(2) == 0
			f.end = nil
			if c.rng.IntN(3) == 0 {
				phase := []txn.Phase{txn.RolledBack, txn.Restoring, txn.StuckRestoring}[c.rng.IntN(3)]
				f.end = func(s *txn.Status) { s.Phase, s.Cause, s.Reason = phase, txn.CauseHostRefused, "chaos" }
			}
		})
	case 11:
		w.coord.let()
	case 12:
		w.restart()
	case 13:
		w.pass(time.Duration(c.rng.IntN(20_000)) * time.Millisecond)
	}
}

// heal ends all trouble: tasks that are away come back, slow ones run, Hosts answer.
func (c *chaos) heal() {
	w := c.w
	w.coord.set(func(f *fakeCoordinator) { f.end = nil })
	for range 40 {
		w.coord.let()
		w.coord.mu.Lock()
		var owed []string
		for id, x := range w.coord.txns {
			if x.st.Phase == txn.Restoring || x.st.Phase == txn.StuckRestoring {
				owed = append(owed, id)
			}
		}
		w.coord.mu.Unlock()
		for _, id := range owed {
			w.coord.finish(id, func(s *txn.Status) { s.Phase = txn.RolledBack })
		}
		w.mesos.mu.Lock()
		var slow, away []string
		for id, t := range w.mesos.tasks {
			switch {
			case t.state == Launching:
				slow = append(slow, id)
			case t.state.Away():
				away = append(away, id)
			}
		}
		w.mesos.mu.Unlock()
		for _, id := range slow {
			w.mesos.run(id)
		}
		for _, id := range away {
			w.mesos.set(id, Running, "back")
		}
		w.probe.mu.Lock()
		var probed []string
		for id := range w.probe.targets {
			probed = append(probed, id)
		}
		w.probe.mu.Unlock()
		for _, id := range probed {
			w.mesos.mu.Lock()
			command := w.mesos.tasks[id].spec.Command
			w.mesos.mu.Unlock()
			if command == "run" || command == "slow" {
				w.e.HandleProbe(ProbeEvent{Task: id, Verdict: ProbeHealthy})
			}
		}
		w.pass(time.Minute)
	}
}

func (c *chaos) check(t *testing.T) {
	w := c.w
	apps, err := w.e.Apps(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range apps {
		list, err := w.e.Deploys(context.Background(), a.Name, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			if d.Step != string(deploy.StepDone) || d.State == deploy.Running || d.State == deploy.Stuck || d.FinishedAt == nil {
				t.Errorf("EVERY-STATE-ENDS: %s of %s is %s in step %s: %s", d.Kind, d.App, d.State, d.Step, d.Reason)
			}
		}
		alive := w.mesos.alive(a.Name)
		if len(alive) != a.Instances || !slices.Equal(alive, w.serving(a.Name)) || a.Healthy != a.Instances {
			t.Errorf("%s wants %d instances (%d healthy): alive %v, serving %v", a.Name, a.Instances, a.Healthy, alive, w.serving(a.Name))
			tasks, _ := w.e.Tasks(context.Background(), a.Name)
			for _, x := range tasks {
				t.Logf("%s %s %s %s %s", x.ID, x.Role, x.State, x.Health, x.Message)
			}
		}
	}
	for id := range w.e.s.amends { // the loop is idle
		t.Errorf("amendment %s is left", id)
	}
	for id, task := range w.e.s.tasks {
		if task.ended() && (len(task.Holds) > 0 || task.PortHeld) {
			t.Errorf("task %s has ended and holds its ports: %v", id, task.Holds)
		}
	}
}
