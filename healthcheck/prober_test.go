package healthcheck

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/servertest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// scripted answers probes by a function of the target and the time.
func scripted(f func(t Target, since time.Duration) string) func(context.Context, Target) Result {
	start := time.Now()
	return func(_ context.Context, t Target) Result { return Result{Err: f(t, time.Since(start))} }
}

func read(t *testing.T, p *Prober) Event {
	t.Helper()
	select {
	case e := <-p.Events():
		return e
	case <-time.After(time.Hour):
		t.Fatal("no event")
		return Event{}
	}
}

func TestProberLifeOfATarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Options{Probe: scripted(func(_ Target, since time.Duration) string {
			if since < 1500*time.Millisecond || since > time.Minute && since < 2*time.Minute {
				return "connection refused to 127.0.0.1:31000"
			}
			return ""
		})})
		defer p.Stop()
		start := time.Now()
		if err := p.Add(Target{ID: "t", Address: "127.0.0.1:31000", Check: Check{Kind: TCP, Interval: 10 * time.Second, Grace: time.Second, Fall: 2}}); err != nil {
			t.Fatal(err)
		}
		want := func(change Change, from Phase, earliest, latest time.Duration) {
			t.Helper()
			e := read(t, p)
			at := time.Since(start)
			if e.Change != change || e.From != from || at < earliest || at > latest {
				t.Fatalf("%+v at %s, want %s from %s between %s and %s", e, at, change, from, earliest, latest)
			}
			if e.State.LastError != "connection refused to 127.0.0.1:31000" || e.ID != "t" {
				t.Errorf("event %+v", e)
			}
		}
		want(GraceExpired, Starting, time.Second, time.Second)
		// The long interval does not count before the first success.
		want(BecameHealthy, Starting, 1500*time.Millisecond, 1600*time.Millisecond)
		// From then on it does: two failures take one to two intervals and jitter.
		want(BecameUnhealthy, Healthy, 70*time.Second, 83*time.Second)
		want(BecameHealthy, Unhealthy, 2*time.Minute, 131*time.Second)
	})
}

func TestProberGraceWhileAProbeHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Options{Probe: func(ctx context.Context, _ Target) Result {
			<-ctx.Done()
			return Result{Err: "no answer"}
		}})
		defer p.Stop()
		start := time.Now()
		if err := p.Add(Target{ID: "t", Address: "h:1", Check: Check{Kind: TCP, Timeout: time.Minute, Grace: 2 * time.Second}}); err != nil {
			t.Fatal(err)
		}
		if e := read(t, p); e.Change != GraceExpired || time.Since(start) != 2*time.Second {
			t.Errorf("%+v after %s, want grace expired after 2s", e, time.Since(start))
		}
	})
}

func TestProberBoundsAndSpreadsProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var flying, most atomic.Int64
		var mu sync.Mutex
		perTarget := map[string]int{}
		p := New(Options{MaxInFlight: 10, Probe: func(_ context.Context, t Target) Result {
			most.Store(max(most.Load(), flying.Add(1)))
			defer flying.Add(-1)
			mu.Lock()
			perTarget[t.ID]++
			mu.Unlock()
			time.Sleep(time.Millisecond) // fake time: a probe takes 1 ms
			return Result{}
		}})
		const n = 500
		for i := range n {
			if err := p.Add(Target{ID: fmt.Sprint(i), Address: "h:1", Check: Check{Kind: TCP, Interval: time.Second}}); err != nil {
				t.Fatal(err)
			}
		}
		for range n {
			if e := read(t, p); e.Change != BecameHealthy {
				t.Fatal(e)
			}
		}
		time.Sleep(20 * time.Second)
		p.Stop()
		if most.Load() != 10 {
			t.Errorf("%d probes at once, limit 10", most.Load())
		}
		for id, c := range perTarget {
			if c < 18 || c > 22 {
				t.Errorf("target %s was probed %d times in 20 s at 1 s", id, c)
			}
		}
	})
}

// TestProberSpreadsSettledTargets: who is waited for is probed at once, however many others there are, and those within
// their interval.
func TestProberSpreadsSettledTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		start, first := time.Now(), map[string]time.Duration{}
		p := New(Options{MaxInFlight: 10, Probe: func(_ context.Context, t Target) Result {
			mu.Lock()
			if _, ok := first[t.ID]; !ok {
				first[t.ID] = time.Since(start)
			}
			mu.Unlock()
			time.Sleep(time.Millisecond)
			return Result{}
		}})
		defer p.Stop()
		const n = 3000
		check := Check{Kind: TCP, Interval: 4 * time.Second, Grace: time.Second}
		for i := range n {
			if err := p.Add(Target{ID: fmt.Sprint(i), Address: "h:1", Check: check, Settled: true}); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Add(Target{ID: "waited for", Address: "h:1", Check: check}); err != nil {
			t.Fatal(err)
		}
		for i := range n + 1 {
			e := read(t, p)
			if e.Change != BecameHealthy { // its grace is over before most of them are looked at
				t.Fatal(e)
			}
			mu.Lock()
			waited := first["waited for"]
			mu.Unlock()
			if i == 2 && waited > 2*time.Millisecond {
				t.Fatalf("who is waited for is probed after %s", waited)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		early := 0
		for id, at := range first {
			if at > 4*time.Second+20*time.Millisecond {
				t.Errorf("%s is probed first after %s", id, at)
			}
			if at < time.Second {
				early++
			}
		}
		// 500 a second, and what is beyond the interval of 4 s goes between the first.
		if early < 990 || early > 1010 {
			t.Errorf("%d were probed in the first second", early)
		}
	})
}

func TestProberSlowReaderGetsTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad atomic.Bool
		p := New(Options{Probe: func(context.Context, Target) Result {
			if bad.Load() {
				return Result{Err: "down"}
			}
			return Result{}
		}})
		defer p.Stop()
		check := Check{Kind: TCP, Interval: time.Second, Fall: 1}
		for _, id := range []string{"a", "b"} {
			if err := p.Add(Target{ID: id, Address: "h:1", Check: check}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait() // one event is being offered, the other waits
		for range 5 {
			bad.Store(!bad.Load())
			time.Sleep(3 * time.Second)
		}
		p.mu.Lock()
		n := len(p.pending)
		p.mu.Unlock()
		if n > 2 {
			t.Errorf("%d pending events for 2 targets", n)
		}
		last := map[string]Phase{}
		for len(last) < 2 || last["a"] != Unhealthy || last["b"] != Unhealthy {
			e := read(t, p)
			last[e.ID] = e.State.Phase
		}
	})
}

func TestProberAddRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var probes atomic.Int64
		p := New(Options{MaxTargets: 1, Probe: func(context.Context, Target) Result {
			probes.Add(1)
			return Result{Err: "down"}
		}})
		target := Target{ID: "a", Address: "h:1", Check: Check{Kind: TCP}}
		for range 2 {
			if err := p.Add(target); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Add(Target{ID: "b", Address: "h:1", Check: Check{Kind: TCP}}); err == nil || !strings.Contains(err.Error(), "limit") {
			t.Errorf("second target: %v", err)
		}
		for _, bad := range []string{"", "h", "h:0", ":80", "h:"} {
			if p.Add(Target{ID: "a", Address: bad, Check: Check{Kind: TCP}}) == nil {
				t.Errorf("address %q passed", bad)
			}
		}
		time.Sleep(time.Second)
		if s, ok := p.State("a"); !ok || s.Failures == 0 || s.LastError != "down" {
			t.Errorf("state %+v %v", s, ok)
		}
		target.Address = "h:2"
		if err := p.Add(target); err != nil {
			t.Fatal(err)
		}
		if s, _ := p.State("a"); s.Failures != 0 {
			t.Error("a new address did not start anew")
		}
		p.Remove("a")
		p.Remove("a")
		synctest.Wait()
		n := probes.Load()
		time.Sleep(time.Minute)
		if probes.Load() != n || p.Len() != 0 {
			t.Errorf("%d probes after Remove", probes.Load()-n)
		}
		p.Stop()
		p.Stop()
		if _, open := <-p.Events(); open {
			t.Error("Events is open after Stop")
		}
		if err := p.Add(target); !errors.Is(err, ErrStopped) {
			t.Errorf("Add after Stop: %v", err)
		}
	})
}

// probeOnce runs a real probe over the network. Its time is over when late tells so, not when the check's timeout has passed:
// at what of a probe a slow machine is late is not for a test to say.
func probeOnce(t *testing.T, address string, check Check, late <-chan struct{}) Result {
	t.Helper()
	check, err := check.Normalize()
	if err != nil {
		t.Fatal(err)
	}
	patient, enough := context.WithTimeout(t.Context(), 30*time.Second)
	defer enough()
	ctx, cancel := context.WithCancelCause(patient)
	var ends sync.WaitGroup
	defer ends.Wait()
	defer cancel(nil)
	ends.Go(func() {
		select {
		case <-late:
			cancel(context.DeadlineExceeded)
		case <-ctx.Done():
		}
	})
	return newNetwork().probe(ctx, Target{ID: "t", Address: address, Check: check})
}

func TestNetworkProbes(t *testing.T) {
	late := make(chan struct{}, 1)
	var connections atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) })
	mux.HandleFunc("/302", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/500", http.StatusFound) })
	mux.HandleFunc("/500", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "database\n is\x00 away", 500) })
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		for range 1000 {
			if _, err := w.Write(make([]byte, 10_000)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) {
		late <- struct{}{}
		<-r.Context().Done()
	})
	mux.HandleFunc("/host", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "shop.example" {
			w.WriteHeader(400)
		}
	})
	mux.HandleFunc("/reset", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	server := httptest.NewUnstartedServer(mux)
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	addr := server.Listener.Addr().String()
	refused := servertest.Refused(t).String()

	for _, tc := range []struct {
		name, address string
		check         Check
		want          string
	}{
		{"ok", addr, Check{Kind: HTTP, Path: "/ok"}, ""},
		{"redirect is healthy and not followed", addr, Check{Kind: HTTP, Path: "/302"}, ""},
		{"bad status", addr, Check{Kind: HTTP, Path: "/500"}, "status 500 (database is away) from http://" + addr + "/500"},
		{"not found", addr, Check{Kind: HTTP, Path: "/none"}, "status 404 (404 page not found) from http://" + addr + "/none"},
		{"endless body", addr, Check{Kind: HTTP, Path: "/big"}, ""},
		{"host header", addr, Check{Kind: HTTP, Path: "/host", HostHeader: "shop.example"}, ""},
		{"timeout", addr, Check{Kind: HTTP, Path: "/slow", Timeout: 50 * time.Millisecond}, "no answer from " + addr + "/slow within 50ms"},
		{"reset", addr, Check{Kind: HTTP, Path: "/reset"}, "connection closed by " + addr + " before an answer"},
		{"refused", refused, Check{Kind: HTTP}, "connection refused to " + refused},
		{"tcp", addr, Check{Kind: TCP}, ""},
		{"tcp refused", refused, Check{Kind: TCP}, "connection refused to " + refused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if r := probeOnce(t, tc.address, tc.check, late); r.Err != tc.want {
				t.Errorf("got %q, want %q", r.Err, tc.want)
			}
		})
	}

	// Each probe has a connection of its own.
	before := connections.Load()
	for range 3 {
		if r := probeOnce(t, addr, Check{Kind: HTTP, Path: "/ok"}, late); r.Err != "" {
			t.Fatal(r.Err)
		}
	}
	if got := connections.Load() - before; got != 3 {
		t.Errorf("3 probes used %d connections", got)
	}
}

func TestProberOnARealServer(t *testing.T) {
	var down atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if down.Load() {
			w.WriteHeader(503)
		}
	}))
	defer server.Close()
	p := New(Options{})
	defer p.Stop()
	addr := server.Listener.Addr().String()
	if err := p.Add(Target{ID: "t", Address: addr, Check: Check{Kind: HTTP, Interval: 20 * time.Millisecond, Timeout: 30 * time.Second, Rise: 2, Fall: 2}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []Change{BecameHealthy, BecameUnhealthy, BecameHealthy} {
		select {
		case e := <-p.Events():
			if e.Change != want {
				t.Fatalf("%+v, want %s", e, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("no event, want %s", want)
		}
		down.Store(want == BecameHealthy)
	}
}
