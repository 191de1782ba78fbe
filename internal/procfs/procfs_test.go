package procfs

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	got, err := ParseStat("77 (a) b (c) S 5 76 75 0 -1 4194560 1 0 0 0 3 4 0 0 20 0 1 0 987654 1000 10 184467\n")
	if err != nil {
		t.Fatal(err)
	}
	want := Stat{PID: 77, State: 'S', Parent: 5, Group: 76, Session: 75, User: 30 * time.Millisecond, System: 40 * time.Millisecond,
		Threads: 1, StartTicks: 987654, RSS: 10 * int64(os.Getpagesize())}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "1", "1 (x", "1 (x) S", "x (x) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"} {
		if _, err := ParseStat(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestOwnProcess(t *testing.T) {
	s, err := ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if s.Parent != os.Getppid() {
		t.Errorf("parent %d, want %d", s.Parent, os.Getppid())
	}
	started := s.Started()
	if age := time.Since(started); age < 0 || age > time.Hour {
		t.Errorf("started %s ago", age)
	}
	if again := s.Started(); again != started {
		t.Errorf("started at %s, and then at %s", started, again)
	}
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	children, err := Children(os.Getpid())
	if err != nil || !slices.Contains(children, cmd.Process.Pid) {
		t.Errorf("children %v (%v) lack %d", children, err, cmd.Process.Pid)
	}
	byParent, err := childrenByParent(os.Getpid())
	if err != nil || !slices.Contains(byParent, cmd.Process.Pid) {
		t.Errorf("children by parent %v (%v) lack %d", byParent, err, cmd.Process.Pid)
	}
}

func TestZombie(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid, deadline := cmd.Process.Pid, time.Now().Add(30*time.Second)
	s, err := ReadStat(pid)
	for ; err == nil && time.Now().Before(deadline); s, err = ReadStat(pid) {
		time.Sleep(time.Millisecond)
	}
	if !errors.Is(err, ErrEnded) || !s.Ended() || s.PID != pid {
		t.Errorf("before it is collected: %+v, %v", s, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if s, err := ReadStat(pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after it is collected: %+v, %v", s, err)
	}
}

// A zombie of which threads are left has not ended: it may hold what whoever waits for its end wants next.
func TestThreadsThatAreLeftLive(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "first-thread-ends")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	deadline := time.Now().Add(30 * time.Second)
	await := func(what string, ok func(Stat, error) bool) {
		t.Helper()
		for {
			s, err := ReadStat(cmd.Process.Pid)
			if ok(s, err) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v, %v", what, s, err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	await("a zombie with threads lives", func(s Stat, err error) bool { return err == nil && s.State == 'Z' && s.Threads > 1 && !s.Ended() })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	await("it has ended", func(s Stat, err error) bool { return errors.Is(err, ErrEnded) && s.Ended() })
}

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "first-thread-ends" {
		go func() { select {} }()
		unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0) // of this thread alone
	}
	os.Exit(m.Run())
}

// init runs on the process's first thread, and keeps TestMain there.
func init() { runtime.LockOSThread() }

func TestParseListeners(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 00000000000000000000000001000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0 100 0 0 10 0
   2: 0100007F:0051 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 333 1 0 100 0 0 10 0
   3: what follows the last listening socket is not read
`
	got, err := ParseListeners(strings.NewReader(table))
	if err != nil || len(got) != 2 || got[0].Inode != 111 || got[1].Inode != 222 ||
		got[0].Local != netip.MustParseAddrPort("127.0.0.1:8080") || got[1].Local != netip.MustParseAddrPort("[::1]:80") {
		t.Errorf("%v, %v", got, err)
	}
}

func TestListenerOwner(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	rows, err := Listeners(os.Getpid(), IPv4, IPv6)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.Addr().String())
	rows = slices.DeleteFunc(rows, func(c Conn) bool { return !c.Receives(addr) })
	if len(rows) != 1 {
		t.Fatalf("listeners %v", rows)
	}
	holders, err := Holders(rows[0].Inode)
	if err != nil || !slices.Equal(holders, []int{os.Getpid()}) {
		t.Errorf("holders %v (%v), want %d", holders, err, os.Getpid())
	}
}

func TestUnixListeners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	inodes, err := UnixListeners(path)
	if err != nil || len(inodes) != 1 {
		t.Fatalf("inodes %v, %v", inodes, err)
	}
	own, err := Sockets(os.Getpid())
	if _, ok := own[inodes[0]]; !ok || err != nil {
		t.Errorf("own sockets %v (%v) lack %d", own, err, inodes[0])
	}
	const nobodys = 1 << 62
	left, err := Without(os.Getpid(), map[uint64]bool{inodes[0]: true, nobodys: true})
	if err != nil || len(left) != 1 || !left[nobodys] {
		t.Errorf("without its own, the process lacks %v (%v)", left, err)
	}
}

// However many connections a server has, what it listens on is found among its first descriptors.
func BenchmarkWithout(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	rows, err := Listeners(os.Getpid(), IPv4)
	if err != nil {
		b.Fatal(err)
	}
	mine := map[uint64]bool{}
	for _, r := range rows {
		if r.Receives(netip.MustParseAddrPort(l.Addr().String())) {
			mine[r.Inode] = true
		}
	}
	for range 2_000 {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
	}
	for b.Loop() {
		if left, err := Without(os.Getpid(), mine); err != nil || len(left) != 0 {
			b.Fatalf("%v, %v", left, err)
		}
	}
}

func TestShutdownConns(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n, err := ShutdownConns(os.Getpid(), netip.MustParseAddrPort(l.Addr().String()))
	if err != nil || n != 1 {
		t.Fatalf("shut down %d connections, %v", n, err)
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the connection lives on: %v", err)
	}
}

func FuzzParseTCP(f *testing.F) {
	f.Add("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0 0 10 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		rows, err := ParseTCP(text, func(Conn) bool { return true })
		if err == nil {
			for _, r := range rows {
				if !r.Local.IsValid() {
					t.Fatalf("invalid row %+v", r)
				}
			}
		}
		ParseUnixListeners(text)
		ParseStat(text)
		ParseListeners(strings.NewReader(text))
	})
}
