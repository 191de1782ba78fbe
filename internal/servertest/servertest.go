package servertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds the wait for a server to be ready, and for one to end.
const patience = 60 * time.Second

// Binary finds a program: what the environment variable env names, then the PATH, then .bin of the repository. Without it
// the test is skipped on a developer's machine and fails in CI, so that it cannot rot. get says how to get it.
func Binary(t testing.TB, name, env, get string) string {
	t.Helper()
	if path := os.Getenv(env); path != "" {
		return path
	}
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin", filepath.Join(repository(), ".bin")} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			return path
		}
	}
	why := fmt.Sprintf("%s is not there: %s, or name it in %s", name, get, env)
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
	return ""
}

// repository is the folder of go.mod at or above the working directory, "" if there is none.
func repository() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
}

// reserved is the address at which FreePorts listens on what it has given out.
const reserved = "127.0.0.254"

// FreePorts returns n different TCP ports of 127.0.0.1 that nobody listens on, outside of the range that the kernel
// gives to outgoing connections, and of those that Mesos gives to tasks. They are the test's until it ends, whether or not a
// server listens there: no other test gets them, of another package neither.
func FreePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range 10_000 {
		if len(ports) == n {
			return ports
		}
		port := 12_000 + rand.IntN(9_000)
		ours, err := net.Listen("tcp", fmt.Sprintf("%s:%d", reserved, port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			_ = ours.Close()
			continue
		}
		_ = l.Close()
		t.Cleanup(func() { _ = ours.Close() })
		ports = append(ports, port)
	}
	t.Fatal("no free port was found")
	return nil
}

// Loopback returns a loopback address that nobody else is likely to have: what listens there can end and come back, and
// its port has not gone to a connection or to another test meanwhile.
func Loopback() string {
	return fmt.Sprintf("127.%d.%d.%d", 100+rand.IntN(100), rand.IntN(256), 1+rand.IntN(254))
}

// Refuse keeps a TCP address of IPv4 without listening there: who connects is refused, and nobody else gets the port until
// the returned Closer is closed. Port 0 picks one. It is for what has to stay dead: a port that is only free is soon another
// server's.
func Refuse(addr netip.AddrPort) (netip.AddrPort, io.Closer, error) {
	fail := func(err error) (netip.AddrPort, io.Closer, error) {
		return netip.AddrPort{}, nil, fmt.Errorf("keep %s without listening: %w", addr, err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	file := os.NewFile(uintptr(fd), "refuses "+addr.String())
	// Connections of the server that listened there before may not be over.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
	}
	if err != nil {
		return fail(errors.Join(err, file.Close()))
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return fail(errors.Join(err, file.Close()))
	}
	return netip.AddrPortFrom(addr.Addr(), uint16(at.(*unix.SockaddrInet4).Port)), file, nil
}

// Refused returns an address of 127.0.0.1 where who connects is refused until the test ends.
func Refused(t testing.TB) netip.AddrPort {
	t.Helper()
	addr, kept, err := Refuse(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kept.Close() })
	return addr
}

// Process is one server of a test. Its methods fail the test. Freeze and Thaw may be called from any goroutine (a timer
// thaws what may have been killed and started again meanwhile); the others from one at a time.
type Process struct {
	t     testing.TB
	path  string
	args  []string
	dir   string
	ready func(ctx context.Context) error

	out *tail

	mu   sync.Mutex // guards cmd and done
	cmd  *exec.Cmd
	done chan struct{}
}

// Start runs path with args in dir, waits until ready returns nil, and ends the process with the test. ready is called
// again and again, with a context of its own.
func Start(t testing.TB, dir, path string, args []string, ready func(ctx context.Context) error) *Process {
	t.Helper()
	p := &Process{t: t, path: path, args: args, dir: dir, ready: ready}
	t.Cleanup(func() {
		if t.Failed() && p.out != nil {
			t.Logf("the last words of %s:\n%s", filepath.Base(path), p.out)
		}
		p.kill()
	})
	p.Start()
	return p
}

// Start starts it again after Stop or Kill, and waits until it is ready.
func (p *Process) Start() {
	p.t.Helper()
	if p.Running() {
		p.t.Fatalf("%s runs already", p.path)
	}
	p.out = &tail{}
	cmd, done := exec.Command(p.path, p.args...), make(chan struct{})
	cmd.Dir = p.dir
	cmd.Stdout, cmd.Stderr = p.out, p.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.path, err)
	}
	p.mu.Lock()
	p.cmd, p.done = cmd, done
	p.mu.Unlock()
	go func() {
		defer close(done)
		_ = cmd.Wait() // how it ends is the test's own doing
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := p.ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-done:
			p.t.Fatalf("%s ended before it was ready (%v):\n%s", p.path, err, p.out)
		case <-ctx.Done():
			p.t.Fatalf("%s was not ready in %v: %v\n%s", p.path, patience, err, p.out)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Running reports whether the process has been started and has not ended.
func (p *Process) Running() bool {
	_, done := p.started()
	if done == nil {
		return false
	}
	select {
	case <-done:
		return false
	default:
		return true
	}
}

// started returns the process that was started last, and what is closed at its end; 0 and nil before the first Start.
func (p *Process) started() (pid int, done <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0, nil
	}
	return p.cmd.Process.Pid, p.done
}

// PID returns the process's id.
func (p *Process) PID() int {
	pid, _ := p.started()
	return pid
}

// Stop asks it to end in good order (SIGTERM), and waits.
func (p *Process) Stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	_, done := p.started()
	select {
	case <-done:
	case <-time.After(patience):
		p.t.Fatalf("%s did not end in %v after SIGTERM", p.path, patience)
	}
}

// Kill ends it as by kill -9, and waits.
func (p *Process) Kill() {
	p.t.Helper()
	p.kill()
}

// Freeze stops it as by SIGSTOP: it keeps its connections and answers nothing. Thaw lets it go on.
func (p *Process) Freeze() { p.t.Helper(); p.signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() { p.t.Helper(); p.signal(syscall.SIGCONT) }

func (p *Process) signal(sig syscall.Signal) {
	p.t.Helper()
	pid, _ := p.started()
	if err := syscall.Kill(-pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		p.t.Fatalf("signal %v to %s: %v", sig, p.path, err)
	}
}

// kill ends the process group. The group's id cannot belong to anybody else before Wait has returned.
func (p *Process) kill() {
	if !p.Running() {
		return
	}
	pid, done := p.started()
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	<-done
}

// tail keeps the last bytes of what a server prints.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const keepTail = 16 << 10

// Write implements io.Writer.
func (w *tail) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(b)
	if over := w.buf.Len() - keepTail; over > 0 {
		w.buf.Next(over)
	}
	return len(b), nil
}

// String returns what is kept.
func (w *tail) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}
