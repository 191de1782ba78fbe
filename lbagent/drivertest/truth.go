package drivertest

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
)

// UNDO: whatever a txn did, converging back to the Section from before gives the digests from before.
func testUndo(t *testing.T, h Harness) {
	r := newRig(t, h)
	a, b, c := NewBackend(t, "a-1"), NewBackend(t, "b-1"), NewBackend(t, "c-1")
	other := r.bring("other", NewBackend(t, "other-1"))
	undo := r.bring("shop", a, b)
	running, published := r.read("shop").Digest, r.publishedDigest("shop")
	if running == "" || published == "" {
		t.Fatalf("digests of a serving App: running %q, published %q", running, published)
	}

	warm := join(undo, c.Upstream(driver.Warm))
	r.converge(warm)
	r.awaitGreen("shop", c.Name)
	target := withMode(withMode(warm, driver.Serving, c.Name), driver.Draining, a.Name, b.Name)
	target.Routes = append(slices.Clone(target.Routes), driver.Route{Host: "shop.example", Path: "/", Strip: true})
	target.Upstreams[1].Weight = 7
	r.publish(target)
	r.converge(target)
	r.holds(target)
	if r.publishedDigest("shop") == published {
		t.Error("the published digest does not tell the target from the undo")
	}
	for range 2 { // undo is idempotent
		r.publish(undo)
		r.converge(undo)
		if got := r.read("shop").Digest; got != running {
			t.Errorf("running digest after undo: %s, before: %s", got, running)
		}
		if got := r.publishedDigest("shop"); got != published {
			t.Errorf("published digest after undo: %s, before: %s", got, published)
		}
	}
	r.expectServing("/shop")
	r.expect("shop.example", "/x", answer{Status: http.StatusNotFound})
	r.holds(other)

	// A new App whose txn is aborted leaves nothing.
	first := section("first", c.Upstream(driver.Serving))
	r.converge(onlyWarm("first", c.Upstream(driver.Warm)))
	r.publish(first)
	r.converge(first)
	absent := driver.Section{App: "first"}
	r.publish(absent)
	r.converge(absent)
	r.holds(absent)
	if got := r.publishedDigest("first"); got != "" {
		t.Errorf("published digest of an App that was undone to nothing: %s", got)
	}
}

// A proxy that dies between Publish and Converge comes back to what was published: the new set, no route lost.
func testRestartBetweenPublishAndConverge(t *testing.T, h Harness) {
	r := newRig(t, h)
	a, b := NewBackend(t, "a-1"), NewBackend(t, "b-1")
	s := r.bring("shop", a)
	warm := join(s, b.Upstream(driver.Warm))
	r.converge(warm)
	r.awaitGreen("shop", b.Name)
	target := withMode(withMode(warm, driver.Serving, b.Name), driver.Draining, a.Name)
	r.publish(target)
	before, err := r.Driver().Process(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	r.Kill(t)
	r.Start(t)
	after, err := r.Driver().Process(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if before.WorkerPID == after.WorkerPID && before.StartedAt.Equal(after.StartedAt) {
		t.Errorf("process before and after the restart: %+v, %+v", before, after)
	}
	// The files alone route to the target already, before Converge.
	for range 10 {
		r.expect("", "/shop", answer{Status: http.StatusOK, Backend: b.Name})
	}
	r.converge(target)
	r.holds(target)
	r.awaitGreen("shop", b.Name)
	for range 10 {
		r.expect("", "/shop", answer{Status: http.StatusOK, Backend: b.Name})
	}
	// And the same from a proxy that comes back to an older truth than the one that is wanted.
	r.converge(s)
	r.holds(s)
}

// An owner's reload keeps what was published and forgets what was only warm; Converge brings that back.
func testOwnerReloadKeepsPublished(t *testing.T, h Harness) {
	r := newRig(t, h)
	a, b := NewBackend(t, "a-1"), NewBackend(t, "b-1")
	s := r.bring("shop", a)
	warm := join(s, b.Upstream(driver.Warm))
	r.converge(warm)
	r.awaitGreen("shop", b.Name)
	b.SetHealth(http.StatusInternalServerError) // what was green before must not count
	r.OwnerReload(t)
	r.expect("", "/shop", answer{Status: http.StatusOK, Backend: a.Name})
	before := b.Checks()
	r.converge(warm)
	r.holds(warm)
	r.eventually("checks by the new worker", func() error {
		row, err := row(r.read("shop"), b.Name)
		if err != nil {
			return err
		}
		if row.Green {
			t.Fatalf("green in a new worker without a good check by it: %+v", row)
		}
		if n := b.Checks() - before; n < 3 {
			return fmt.Errorf("%d checks", n)
		}
		return nil
	})
	b.SetHealth(http.StatusOK)
	r.awaitGreen("shop", b.Name)
	r.expect("", "/shop", answer{Status: http.StatusOK, Backend: a.Name})
}

// RUNNING = JOURNAL: with the proxy dead, nothing is read, and the error says what it is.
func testKilledProxyIsDown(t *testing.T, h Harness) {
	r := newRig(t, h)
	s := r.bring("shop", NewBackend(t, "a-1"))
	r.Kill(t)
	if reading, err := r.Driver().Read(deadline(t), "shop"); !errors.Is(err, driver.ErrProxyDown) {
		t.Errorf("read of a dead proxy: %+v, %v; want ErrProxyDown", reading, err)
	}
	if _, err := r.Driver().Process(deadline(t)); !errors.Is(err, driver.ErrProxyDown) {
		t.Errorf("process of a dead proxy: %v; want ErrProxyDown", err)
	}
	if err := r.Driver().Converge(deadline(t), s); !errors.Is(err, driver.ErrProxyDown) {
		t.Errorf("converge of a dead proxy: %v; want ErrProxyDown", err)
	}
	if err := r.Driver().Request(deadline(t), "shop", "a-1", "shop.example"); err == nil {
		t.Error("a request through a dead proxy passed")
	}
	// Files can be put right while the proxy is dead.
	r.publish(s)
	r.Start(t)
	r.converge(s)
	r.holds(s)
	r.expectServing("/shop")
}

// A new agent finds what the last one did, in the files and in the proxy.
func testReopenFindsEverything(t *testing.T, h Harness) {
	r := newRig(t, h)
	a, b := NewBackend(t, "a-1"), NewBackend(t, "b-1")
	s := r.bring("shop", a)
	warm := join(s, b.Upstream(driver.Warm))
	fresh := onlyWarm("fresh", NewBackend(t, "fresh-1").Upstream(driver.Warm))
	r.converge(warm)
	r.converge(fresh)
	published := r.publishedDigest("shop")
	r.Reopen(t)
	if _, err := r.Driver().Check(deadline(t)); err != nil {
		t.Fatalf("check after the agent's restart: %v", err)
	}
	if got := r.publishedDigest("shop"); got != published {
		t.Errorf("published digest after the agent's restart: %s, before: %s", got, published)
	}
	apps, err := r.Driver().Apps(deadline(t))
	if err != nil || !slices.Contains(apps, "shop") {
		t.Errorf("apps after the agent's restart: %v, %v", apps, err)
	}
	r.converge(warm)
	r.holds(warm)
	r.awaitGreen("shop", b.Name)
	r.converge(fresh)
	r.holds(fresh)
	r.converge(driver.Section{App: "fresh"})
	if err := r.Driver().Request(deadline(t), "shop", "a-1", "shop.example"); err != nil {
		t.Errorf("request after the agent's restart: %v", err)
	}
	r.converge(s)
	r.holds(s)
}

// Stage touches nothing that is published or running.
func testStageChangesNothing(t *testing.T, h Harness) {
	r := newRig(t, h)
	s := r.bring("shop", NewBackend(t, "a-1"))
	running, published := r.read("shop").Digest, r.publishedDigest("shop")
	p, err := r.Driver().Process(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	next := withMode(join(s, NewBackend(t, "b-1").Upstream(driver.Serving)), driver.Draining, "a-1")
	r.stage(next)
	r.stage(section("unseen", NewBackend(t, "c-1").Upstream(driver.Serving)))
	if got := r.read("shop").Digest; got != running {
		t.Error("stage changed the running state")
	}
	if got := r.publishedDigest("shop"); got != published {
		t.Error("stage changed the published files")
	}
	if got := r.publishedDigest("unseen"); got != "" {
		t.Error("stage published a new App")
	}
	if got, err := r.Driver().Process(deadline(t)); err != nil || got.WorkerPID != p.WorkerPID {
		t.Errorf("stage changed the process: %+v, %v; before %+v", got, err, p)
	}
	r.expect("", "/unseen", answer{Status: http.StatusNotFound})
}

// A base configuration that its owner broke vetoes, with the checker's words, and the running proxy serves on; once it
// is mended, the next Stage passes.
func testStageRefusesBrokenBase(t *testing.T, h Harness) {
	r := newRig(t, h)
	s := r.bring("shop", NewBackend(t, "a-1"))
	next := join(s, NewBackend(t, "b-1").Upstream(driver.Serving))
	for range 2 {
		r.BreakBase(t)
		var refused *driver.RefusedError
		for range 2 { // the answer is cached, the veto stays
			if err := r.Driver().Stage(deadline(t), next); !errors.As(err, &refused) {
				t.Fatalf("stage with a broken base: %v; want a RefusedError", err)
			}
			if refused.Output == "" || refused.Checker == "" || len(refused.Output) > driver.MaxOutput {
				t.Errorf("the refusal does not carry what the checker said: %+v", refused)
			}
		}
		r.expectServing("/shop")
		r.holds(s)
		r.MendBase(t)
		r.stage(next)
	}
}

// A foreign process on the frontend's port is told from the proxy, although every exit code says that all is well.
func testStolenPort(t *testing.T, h Harness) {
	r := newRig(t, h)
	s := r.bring("shop", NewBackend(t, "a-1"))
	release := r.StealPort(t)
	if _, err := r.Driver().Check(deadline(t)); !errors.Is(err, driver.ErrProxyMismatch) {
		t.Errorf("check with a stolen port: %v; want ErrProxyMismatch", err)
	}
	next := join(s, NewBackend(t, "b-1").Upstream(driver.Serving))
	stage := r.Driver().Stage(deadline(t), next)
	converge := r.Driver().Converge(deadline(t), s)
	if !errors.Is(stage, driver.ErrProxyMismatch) && !errors.Is(converge, driver.ErrProxyMismatch) {
		t.Errorf("stage: %v, converge: %v; want ErrProxyMismatch from one of them", stage, converge)
	}
	release()
	r.eventually("the port is the proxy's again", func() error {
		if _, err := r.Driver().Check(deadline(t)); err != nil {
			return err
		}
		return r.Driver().Converge(deadline(t), s)
	})
	r.holds(s)
}
