package haproxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// A client that keeps its connection open is served by the worker that took it, also after a reload, and by what that worker
// held then. Until it is gone, what drains is not drained: its next request may be for the upstream that is about to be killed.
func TestIdleClientsOfALeavingWorkerMayStillCome(t *testing.T) {
	p := startProxy(t, 4)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	shop := app("shop", a.Upstream(driver.Serving))
	p.put(t, shop)
	conn, err := net.Dial("tcp", p.FrontendURL()[len("http://"):])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	get := func() int {
		t.Helper()
		fmt.Fprint(conn, "GET /shop HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := get(); got != http.StatusOK {
		t.Fatalf("status %d", got)
	}
	if err := p.driver.Reload(testContext(t)); err != nil {
		t.Fatal(err)
	}
	drained := shop
	drained.Upstreams = []driver.Upstream{a.Upstream(driver.Draining), b.Upstream(driver.Serving)}
	p.put(t, drained)
	if p.sessions(t, "a-1") == 0 {
		a.Stop() // as the orchestrator does with what has drained
	}
	if got := get(); got != http.StatusOK {
		t.Errorf("status %d: the request of a client that was there before the reload is lost", got)
	}
	// The one who was there is served and sent away: the worker that leaves has nobody left.
	drivertest.Eventually(t, "drained", func() error {
		if n := p.sessions(t, "a-1"); n != 0 {
			return fmt.Errorf("%d sessions", n)
		}
		return nil
	})
}

// At the end of the drain idle clients hold nothing up any longer: that is what cutting is for.
func TestCutEndsTheWaitForIdleClients(t *testing.T) {
	p := startProxy(t, 4)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	p.put(t, app("shop", a.Upstream(driver.Serving)))
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get(p.FrontendURL() + "/shop")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body) // now the connection is idle
	resp.Body.Close()
	if err := p.driver.Reload(testContext(t)); err != nil {
		t.Fatal(err)
	}
	p.put(t, app("shop", a.Upstream(driver.Draining), b.Upstream(driver.Serving)))
	if p.sessions(t, "a-1") == 0 {
		t.Error("drained with an idle client in a leaving worker")
	}
	if err := p.driver.Cut(testContext(t), "shop", "a-1"); err != nil {
		t.Fatal(err)
	}
	if n := p.sessions(t, "a-1"); n != 0 {
		t.Errorf("%d sessions after the cut", n)
	}
}

// A leaving worker that does not answer is not one without sessions (NO-ORPHAN-KILL).
func TestSilentLeavingWorkerIsNotIdle(t *testing.T) {
	p := startProxy(t, 4)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	p.put(t, app("shop", a.Upstream(driver.Serving)))
	a.Hold()
	done := make(chan error, 1)
	go func() {
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(p.FrontendURL() + "/shop")
		if err == nil {
			resp.Body.Close()
		}
		done <- err
	}()
	p.awaitRow(t, "shop", "a-1", "in use", func(r driver.Row) bool { return r.Sessions == 1 })
	if err := p.driver.Reload(testContext(t)); err != nil {
		t.Fatal(err)
	}
	procs, err := p.driver.processes(testContext(t))
	if err != nil || len(procs.leaving) != 1 {
		t.Fatalf("%+v, %v", procs, err)
	}
	if err := syscall.Kill(procs.leaving[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	wake := sync.OnceFunc(func() { _ = syscall.Kill(procs.leaving[0], syscall.SIGCONT) })
	t.Cleanup(wake)
	p.put(t, app("shop", a.Upstream(driver.Draining), b.Upstream(driver.Serving)))
	if p.sessions(t, "a-1") == 0 {
		t.Error("drained, while a worker that does not answer holds a session")
	}
	wake()
	a.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// sessions are those of an upstream of shop.
func (p *testProxy) sessions(t testing.TB, name string) int {
	t.Helper()
	for _, row := range p.reading(t, "shop").Rows {
		if row.Name == name {
			return row.Sessions
		}
	}
	t.Fatalf("no row of %s", name)
	return 0
}
