package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/store"
)

// unread are the Deploys that the engine has not read yet.
func (w *world) unread() (n int) {
	w.t.Helper()
	if err := w.e.do(context.Background(), func() error { n = len(w.e.s.deploys.stored); return nil }); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// TestDoneDeploysAreReadWhenAsked: a restart reads only what goes on, and everything else is there when it is asked for.
func TestDoneDeploysAreReadWhenAsked(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var before []deploy.View
		for _, version := range []string{"v1", "v2", "v3"} {
			before = append(before, w.want(w.submit(yamlSpec("shop", 2, "version: "+version)), deploy.Succeeded, deploy.StepDone))
		}
		w.restart()
		if n := w.unread(); n != 3 {
			t.Fatalf("%d of 3 Deploys that are done were left unread", n)
		}
		for i, v := range before {
			again := w.deploy(v.DeployID)
			if again.Generation != v.Generation || len(again.Hosts) != 2 || again.Hosts[0].Evidence == nil || len(again.Tasks) != 2 {
				t.Fatalf("after a restart: %+v", again)
			}
			if n := w.unread(); n != 2-i {
				t.Fatalf("%d are unread, want %d", n, 2-i)
			}
		}
		w.restart()
		if all, err := w.e.Deploys(context.Background(), "", 10); err != nil || len(all) != 3 || all[0].DeployID != before[2].DeployID {
			t.Fatalf("%d Deploys, %v", len(all), err)
		}
		back, err := w.e.Rollback(context.Background(), "shop", 1, ana)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.want(back, deploy.Succeeded, deploy.StepDone)
	})
}

// TestOlderReleaseIsNotRebuilt: Apps that an older release wrote do not name their newest Commit; nothing is rebuilt for
// that.
func TestOlderReleaseIsNotRebuilt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.want(w.submit(yamlSpec("shop", 2)), deploy.Succeeded, deploy.StepDone)
		rec, err := w.st.Get(t.Context(), prefixApp+"shop")
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]any
		if err := json.Unmarshal(rec.Value, &fields); err != nil || fields["committed_txn"] == nil {
			t.Fatalf("%v, %v", fields, err)
		}
		delete(fields, "committed_txn")
		value, err := json.Marshal(fields)
		if err == nil {
			_, err = w.st.Commit(t.Context(), store.Fence{Epoch: w.epoch}, store.Op{Kind: store.Put, Key: rec.Key, Value: value})
		}
		if err != nil {
			t.Fatal(err)
		}
		seen := &rebuilds{Handler: slog.DiscardHandler}
		w.extra.Logger = slog.New(seen)
		w.restart()
		if seen.apps != 0 {
			t.Fatalf("%d Apps were rebuilt", seen.apps)
		}
	})
}

// TestReadersOfAFrozenEngine: those who do not lead answer many at once.
func TestReadersOfAFrozenEngine(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.want(w.submit(yamlSpec("shop", 2)), deploy.Succeeded, deploy.StepDone).DeployID
		e, err := Frozen(t.Context(), w.st)
		if err != nil {
			t.Fatal(err)
		}
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				if v, err := e.Deploy(t.Context(), id); err != nil || len(v.Hosts) != 2 {
					t.Errorf("%+v, %v", v, err)
				}
			})
		}
		readers.Wait()
	})
}

// TestDoneMark: what stands in for reading a record tells exactly those that are done, whatever texts they hold.
func TestDoneMark(t *testing.T) {
	for step, done := range map[deploy.StepName]bool{deploy.StepDone: true, deploy.StepKilling: false, deploy.StepDraining: false, deploy.StepExplaining: false} {
		d := &deployRecord{Deploy: deploy.Deploy{ID: "d", Step: step, Reason: `he said "step":"done"`, Verdict: &deploy.Verdict{Output: string(doneMark)}}}
		d.Steps = []deploy.StepRecord{{Step: string(step)}}
		value := putOrDelete("k", d).Value
		read, err := readDeploy(value)
		if err != nil || (read == nil) != done {
			t.Errorf("in step %s: read %v, %v", step, read, err)
		}
		if read != nil && (read.Step != step || !strings.Contains(read.Reason, "he said")) {
			t.Errorf("in step %s: %+v", step, read)
		}
	}
}

// TestWaitedForIsProbedFirst: after a restart the tasks of open Deploys are probed at once, and the others in their turn.
func TestWaitedForIsProbedFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.want(w.submit(yamlSpec("shop", 2)), deploy.Succeeded, deploy.StepDone)
		w.want(w.submit(yamlSpec("shop", 2, "command: sick")), deploy.Running, deploy.StepChecking)
		w.restart()
		w.probe.mu.Lock()
		defer w.probe.mu.Unlock()
		settled := 0
		for id, target := range w.probe.targets {
			name, _ := parseTaskID(id)
			if target.Settled != (name.spec == 1) {
				t.Errorf("task %s: settled %v", id, target.Settled)
			}
			if target.Settled {
				settled++
			}
		}
		if settled != 2 || len(w.probe.targets) != 4 {
			t.Errorf("%d of %d targets are settled", settled, len(w.probe.targets))
		}
	})
}

// TestIsOver: what stands in for reading a task tells exactly those from which nothing follows, whatever names and texts
// they hold.
func TestIsOver(t *testing.T) {
	over := func() *taskRecord {
		return &taskRecord{
			Placement: Placement{TaskID: "a.b.1.0.x", Attributes: map[string]string{"role": "committed", "holds": "x", "port_held": "true"}},
			App:       "a.b", Role: roleRetiring, State: Killed, EndedAt: time.Now(), Message: `"moving":"y" "holds":{`,
		}
	}
	for name, c := range map[string]struct {
		change func(r *taskRecord)
		over   bool
	}{
		"over":    {func(*taskRecord) {}, true},
		"it runs": {func(r *taskRecord) { r.EndedAt = time.Time{} }, false},
		"it runs, as it says": {func(r *taskRecord) {
			r.EndedAt, r.Attributes = time.Time{}, map[string]string{"ended_at": "2026", "role": "retiring"}
		}, false},
		"it is committed":       {func(r *taskRecord) { r.Role, r.Attributes = roleCommitted, map[string]string{"role": "retiring"} }, false},
		"a host knows it":       {func(r *taskRecord) { r.Holds = map[string]bool{"role": true} }, false},
		"its port is held":      {func(r *taskRecord) { r.PortHeld = true }, false},
		"an amendment names it": {func(r *taskRecord) { r.Moving = "m" }, false},
	} {
		r := over()
		c.change(r)
		if got := isOver(putOrDelete("k", r).Value); got != c.over {
			t.Errorf("%s: over %v", name, got)
		}
	}
	if app := appOfTask("a.b.1.0.x"); app != "a.b" {
		t.Errorf("the App is %q", app)
	}
}

// TestTasksThatAreOverAreReadWhenAsked: they are listed, found, and forgotten in their turn, after a restart as before it.
func TestTasksThatAreOverAreReadWhenAsked(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const versions = 4
		for i := range versions {
			w.want(w.submit(yamlSpec("shop", 15, fmt.Sprint("version: v", i))), deploy.Succeeded, deploy.StepDone)
			w.pass(time.Second)
		}
		before, err := w.e.Tasks(t.Context(), "shop")
		if err != nil || len(before) != 15+keepEnded {
			t.Fatalf("%d tasks, %v", len(before), err)
		}
		stored := func() (n int) {
			if err := w.e.do(context.Background(), func() error { n = len(w.e.s.over.stored); return nil }); err != nil {
				t.Fatal(err)
			}
			return n
		}
		w.restart()
		if n := stored(); n != keepEnded {
			t.Fatalf("%d tasks are left unread", n)
		}
		old := before[slices.IndexFunc(before, func(v deploy.TaskView) bool { return v.Role == "old" })]
		if _, err := w.e.Logs(t.Context(), old.ID, "stderr", 0, 10); err != nil {
			t.Fatal(err)
		}
		// A late update of one changes nothing, and it is not taken for an unknown one.
		if err := w.e.HandleUpdate(t.Context(), TaskUpdate{TaskID: old.ID, State: Running}); err != nil {
			t.Fatal(err)
		}
		after, err := w.e.Tasks(t.Context(), "shop")
		if err != nil || stored() != 0 {
			t.Fatal(err)
		}
		for i := range before {
			// Before the first probe nothing is known of the health of those that run.
			before[i].Health, after[i].Health = "", ""
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Fatal(diff)
		}
		w.restart()
		w.want(w.submit(yamlSpec("shop", 15, "version: last")), deploy.Succeeded, deploy.StepDone)
		w.pass(time.Second)
		last, err := w.e.Tasks(t.Context(), "shop")
		if err != nil || len(last) != 15+keepEnded {
			t.Fatalf("%d tasks, %v", len(last), err)
		}
	})
}
