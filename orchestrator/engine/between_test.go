package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// cutStore is a store that a process is killed in front of: it takes so many Commits more, and no others.
type cutStore struct {
	store.Store
	mu   sync.Mutex
	held chan struct{} // nil: Commits do not wait
	left int
	cut  bool // it has refused one
}

func (s *cutStore) Commit(ctx context.Context, f store.Fence, ops ...store.Op) (store.Revision, error) {
	s.mu.Lock()
	held := s.held
	s.mu.Unlock()
	if held != nil {
		<-held
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 {
		s.cut = true
		return 0, errors.New("killed")
	}
	s.left--
	return s.Store.Commit(ctx, f, ops...)
}

// hold makes the next Commits wait until the returned function lets so many of them pass, and none after those.
func (s *cutStore) hold() (pass func(n int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = make(chan struct{})
	return func(n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.left = n
		close(s.held)
		s.held = nil
	}
}

// most is how many Commits of a term are told apart.
const most = 6

// between runs a test with a term that is killed after each of its Commits from some moment on: the first time after none, then
// after one more each time, until that many are not needed, or the later ones are all alike.
func between(t *testing.T, f func(t *testing.T, w *world, st *cutStore, n int)) {
	for n := 0; n < most; n++ {
		killed := false
		t.Run(fmt.Sprintf("after %d", n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				st := &cutStore{Store: w.st, left: 1 << 30}
				w.st, w.dies = st, true
				w.start()
				t.Cleanup(w.stop)
				f(t, w, st, n)
				killed = st.cut
			})
		})
		if !killed || t.Failed() {
			return
		}
	}
}

// again is the next term, with the store as the last one left it.
func (w *world) again(st *cutStore) {
	w.t.Helper()
	st.mu.Lock()
	st.left = 1 << 30
	st.mu.Unlock()
	w.restart()
	w.pass(time.Minute)
}

// Very many Deploys commit in one moment, more than one Commit of the store can hold, and the process is killed between two of
// these: each App is what its Hosts serve.
func TestKilledBetweenTheCommitsOfManyDeploys(t *testing.T) {
	const apps = 70
	name := func(i int) string { return fmt.Sprintf("app-%02d", i) }
	between(t, func(t *testing.T, w *world, st *cutStore, n int) {
		for i := range apps {
			w.want(w.submit(yamlSpec(name(i), 1)), deploy.Succeeded, deploy.StepDone)
		}
		w.coord.set(func(c *fakeCoordinator) { c.stopAt = txn.Deciding })
		for i := range apps {
			w.submit(yamlSpec(name(i), 1, "version: v2"))
		}
		pass := st.hold()
		go func() { _, _ = w.e.Abort(t.Context(), "app-00", ana) }() // a turn that waits for its Commit, so that the next one has all
		synctest.Wait()
		w.coord.let()
		pass(1 + n)
		synctest.Wait()
		w.again(st)
		for i := range apps {
			a := w.app(name(i))
			if a.Spec != 2 || a.OpenDeploy != "" {
				t.Fatalf("%s: committed spec %d, open deploy %q", a.Name, a.Spec, a.OpenDeploy)
			}
			if alive := w.mesos.alive(a.Name); len(alive) != 1 || !slices.Equal(alive, w.serving(a.Name)) || !strings.HasPrefix(alive[0], a.Name+".2.") {
				t.Fatalf("%s: alive %v, serving %v", a.Name, alive, w.serving(a.Name))
			}
		}
	})
}

// An App of very many instances is submitted, and the process is killed between the Commits that hold its tasks and the App
// itself: nothing of it runs on unowned.
func TestKilledBetweenTheCommitsOfASubmit(t *testing.T) {
	between(t, func(t *testing.T, w *world, st *cutStore, n int) {
		pass := st.hold()
		go func() { _, _ = w.e.Submit(t.Context(), []byte(yamlSpec("shop", 130)), ana) }()
		synctest.Wait()
		pass(n)
		synctest.Wait()
		w.again(st)
		alive := w.mesos.alive("shop")
		if a, err := w.e.App(t.Context(), "shop"); err != nil {
			if len(alive) > 0 {
				t.Fatalf("there is no App, and %d tasks of it run", len(alive))
			}
		} else if a.Spec != 1 || len(alive) != 130 {
			t.Fatalf("%d tasks run: %+v", len(alive), a)
		}
		w.want(w.submit(yamlSpec("shop", 2, "version: v2")), deploy.Succeeded, deploy.StepDone)
		w.pass(time.Minute)
		if alive := w.mesos.alive("shop"); len(alive) != 2 || !slices.Equal(alive, w.serving("shop")) {
			t.Fatalf("alive %v, serving %v", alive, w.serving("shop"))
		}
	})
}

// A lock-step whose Deploys no Commit can hold together is cut, and the process is killed between the parts: no App is held by
// a Deploy that is over, and none has another Spec than its Hosts.
func TestKilledBetweenTheCommitsOfALockstep(t *testing.T) {
	const apps = 8
	name := func(i int) string { return fmt.Sprintf("app-%02d", i) }
	all := func(version string) string {
		var sources []string
		for i := range apps {
			sources = append(sources, yamlSpec(name(i), 1, "version: "+version))
		}
		return strings.Join(sources, "---\n")
	}
	between(t, func(t *testing.T, w *world, st *cutStore, n int) {
		w.want(w.submit(all("v1")), deploy.Succeeded, deploy.StepDone)
		w.coord.set(func(c *fakeCoordinator) { c.stopAt, c.rows = txn.Deciding, 300 })
		w.submit(all("v2"))
		pass := st.hold()
		go func() { _, _ = w.e.Abort(t.Context(), "app-00", ana) }()
		synctest.Wait()
		w.coord.let()
		pass(1 + n)
		synctest.Wait()
		w.again(st)
		for i := range apps {
			a := w.app(name(i))
			if alive := w.mesos.alive(a.Name); a.Spec != 2 || a.OpenDeploy != "" || len(alive) != 1 || !slices.Equal(alive, w.serving(a.Name)) {
				t.Fatalf("%+v: alive %v, serving %v", a, alive, w.serving(a.Name))
			}
		}
	})
}

// What belongs together is in one Commit as long as one can hold it.
func TestAppsStayWithTheirDeploys(t *testing.T) {
	s, b := newState(nil), newBatch(time.Now())
	for i := range 100 {
		app, id := fmt.Sprintf("app-%03d", i), fmt.Sprintf("deploy-%03d", i)
		s.apps[app] = &appRecord{Name: app, Open: id}
		s.deploys.put(&deployRecord{Deploy: deploy.Deploy{ID: id, App: app}})
		s.idem["key-"+id] = idemRecord{Deploy: id}
		b.apps[app], b.deploys[id], b.idem["key-"+id] = true, true, true
	}
	s.specs.put("app-000", 1, spec.Spec{})
	groups := b.ops(s)
	if len(groups) < 2 {
		t.Fatal("all of it fits one Commit: this shows nothing")
	}
	for _, ops := range groups {
		of := map[string]int{}
		for _, op := range ops {
			of[op.Key[len(op.Key)-3:]]++
		}
		for nr, n := range of {
			if n != 3 {
				t.Errorf("a Commit has %d of the 3 records of App %s", n, nr)
			}
		}
	}
}
