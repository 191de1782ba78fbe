package drivertest

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/cutover/cutover/internal/servertest"
	"github.com/cutover/cutover/lbagent/driver"
)

func testCheck(t *testing.T, h Harness) {
	r := newRig(t, h)
	info, err := r.Driver().Check(deadline(t))
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	if info.Proxy != h.Name || info.Version == "" {
		t.Errorf("check says %+v, want proxy %q and a version", info, h.Name)
	}
	p, err := r.Driver().Process(deadline(t))
	if err != nil {
		t.Fatalf("process: %v", err)
	}
	if p.MasterPID <= 0 || p.WorkerPID <= 0 || p.MasterPID == p.WorkerPID || p.StartedAt.IsZero() {
		t.Errorf("process says %+v", p)
	}
	apps, err := r.Driver().Apps(deadline(t))
	if err != nil || len(apps) != 0 {
		t.Errorf("apps of a new proxy: %v, %v; want none", apps, err)
	}
	r.expect("", "/nothing", answer{Status: http.StatusNotFound})
}

// A warm upstream is checked by the proxy and gets no request, beside others and alone.
func testWarmGetsNoRequest(t *testing.T, h Harness) {
	r := newRig(t, h)
	old, next := NewBackend(t, "old-1"), NewBackend(t, "new-1")

	alone := onlyWarm("shop", next.Upstream(driver.Warm))
	r.stage(alone)
	r.converge(alone)
	r.awaitGreen("shop", next.Name)
	r.expect("", "/shop", answer{Status: http.StatusNotFound})
	if published := r.publishedDigest("shop"); published != "" {
		t.Errorf("warming published something: digest %s", published)
	}
	r.converge(driver.Section{App: "shop"})
	if got := r.read("shop"); got.Digest != "" {
		t.Fatalf("the App is still there after it was removed: %+v", got)
	}

	s := r.bring("shop", old)
	beside := join(s, NewBackend(t, "new-2").Upstream(driver.Warm))
	r.converge(beside)
	r.awaitGreen("shop", "new-2")
	r.holds(beside)
	load := StartLoad(t, r.FrontendURL()+"/shop", 4, !h.Lossy)
	r.eventually("200 answers", func() error {
		if n := load.Answered(""); n < 200 {
			return fmt.Errorf("%d answers", n)
		}
		return nil
	})
	load.Stop()
	if n, errs := load.Failed(); n != 0 {
		t.Errorf("%d requests failed: %v", n, errs)
	}
	if n := load.Answered("new-2"); n != 0 || next.Traffic() != 0 {
		t.Errorf("the warm upstreams got %d and %d requests, want none", n, next.Traffic())
	}
}

// Green means that this proxy asked this upstream, Rise times in a row, since it was added.
func testGreenOnlyAfterChecks(t *testing.T, h Harness) {
	r := newRig(t, h)
	b := NewBackend(t, "slow-1")
	b.SetHealth(http.StatusInternalServerError)
	up := b.Upstream(driver.Warm)
	up.Health.Rise = 3
	r.converge(onlyWarm("shop", up))

	// While checks fail it never is green, however often one looks.
	r.eventually("5 failed checks", func() error {
		if row, err := row(r.read("shop"), b.Name); err == nil && row.Green {
			t.Fatalf("green although every check failed: %+v", row)
		}
		if n := b.Checks(); n < 5 {
			return fmt.Errorf("%d checks", n)
		}
		return nil
	})
	before := b.Checks()
	b.SetHealth(http.StatusOK)
	r.eventually("green", func() error {
		row, err := row(r.read("shop"), b.Name)
		if err != nil {
			return err
		}
		if !row.Green {
			return fmt.Errorf("not green: %+v", row)
		}
		return nil
	})
	if n := b.Checks() - before; n < 3 {
		t.Errorf("green after %d good checks, want at least rise = 3", n)
	}
}

// A dead upstream never gets green, turns red, and one that dies turns red and gets no request.
func testDeadUpstreamIsRed(t *testing.T, h Harness) {
	r := newRig(t, h)
	dead := driver.Upstream{
		Name: "dead-1", Address: servertest.Refused(t), Weight: 100, Mode: driver.Warm, Health: Health(),
	}
	r.converge(onlyWarm("shop", dead))
	r.awaitRed("shop", dead.Name)
	r.converge(driver.Section{App: "shop"})

	a, b := NewBackend(t, "a-1"), NewBackend(t, "b-1")
	s := r.bring("shop", a, b)
	a.Stop()
	r.awaitRed("shop", a.Name)
	r.holds(s) // red is a state of health, not of the set
	for range 20 {
		r.expect("", "/shop", answer{Status: http.StatusOK, Backend: b.Name})
	}
	// The last one dies too: the proxy says so with 503 and does not forget the route.
	b.Stop()
	r.awaitRed("shop", b.Name)
	got, err := r.get("", "/shop")
	if err != nil || got.Status/100 != 5 {
		t.Errorf("no upstream left: %+v, %v; want a status of the proxy's own (5xx)", got, err)
	}
}

// Connections and checks come from the host's own address.
func testSourceAddress(t *testing.T, h Harness) {
	r := newRig(t, h)
	if !r.Source().IsValid() {
		t.Log("this harness leaves the source address to the kernel: nothing to compare")
		return
	}
	b := NewBackend(t, "a-1")
	s := r.bring("shop", b)
	for range 5 {
		r.expect("", "/shop", answer{Status: http.StatusOK, Backend: b.Name})
	}
	if err := r.Driver().Request(deadline(t), s.App, b.Name, "shop.example"); err != nil {
		t.Errorf("request: %v", err)
	}
	for from := range b.Sources() {
		if from != r.Source() {
			t.Errorf("requests came from %v, want only %v", b.Sources(), r.Source())
		}
	}
}

// Request reaches the named upstream and no other, in every mode, and tells an upstream's status from the proxy's own.
func testRequest(t *testing.T, h Harness) {
	r := newRig(t, h)
	a, b := NewBackend(t, "a-1"), NewBackend(t, "b-1")
	s := r.bring("shop", a, b)
	s = join(s, NewBackend(t, "c-1").Upstream(driver.Warm))
	r.converge(s)
	r.awaitGreen("shop", "c-1")
	for _, name := range []string{"a-1", "b-1", "c-1"} {
		if err := r.Driver().Request(deadline(t), "shop", name, "shop.example"); err != nil {
			t.Errorf("request to %s: %v", name, err)
		}
	}
	// A status of the upstream passes, whatever it is.
	a.SetHealth(http.StatusServiceUnavailable)
	if err := r.Driver().Request(deadline(t), "shop", "a-1", "shop.example"); err != nil {
		// The proxy may have taken it down by now: then its own answer is the truth, and fails.
		row, rerr := row(r.read("shop"), "a-1")
		if rerr != nil || !row.Red {
			t.Errorf("request to an upstream that answers 503: %v (%+v)", err, row)
		}
	}
	b.Stop()
	if err := r.Driver().Request(deadline(t), "shop", "b-1", "shop.example"); err == nil {
		t.Error("request to a dead upstream passed")
	}
	if err := r.Driver().Request(deadline(t), "shop", "no-such", "shop.example"); err == nil {
		t.Error("request to an unknown upstream passed")
	}
	if err := r.Driver().Request(deadline(t), "no-such", "a-1", "shop.example"); err == nil {
		t.Error("request to an unknown App passed")
	}
}

// Weights are applied and reported; a removed upstream is neither reported nor asked any more.
func testWeightAndRemove(t *testing.T, h Harness) {
	r := newRig(t, h)
	a, b := NewBackend(t, "a-1"), NewBackend(t, "b-1")
	s := r.bring("shop", a, b)
	s.Upstreams[0].Weight, s.Upstreams[1].Weight = 256, 1
	r.publish(s)
	r.converge(s)
	r.holds(s)
	before := b.Traffic()
	for range 40 {
		r.expectServing("/shop")
	}
	if n := b.Traffic() - before; n > 20 {
		t.Errorf("the upstream of weight 1 beside 256 got %d of 40 requests", n)
	}
	s.Upstreams = s.Upstreams[:1]
	r.publish(s)
	r.converge(s)
	r.holds(s)
	r.quiet(b)
	for range 10 {
		r.expect("", "/shop", answer{Status: http.StatusOK, Backend: a.Name})
	}

	// The whole App goes: no route, no upstream, no check, nothing published.
	gone := driver.Section{App: "shop"}
	r.publish(gone)
	r.converge(gone)
	r.holds(gone)
	r.quiet(a)
	r.expect("", "/shop", answer{Status: http.StatusNotFound})
	if d := r.publishedDigest("shop"); d != "" {
		t.Errorf("published digest of a removed App: %q, want none", d)
	}
	apps, err := r.Driver().Apps(deadline(t))
	if err != nil || len(apps) != 0 {
		t.Errorf("apps after the last was removed: %v, %v", apps, err)
	}
}

// expectServing asks for path and fails unless an upstream answered.
func (r *rig) expectServing(path string) {
	r.Helper()
	got, err := r.get("", path)
	if err != nil || got.Status != http.StatusOK || got.Backend == "" {
		r.Fatalf("GET %s: %+v, %v", path, got, err)
	}
}

// quiet waits until the proxy has stopped checking b: another upstream, registered for the purpose with the same checks,
// is checked 10 times in a row while b is not.
func (r *rig) quiet(b *Backend) {
	r.Helper()
	clock := NewBackend(r, "clock-"+b.Name)
	watch := onlyWarm("clock", clock.Upstream(driver.Warm))
	r.converge(watch)
	from, seen := clock.Checks(), b.Checks()
	r.eventually("checks of "+b.Name+" end", func() error {
		if n := b.Checks(); n != seen {
			from, seen = clock.Checks(), n
		}
		if n := clock.Checks() - from; n < 10 {
			return fmt.Errorf("only %d checks of another upstream since the last of this one", n)
		}
		return nil
	})
	r.converge(driver.Section{App: "clock"})
}

// A name that was removed may come back (a deploy that was aborted and tried again with the same tasks), and nothing of
// its former life counts: it must earn green again.
func testNameComesBack(t *testing.T, h Harness) {
	r := newRig(t, h)
	s := r.bring("shop", NewBackend(t, "a-1"))
	b := NewBackend(t, "b-1")
	for range 3 {
		b.SetHealth(http.StatusOK)
		with := join(s, b.Upstream(driver.Warm))
		r.converge(with)
		r.awaitGreen("shop", "b-1")
		r.holds(with)
		r.converge(s)
		r.holds(s)
		b.SetHealth(http.StatusInternalServerError)
		before := b.Checks()
		r.converge(with)
		r.eventually("a failed check", func() error {
			row, err := row(r.read("shop"), "b-1")
			if err != nil {
				return err
			}
			if row.Green {
				t.Fatalf("green by what it was before it was removed: %+v", row)
			}
			if b.Checks()-before < 3 {
				return fmt.Errorf("%d checks", b.Checks()-before)
			}
			return nil
		})
		r.converge(s)
	}
}

// Every kind of check works, and two kinds can meet in one App: the new upstreams of a deploy that changes the check.
func testHealthKinds(t *testing.T, h Harness) {
	r := newRig(t, h)
	web, tcp, none := NewBackend(t, "web-1"), NewBackend(t, "tcp-1"), NewBackend(t, "none-1")
	tcp.SetHealth(http.StatusInternalServerError) // nobody asks
	s := r.bring("shop", web)

	change := func(b *Backend, health driver.Health) {
		t.Helper()
		up := b.Upstream(driver.Warm)
		up.Health = health
		both := join(s, up)
		r.stage(both)
		r.converge(both)
		r.awaitGreen("shop", b.Name)
		r.holds(both)
		r.expect("", "/shop", answer{Status: http.StatusOK, Backend: s.Upstreams[0].Name})

		next := withMode(withMode(both, driver.Serving, b.Name), driver.Draining, s.Upstreams[0].Name)
		r.publish(next)
		r.converge(next)
		r.holds(next)
		r.awaitGreen("shop", b.Name)
		r.expect("", "/shop", answer{Status: http.StatusOK, Backend: b.Name})
		if err := r.Driver().Request(deadline(t), "shop", b.Name, "shop.example"); err != nil {
			t.Errorf("request to %s: %v", b.Name, err)
		}
		s = section("shop", next.Upstreams[len(next.Upstreams)-1])
		r.publish(s)
		r.converge(s)
		r.holds(s)
	}
	health := Health()
	health.Kind, health.Path = driver.HealthTCP, ""
	change(tcp, health)
	change(none, driver.Health{Kind: driver.HealthNone, Interval: health.Interval, Timeout: health.Timeout, Rise: 1, Fall: 1})
	back := NewBackend(t, "web-2")
	change(back, Health())
	if tcp.Checks() > 1 || none.Checks() > 1 { // the one is Request, where the driver sends a GET for a connect
		t.Errorf("upstreams without HTTP checks were asked %d and %d times on the health path", tcp.Checks(), none.Checks())
	}
}
