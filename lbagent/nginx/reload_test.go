package nginx_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// The lie of facts: nginx -t passes and the signal is delivered, but a port of the owner's is taken, so nginx keeps its
// old workers. Converge says so, with nginx's own words, and the undo needs no reload.
func TestReloadThatDoesNotHappenIsToldFromOneThatDoes(t *testing.T) {
	p := startProxy(t, reload)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	old := section("shop", a.Upstream(driver.Serving))
	p.serve(t, old)
	before, err := p.driver.Process(within(t))
	if err != nil {
		t.Fatal(err)
	}

	l, err := net.Listen("tcp", netAddr(p)+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	base, err := os.ReadFile(p.options.BaseConfig)
	if err != nil {
		t.Fatal(err)
	}
	stolen := strings.Replace(string(base), "include cutover/*.conf;", "include cutover/*.conf;\n server { listen "+l.Addr().String()+"; }", 1)
	if err := os.WriteFile(p.options.BaseConfig, []byte(stolen), 0o600); err != nil {
		t.Fatal(err)
	}

	target := section("shop", b.Upstream(driver.Serving), a.Upstream(driver.Draining))
	if err := p.driver.Stage(within(t), target); err != nil {
		t.Fatalf("stage: %v (nginx -t does not see a taken port; if it does now, this test has to change)", err)
	}
	if err := p.driver.Publish(within(t), target); err != nil {
		t.Fatal(err)
	}
	err = p.driver.Converge(within(t), target)
	if !errors.Is(err, driver.ErrProxyMismatch) || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Fatalf("converge: %v; want ErrProxyMismatch with the address %s", err, l.Addr())
	}
	if got := p.status(t, "/shop"); got != http.StatusOK || a.Traffic() == 0 || b.Traffic() != 0 {
		t.Errorf("status %d; %d and %d requests: the old workers should serve on", got, a.Traffic(), b.Traffic())
	}
	if err := p.driver.Publish(within(t), old); err != nil {
		t.Fatal(err)
	}
	if err := p.driver.Converge(within(t), old); err != nil {
		t.Fatalf("undo: %v", err)
	}
	after, err := p.driver.Process(within(t))
	if err != nil || after.WorkerPID != before.WorkerPID {
		t.Errorf("undo: %+v, %v; want no reload since %+v", after, err, before)
	}

	// The port is free again: the same change goes through.
	l.Close()
	p.serve(t, target)
	if got := p.status(t, "/shop"); got != http.StatusOK || b.Traffic() == 0 {
		t.Errorf("status %d, %d requests to the new upstream", got, b.Traffic())
	}
}

func netAddr(p *proxy) string { return p.options.SourceAddress.String() }

// Changes that are published together share reloads.
func TestReloadsAreMerged(t *testing.T) {
	p := startProxy(t, reload)
	a := drivertest.NewBackend(t, "a-1")
	const apps = 8
	for i := range apps {
		if err := p.driver.Publish(within(t), section(fmt.Sprintf("app-%d", i), a.Upstream(driver.Serving))); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for i := range apps {
		wg.Go(func() {
			if err := p.driver.Converge(within(t), section(fmt.Sprintf("app-%d", i), a.Upstream(driver.Serving))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	text, err := os.ReadFile(filepath.Join(p.dir(), "error.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "reconfiguring\n"); n != 2 { // nginx logs two such lines for one reload
		t.Errorf("%d lines of reloads for %d changes, want those of one", n, apps)
	}
	for i := range apps {
		if got := p.status(t, fmt.Sprintf("/app-%d", i)); got != http.StatusOK {
			t.Errorf("app-%d: status %d", i, got)
		}
	}
}

// Generations are immutable and the last ones are kept; what runs is never removed.
func TestReloadKeepsGenerations(t *testing.T) {
	p := startProxy(t, reload)
	a := drivertest.NewBackend(t, "a-1")
	p.serve(t, section("shop", a.Upstream(driver.Serving)))
	for i := range 15 { // published only: the second generation runs on
		up := a.Upstream(driver.Serving)
		up.Weight = i + 1
		if err := p.driver.Publish(within(t), section("shop", up)); err != nil {
			t.Fatal(err)
		}
	}
	names, err := filepath.Glob(filepath.Join(p.options.Dir, "gens", "gen-*"))
	if err != nil || len(names) != 16 {
		t.Errorf("%d generations on disk (%v), want the one that runs and all that a reload may be loading", len(names), names)
	}
	if row := p.row(t, "shop", "a-1"); row.Weight != 100 {
		t.Errorf("the running set changed: %+v", row)
	}
	for _, weight := range []int{50, 60} {
		up := a.Upstream(driver.Serving)
		up.Weight = weight
		p.serve(t, section("shop", up))
	}
	names, err = filepath.Glob(filepath.Join(p.options.Dir, "gens", "gen-*"))
	if err != nil || len(names) > 12 {
		t.Errorf("%d generations on disk (%v), want about the last 10", len(names), names)
	}
}

// Drained means that every older worker is gone, not that connections to the upstream happen to be closed.
func TestReloadCountsOlderWorkers(t *testing.T) {
	p := startProxy(t, reload)
	a, b, slow := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1"), drivertest.NewBackend(t, "slow-1")
	p.serve(t, section("other", slow.Upstream(driver.Serving)))
	p.serve(t, section("shop", a.Upstream(driver.Serving)))
	slow.Hold()
	done := make(chan struct{})
	go func() {
		defer close(done)
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(p.url + "/other")
		if err == nil {
			resp.Body.Close()
		}
	}()
	drivertest.Eventually(t, "the slow request", func() error {
		if slow.Traffic() == 0 { // a session may be a check's
			return errors.New("no request")
		}
		return nil
	})
	p.serve(t, section("shop", b.Upstream(driver.Serving), a.Upstream(driver.Draining)))
	if n := p.row(t, "shop", "a-1").Sessions; n == 0 {
		t.Error("drained while an older worker lives")
	}
	slow.Release()
	<-done
	drivertest.Eventually(t, "drained", func() error {
		if n := p.row(t, "shop", "a-1").Sessions; n != 0 {
			return fmt.Errorf("%d sessions", n)
		}
		return nil
	})
}

// An upstream that drained before, and served since by a reload of the owner's, drains by the workers that served it last.
func TestReloadCountsWorkersThatServedInBetween(t *testing.T) {
	p := startProxy(t, reload)
	a, b, slow := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1"), drivertest.NewBackend(t, "slow-1")
	p.serve(t, section("other", slow.Upstream(driver.Serving)))
	drains := section("shop", b.Upstream(driver.Serving), a.Upstream(driver.Draining))
	serves := section("shop", b.Upstream(driver.Serving), a.Upstream(driver.Serving))
	p.serve(t, drains)
	if err := p.driver.Publish(within(t), serves); err != nil {
		t.Fatal(err)
	}
	p.OwnerReload(t)
	if err := p.driver.Converge(within(t), serves); err != nil {
		t.Fatal(err)
	}
	slow.Hold()
	done := make(chan struct{})
	go func() {
		defer close(done)
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(p.url + "/other")
		if err == nil {
			resp.Body.Close()
		}
	}()
	drivertest.Eventually(t, "the slow request", func() error {
		if slow.Traffic() == 0 { // a session may be a check's
			return errors.New("no request")
		}
		return nil
	})
	p.serve(t, drains)
	if n := p.row(t, "shop", "a-1").Sessions; n == 0 {
		t.Error("drained while a worker lives that served it")
	}
	slow.Release()
	<-done
}

// A reload resets idle keep-alive connections on this nginx: the control for the limit that Info states.
func TestReloadInfoStatesItsLimits(t *testing.T) {
	p := startProxy(t, reload)
	info, err := p.driver.Check(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if !info.ReloadPerChange || !strings.Contains(strings.Join(info.Limits, "\n"), "keep-alive") {
		t.Errorf("info %+v", info)
	}
}
