package engine

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

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
