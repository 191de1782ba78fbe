package engine

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
	"github.com/cutover/cutover/orchestrator/txn"
)

// rebuilds is a logger that counts the Apps that were rebuilt, and keeps what could not be.
type rebuilds struct {
	slog.Handler
	apps   int
	failed []string
}

func (r *rebuilds) Enabled(context.Context, slog.Level) bool { return true }

func (r *rebuilds) Handle(_ context.Context, rec slog.Record) error {
	if strings.Contains(rec.Message, "are rebuilt") {
		r.apps++
	}
	if strings.Contains(rec.Message, "cannot be rebuilt") {
		r.failed = append(r.failed, rec.Message)
	}
	return nil
}

// records copies the store, as a backup does.
func (w *world) records() []store.Record {
	w.t.Helper()
	all, err := w.st.List(context.Background(), "", "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// lose restarts the engine on what the store had at the backup, less what decides, which is never lost.
func (w *world) lose(backup []store.Record) *rebuilds {
	w.t.Helper()
	st := memstore.New()
	for _, from := range [][]store.Record{backup, w.records()} {
		for _, rec := range from {
			if store.Decides(rec.Key) == (&from[0] == &backup[0]) {
				continue
			}
			if _, err := st.Commit(context.Background(), store.Fence{}, store.Op{Kind: store.Put, Key: rec.Key, Value: rec.Value}); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.st = st
	seen := &rebuilds{Handler: slog.DiscardHandler}
	w.extra.Logger = slog.New(seen)
	w.restart()
	if len(seen.failed) > 0 {
		w.t.Error(seen.failed)
	}
	return seen
}

const noRoutes = "routes: []\nkind: worker"

// TestLostRecordsAreRebuilt: whatever point of its past the engine's store goes back to, every committed App is there
// again with its very tasks, nothing that serves is killed, nothing is launched twice, and Deploys go on.
func TestLostRecordsAreRebuilt(t *testing.T) {
	marker := store.Record{Key: "event/0/0", Value: []byte("{}")} // so that no backup is empty
	moments := []string{"nothing", "first committed", "launching", "preparing", "activating", "second committed", "replaced", "stopped"}
	for _, moment := range moments {
		t.Run(moment, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				backups := map[string][]store.Record{"nothing": {marker}}
				keep := func(name string) { backups[name] = append(w.records(), marker) }

				w.want(w.submit(yamlSpec("shop", 2)), deploy.Succeeded, deploy.StepDone)
				w.want(w.submit(yamlSpec("batch", 1, noRoutes)), deploy.Succeeded, deploy.StepDone)
				w.want(w.submit(yamlSpec("gone", 1)), deploy.Succeeded, deploy.StepDone)
				keep("first committed")

				w.mesos.configure(func(m *fakeMesos) { m.full = true })
				second := w.submit(yamlSpec("shop", 2, "version: v2"))
				keep("launching")
				w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Preparing })
				w.mesos.configure(func(m *fakeMesos) { m.full = false })
				for _, id := range w.mesos.in(Queued) {
					go w.mesos.place(id)
				}
				synctest.Wait()
				keep("preparing")
				w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Activating })
				for _, p := range w.coord.proposals() {
					go w.coord.advance(p.ID)
				}
				synctest.Wait()
				keep("activating")
				w.coord.let()
				w.pass(30 * time.Second)
				second = w.want(w.deploy(second.DeployID), deploy.Succeeded, deploy.StepDone)
				w.want(w.submit(yamlSpec("batch", 1, noRoutes, "version: v2")), deploy.Succeeded, deploy.StepDone)
				keep("second committed")

				w.mesos.set(w.mesos.alive("shop")[0], Failed, "it crashed")
				w.pass(30 * time.Second)
				keep("replaced")
				stop := w.stopApp("gone")
				w.pass(30 * time.Second)
				w.want(w.deploy(stop), deploy.Succeeded, deploy.StepDone)
				keep("stopped")

				alive := map[string][]string{}
				for _, app := range []string{"shop", "batch", "gone"} {
					alive[app] = w.mesos.alive(app)
				}
				if len(alive["shop"]) != 2 || len(alive["batch"]) != 1 || len(alive["gone"]) != 0 {
					t.Fatalf("before the loss: %v", alive)
				}
				launches := w.mesos.launched()
				seen := w.lose(backups[moment])
				w.pass(2 * time.Minute)
				for app, before := range alive {
					if now := w.mesos.alive(app); !slices.Equal(now, before) {
						t.Errorf("%s consists of %v, and did of %v", app, now, before)
					}
				}
				if now := w.mesos.launched(); now != launches {
					t.Errorf("%d tasks were launched after the loss", now-launches)
				}
				if got := w.serving("shop"); !slices.Equal(got, alive["shop"]) {
					t.Errorf("serving %v, alive %v", got, alive["shop"])
				}
				if (seen.apps == 0) != (moment == "stopped") {
					t.Errorf("%d apps were rebuilt", seen.apps)
				}
				if v := w.app("shop"); v.Spec != 2 || v.OpenDeploy != "" {
					t.Errorf("shop: %+v", v)
				}
				if v := w.app("batch"); v.Spec != 2 {
					t.Errorf("batch: %+v", v)
				}
				if v := w.app("gone"); v.Spec != 0 {
					t.Errorf("gone: %+v", v)
				}
				w.want(w.deploy(second.DeployID), deploy.Succeeded, deploy.StepDone)

				// Once rebuilt, it is as if nothing had been: the next restart finds all of it, and Deploys go on.
				seen.apps = 0
				w.restart()
				if seen.apps != 0 {
					t.Errorf("a restart rebuilt %d apps once more", seen.apps)
				}
				for app, before := range alive {
					w.want(w.submit(yamlSpec(app, max(len(before), 1), map[string]string{"batch": noRoutes}[app], "version: v3")), deploy.Succeeded, deploy.StepDone)
					w.pass(30 * time.Second)
					for _, old := range before {
						if slices.Contains(w.mesos.alive(app), old) {
							t.Errorf("%s: old task %s was not killed", app, old)
						}
					}
				}
				if got := w.mesos.alive("shop"); len(got) != 2 || !slices.Equal(got, w.serving("shop")) {
					t.Errorf("alive %v, serving %v", got, w.serving("shop"))
				}
			})
		})
	}
}

// stopApp stops an App and returns the Deploy's id.
func (w *world) stopApp(app string) string {
	w.t.Helper()
	v, err := w.e.StopApp(context.Background(), app, api.Meta{Actor: "ana"})
	if err != nil {
		w.t.Fatal(err)
	}
	return v.DeployID
}
