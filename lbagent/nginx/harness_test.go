package nginx_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/internal/servertest"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
	"github.com/cutover/cutover/lbagent/nginx"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// kind is one of the two drivers.
type kind struct {
	name      string
	lua       bool
	bootstrap func(nginx.Options) error
	open      func(nginx.Options) (driver.Driver, error)
}

var lua = kind{
	name: "nginx-lua", lua: true, bootstrap: nginx.BootstrapLua,
	open: func(o nginx.Options) (driver.Driver, error) { return nginx.NewLua(o) },
}

var reload = kind{
	name: "nginx-reload", bootstrap: nginx.BootstrapReload,
	open: func(o nginx.Options) (driver.Driver, error) { return nginx.NewReload(o) },
}

// proxy is a real nginx with a driver on it.
type proxy struct {
	kind    kind
	options nginx.Options
	driver  driver.Driver
	url     string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

var (
	hosts atomic.Uint32
	hands atomic.Uint64 // writes by foreign hands
)

// startProxy starts nginx that serves no App, with its driver open and checked.
func startProxy(t testing.TB, k kind) *proxy {
	t.Helper()
	p := newProxy(t, k)
	p.Start(t)
	if _, err := p.driver.Check(within(t)); err != nil {
		t.Fatalf("check: %v", err)
	}
	return p
}

// newProxy makes the files and opens the driver; nginx does not run yet.
func newProxy(t testing.TB, k kind) *proxy {
	t.Helper()
	// Short: a unix socket's path must fit 107 bytes.
	dir, err := os.MkdirTemp("", "cn")
	if err != nil {
		t.Fatal(err)
	}
	source := netip.AddrFrom4([4]byte{127, 0, 1, byte(hosts.Add(1)%200 + 1)})
	p := &proxy{kind: k}
	p.options = nginx.Options{
		Dir: filepath.Join(dir, "lb"), BaseConfig: filepath.Join(dir, "nginx.conf"),
		Listen: []netip.AddrPort{freePort(t, source)}, SourceAddress: source, Logger: logger(t),
	}
	p.url = "http://" + p.options.Listen[0].String()
	base, err := nginx.RenderExampleBase(nginx.ExampleBase{Lua: k.lua})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.options.BaseConfig, base, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.bootstrap(p.options); err != nil {
		t.Fatalf("bootstrap: %v", err)
	}
	t.Cleanup(func() {
		if p.driver != nil {
			if err := p.driver.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		p.Kill(t)
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			if len(text) > 4000 {
				text = text[len(text)-4000:]
			}
			t.Logf("error.log:\n%s", text)
		}
		os.RemoveAll(dir)
	})
	p.driver, err = k.open(p.options)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return p
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), drivertest.Deadline)
	t.Cleanup(cancel)
	return ctx
}

// logger writes to the test's log until the test ends.
func logger(t testing.TB) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() { w.mu.Lock(); w.t = nil; w.mu.Unlock() })
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type testWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *testWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Logf("%s", bytes.TrimSpace(b))
	}
	return len(b), nil
}

func freePort(t testing.TB, addr netip.Addr) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(addr, uint16(servertest.FreePorts(t, 1)[0]))
}

func (p *proxy) Driver() driver.Driver { return p.driver }
func (p *proxy) FrontendURL() string   { return p.url }
func (p *proxy) Source() netip.Addr    { return p.options.SourceAddress }

func (p *proxy) dir() string { return filepath.Dir(p.options.BaseConfig) }

// spawn starts nginx as a supervisor does, without waiting for it to serve.
func (p *proxy) spawn(t testing.TB) {
	t.Helper()
	o := p.options
	o.Restore = true
	if err := p.kind.bootstrap(o); err != nil {
		t.Fatalf("bootstrap: %v", err)
	}
	cmd := exec.Command("nginx", "-c", p.options.BaseConfig, "-p", p.dir(), "-e", filepath.Join(p.dir(), "error.log"), "-g", "daemon off;")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	p.mu.Lock()
	p.cmd, p.exited = cmd, exited
	p.mu.Unlock()
}

// Start starts nginx and waits until it answers.
func (p *proxy) Start(t testing.TB) {
	t.Helper()
	p.spawn(t)
	drivertest.Eventually(t, "nginx answers", func() error {
		_, err := p.driver.Process(within(t))
		return err
	})
	drivertest.PassGrain()
}

// Kill ends nginx's whole process group as by kill -9.
func (p *proxy) Kill(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	cmd, exited := p.cmd, p.exited
	p.cmd = nil
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	<-exited
	// Orphaned workers stay as zombies until init takes notice: they serve nobody.
	drivertest.Eventually(t, "the workers are gone", func() error {
		pids, err := procfs.Processes()
		for _, pid := range pids {
			if s, gone := procfs.ReadStat(pid); gone == nil && s.Group == cmd.Process.Pid {
				return fmt.Errorf("process %d lives", pid)
			}
		}
		return err
	})
}

func (p *proxy) master() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// OwnerReload sends HUP and waits for new workers.
func (p *proxy) OwnerReload(t testing.TB) {
	t.Helper()
	before := workers(t, p.master())
	if err := syscall.Kill(p.master(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	drivertest.Eventually(t, "new workers", func() error {
		after := workers(t, p.master())
		for pid := range after {
			if before[pid] {
				return fmt.Errorf("worker %d is still current", pid)
			}
		}
		if len(after) == 0 {
			return fmt.Errorf("no worker")
		}
		_, err := p.driver.Process(within(t))
		return err
	})
	drivertest.PassGrain()
}

// workers are the current workers of a master.
func workers(t testing.TB, master int) map[int]bool {
	t.Helper()
	children, err := procfs.Children(master)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[int]bool)
	for _, pid := range children {
		if title, err := procfs.Title(pid); err == nil && title == "nginx: worker process" {
			out[pid] = true
		}
	}
	return out
}

func (p *proxy) BreakBase(t testing.TB) {
	t.Helper()
	text, err := os.ReadFile(p.options.BaseConfig)
	if err == nil {
		err = os.WriteFile(p.options.BaseConfig+".kept", text, 0o600)
	}
	if err == nil {
		err = os.WriteFile(p.options.BaseConfig, append(text, "no_such_directive on;\n"...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (p *proxy) MendBase(t testing.TB) {
	t.Helper()
	if err := os.Rename(p.options.BaseConfig+".kept", p.options.BaseConfig); err != nil {
		t.Fatal(err)
	}
}

// StealPort makes the frontend's port a foreign process's: nginx goes down for a moment (as in a restart by its
// supervisor), and the test takes the port before it is back.
func (p *proxy) StealPort(t testing.TB) func() {
	t.Helper()
	p.Kill(t)
	l, err := net.Listen("tcp", p.options.Listen[0].String())
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		l.Close()
		p.Start(t)
	}
}

func (p *proxy) Reopen(t testing.TB) {
	t.Helper()
	if err := p.driver.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if p.driver, err = p.kind.open(p.options); err != nil {
		t.Fatal(err)
	}
}
