package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

func TestBlueGreen(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		v1 := w.want(w.submit(yamlSpec("shop", 3)), deploy.Succeeded, deploy.StepDone)
		if v1.Spec != 1 || v1.CommittedAt == nil || v1.FinishedAt == nil || len(v1.Hosts) != 2 || len(v1.Hosts[0].Evidence.Upstreams) != 3 {
			t.Fatalf("%+v", v1)
		}
		old := w.mesos.alive("shop")
		w.coord.set(func(c *fakeCoordinator) { c.holdDrain = true })
		v2 := w.want(w.submit(yamlSpec("shop", 3, "version: v2")), deploy.Succeeded, deploy.StepDraining)
		if all := w.mesos.alive("shop"); len(all) != 6 {
			t.Fatalf("NO-ORPHAN-KILL: not drained, and these are left: %v", all)
		}
		w.coord.let()
		w.want(v2, deploy.Succeeded, deploy.StepDone)
		now := w.mesos.alive("shop")
		if len(now) != 3 || slices.Contains(now, old[0]) || !slices.Equal(now, w.serving("shop")) {
			t.Fatalf("alive %v, serving %v", now, w.serving("shop"))
		}
		if a := w.app("shop"); a.Spec != 2 || a.State != "running" || a.Healthy != 3 || a.OpenDeploy != "" || a.Version != "v2" {
			t.Fatalf("%+v", a)
		}
	})
}

func TestScaleKeepsTasks(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.submit(yamlSpec("shop", 2))
		before := w.mesos.alive("shop")
		v, err := w.e.Scale(context.Background(), "shop", 4, ana)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		v = w.want(v, deploy.Succeeded, deploy.StepDone)
		if v.Kind != "scale" || v.Spec != 2 {
			t.Fatalf("%+v", v)
		}
		after := w.mesos.alive("shop")
		if len(after) != 4 || !slices.Contains(after, before[0]) || !slices.Contains(after, before[1]) {
			t.Fatalf("before %v, after %v", before, after)
		}
		v, err = w.e.Scale(context.Background(), "shop", 1, ana)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.want(v, deploy.Succeeded, deploy.StepDone)
		if left := w.mesos.alive("shop"); !slices.Equal(left, before[:1]) {
			t.Fatalf("left %v, want %v", left, before[:1])
		}
		if v, err = w.e.Scale(context.Background(), "shop", 1, ana); err != nil || v.State != deploy.Succeeded || v.ReasonCode != "unchanged" {
			t.Fatalf("%+v %v", v, err)
		}
	})
}

func TestStopAndBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		w.submit(yamlSpec("shop", 2))
		v, err := w.e.StopApp(ctx, "shop", ana)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		v = w.want(v, deploy.Succeeded, deploy.StepDone)
		if v.Spec != 0 || len(w.mesos.alive("shop")) != 0 || w.app("shop").State != "stopped" || w.serving("shop") != nil {
			t.Fatalf("%+v", v)
		}
		// The path is free for another App.
		w.want(w.submit(yamlSpec("other", 1, "routes: [{group: public, path: /shop}]")), deploy.Succeeded, deploy.StepDone)
		_, err = w.e.Rollback(ctx, "shop", 0, ana)
		wantRefusal(t, err, deploy.RefusedInvalid, "belongs to App other")
		if _, err := w.e.StopApp(ctx, "other", ana); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if v, err = w.e.StopApp(ctx, "shop", ana); err != nil || v.ReasonCode != "unchanged" {
			t.Fatalf("stopped twice: %+v %v", v, err)
		}
		if v, err = w.e.Rollback(ctx, "shop", 0, ana); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		v = w.want(v, deploy.Succeeded, deploy.StepDone)
		if v.Spec != 1 || v.FromSpec != 0 || len(w.mesos.alive("shop")) != 2 {
			t.Fatalf("%+v", v)
		}
	})
}

func wantRefusal(t *testing.T, err error, kind deploy.RefusalKind, part string) *deploy.Refusal {
	t.Helper()
	var r *deploy.Refusal
	if !errors.As(err, &r) || r.Kind != kind || !strings.Contains(r.Error(), part) {
		t.Fatalf("got %v, want a refusal %s with %q", err, kind, part)
	}
	return r
}

func TestRollback(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		w.submit(yamlSpec("shop", 1))
		_, err := w.e.Rollback(ctx, "shop", 0, ana)
		wantRefusal(t, err, deploy.RefusedInvalid, "no earlier")
		w.submit(yamlSpec("shop", 1, "version: v2"))
		v, err := w.e.Rollback(ctx, "shop", 0, ana)
		if err != nil || v.Spec != 1 || v.FromSpec != 2 || v.Kind != "rollback" {
			t.Fatalf("%+v %v", v, err)
		}
		synctest.Wait()
		w.want(v, deploy.Succeeded, deploy.StepDone)
		if !w.coord.proposals()[2].Rollback {
			t.Error("ROLLBACK-IS-FREE: the coordinator was not told")
		}
		if v, err = w.e.Rollback(ctx, "shop", 0, ana); err != nil || v.Spec != 2 {
			t.Fatalf("the Spec before the current one, whatever made it: %+v %v", v, err)
		}
		synctest.Wait()
		_, err = w.e.Rollback(ctx, "shop", 9, ana)
		wantRefusal(t, err, deploy.RefusedInvalid, "never committed")
		if v, err = w.e.Rollback(ctx, "shop", 2, ana); err != nil || v.ReasonCode != "unchanged" {
			t.Fatalf("%+v %v", v, err)
		}
	})
}

// TestFailures: each failure ends as said, with nothing of the new Spec left and the old one serving.
func TestFailures(t *testing.T) {
	for name, c := range map[string]struct {
		spec   string
		arm    func(w *world)
		wait   time.Duration
		code   string
		reason string
	}{
		"exits at once": {spec: "command: exit", code: "task-exits", reason: "cannot bind"},
		"never healthy": {spec: "command: sick", wait: 13 * time.Second, code: "task-unhealthy", reason: "connection refused to 10.0.0.1:"},
		"not placed": {spec: "version: v2", wait: 61 * time.Second, code: "task-not-placed", reason: "too little memory",
			arm: func(w *world) { w.mesos.configure(func(m *fakeMesos) { m.full = true }) }},
		"never started": {spec: "command: slow", wait: 61 * time.Second, code: "task-not-placed", reason: "not running yet"},
		"launch refused": {spec: "version: v2", code: "task-exits", reason: "no such thing",
			arm: func(w *world) {
				w.mesos.configure(func(m *fakeMesos) { m.refuse = fmt.Errorf("%w: no such thing", ErrInvalidTask) })
			}},
		"no framework": {spec: "version: v2", code: "task-not-placed", reason: "not connected", wait: 61 * time.Second,
			arm: func(w *world) { w.mesos.configure(func(m *fakeMesos) { m.refuse = errors.New("not connected") }) }},
		"a host refuses": {spec: "version: v2", code: "host-refused", reason: "lb2: DOWN",
			arm: func(w *world) {
				w.coord.setEnd(func(s *txn.Status) {
					s.Phase, s.Cause, s.Reason = txn.RolledBack, txn.CauseHostRefused, "lb2: DOWN"
				})
			}},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.submit(yamlSpec("shop", 2))
				old := w.mesos.alive("shop")
				if c.arm != nil {
					c.arm(w)
				}
				v := w.submit(yamlSpec("shop", 2, c.spec))
				w.pass(c.wait)
				v = w.want(v, deploy.RolledBack, deploy.StepDone)
				if v.ReasonCode != c.code || !strings.Contains(v.Reason, c.reason) || v.FinishedAt == nil || v.CommittedAt != nil {
					t.Fatalf("%s: %s", v.ReasonCode, v.Reason)
				}
				if strings.Contains(v.Reason, "\x1b") {
					t.Error("a task's output reached the terminal raw")
				}
				if got := w.mesos.alive("shop"); !slices.Equal(got, old) || !slices.Equal(w.serving("shop"), old) {
					t.Fatalf("alive %v, serving %v, want %v", got, w.serving("shop"), old)
				}
				if a := w.app("shop"); a.Spec != 1 || a.OpenDeploy != "" {
					t.Fatalf("%+v", a)
				}
				if c.code == "task-exits" && c.spec == "command: exit" && time.Since(v.StartedAt) > 5*time.Second {
					t.Error("exiting at once must fail at once")
				}
			})
		})
	}
}

// TestFrameworkComesLater: a framework that does not take tasks yet gets them when it subscribes.
func TestFrameworkComesLater(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.mesos.configure(func(m *fakeMesos) { m.refuse = errors.New("not started") })
		v := w.want(w.submit(yamlSpec("shop", 2)), deploy.Running, deploy.StepLaunching)
		w.restart()
		w.want(v, deploy.Running, deploy.StepLaunching)
		gone := w.submit(yamlSpec("blog", 1))
		if _, err := w.e.Abort(context.Background(), "blog", ana); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.want(gone, deploy.Aborted, deploy.StepDone)
		w.mesos.configure(func(m *fakeMesos) { m.refuse = nil })
		w.mesos.reconcile()
		synctest.Wait()
		w.want(v, deploy.Succeeded, deploy.StepDone)
		if tasks, _ := w.e.Tasks(context.Background(), "blog"); tasks[0].State != "killed" || len(w.mesos.alive("blog")) != 0 {
			t.Fatalf("%+v", tasks)
		}
	})
}

// TestStuckResolvesItself: both colours stay alive while a Host owes its proof.
func TestStuckResolvesItself(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.submit(yamlSpec("shop", 1))
		w.coord.setEnd(func(s *txn.Status) { s.Phase, s.Cause, s.Reason = txn.Restoring, txn.CauseHostMissing, "lb2 is away" })
		v := w.want(w.submit(yamlSpec("shop", 1, "version: v2")), deploy.Running, deploy.StepRestoring)
		w.coord.finish(v.Txn, func(s *txn.Status) {
			s.Phase, s.Next = txn.StuckRestoring, "systemctl start cutover-lbagent"
		})
		v = w.want(v, deploy.Stuck, deploy.StepRestoreStuck)
		if v.NextCommand != "systemctl start cutover-lbagent" || len(w.mesos.alive("shop")) != 2 {
			t.Fatalf("%+v", v)
		}
		w.pass(time.Hour)
		if len(w.mesos.alive("shop")) != 2 {
			t.Fatal("NO-ORPHAN-KILL: no timer replaces the answer")
		}
		_, err := w.e.Submit(context.Background(), []byte(yamlSpec("shop", 1, "version: v3")), ana)
		if r := wantRefusal(t, err, deploy.RefusedLocked, v.DeployID); r.OpenDeploy != v.DeployID {
			t.Error(r.OpenDeploy)
		}
		// A rollback with a target is recorded, and waits.
		w.coord.set(func(c *fakeCoordinator) { c.end = nil })
		w.restart() // and survives
		v = w.deploy(v.DeployID)
		if v.State == deploy.Stuck {
			w.coord.finish(v.Txn, func(s *txn.Status) { s.Phase = txn.RolledBack })
		}
		w.want(v, deploy.RolledBack, deploy.StepDone)
		if len(w.mesos.alive("shop")) != 1 {
			t.Fatal("the new task is left")
		}
	})
}

func TestRollbackBehindAStuckDeploy(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		w.submit(yamlSpec("shop", 1))
		w.submit(yamlSpec("shop", 1, "version: v2"))
		w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Activating })
		v3 := w.want(w.submit(yamlSpec("shop", 1, "version: v3")), deploy.Running, deploy.StepActivating)
		// The abort waits for a Host.
		w.coord.finish(v3.Txn, func(s *txn.Status) { s.Phase, s.Reason = txn.Restoring, "lb2 is away" })
		back, err := w.e.Rollback(ctx, "shop", 1, ana)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.want(back, deploy.Running, deploy.StepWaiting)
		w.pass(61 * time.Second)
		back = w.want(back, deploy.Stuck, deploy.StepWaitStuck)
		if !strings.Contains(back.Reason, v3.DeployID) {
			t.Fatal(back.Reason)
		}
		w.coord.set(func(c *fakeCoordinator) { c.stopAt = 0 })
		w.coord.finish(v3.Txn, func(s *txn.Status) { s.Phase = txn.RolledBack })
		w.want(v3, deploy.Superseded, deploy.StepDone)
		back = w.want(back, deploy.Succeeded, deploy.StepDone)
		if w.app("shop").Spec != 1 || back.FromSpec != 2 || len(w.mesos.alive("shop")) != 1 {
			t.Fatalf("%+v", w.app("shop"))
		}
	})
}

func TestAbort(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		v := w.submit(yamlSpec("shop", 1))
		_, err := w.e.Abort(ctx, v.DeployID, ana)
		wantRefusal(t, err, deploy.RefusedState, "already succeeded, use rollback")
		_, err = w.e.Abort(ctx, "shop", ana)
		wantRefusal(t, err, deploy.RefusedState, "no open Deploy")
		_, err = w.e.Abort(ctx, "nobody", ana)
		wantRefusal(t, err, deploy.RefusedNotFound, "nobody")
		for _, at := range []txn.Phase{txn.Waiting, txn.Preparing, txn.Activating, txn.Deciding} {
			w.coord.set(func(c *fakeCoordinator) { c.stopAt = at })
			v = w.submit(yamlSpec("shop", 1, "version: v2"))
			if v, err = w.e.Abort(ctx, v.DeployID, ana); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			w.want(v, deploy.Aborted, deploy.StepDone)
			if n := len(w.mesos.alive("shop")); n != 1 {
				t.Fatalf("aborted in phase %d: %d tasks are left", at, n)
			}
		}
		// rollback while a Deploy is open is its abort.
		v = w.submit(yamlSpec("shop", 1, "version: v2"))
		back, err := w.e.Rollback(ctx, "shop", 0, ana)
		if err != nil || back.DeployID != v.DeployID {
			t.Fatalf("%+v %v", back, err)
		}
		synctest.Wait()
		v = w.want(v, deploy.Aborted, deploy.StepDone)
		if code, done := deploy.RollbackExitCode(v); code != 0 || !done {
			t.Fatal(code, done)
		}
	})
}

func TestRefusals(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		w.submit(yamlSpec("shop", 1))
		for source, part := range map[string]string{
			"nam: x":                    "did you mean",
			strings.Repeat("x", 10<<20): "at most",
			yamlSpec("b", 1, "routes: [{group: nowhere, path: /b}]"):    `no group "nowhere"`,
			yamlSpec("b", 1, "routes: [{group: public, path: /shop/}]"): "belongs to App shop",
		} {
			_, err := w.e.Submit(ctx, []byte(source), ana)
			wantRefusal(t, err, deploy.RefusedInvalid, part)
			wantRefusal(t, w.e.Validate(ctx, []byte(source)), deploy.RefusedInvalid, part)
		}
		if err := w.e.Validate(ctx, []byte(yamlSpec("b", 1, "routes: [{group: public, path: /shop/b}]"))); err != nil {
			t.Fatalf("nesting is legal: %v", err)
		}
		if apps, _ := w.e.Apps(ctx); len(apps) != 1 {
			t.Fatalf("a refused Spec left something behind: %+v", apps)
		}
		// An open Deploy owns its routes too.
		w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Preparing })
		w.submit(yamlSpec("c", 1))
		_, err := w.e.Submit(ctx, []byte(yamlSpec("d", 1, "routes: [{group: public, path: /c}]")), ana)
		wantRefusal(t, err, deploy.RefusedInvalid, "belongs to App c")
		_, err = w.e.Scale(ctx, "shop", -1, ana)
		wantRefusal(t, err, deploy.RefusedInvalid, "from 0 to")
		_, err = w.e.Scale(ctx, "nobody", 1, ana)
		wantRefusal(t, err, deploy.RefusedNotFound, "nobody")
		_, err = w.e.Logs(ctx, "x", "/etc/passwd", 0, 1)
		wantRefusal(t, err, deploy.RefusedInvalid, "only stdout and stderr")
	})
}

func TestIdempotency(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		meta := api.Meta{Actor: "ci", IdempotencyKey: "run-1", BodyDigest: "a"}
		type answer struct {
			v   deploy.View
			err error
		}
		answers := make(chan answer, 2)
		for range 2 {
			go func() {
				v, err := w.e.Submit(ctx, []byte(yamlSpec("shop", 1)), meta)
				answers <- answer{v, err}
			}()
		}
		a, b := <-answers, <-answers
		if a.err != nil || b.err != nil || a.v.DeployID != b.v.DeployID {
			t.Fatalf("%v %v", a, b)
		}
		synctest.Wait()
		w.restart()
		if v, err := w.e.Submit(ctx, []byte(yamlSpec("shop", 1)), meta); err != nil || v.DeployID != a.v.DeployID {
			t.Fatalf("after a restart: %+v %v", v, err)
		}
		meta.BodyDigest = "b"
		_, err := w.e.Submit(ctx, []byte(yamlSpec("shop", 2)), meta)
		wantRefusal(t, err, deploy.RefusedIdempotency, "another request")
		v, err := w.e.Submit(ctx, []byte(yamlSpec("shop", 1)), ana)
		if err != nil || v.ReasonCode != "unchanged" || v.State != deploy.Succeeded || v.DeployID == a.v.DeployID || len(v.Hosts) != 2 {
			t.Fatalf("%+v %v", v, err)
		}
	})
}

func TestWorkerNeedsNoHost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		worker := "name: crunch\nkind: worker\ncommand: run\ninstances: 2\n"
		v := w.submit(worker)
		w.want(v, deploy.Running, deploy.StepChecking)
		w.pass(time.Second)
		w.want(v, deploy.Succeeded, deploy.StepDone)
		v = w.submit(worker + "version: v2\n")
		w.pass(time.Second)
		w.want(v, deploy.Succeeded, deploy.StepDone)
		if n := len(w.mesos.alive("crunch")); n != 2 {
			t.Fatalf("%d tasks", n)
		}
		v = w.submit(worker + "version: v3\nenv: {X: y}\n")
		id := w.mesos.alive("crunch")[0]
		w.mesos.set(id, Failed, "boom")
		w.pass(3 * time.Second)
		if v = w.deploy(v.DeployID); v.State != deploy.Succeeded {
			t.Fatalf("%s: %s", v.State, v.Reason)
		}
	})
}

// TestDeadTaskIsReplaced: out of the proxies at once, and back only when healthy.
func TestDeadTaskIsReplaced(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.submit(yamlSpec("shop", 2))
		old := w.mesos.alive("shop")
		w.mesos.set(old[0], Failed, "oom")
		synctest.Wait()
		if a := w.coord.amendments()[0]; len(a.Remove) != 1 || a.Remove[0] != deploy.UpstreamName(old[0]) {
			t.Fatalf("%+v", a)
		}
		w.pass(time.Second)
		now := w.mesos.alive("shop")
		if len(now) != 2 || !slices.Equal(now, w.serving("shop")) {
			t.Fatalf("alive %v, serving %v", now, w.serving("shop"))
		}
		// A crash loop is slowed down.
		for range 6 {
			for _, id := range w.mesos.alive("shop") {
				if id != old[1] {
					w.mesos.set(id, Failed, "oom")
				}
			}
			synctest.Wait()
		}
		if n := w.mesos.launched(); n > 5 {
			t.Fatalf("%d launches without a pause", n)
		}
		w.pass(5 * time.Minute)
		if now = w.mesos.alive("shop"); len(now) != 2 || !slices.Equal(now, w.serving("shop")) {
			t.Fatalf("alive %v, serving %v", now, w.serving("shop"))
		}
	})
}

// TestFailingTaskIsReplacedFirst: a task that only fails its checks leaves when its replacement is in.
func TestFailingTaskIsReplacedFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.submit(yamlSpec("shop", 1))
		old := w.mesos.alive("shop")[0]
		w.e.HandleProbe(ProbeEvent{Task: old, Verdict: ProbeUnhealthy, Why: "503"})
		synctest.Wait()
		w.coord.set(func(c *fakeCoordinator) { c.holdAmend = true })
		w.pass(6 * time.Second)
		if all := w.mesos.alive("shop"); len(all) != 2 {
			t.Fatalf("NEVER-ZERO: %v", all)
		}
		// A Deploy that comes now waits with its transaction for the insertion.
		v := w.want(w.submit(yamlSpec("shop", 1, "version: v2")), deploy.Running, deploy.StepPreparing)
		if n := len(w.coord.proposals()); n != 1 {
			t.Fatal("the transaction was begun beside an insertion")
		}
		w.coord.let()
		w.want(v, deploy.Succeeded, deploy.StepDone)
		if all := w.mesos.alive("shop"); len(all) != 1 || !slices.Equal(all, w.serving("shop")) {
			t.Fatalf("alive %v, serving %v", all, w.serving("shop"))
		}
	})
}

// TestOldTaskDiesDuringDeploy is drill 9.
func TestOldTaskDiesDuringDeploy(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.submit(yamlSpec("shop", 2))
		old := w.mesos.alive("shop")
		w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Activating })
		v := w.want(w.submit(yamlSpec("shop", 2, "version: v2")), deploy.Running, deploy.StepActivating)
		w.mesos.set(old[0], Failed, "oom")
		synctest.Wait()
		if len(w.coord.amendments()) != 1 || len(w.coord.amendments()[0].Remove) != 1 {
			t.Fatalf("%+v", w.coord.amendments())
		}
		w.coord.let()
		w.want(v, deploy.Succeeded, deploy.StepDone)
		if all := w.mesos.alive("shop"); len(all) != 2 || !slices.Equal(all, w.serving("shop")) {
			t.Fatalf("alive %v, serving %v", all, w.serving("shop"))
		}
	})
}

// TestNewTaskDiesBeforeCommit: the transaction is aborted, the task replaced, and a new transaction begun.
func TestNewTaskDiesBeforeCommit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Activating })
		v := w.want(w.submit(yamlSpec("shop", 2)), deploy.Running, deploy.StepActivating)
		w.mesos.set(w.mesos.alive("shop")[0], Failed, "oom")
		synctest.Wait()
		w.coord.set(func(c *fakeCoordinator) { c.stopAt = 0 })
		w.pass(time.Second)
		w.want(v, deploy.Succeeded, deploy.StepDone)
		if len(w.coord.proposals()) != 2 || !slices.Equal(w.mesos.alive("shop"), w.serving("shop")) {
			t.Fatalf("%d transactions, alive %v, serving %v", len(w.coord.proposals()), w.mesos.alive("shop"), w.serving("shop"))
		}
	})
}

// TestPortsStayBlocked until every Host has let go of them.
func TestPortsStayBlocked(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		v1 := w.submit(yamlSpec("shop", 1))
		port := w.mesos.portOf(w.mesos.alive("shop")[0])
		w.coord.set(func(c *fakeCoordinator) { c.holdDrain = true })
		w.submit(yamlSpec("shop", 1, "version: v2"))
		w.mesos.set(v1.Tasks[0].ID, Failed, "died while draining")
		synctest.Wait()
		if !w.e.PortBlocked("10.0.0.1", port) {
			t.Fatal("the port is free while a Host may send traffic to it")
		}
		w.coord.let()
		if w.e.PortBlocked("10.0.0.1", port) {
			t.Fatal("the port stays blocked")
		}
	})
}

func TestEvents(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Preparing })
		v := w.submit(yamlSpec("shop", 1))
		ctx, cancel := context.WithCancel(context.Background())
		live, err := w.e.Events(ctx, v.DeployID, 0)
		if err != nil {
			t.Fatal(err)
		}
		var steps []string
		var seq uint64
		read := func(ch <-chan deploy.Event) {
			for ev := range ch {
				if ev.Seq != seq+1 {
					t.Errorf("event %d after %d", ev.Seq, seq)
				}
				seq = ev.Seq
				if ev.Type == "step" || ev.Type == "end" {
					steps = append(steps, ev.Step)
				}
				if ev.Type == "end" && (ev.View == nil || ev.View.State != deploy.Succeeded) {
					t.Errorf("%+v", ev)
				}
			}
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			read(live)
		}()
		synctest.Wait()
		w.coord.let()
		<-ended
		cancel()
		want := []string{"pending", "launching", "checking", "preparing", "activating", "committing", "draining", "killing", "done"}
		if steps[1] == "launching" && steps[2] == "preparing" { // running and healthy came in one turn
			want = slices.Delete(want, 2, 3)
		}
		if !slices.Equal(steps, want) {
			t.Fatalf("%v", steps)
		}
		// Replayed after a restart, from the middle.
		w.restart()
		total := seq
		steps, seq = nil, 3
		again, err := w.e.Events(context.Background(), v.DeployID, 3)
		if err != nil {
			t.Fatal(err)
		}
		read(again)
		if seq != total {
			t.Fatalf("replayed to %d of %d", seq, total)
		}
		_, err = w.e.Events(context.Background(), "nobody", 0)
		wantRefusal(t, err, deploy.RefusedNotFound, "nobody")
	})
}

// TestHistoryIsBounded: many Deploys leave a bounded number of records, and the committed one's proof among them.
func TestHistoryIsBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		first := w.submit(yamlSpec("shop", 1))
		for range 3 * keepDeploys {
			w.submit(yamlSpec("shop", 1)) // unchanged
		}
		for i := range keepDeploys {
			w.want(w.submit(yamlSpec("shop", 1, "version: v"+strings.Repeat("x", i))), deploy.Succeeded, deploy.StepDone)
		}
		list, err := w.e.Deploys(context.Background(), "shop", 0)
		if err != nil || len(list) != keepDeploys {
			t.Fatalf("%d Deploys, %v", len(list), err)
		}
		if slices.ContainsFunc(list, func(v deploy.View) bool { return v.DeployID == first.DeployID }) {
			t.Error("the first is still there")
		}
		records, err := w.st.List(context.Background(), "", "", 0)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(records); n > keepDeploys*20+keepEnded+200 {
			t.Fatalf("%d records are left", n)
		}
		w.restart()
		w.want(w.submit(yamlSpec("shop", 2)), deploy.Succeeded, deploy.StepDone)
	})
}

func TestReads(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		v := w.submit(yamlSpec("shop", 1))
		tasks, err := w.e.Tasks(ctx, "shop")
		if err != nil || len(tasks) != 1 || tasks[0].State != "running" || tasks[0].Health != "healthy" || tasks[0].Address != v.Tasks[0].Address || tasks[0].Address == "" {
			t.Fatalf("%+v %v", tasks, err)
		}
		log, err := w.e.Logs(ctx, tasks[0].ID, "stderr", -1, 100)
		if err != nil || !strings.HasPrefix(log.Data, "panic") || log.Offset != 7 || log.Next != 7+int64(len(log.Data)) {
			t.Fatalf("%+v %v", log, err)
		}
		hosts, err := w.e.Hosts(ctx)
		if err != nil || len(hosts.Hosts) != 1 || hosts.Hosts[0].Name != "lb1" {
			t.Fatalf("%+v %v", hosts, err)
		}
		if src := hosts.Sources; len(src) != 1 || src[0].Problem != "away" || src[0].HeardAt != nil || src[0].Since == nil || len(src[0].Refused) != 1 {
			t.Fatalf("%+v", src)
		}
		show, err := w.e.ShowHost(ctx, "lb1")
		if err != nil || len(show.Sections) != 1 || show.Sections[0].App != "shop" || len(show.Sections[0].Committed) != 1 {
			t.Fatalf("%+v %v", show, err)
		}
		_, err = w.e.ShowHost(ctx, "lb9")
		wantRefusal(t, err, deploy.RefusedNotFound, "lb9")
		if err := w.e.Ready(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

// TestCausesHaveCodes: what the coordinator can say is in the vocabulary that scripts read.
func TestCausesHaveCodes(t *testing.T) {
	for _, c := range []txn.Cause{
		txn.CauseHostRefused, txn.CauseHostLapsed, txn.CauseHostMissing, txn.CauseNoHosts, txn.CauseUnknownGroup, txn.CauseDeadline,
		txn.CauseAsked, txn.CauseBaseMismatch, txn.CauseRouteConflict, txn.CauseLeaderLost, txn.CauseTaskDied, txn.CauseHostFallback, txn.CauseStore,
	} {
		if deploy.CodeOf(string(c)) == deploy.CodeTxn {
			t.Errorf("cause %q has no code", c)
		}
	}
}

// TestPassing: only causes that may be gone at the next try are retried.
func TestPassing(t *testing.T) {
	refusedFor := func(reasons ...lbagentv1.RefusalReason) txn.Status {
		s := txn.Status{Cause: txn.CauseHostRefused, Hosts: []txn.HostVote{{Host: "fine"}}}
		for _, r := range reasons {
			s.Hosts = append(s.Hosts, txn.HostVote{Refusal: &lbagentv1.Refusal{Reason: r}})
		}
		return s
	}
	for name, c := range map[string]struct {
		s    txn.Status
		want bool
	}{
		"restart":               {txn.Status{Cause: txn.CauseLeaderLost}, true},
		"base moved on":         {txn.Status{Cause: txn.CauseBaseMismatch}, true},
		"asked":                 {txn.Status{Cause: txn.CauseAsked}, false},
		"missing":               {txn.Status{Cause: txn.CauseHostMissing}, false},
		"agent came back":       {refusedFor(lbagentv1.RefusalReason_REFUSAL_REASON_ABORTED), true},
		"agent forgot":          {refusedFor(lbagentv1.RefusalReason_REFUSAL_REASON_WRONG_STATE), true},
		"not green":             {refusedFor(lbagentv1.RefusalReason_REFUSAL_REASON_UPSTREAM_NOT_GREEN), false},
		"one of each":           {refusedFor(lbagentv1.RefusalReason_REFUSAL_REASON_ABORTED, lbagentv1.RefusalReason_REFUSAL_REASON_INVALID_CONFIG), false},
		"nobody says why":       {refusedFor(), false},
		"refused for no reason": {refusedFor(lbagentv1.RefusalReason_REFUSAL_REASON_UNSPECIFIED), false},
	} {
		if got := passing(c.s); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
