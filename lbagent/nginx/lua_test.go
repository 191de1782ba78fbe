package nginx_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/servertest"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

func section(app string, ups ...driver.Upstream) driver.Section {
	return driver.Section{App: app, Routes: []driver.Route{{Host: "*", Path: "/" + app}}, Upstreams: ups}
}

// serve publishes and converges.
func (p *proxy) serve(t testing.TB, s driver.Section) {
	t.Helper()
	if err := p.driver.Publish(within(t), s); err != nil {
		t.Fatal(err)
	}
	if err := p.driver.Converge(within(t), s); err != nil {
		t.Fatal(err)
	}
}

func (p *proxy) row(t testing.TB, app, name string) driver.Row {
	t.Helper()
	reading, err := p.driver.Read(within(t), app)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range reading.Sections[app].Rows {
		if row.Name == name {
			return row
		}
	}
	t.Fatalf("no row %s in %+v", name, reading.Sections[app])
	return driver.Row{}
}

func (p *proxy) status(t testing.TB, path string) int {
	t.Helper()
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: drivertest.Deadline}).Get(p.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// FENCE: an agent that was replaced cannot change what its successor wrote, in any worker.
func TestLuaRefusesAnOlderAgent(t *testing.T) {
	p := startProxy(t, lua)
	a := drivertest.NewBackend(t, "a-1")
	old := p.driver
	t.Cleanup(func() { old.Close() })
	p.serve(t, section("shop", a.Upstream(driver.Serving)))

	next, err := p.kind.open(p.options) // the old one lives on, as a stopped process that wakes up
	if err != nil {
		t.Fatal(err)
	}
	p.driver = next
	p.serve(t, section("other", a.Upstream(driver.Serving)))
	refused := func(when string) {
		t.Helper()
		if err := old.Converge(within(t), driver.Section{App: "shop"}); !errors.Is(err, driver.ErrProxyMismatch) {
			t.Errorf("%s: the older agent removed an App from nginx: %v", when, err)
		}
		if err := old.Publish(within(t), driver.Section{App: "shop"}); !errors.Is(err, driver.ErrProxyMismatch) {
			t.Errorf("%s: the older agent removed a file: %v", when, err)
		}
		if got := p.status(t, "/shop"); got != http.StatusOK {
			t.Errorf("%s: status %d after the older agent's write", when, got)
		}
	}
	refused("while nginx runs")
	// nginx's memory is new, and the newer agent has written nothing into it.
	p.Kill(t)
	p.Start(t)
	refused("after a restart of nginx")
	p.serve(t, section("shop", a.Upstream(driver.Serving)))
}

// An owner's reload between two transactions changes nothing: what is only warm is in no file, and stays.
func TestLuaOwnerReloadKeepsWhatIsWarm(t *testing.T) {
	p := startProxy(t, lua)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	p.serve(t, section("shop", a.Upstream(driver.Serving)))
	// Its route looks like an upstream line, as far as a path can.
	odd := section("odd", a.Upstream(driver.Serving))
	odd.Routes = append(odd.Routes, driver.Route{Host: "*", Path: "/x/upstream"})
	p.serve(t, odd)
	odd.Upstreams = append(odd.Upstreams, b.Upstream(driver.Warm))
	for _, s := range []driver.Section{
		odd, section("shop", a.Upstream(driver.Serving), b.Upstream(driver.Warm)),
		{App: "fresh", Upstreams: []driver.Upstream{b.Upstream(driver.Warm)}},
	} {
		if err := p.driver.Converge(within(t), s); err != nil {
			t.Fatal(err)
		}
	}
	p.OwnerReload(t)
	for _, app := range []string{"odd", "shop", "fresh"} {
		if row := p.row(t, app, "b-1"); row.Mode != driver.Warm {
			t.Errorf("%s: %+v", app, row)
		}
	}
}

// A flip is visible to the next request in every worker: nothing waits for a timer.
func TestLuaFlipIsSeenByTheNextRequest(t *testing.T) {
	p := startProxy(t, lua)
	backends := []*drivertest.Backend{drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}, Timeout: drivertest.Deadline}
	defer client.CloseIdleConnections()
	for i := range 40 {
		now := backends[i%2]
		if err := p.driver.Converge(within(t), section("shop", now.Upstream(driver.Serving))); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			resp, err := client.Post(p.url+"/shop", "text/plain", bytes.NewReader([]byte("x")))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if got := resp.Header.Get("X-Backend"); got != now.Name {
				t.Fatalf("flip %d: %q answered, want %q", i, got, now.Name)
			}
		}
	}
}

// RUNNING = JOURNAL: a worker that has not applied a change is no evidence, however well the others answer.
func TestLuaConvergeWaitsForEveryWorker(t *testing.T) {
	p := startProxy(t, lua)
	a := drivertest.NewBackend(t, "a-1")
	s := section("shop", a.Upstream(driver.Serving))
	p.serve(t, s)
	var stopped int
	for pid := range workers(t, p.master()) {
		stopped = pid
		break
	}
	if err := syscall.Kill(stopped, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(stopped, syscall.SIGCONT)
	b := drivertest.NewBackend(t, "b-1")
	flipped := section("shop", b.Upstream(driver.Serving))
	// Every look may be taken by the stopped worker's accept queue, so it is down or a mismatch; never a success.
	err := p.driver.Converge(within(t), flipped)
	if !errors.Is(err, driver.ErrProxyMismatch) && !errors.Is(err, driver.ErrProxyDown) {
		t.Fatalf("converge with a stopped worker: %v", err)
	}
	syscall.Kill(stopped, syscall.SIGCONT)
	if err := p.driver.Converge(within(t), flipped); err != nil {
		t.Errorf("converge after the worker woke up: %v", err)
	}
}

// A worker that crashes takes its requests with it, and they are counted no longer.
func TestLuaSessionsOfACrashedWorkerAreGone(t *testing.T) {
	p := startProxy(t, lua)
	a := drivertest.NewBackend(t, "a-1")
	a.Hold()
	p.serve(t, section("shop", a.Upstream(driver.Serving)))
	done := make(chan struct{})
	for range 6 {
		go func() {
			defer func() { done <- struct{}{} }()
			resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Post(p.url+"/shop", "text/plain", strings.NewReader("x"))
			if err == nil {
				resp.Body.Close()
			}
		}()
	}
	drivertest.Eventually(t, "sessions", func() error {
		if n := p.row(t, "shop", "a-1").Sessions; n != 6 {
			return fmt.Errorf("%d sessions, want 6", n)
		}
		return nil
	})
	for pid := range workers(t, p.master()) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for range 6 {
		<-done
	}
	drivertest.Eventually(t, "no sessions", func() error {
		reading, err := p.driver.Read(within(t), "shop")
		if err != nil {
			return err
		}
		if n := reading.Sections["shop"].Rows[0].Sessions; n != 0 {
			return fmt.Errorf("%d sessions", n)
		}
		return nil
	})
	a.Release()
}

// One damaged file must not keep the other Apps down when nginx starts, and must not pass for an absent one.
func TestLuaSkipsADamagedFile(t *testing.T) {
	p := startProxy(t, lua)
	a := drivertest.NewBackend(t, "a-1")
	p.serve(t, section("shop", a.Upstream(driver.Serving)))
	p.serve(t, section("broken", a.Upstream(driver.Serving)))
	p.Kill(t)
	file := filepath.Join(p.options.Dir, "apps", "broken.section")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text[:len(text)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	p.Start(t)
	if got := p.status(t, "/shop"); got != http.StatusOK {
		t.Errorf("status %d of an App whose file is whole", got)
	}
	if got := p.status(t, "/broken"); got != http.StatusNotFound {
		t.Errorf("status %d of an App whose file is damaged", got)
	}
	if d, err := p.driver.PublishedDigest(within(t), "broken"); err != nil || !strings.HasPrefix(d, "altered:") {
		t.Errorf("a damaged file has the digest %q, %v", d, err)
	}
	p.serve(t, section("broken", a.Upstream(driver.Serving)))
	if got := p.status(t, "/broken"); got != http.StatusOK {
		t.Errorf("status %d after it was published again", got)
	}
}

// An owner's reload between Publish and Converge comes to what was published: added, changed and removed.
func TestLuaOwnerReloadTakesWhatIsPublished(t *testing.T) {
	p := startProxy(t, lua)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	p.serve(t, section("changed", a.Upstream(driver.Serving)))
	p.serve(t, section("removed", a.Upstream(driver.Serving)))
	for _, s := range []driver.Section{
		section("added", a.Upstream(driver.Serving)), section("changed", b.Upstream(driver.Serving)), {App: "removed"},
	} {
		if err := p.driver.Publish(within(t), s); err != nil {
			t.Fatal(err)
		}
	}
	p.OwnerReload(t)
	for path, want := range map[string]int{"/added": 200, "/changed": 200, "/removed": 404} {
		if got := p.status(t, path); got != want {
			t.Errorf("%s: status %d, want %d", path, got, want)
		}
	}
	if b.Traffic() == 0 || p.row(t, "changed", "b-1").Mode != driver.Serving {
		t.Error("the change did not come with the reload")
	}
}

// A new agent must not send traffic to what the last one took out.
func TestLuaRedOutlivesTheAgent(t *testing.T) {
	p := startProxy(t, lua)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	s := section("shop", a.Upstream(driver.Serving), b.Upstream(driver.Serving))
	p.serve(t, s)
	a.SetHealth(http.StatusInternalServerError) // it would answer traffic, and its own check says no
	red := func() {
		t.Helper()
		drivertest.Eventually(t, "red", func() error {
			if row := p.row(t, "shop", "a-1"); !row.Red {
				return fmt.Errorf("%+v", row)
			}
			return nil
		})
	}
	red()
	before := a.Traffic()
	p.Reopen(t)
	for range 20 {
		if got := p.status(t, "/shop"); got != http.StatusOK {
			t.Fatalf("status %d", got)
		}
	}
	red()
	if n := a.Traffic() - before; n != 0 {
		t.Errorf("a red upstream got %d requests after a restart of the agent", n)
	}
	a.SetHealth(http.StatusOK)
	drivertest.Eventually(t, "traffic again", func() error {
		p.status(t, "/shop")
		if a.Traffic() == before {
			return errors.New("none")
		}
		return nil
	})
}

// With every serving upstream red the answer is 503; the route is not forgotten.
func TestLuaAllRedIs503(t *testing.T) {
	p := startProxy(t, lua)
	a := drivertest.NewBackend(t, "a-1")
	p.serve(t, section("shop", a.Upstream(driver.Serving)))
	a.SetHealth(http.StatusNotFound)
	drivertest.Eventually(t, "503", func() error {
		if got := p.status(t, "/shop"); got != http.StatusServiceUnavailable {
			return fmt.Errorf("status %d", got)
		}
		return nil
	})
}

// The raw request URI reaches the upstream byte for byte: escapes, double slashes, dots, an absolute form.
func TestRequestURIIsPassedUnchanged(t *testing.T) {
	for _, k := range []kind{lua, reload} {
		t.Run(k.name, func(t *testing.T) {
			p := startProxy(t, k)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			uris := make(chan string, 16)
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != drivertest.HealthPath {
					uris <- r.RequestURI
				}
			})}
			done := make(chan struct{})
			go func() { defer close(done); srv.Serve(l) }()
			t.Cleanup(func() { srv.Close(); <-done })
			up := driver.Upstream{
				Name: "raw", Address: l.Addr().(*net.TCPAddr).AddrPort(), Weight: 1, Mode: driver.Serving, Health: drivertest.Health(),
			}
			s := section("shop", up)
			s.Routes = append(s.Routes, driver.Route{Host: "*", Path: "/s.t+r", Strip: true})
			p.serve(t, s)
			for _, tt := range []struct{ ask, want string }{
				{"/shop/%2e%2E/a%2Fb?q=%20&x=/../y", "/shop/%2e%2E/a%2Fb?q=%20&x=/../y"},
				{"/shop//double///slash", "/shop//double///slash"},
				{"/shop/a/../b", "/shop/a/../b"},
				{"http://" + p.options.Listen[0].String() + "/shop/absolute?x", "/shop/absolute?x"},
				{"/s.t+r/%41?b", "/%41?b"},
				{"/s.t+r?b", "/?b"},
				{"/s.t+r", "/"},
			} {
				conn, err := net.Dial("tcp", p.options.Listen[0].String())
				if err != nil {
					t.Fatal(err)
				}
				conn.SetDeadline(time.Now().Add(drivertest.Deadline))
				fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", tt.ask)
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
				if resp.StatusCode != http.StatusOK {
					t.Errorf("%s: status %d", tt.ask, resp.StatusCode)
					continue
				}
				if got := <-uris; got != tt.want {
					t.Errorf("%s: the upstream saw %s, want %s", tt.ask, got, tt.want)
				}
			}
			for _, path := range []string{"/sXt+r", "/s.t+rx", "/shopx"} {
				if got := p.status(t, path); got != http.StatusNotFound {
					t.Errorf("%s: status %d, want 404", path, got)
				}
			}
		})
	}
}

// A request that may not be repeated is sent to one upstream only, also when that one closes on it; a connect that is
// refused may go on to another one.
func TestLuaRetriesOnlyWhatMayBeRepeated(t *testing.T) {
	p := startProxy(t, lua)
	good := drivertest.NewBackend(t, "good")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			req, err := http.ReadRequest(bufio.NewReader(conn))
			if err == nil {
				got <- req.Method
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	none := driver.Health{}
	closes := driver.Upstream{Name: "closes", Address: l.Addr().(*net.TCPAddr).AddrPort(), Weight: 256, Mode: driver.Serving, Health: none}
	g := good.Upstream(driver.Serving)
	g.Weight = 1
	p.serve(t, section("shop", closes, g))
	post := func() int {
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Post(p.url+"/shop", "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	failed := 0
	for range 10 {
		if post() == http.StatusBadGateway {
			failed++
		}
	}
	if failed == 0 || int64(failed)+good.Traffic() != 10 {
		t.Errorf("%d of 10 POSTs failed and %d were answered: a POST was sent twice", failed, good.Traffic())
	}
	refused := driver.Upstream{Name: "refused", Address: servertest.Refused(t), Weight: 256, Mode: driver.Serving, Health: none}
	p.serve(t, section("shop", refused, g))
	for range 10 {
		if status := post(); status != http.StatusOK {
			t.Errorf("status %d of a POST whose first connect was refused", status)
		}
	}
}

// What is published is what Encode writes, in files that nobody else reads.
func TestLuaPublishedFiles(t *testing.T) {
	p := newProxy(t, lua)
	a := drivertest.NewBackend(t, "a-1")
	warm := drivertest.NewBackend(t, "w-1").Upstream(driver.Warm)
	draining := drivertest.NewBackend(t, "d-1").Upstream(driver.Draining)
	if err := p.driver.Publish(within(t), section("shop", a.Upstream(driver.Serving), warm, draining)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(p.options.Dir, "apps", "shop.section")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s, write, err := sectionfile.Decode(text)
	if err != nil || len(s.Upstreams) != 2 || write != 0 {
		t.Errorf("published %+v, write %d, %v; want the serving and the draining upstream, and no write number", s, write, err)
	}
	for _, name := range []string{file, p.options.Dir, filepath.Join(p.options.Dir, "run")} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
}
