package drivertest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/servertest"
	"github.com/cutover/cutover/lbagent/driver"
)

// HealthPath is the path that the suite's upstreams answer checks on.
const HealthPath = "/healthz"

// Backend is a real HTTP server that stands for one task. It answers every request with its name in the header
// X-Backend and counts checks and traffic apart. Safe for concurrent use.
type Backend struct {
	Name string
	Addr netip.AddrPort

	status  atomic.Int32 // of the health path
	checks  atomic.Int64
	traffic atomic.Int64
	hold    atomic.Bool // hold traffic until released

	mu       sync.Mutex
	sources  map[netip.Addr]int
	lastPath string
	lastHost string
	released chan struct{}
	server   *http.Server
	stop     sync.Once
	dead     io.Closer // its port, after Stop
}

// NewBackend starts a Backend on a free loopback port; it is closed with the test.
func NewBackend(t testing.TB, name string) *Backend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen for backend %s: %v", name, err)
	}
	b := &Backend{
		Name:     name,
		Addr:     l.Addr().(*net.TCPAddr).AddrPort(),
		sources:  map[netip.Addr]int{},
		released: make(chan struct{}),
	}
	b.status.Store(http.StatusOK)
	b.server = &http.Server{Handler: b, ReadHeaderTimeout: Deadline}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.server.Serve(l)
	}()
	t.Cleanup(func() {
		b.Release()
		b.Stop()
		<-done
		if b.dead != nil {
			_ = b.dead.Close()
		}
	})
	return b
}

// ServeHTTP answers checks with the status that SetHealth chose, and everything else with 200.
func (b *Backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		b.mu.Lock()
		b.sources[from.Addr()]++
		b.mu.Unlock()
	}
	w.Header().Set("X-Backend", b.Name)
	if r.URL.Path == HealthPath {
		// In this order a check that is counted after a SetHealth may have the status from before it, and none that was
		// counted before it has the new one.
		status := b.status.Load()
		b.checks.Add(1)
		w.WriteHeader(int(status))
		return
	}
	b.traffic.Add(1)
	b.mu.Lock()
	b.lastPath, b.lastHost = r.URL.RequestURI(), r.Host
	released := b.released
	b.mu.Unlock()
	if b.hold.Load() {
		select {
		case <-released:
		case <-r.Context().Done():
			return
		}
	}
	fmt.Fprintf(w, "%s\n", b.Name)
}

// SetHealth chooses the status that checks get.
func (b *Backend) SetHealth(status int) { b.status.Store(int32(status)) }

// Hold makes every later request that is not a check wait for Release.
func (b *Backend) Hold() { b.hold.Store(true) }

// Release lets held requests go. Later calls do nothing.
func (b *Backend) Release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hold.Swap(false) {
		close(b.released)
		b.released = make(chan struct{})
	}
}

// Stop ends the server as a killed task ends: open connections are closed, the port refuses, and is nobody else's before the
// test ends.
func (b *Backend) Stop() {
	b.stop.Do(func() {
		_ = b.server.Close()
		_, b.dead, _ = servertest.Refuse(b.Addr) // it fails if another was quicker, within microseconds
	})
}

// Checks is the number of requests on the health path so far; Traffic that of all others.
func (b *Backend) Checks() int64 { return b.checks.Load() }

// Traffic is the number of requests so far that were not checks.
func (b *Backend) Traffic() int64 { return b.traffic.Load() }

// Last returns the request URI and the Host of the last request that was not a check.
func (b *Backend) Last() (uri, host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lastPath, b.lastHost
}

// Sources returns how many requests came from each address.
func (b *Backend) Sources() map[netip.Addr]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[netip.Addr]int, len(b.sources))
	for a, n := range b.sources {
		out[a] = n
	}
	return out
}

// Health is the check that the suite uses: fast, so that tests are.
func Health() driver.Health {
	return driver.Health{
		Kind: driver.HealthHTTP, Path: HealthPath,
		Interval: 50 * time.Millisecond, Timeout: time.Second, Rise: 2, Fall: 2,
	}
}

// Upstream is the Backend as a driver's Upstream: its own name, weight 100.
func (b *Backend) Upstream(mode driver.Mode) driver.Upstream {
	return driver.Upstream{Name: b.Name, Address: b.Addr, Weight: 100, Mode: mode, Health: Health()}
}
