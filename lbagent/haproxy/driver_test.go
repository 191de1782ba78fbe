package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/servertest"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// What the conformance suite cannot ask of every driver: pools, reloads, masters and workers.

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), drivertest.Deadline)
	t.Cleanup(cancel)
	return ctx
}

func app(name string, ups ...driver.Upstream) driver.Section {
	return driver.Section{App: name, Routes: []driver.Route{{Host: "*", Path: "/" + name}}, Upstreams: ups}
}

// put publishes and converges.
func (p *testProxy) put(t testing.TB, s driver.Section) {
	t.Helper()
	if err := p.driver.Publish(testContext(t), s); err != nil {
		t.Fatal(err)
	}
	if err := p.driver.Converge(testContext(t), s); err != nil {
		t.Fatal(err)
	}
}

func (p *testProxy) reading(t testing.TB, app string) driver.SectionReading {
	t.Helper()
	r, err := p.driver.Read(testContext(t), app)
	if err != nil {
		t.Fatal(err)
	}
	return r.Sections[app]
}

func (p *testProxy) awaitRow(t testing.TB, app, name, what string, ok func(driver.Row) bool) {
	t.Helper()
	drivertest.Eventually(t, name+" is "+what, func() error {
		for _, row := range p.reading(t, app).Rows {
			if row.Name == name {
				if ok(row) {
					return nil
				}
				return fmt.Errorf("%+v", row)
			}
		}
		return errors.New("no such row")
	})
}

func green(r driver.Row) bool { return r.Green }
func red(r driver.Row) bool   { return r.Red }

// The pool grows by itself with reloads that lose no request and nothing of what was only in the worker.
func TestPoolGrowsUnderLoad(t *testing.T) {
	p := startProxy(t, 2)
	a, b, c := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1"), drivertest.NewBackend(t, "c-1")
	draining := b.Upstream(driver.Draining)
	draining.Weight = 42
	s := app("shop", a.Upstream(driver.Serving), draining)
	p.put(t, s)
	s.Upstreams = append(s.Upstreams, c.Upstream(driver.Warm))
	if err := p.driver.Converge(testContext(t), s); err != nil {
		t.Fatal(err)
	}
	p.awaitRow(t, "shop", "a-1", "green", green)
	p.awaitRow(t, "shop", "c-1", "green", green)
	load := drivertest.StartLoad(t, p.FrontendURL()+"/shop", 8, true)
	before, err := p.witness()
	if err != nil {
		t.Fatal(err)
	}
	var apps []string
	for i := range 9 { // 2 backends, then 4, 8, 16
		name := fmt.Sprintf("app-%d", i)
		up := a.Upstream(driver.Serving)
		up.Name = "task-" + name
		p.put(t, app(name, up))
		apps = append(apps, name)
	}
	drivertest.Eventually(t, "more answers", func() error {
		if n := load.Answered(""); n < 200 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	load.Stop()
	if n, errs := load.Failed(); n != 0 || load.Answered("") != load.Answered("a-1") {
		t.Errorf("%d of %d requests were lost, %d went to the one that serves: %v", n, n+load.Answered(""), load.Answered("a-1"), errs)
	}
	after, err := p.witness()
	if err != nil {
		t.Fatal(err)
	}
	if before.info.pid == after.info.pid {
		t.Error("the pool of 2 grew for 10 Apps without a reload: the test tests nothing")
	}
	if got := p.reading(t, "shop"); got.Digest != driver.Digest(s) {
		t.Errorf("after the reloads the worker holds %+v, want %+v", got, s)
	}
	p.awaitRow(t, "shop", "c-1", "green in the new worker", green)
	for _, name := range apps {
		resp, err := http.Get(p.FrontendURL() + "/" + name)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v, %v", name, resp, err)
		}
		resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
}

// Changes of several Apps and reloads at the same time: none is lost.
func TestChangesBesideReloads(t *testing.T) {
	p := startProxy(t, 4)
	b := drivertest.NewBackend(t, "a-1")
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			name := fmt.Sprintf("app-%d", i)
			for k := range 6 {
				up := b.Upstream(driver.Serving)
				up.Name = fmt.Sprintf("%s-%d", name, k)
				s := app(name, up)
				if err := p.driver.Publish(testContext(t), s); err != nil {
					t.Errorf("%s: publish: %v", up.Name, err)
				}
				for {
					err := p.driver.Converge(testContext(t), s)
					if errors.Is(err, driver.ErrBusy) {
						continue
					}
					if err != nil {
						t.Errorf("%s: converge: %v", up.Name, err)
					}
					break
				}
				r, err := p.driver.Read(testContext(t), name)
				if err != nil || r.Sections[name].Digest != driver.Digest(s) {
					t.Errorf("%s: %v: %+v", up.Name, err, r.Sections[name])
				}
			}
		})
	}
	for range 3 {
		if err := p.driver.Reload(testContext(t)); err != nil {
			t.Errorf("reload: %v", err)
		}
	}
	wg.Wait()
}

// A server that is down stays down over a reload of ours, and what was up has to be checked anew to be green.
func TestDownStaysDownOverReload(t *testing.T) {
	p := startProxy(t, 2)
	live := drivertest.NewBackend(t, "live-1").Upstream(driver.Serving)
	dead := live
	dead.Name, dead.Address = "dead-1", servertest.Refused(t)
	p.put(t, app("shop", live, dead))
	p.awaitRow(t, "shop", "live-1", "green", green)
	p.awaitRow(t, "shop", "dead-1", "red", red)
	load := drivertest.StartLoad(t, p.FrontendURL()+"/shop", 4, true)
	for range 3 {
		if err := p.driver.Reload(testContext(t)); err != nil {
			t.Fatal(err)
		}
		for _, row := range p.reading(t, "shop").Rows {
			if row.Name == "dead-1" && !row.Red {
				t.Errorf("right after the reload: %+v", row)
			}
		}
		p.awaitRow(t, "shop", "live-1", "green in the new worker", green)
	}
	load.Stop()
	if n, errs := load.Failed(); n != 0 {
		t.Errorf("%d requests were lost: %v", n, errs)
	}
	if text, err := os.ReadFile(p.o.stateFile()); err != nil || string(text) != noState {
		t.Errorf("the state file outlived the reload: %q, %v", text, err)
	}
}

// "Reload ok" that is a lie: the owner's reload failed, the old worker serves on, and no exit code says so. Check and
// Stage tell it; undo still works.
func TestFailedReloadIsTold(t *testing.T) {
	p := startProxy(t, 2)
	s := app("shop", drivertest.NewBackend(t, "a-1").Upstream(driver.Serving))
	p.put(t, s)
	p.BreakBase(t)
	if err := p.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	drivertest.Eventually(t, "the failed reload is counted", func() error {
		w, err := p.witness()
		if err == nil && w.procs.failed == 0 {
			err = errors.New("not yet")
		}
		return err
	})
	p.MendBase(t)
	if _, err := p.driver.Check(testContext(t)); !errors.Is(err, driver.ErrProxyMismatch) {
		t.Errorf("check after a failed reload: %v", err)
	}
	if err := p.driver.Stage(testContext(t), s); !errors.Is(err, driver.ErrProxyMismatch) {
		t.Errorf("stage after a failed reload: %v", err)
	}
	if err := p.driver.Converge(testContext(t), s); err != nil {
		t.Errorf("converge after a failed reload: %v", err)
	}
	p.OwnerReload(t)
	if _, err := p.driver.Check(testContext(t)); err != nil {
		t.Errorf("check after the mended reload: %v", err)
	}
	if err := p.driver.Stage(testContext(t), s); err != nil {
		t.Errorf("stage after the mended reload: %v", err)
	}
}

// Sessions in a worker that is leaving count, and Cut reaches them.
func TestLeavingWorkersCount(t *testing.T) {
	p := startProxy(t, 2)
	b := drivertest.NewBackend(t, "a-1")
	s := app("shop", b.Upstream(driver.Serving))
	p.put(t, s)
	p.awaitRow(t, "shop", "a-1", "green", green)
	b.Hold()
	done := make(chan error, 1)
	go func() {
		client := &http.Client{Timeout: drivertest.Deadline, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get(p.FrontendURL() + "/shop")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				done <- nil
				return
			}
			err = errors.New(resp.Status)
		}
		done <- err
	}()
	sessions := func(r driver.Row) bool { return r.Sessions == 1 }
	p.awaitRow(t, "shop", "a-1", "in use", sessions)
	p.OwnerReload(t)
	p.awaitRow(t, "shop", "a-1", "in use in the leaving worker", sessions)
	if err := p.driver.Cut(testContext(t), "shop", "a-1"); err == nil {
		t.Error("an upstream that serves was cut")
	}
	s.Upstreams[0].Mode = driver.Draining
	p.put(t, s)
	// Its client is there too, and could come again.
	p.awaitRow(t, "shop", "a-1", "in use while it drains", func(r driver.Row) bool { return r.Sessions == 2 })
	if err := p.driver.Cut(testContext(t), "shop", "a-1"); err != nil {
		t.Fatal(err)
	}
	p.awaitRow(t, "shop", "a-1", "idle", func(r driver.Row) bool { return r.Sessions == 0 })
	select {
	case err := <-done:
		if err == nil {
			t.Error("the session that was cut ended well")
		}
	case <-time.After(drivertest.Deadline):
		t.Error("the session that was cut goes on")
	}
}

// A proxy that was started without our tree, or that lets us change nothing, is told with what to change.
func TestCheckTellsTheOwner(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(p *testProxy)
		err    error
		says   string
	}{
		"not admin": {
			change: func(p *testProxy) {
				p.base = bytes.Replace(p.base, []byte("600 level admin"), []byte("600 level operator"), 1)
			},
			says: "level admin",
		},
		"another tree": {
			change: func(p *testProxy) {
				// haproxy gets a frontend of the owner's own, and not our tree.
				p.base = fmt.Appendf(p.base, "\nfrontend own\n    bind %s\n", p.o.Frontends[0].Binds[0])
				p.o.Dir += "x"
				if err := os.MkdirAll(p.o.currentDir(), 0o700); err != nil {
					t.Fatal(err)
				}
			},
			err:  driver.ErrProxyMismatch,
			says: "current/",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProxy(t, 2)
			p.Kill(t)
			tt.change(p)
			p.writeBase(t, p.base)
			p.Start(t)
			_, err := p.driver.Check(testContext(t))
			if err == nil || tt.err != nil && !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("check says %v, want %v and %q", err, tt.err, tt.says)
			}
		})
	}
}

// An agent that comes with another Frame (reconfigured, upgraded) has it loaded by its first Check.
func TestNewFrameIsLoaded(t *testing.T) {
	p := startProxy(t, 2)
	p.put(t, app("shop", drivertest.NewBackend(t, "a-1").Upstream(driver.Serving)))
	second := netip.AddrPortFrom(p.source, uint16(servertest.FreePorts(t, 1)[0]))
	p.o.Frontends = append(p.o.Frontends, Frontend{Name: "second", Binds: []netip.AddrPort{second}})
	p.Reopen(t)
	if _, err := p.driver.Check(testContext(t)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + second.String() + "/shop")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the second frontend: %v, %v", resp, err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
}

// Without the right to see into HAProxy's process, the frontends themselves are asked.
func TestFrontendsAnswerWithTheMark(t *testing.T) {
	p := startProxy(t, 2)
	w, err := p.witness()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.driver.asksFrontends(testContext(t), w.procs); err != nil {
		t.Error(err)
	}
	resp, err := http.Get(p.FrontendURL() + "/.well-known/cutover-frame")
	if err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("who does not know the mark gets %v, %v", resp, err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	stale := w.procs
	stale.current = []int{1}
	if err := p.driver.asksFrontends(testContext(t), stale); !errors.Is(err, driver.ErrProxyMismatch) {
		t.Errorf("another worker: %v", err)
	}
}

// Removed servers are remembered on versions that cannot delete them safely, and a reload collects them.
func TestTombstones(t *testing.T) {
	p := startProxy(t, 2)
	b := drivertest.NewBackend(t, "a-1")
	s := app("shop", b.Upstream(driver.Serving))
	p.put(t, s)
	for i := range 3 {
		up := b.Upstream(driver.Warm)
		up.Name = fmt.Sprintf("warm-%d", i)
		with := s
		with.Upstreams = append(with.Upstreams[:1:1], up)
		for _, s := range []driver.Section{with, s} {
			if err := p.driver.Converge(testContext(t), s); err != nil {
				t.Fatal(err)
			}
		}
	}
	w, err := p.witness()
	if err != nil {
		t.Fatal(err)
	}
	v, err := parseVersion(w.info.version)
	if err != nil {
		t.Fatal(err)
	}
	want := 3
	if deletesSafely(v) {
		want = 0
	}
	if r, err := p.driver.Read(testContext(t)); err != nil || r.Tombstones != want {
		t.Errorf("%d tombstones, %v; want %d", r.Tombstones, err, want)
	}
	if err := p.driver.Reload(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if r, err := p.driver.Read(testContext(t)); err != nil || r.Tombstones != 0 {
		t.Errorf("%d tombstones after a reload, %v", r.Tombstones, err)
	}
	if got := p.reading(t, "shop"); got.Digest != driver.Digest(s) {
		t.Errorf("after the reload: %+v", got)
	}
}

// A file that is not as Publish wrote it gives a digest that equals no Section's, and Publish puts it right.
func TestAlteredFileIsTold(t *testing.T) {
	p := startProxy(t, 2)
	s := app("shop", drivertest.NewBackend(t, "a-1").Upstream(driver.Serving))
	p.put(t, s)
	path := p.o.mapFile(slotFile(p.driver.tree.slotsOf("shop")["h1"]))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(text, []byte("weight 100"), []byte("weight 1"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := p.driver.PublishedDigest(testContext(t), "shop"); err != nil || got == driver.Digest(s) || got == "" {
		t.Errorf("digest of an altered file: %q, %v", got, err)
	}
	if err := p.driver.Publish(testContext(t), s); err != nil {
		t.Fatal(err)
	}
	if got, err := p.driver.PublishedDigest(testContext(t), "shop"); err != nil || got != driver.Digest(s) {
		t.Errorf("digest after publishing again: %q, %v", got, err)
	}
}

// What is published is checked as a whole in the background, and a no vetoes the next Stage although the owner's base
// has not changed.
func TestBackgroundCheckVetoes(t *testing.T) {
	p := startProxy(t, 2)
	p.o.RecheckAfter = time.Millisecond
	p.Reopen(t)
	s := app("shop", drivertest.NewBackend(t, "a-1").Upstream(driver.Serving))
	if err := p.driver.Stage(testContext(t), s); err != nil {
		t.Fatal(err)
	}
	bad := p.o.mapFile("99-foreign.cfg")
	if err := os.WriteFile(bad, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.put(t, s)
	drivertest.Eventually(t, "veto", func() error {
		if err := p.driver.Stage(testContext(t), s); !errors.As(err, new(*driver.RefusedError)) {
			return fmt.Errorf("stage: %w", err)
		}
		return nil
	})
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	if err := p.driver.Stage(testContext(t), s); err != nil {
		t.Errorf("stage after the cause is gone: %v", err)
	}
}

// A HAProxy that no client can reach is not one that serves, whatever its servers look like.
func TestADisabledFrontendIsSeen(t *testing.T) {
	p := startProxy(t, 2)
	p.put(t, app("shop", drivertest.NewBackend(t, "a-1").Upstream(driver.Serving)))
	if _, err := p.driver.Read(testContext(t)); err != nil {
		t.Fatal(err)
	}
	tell := func(command string) {
		t.Helper()
		if answers, err := p.driver.worker.ask(testContext(t), command); err != nil || strings.TrimSpace(answers[0]) != "" {
			t.Fatalf("%s: %q, %v", command, answers, err)
		}
	}
	tell("disable frontend cutover_fe_public")
	drivertest.Eventually(t, "that it does not listen", func() error {
		_, err := p.driver.Read(testContext(t), "shop")
		if !errors.Is(err, driver.ErrProxyMismatch) || !errors.As(err, new(*driver.NotListeningError)) || !strings.Contains(err.Error(), "`enable frontend cutover_fe_public`") {
			return fmt.Errorf("read: %w", err)
		}
		return nil
	})
	tell("enable frontend cutover_fe_public")
	if _, err := p.driver.Read(testContext(t)); err != nil {
		t.Errorf("read after the frontend is enabled: %v", err)
	}
}

// A server that somebody put in maintenance is told as that, and comes back as the very one, green by checks made since.
func TestServerInMaintenance(t *testing.T) {
	p := startProxy(t, 2)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	s := app("shop", a.Upstream(driver.Serving), b.Upstream(driver.Serving))
	p.put(t, s)
	p.awaitRow(t, "shop", "a-1", "green", green)
	at := p.driver.tree.slotsOf("shop")["h1"]
	server := at.backend() + "/a-1"
	park := func() {
		t.Helper()
		command := "set server " + server + " state maint"
		if answers, err := p.driver.worker.ask(testContext(t), command); err != nil || !succeeded(command, answers[0]) {
			t.Fatalf("%q, %v", answers, err)
		}
		reading := p.reading(t, "shop")
		if len(reading.Rows) != 1 || len(reading.Foreign) != 1 || !strings.HasPrefix(reading.Foreign[0], "a-1 is in maintenance") || !strings.Contains(reading.Foreign[0], server) {
			t.Fatalf("rows %+v, foreign %q", reading.Rows, reading.Foreign)
		}
	}
	converge := func() {
		t.Helper()
		if err := p.driver.Converge(testContext(t), s); err != nil {
			t.Fatal(err)
		}
		obs, err := p.driver.observe(testContext(t), []slot{at})
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range obs.servers[at] {
			if strings.Contains(row.name, ":") {
				t.Errorf("%s began a new life", row.name)
			}
		}
		if reading := p.reading(t, "shop"); len(reading.Foreign) > 0 || reading.Digest != driver.Digest(s) {
			t.Errorf("not put right: %+v", reading)
		}
	}
	park()
	converge()
	p.awaitRow(t, "shop", "a-1", "green", green)

	// One that died meanwhile is not taken for green by what its checks said before.
	park()
	a.SetHealth(503)
	converge()
	p.awaitRow(t, "shop", "a-1", "red", func(r driver.Row) bool {
		if r.Green {
			t.Errorf("green, and its checks fail: %+v", r)
		}
		return r.Red
	})
}
