package engine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
)

func together(specs ...string) string { return strings.Join(specs, "---\n") }

func (w *world) transactions() [][]string {
	w.coord.mu.Lock()
	defer w.coord.mu.Unlock()
	return slices.Clone(w.coord.together)
}

func TestLockStep(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		v := w.want(w.submit(together(yamlSpec("api", 2), yamlSpec("web", 1))), deploy.Succeeded, deploy.StepDone)
		if len(v.Apps) != 2 || v.App != "api,web" || v.Apps[0].App != "api" || v.Apps[1].App != "web" || v.Apps[0].Lockstep != v.DeployID || v.CommittedAt == nil {
			t.Fatalf("%+v", v)
		}
		if calls := w.transactions(); len(calls) != 1 || len(calls[0]) != 2 {
			t.Fatalf("begun: %v, want one transaction of two", calls)
		}
		// What is unchanged is not deployed again; the other one is by itself then.
		v = w.want(w.submit(together(yamlSpec("api", 2), yamlSpec("web", 1, "version: v2"))), deploy.Succeeded, deploy.StepDone)
		if v.Apps[0].ReasonCode != "unchanged" || v.Apps[1].ReasonCode != "committed" {
			t.Fatalf("%s and %s", v.Apps[0].ReasonCode, v.Apps[1].ReasonCode)
		}
		if calls := w.transactions(); len(calls) != 2 || len(calls[1]) != 1 {
			t.Fatalf("begun: %v", calls)
		}
	})
}

func TestLockStepAllOrNone(t *testing.T) {
	for name, c := range map[string]struct {
		web  string
		arm  func(w *world)
		act  func(t *testing.T, w *world, v deploy.View)
		end  deploy.State
		code deploy.Code // of api
		txns int
	}{
		"a task of web is never healthy": {web: "command: sick", end: deploy.RolledBack, code: deploy.CodeLockstep},
		"web ends at once":               {web: "command: exit", end: deploy.RolledBack, code: deploy.CodeLockstep},
		"a host refuses": {end: deploy.RolledBack, code: deploy.CodeHostRefused, txns: 1, arm: func(w *world) {
			w.coord.setEnd(func(s *txn.Status) { s.Phase, s.Cause, s.Reason = txn.RolledBack, txn.CauseHostRefused, "lb2 refused" })
		}},
		"web is aborted while it starts": {web: "command: slow", end: deploy.Aborted, code: deploy.CodeAborted, act: func(t *testing.T, w *world, v deploy.View) {
			if _, err := w.e.Abort(t.Context(), "web", ana); err != nil {
				t.Fatal(err)
			}
		}},
		"the whole is aborted": {web: "command: slow", end: deploy.Aborted, code: deploy.CodeAborted, act: func(t *testing.T, w *world, v deploy.View) {
			if _, err := w.e.Abort(t.Context(), v.DeployID, ana); err != nil {
				t.Fatal(err)
			}
		}},
		"a rollback of api while web starts": {web: "command: slow", end: deploy.Aborted, code: deploy.CodeAborted, act: func(t *testing.T, w *world, v deploy.View) {
			if _, err := w.e.Rollback(t.Context(), "api", 0, ana); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.submit(together(yamlSpec("api", 2), yamlSpec("web", 1)))
				before := append(w.serving("api"), w.serving("web")...)
				if c.arm != nil {
					c.arm(w)
				}
				more := []string{"version: v2"}
				if c.web != "" {
					more = append(more, c.web)
				}
				v := w.submit(together(yamlSpec("api", 2, "version: v2"), yamlSpec("web", 1, more...)))
				if c.act != nil {
					c.act(t, w, v)
				}
				w.pass(20 * time.Second)
				v = w.want(v, c.end, deploy.StepDone)
				if v.Apps[0].ReasonCode != string(c.code) || v.Apps[0].State != c.end || v.Apps[1].State != c.end {
					t.Errorf("api: %s %s (%s), web: %s", v.Apps[0].State, v.Apps[0].ReasonCode, v.Apps[0].Reason, v.Apps[1].State)
				}
				if calls := w.transactions(); len(calls) != 1+c.txns {
					t.Errorf("begun: %v", calls)
				}
				if after := append(w.serving("api"), w.serving("web")...); !slices.Equal(before, after) {
					t.Errorf("serving %v, before %v", after, before)
				}
				if alive := append(w.mesos.alive("api"), w.mesos.alive("web")...); !slices.Equal(alive, before) {
					t.Errorf("alive %v, want %v", alive, before)
				}
				if v.Reason == "" || c.code == deploy.CodeLockstep && !strings.HasPrefix(v.Reason, "App web: ") {
					t.Errorf("the whole says %q (%s)", v.Reason, v.ReasonCode)
				}
			})
		})
	}
}

func TestLockStepIsRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		open := w.submit(yamlSpec("web", 1, "command: slow"))
		for name, c := range map[string]struct {
			source string
			kind   deploy.RefusalKind
			says   string
		}{
			"one is locked":     {together(yamlSpec("api", 1), yamlSpec("web", 1)), deploy.RefusedLocked, open.DeployID},
			"the same App":      {together(yamlSpec("api", 1), yamlSpec("api", 2)), deploy.RefusedInvalid, "api is there twice"},
			"the same route":    {together(yamlSpec("api", 1), yamlSpec("cart", 1, "routes: [{group: public, path: /api}]")), deploy.RefusedInvalid, "is wanted by App api and by App cart"},
			"a key is unknown":  {together(yamlSpec("api", 1), yamlSpec("cart", 1, "wat: 1")), deploy.RefusedInvalid, "wat"},
			"no such group":     {together(yamlSpec("api", 1), yamlSpec("cart", 1, "routes: [{group: nope, path: /c}]")), deploy.RefusedInvalid, "nope"},
			"route of an other": {together(yamlSpec("api", 1), yamlSpec("cart", 1, "routes: [{group: public, path: /web}]")), deploy.RefusedInvalid, "belongs to App web"},
		} {
			_, err := w.e.Submit(t.Context(), []byte(c.source), ana)
			var r *deploy.Refusal
			if !errors.As(err, &r) || r.Kind != c.kind || !strings.Contains(r.Error()+r.OpenDeploy, c.says) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if apps, err := w.e.Apps(t.Context()); err != nil || len(apps) != 1 {
			t.Errorf("a refused lock-step left Apps behind: %v %v", apps, err)
		}
	})
}

func TestLockStepIdempotencyAndEvents(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		meta := api.Meta{Actor: "ana", IdempotencyKey: "k", BodyDigest: "x"}
		source := []byte(together(yamlSpec("api", 1), yamlSpec("web", 1)))
		first, err := w.e.Submit(t.Context(), source, meta)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		again, err := w.e.Submit(t.Context(), source, meta)
		if err != nil || again.DeployID != first.DeployID || len(again.Apps) != 2 {
			t.Fatalf("%s and %s, %v", first.DeployID, again.DeployID, err)
		}
		w.restart()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		events, err := w.e.Events(ctx, first.DeployID, 0)
		if err != nil {
			t.Fatal(err)
		}
		seq, apps, last := uint64(0), map[string]bool{}, deploy.Event{}
		for ev := range events {
			if ev.Seq != seq+1 || ev.Deploy != first.DeployID {
				t.Fatalf("after event %d of %s: %+v", seq, first.DeployID, ev)
			}
			if last.Type == "end" {
				t.Fatalf("an event after the end: %+v", ev)
			}
			seq, last = ev.Seq, ev
			apps[ev.App] = true
		}
		if last.Type != "end" || !apps["api"] || !apps["web"] || last.View == nil || len(last.View.Apps) != 2 {
			t.Fatalf("the last of %d events: %+v", seq, last)
		}
	})
}

func TestLockStepRestart(t *testing.T) {
	for name, c := range map[string]struct {
		web   string
		phase txn.Phase
		end   deploy.State
		txns  int
		after func(w *world)
	}{
		"gathering": {web: "command: slow", end: deploy.Succeeded, txns: 1, after: func(w *world) {
			for _, id := range w.mesos.in(Launching) {
				w.mesos.run(id)
			}
		}},
		"preparing":  {phase: txn.Preparing, end: deploy.Succeeded, txns: 2},
		"activating": {phase: txn.Activating, end: deploy.Succeeded, txns: 2},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.coord.set(func(f *fakeCoordinator) { f.stopAt = c.phase })
				more := []string{}
				if c.web != "" {
					more = append(more, c.web)
				}
				v := w.submit(together(yamlSpec("api", 2), yamlSpec("web", 1, more...)))
				w.want(v, deploy.Running, deploy.StepName(v.Step))
				w.coord.set(func(f *fakeCoordinator) { f.stopAt = 0 })
				w.restart()
				if c.after != nil {
					c.after(w)
				}
				w.pass(20 * time.Second)
				w.want(v, c.end, deploy.StepDone)
				calls := w.transactions()
				if len(calls) != c.txns {
					t.Errorf("begun: %v", calls)
				}
				for _, ids := range calls {
					if len(ids) != 2 {
						t.Errorf("begun: %v", calls)
					}
				}
			})
		})
	}
}
