package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/lbagent/driver"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const deadline = 20 * time.Second

// worker stands for nginx's private listener: it answers every request as the test says.
type worker struct {
	socket  string
	l       net.Listener
	wg      sync.WaitGroup
	flight  atomic.Int32
	highest atomic.Int32
	total   atomic.Int32
	answer  atomic.Pointer[func(target string) string]
}

const green = "HTTP/1.1 200 OK\r\nX-Cutover-Header-Time: 0.001\r\nX-Cutover-Generation: g1\r\nX-Cutover-Worker: 7\r\n\r\n"

func startWorker(t *testing.T, answer func(target string) string) *worker {
	t.Helper()
	w := &worker{socket: filepath.Join(t.TempDir(), "s")}
	w.answer.Store(&answer)
	var err error
	if w.l, err = net.Listen("unix", w.socket); err != nil {
		t.Fatal(err)
	}
	w.wg.Go(func() {
		for {
			conn, err := w.l.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.serve(conn) })
		}
	})
	t.Cleanup(func() { w.l.Close(); w.wg.Wait() })
	return w
}

func (w *worker) serve(conn net.Conn) {
	defer conn.Close()
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	now := w.flight.Add(1)
	for high := w.highest.Load(); now > high && !w.highest.CompareAndSwap(high, now); high = w.highest.Load() {
	}
	w.total.Add(1)
	answer := (*w.answer.Load())(req.Header.Get("X-Cutover-Target"))
	w.flight.Add(-1) // before the check can end: this never counts more than there are
	fmt.Fprint(conn, answer)
}

func (w *worker) prober(t *testing.T, change func(*Config)) *Prober {
	t.Helper()
	cfg := Config{
		Client: &Client{ProbeSocket: w.socket, ConnectSocket: w.socket}, Alive: func(context.Context) bool { return true },
		Concurrency: 8, Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	p := New(cfg)
	t.Cleanup(p.Close)
	return p
}

// fast is a check that is made often and waits as long as a test does: a machine that is slow makes nobody red.
func fast() driver.Health {
	return driver.Health{Kind: driver.HealthHTTP, Path: "/", Interval: 5 * time.Millisecond, Timeout: deadline, Rise: 2, Fall: 2}
}

func target(name string, h driver.Health) Target {
	return Target{Name: name, Address: netip.MustParseAddrPort("127.0.0.1:1"), Health: h}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
		<-tick.C
	}
}

func TestProberFollowsAnUpstream(t *testing.T) {
	var red atomic.Pointer[string]
	w := startWorker(t, func(string) string { return green })
	var p *Prober
	var once sync.Mutex
	once.Lock()
	p = w.prober(t, func(c *Config) {
		c.Changed = func(_ context.Context, app string) error {
			once.Lock()
			defer once.Unlock()
			s := strings.Join(p.Red(app), ",")
			red.Store(&s)
			return nil
		}
	})
	once.Unlock()
	p.Set("shop", []Target{target("a", fast())})
	await(t, "green", func() bool { return p.State("shop", "a", "g1").Green })
	if p.State("shop", "a", "g2").Green {
		t.Error("green for a generation that has seen nothing")
	}

	bad := func(string) string { return strings.Replace(green, "200 OK", "500 Oh", 1) }
	w.answer.Store(&bad)
	await(t, "red and told", func() bool { return p.State("shop", "a", "g1").Red && red.Load() != nil && *red.Load() == "a" })

	good := func(string) string { return green }
	w.answer.Store(&good)
	await(t, "green and told", func() bool { return p.State("shop", "a", "g1").Green && *red.Load() == "" })

	p.Set("shop", nil)
	if s := p.State("shop", "a", "g1"); s.Green || s.Red {
		t.Errorf("removed and still %+v", s)
	}
}

// FAIL-STATIC: what says nothing of the upstream changes no verdict.
func TestProberLosingTheWorkersChangesNothing(t *testing.T) {
	w := startWorker(t, func(string) string { return green })
	var alive atomic.Bool
	alive.Store(true)
	p := w.prober(t, func(c *Config) { c.Alive = func(context.Context) bool { return alive.Load() } })
	p.Set("shop", []Target{target("a", fast())})
	await(t, "green", func() bool { return p.State("shop", "a", "g1").Green })

	for name, answer := range map[string]string{
		"closed at once":           "",
		"not ours":                 "HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n",
		"not HTTP":                 "hello\r\n\r\n",
		"a header without an end ": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxHead),
	} {
		say := func(string) string { return answer }
		w.answer.Store(&say)
		seen := w.total.Load()
		await(t, name, func() bool { return w.total.Load() > seen+6 })
		if s := p.State("shop", "a", "g1"); !s.Green || s.Red {
			t.Errorf("%s: %+v", name, s)
		}
	}
	// From now on a check waits for a moment only; the one that is under way is of before.
	alive.Store(false)
	short := fast()
	short.Timeout = 20 * time.Millisecond
	p.Set("shop", []Target{target("a", short)})
	seen := w.total.Load()
	await(t, "a check of the shorter kind", func() bool { return w.total.Load() > seen+1 })
	// A hanging worker: the connection is accepted by the kernel and nobody answers.
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	hang := func(string) string { <-release; return "" }
	w.answer.Store(&hang)
	seen = w.total.Load()
	await(t, "checks that hang", func() bool { return w.total.Load() > seen+6 })
	if s := p.State("shop", "a", "g1"); !s.Green {
		t.Errorf("a hanging worker: %+v", s)
	}
	// The same silence with workers that answer is the upstream's.
	alive.Store(true)
	await(t, "red", func() bool { return p.State("shop", "a", "g1").Red })
}

func TestProberTellsAgainAfterAnError(t *testing.T) {
	w := startWorker(t, func(string) string { return strings.Replace(green, "200", "500", 1) })
	var calls atomic.Int32
	p := w.prober(t, func(c *Config) {
		c.Changed = func(context.Context, string) error {
			if calls.Add(1) < 3 {
				return errors.New("nginx restarts")
			}
			return nil
		}
	})
	p.Set("shop", []Target{target("a", fast())})
	await(t, "told three times", func() bool { return calls.Load() >= 3 })
}

func TestProberReconcile(t *testing.T) {
	w := startWorker(t, func(string) string { return "" }) // no verdict yet
	p := w.prober(t, nil)
	p.Set("shop", []Target{target("a", fast()), target("b", fast())})
	p.Reconcile("shop", []string{"b", "gone"})
	if got := p.Red("shop"); len(got) != 1 || got[0] != "b" {
		t.Errorf("red after a restart of the agent: %v, want b as the workers hold it", got)
	}
}

func TestProberBoundsWhatIsInFlight(t *testing.T) {
	w := startWorker(t, func(string) string { time.Sleep(2 * time.Millisecond); return green })
	p := w.prober(t, func(c *Config) { c.Concurrency = 4 })
	for i := range 50 {
		p.Set(fmt.Sprintf("app-%d", i), []Target{target("a", fast()), target("b", fast())})
	}
	await(t, "all green", func() bool {
		for i := range 50 {
			for _, name := range []string{"a", "b"} {
				if !p.State(fmt.Sprintf("app-%d", i), name, "g1").Green {
					return false
				}
			}
		}
		return true
	})
	if n := w.highest.Load(); n > 4 {
		t.Errorf("%d checks at once, the bound is 4", n)
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(strings.TrimSuffix(green, "\r\n\r\n"))
	f.Add("HTTP/1.1 502 Bad Gateway\r\nX-Cutover-Header-Time: -\r\nX-Cutover-Bytes-Sent: 0\r\nX-Cutover-Generation: g")
	f.Fuzz(func(t *testing.T, head string) {
		a, err := parseAnswer(head)
		if err == nil && (a.Status < 100 || a.Status > 999 || a.Generation == "") {
			t.Fatalf("%+v", a)
		}
	})
}

// BenchmarkProber measures the agent's own cost of one check, the worker's stand-in included.
func BenchmarkProber(b *testing.B) {
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(buf)
			_, _ = conn.Write([]byte(green))
			conn.Close()
		}
	})
	c := &Client{ProbeSocket: l.Addr().String()}
	addr := netip.MustParseAddrPort("127.0.0.1:1")
	b.ReportAllocs()
	for b.Loop() {
		if r := c.check(context.Background(), addr, fast()); r.Verdict != Passed {
			b.Fatal(r)
		}
	}
	l.Close()
	wg.Wait()
}

// A status that nginx makes because its owner limits or refuses requests says nothing of the upstream (FAIL-STATIC).
func TestOwnersLimitsTakeNobodyOut(t *testing.T) {
	refused := "HTTP/1.1 503 Service Temporarily Unavailable\r\nX-Cutover-Generation: g1\r\nX-Cutover-Worker: 7\r\n\r\n"
	unreachable := strings.Replace(refused, "503", "502", 1)
	for _, kind := range []driver.HealthKind{driver.HealthHTTP, driver.HealthTCP} {
		w := startWorker(t, func(string) string { return refused })
		c := &Client{ProbeSocket: w.socket, ConnectSocket: w.socket}
		h := fast()
		h.Kind = kind
		if r := c.check(t.Context(), target("a", h).Address, h); r.Verdict != Unknown || !strings.Contains(r.Text, "503") {
			t.Errorf("kind %d: %+v for a status of nginx's own", kind, r)
		}
		answer := func(string) string { return unreachable }
		w.answer.Store(&answer)
		if r := c.check(t.Context(), target("a", h).Address, h); r.Verdict != Failed {
			t.Errorf("kind %d: %+v for an upstream that cannot be reached", kind, r)
		}
	}
}
