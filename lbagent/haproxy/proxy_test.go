package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/internal/servertest"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// testProxy is a real haproxy with the driver under test.
type testProxy struct {
	o      Options
	source netip.Addr
	base   []byte
	log    *os.File
	cmd    *exec.Cmd
	exited chan struct{}
	driver *Driver
}

var hosts atomic.Int32

// startProxy starts a haproxy on a loopback address of its own, on an empty tree.
func startProxy(t testing.TB, pool int) *testProxy {
	t.Helper()
	// Paths of sockets are short: t.TempDir() is not.
	dir, err := os.MkdirTemp("", "hp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := hosts.Add(1)
	source := netip.AddrFrom4([4]byte{127, 0, 77, byte(1 + n%200)})
	bind := netip.AddrPortFrom(source, uint16(servertest.FreePorts(t, 1)[0]))
	logFile, err := os.Create(filepath.Join(dir, "haproxy.log"))
	if err != nil {
		t.Fatal(err)
	}
	p := &testProxy{source: source, log: logFile, o: Options{
		Dir:           filepath.Join(dir, "c"),
		BaseConfig:    filepath.Join(dir, "base.cfg"),
		RuntimeSocket: filepath.Join(dir, "run.sock"),
		MasterSocket:  filepath.Join(dir, "master.sock"),
		Frontends:     []Frontend{{Name: "public", Binds: []netip.AddrPort{bind}}},
		Pool:          pool,
		Logger:        slog.New(slog.NewTextHandler(&testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}}
	if p.base, err = ExampleBase(Base{RuntimeSocket: p.o.RuntimeSocket, Source: source}); err != nil {
		t.Fatal(err)
	}
	p.writeBase(t, p.base)
	if err := Bootstrap(p.o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.driver != nil {
			if err := p.driver.Close(); err != nil {
				t.Error(err)
			}
		}
		if p.cmd != nil {
			p.Kill(t)
		}
		if t.Failed() {
			text, _ := os.ReadFile(logFile.Name())
			t.Logf("haproxy said:\n%s", text[max(0, len(text)-4000):])
		}
		logFile.Close()
	})
	p.Start(t)
	p.open(t)
	if _, err := p.driver.Check(context.Background()); err != nil {
		t.Fatalf("check a new proxy: %v", err)
	}
	return p
}

// testLog writes the driver's log to the test, while the test runs.
type testLog struct{ testing.TB }

func (l *testLog) Write(p []byte) (int, error) {
	l.Log(string(bytes.TrimSpace(p)))
	return len(p), nil
}

func (p *testProxy) writeBase(t testing.TB, text []byte) {
	t.Helper()
	if err := os.WriteFile(p.o.BaseConfig, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p *testProxy) open(t testing.TB) {
	t.Helper()
	d, err := New(p.o)
	if err != nil {
		t.Fatal(err)
	}
	p.driver = d
}

func (p *testProxy) Driver() driver.Driver { return p.driver }
func (p *testProxy) Source() netip.Addr    { return p.source }
func (p *testProxy) FrontendURL() string   { return "http://" + p.o.Frontends[0].Binds[0].String() }

func (p *testProxy) Reopen(t testing.TB) {
	t.Helper()
	if err := p.driver.Close(); err != nil {
		t.Fatal(err)
	}
	p.open(t)
}

func (p *testProxy) Start(t testing.TB) {
	t.Helper()
	cmd := exec.Command("haproxy", Arguments(p.o)...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start haproxy (apt install haproxy): %v", err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait()
	}()
	p.cmd, p.exited = cmd, exited
	drivertest.Eventually(t, "haproxy answers", func() error {
		w, err := p.witness()
		if err == nil && w.procs.master != cmd.Process.Pid {
			err = fmt.Errorf("master %d answers", w.procs.master)
		}
		return err
	})
	drivertest.PassGrain()
}

// witness asks the worker with a client of its own, beside the driver.
func (p *testProxy) witness() (witnessed, error) {
	ctx, cancel := context.WithTimeout(context.Background(), drivertest.Deadline)
	defer cancel()
	d := &Driver{o: p.o, worker: commandLine{p.o.RuntimeSocket}, master: commandLine{p.o.MasterSocket}}
	w, err := d.bracketedOnce(ctx, nil)
	if err != nil {
		return w, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.o.Frontends[0].Binds[0].String())
	if err != nil {
		return w, err
	}
	return w, conn.Close()
}

// Kill ends the master and its workers as by kill -9.
func (p *testProxy) Kill(t testing.TB) {
	t.Helper()
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.exited
	// Orphaned workers stay as zombies until init takes notice: they serve nobody.
	drivertest.Eventually(t, "the workers are gone", func() error {
		pids, err := procfs.Processes()
		for _, pid := range pids {
			if s, gone := procfs.ReadStat(pid); gone == nil && s.Group == p.cmd.Process.Pid {
				return fmt.Errorf("process %d lives", pid)
			}
		}
		return err
	})
	p.cmd = nil
}

func (p *testProxy) OwnerReload(t testing.TB) {
	t.Helper()
	before, err := p.witness()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	drivertest.Eventually(t, "a new worker answers", func() error {
		w, err := p.witness()
		if err == nil && w.info.pid == before.info.pid {
			err = fmt.Errorf("worker %d still answers", w.info.pid)
		}
		return err
	})
	drivertest.PassGrain()
}

func (p *testProxy) BreakBase(t testing.TB) {
	p.writeBase(t, append(bytes.Clone(p.base), "\nthis is not haproxy\n"...))
}

func (p *testProxy) MendBase(t testing.TB) { p.writeBase(t, p.base) }

// StealPort shares the port as any process of the same user can: haproxy binds with SO_REUSEPORT.
func (p *testProxy) StealPort(t testing.TB) func() {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(cerr, err)
	}}
	l, err := config.Listen(context.Background(), "tcp", p.o.Frontends[0].Binds[0].String())
	if err != nil {
		t.Fatalf("steal the port: %v", err)
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	release := func() {
		server.Close()
		<-done
	}
	t.Cleanup(release)
	return release
}

func harness() drivertest.Harness {
	return drivertest.Harness{
		Name:     "haproxy",
		NewProxy: func(t testing.TB) drivertest.Proxy { return startProxy(t, 8) },
	}
}

func TestConformance(t *testing.T) { drivertest.Run(t, harness()) }

func BenchmarkOneChange(b *testing.B) { drivertest.BenchmarkOneChange(b, harness()) }

func BenchmarkPrepare(b *testing.B) { drivertest.BenchmarkPrepare(b, harness()) }

func BenchmarkCalls(b *testing.B) { drivertest.BenchmarkCalls(b, harness()) }
