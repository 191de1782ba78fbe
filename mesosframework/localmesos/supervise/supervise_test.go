package supervise

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/mesosframework/localmesos/supervise/warden"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func self(t *testing.T) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{exe, "task-supervisor"}
}

func shell(dir, command string) Spec {
	return Spec{Path: "/bin/sh", Argv: []string{"sh", "-c", command}, Env: []string{"PATH=/usr/bin:/bin", "A=b c\nd"},
		Dir: dir, Stdout: filepath.Join(dir, "stdout"), Stderr: filepath.Join(dir, "stderr")}
}

func launch(t *testing.T, spec Spec) (*Task, string) {
	t.Helper()
	meta := filepath.Join(t.TempDir(), "meta")
	task, err := Launch(self(t), meta, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = task.Signal(syscall.SIGKILL)
		task.Release()
	})
	return task, meta
}

func ended(t *testing.T, task *Task) Result {
	t.Helper()
	select {
	case <-task.Done():
		return task.Result()
	case <-time.After(30 * time.Second):
		t.Fatal("the task did not end")
		return Result{}
	}
}

func TestExitStatus(t *testing.T) {
	for _, tt := range []struct {
		command string
		exit    int
		signal  syscall.Signal
	}{
		{"exit 3", 3, 0},
		{`test "$A" = "b c
d"`, 0, 0},
		{"kill -SEGV $$", -1, syscall.SIGSEGV},
		{"no-such-command-here", 127, 0},
	} {
		task, _ := launch(t, shell(t.TempDir(), tt.command))
		r := ended(t, task)
		if !r.Known || r.Status.ExitStatus() != tt.exit || (tt.signal != 0 && r.Status.Signal() != tt.signal) {
			t.Errorf("%q ended with %+v", tt.command, r)
		}
	}
}

func TestMissingProgramEndsWithOne(t *testing.T) {
	dir := t.TempDir()
	spec := shell(dir, "")
	spec.Path = "/no/such/binary"
	task, _ := launch(t, spec)
	if r := ended(t, task); !r.Known || r.Status.ExitStatus() != 1 {
		t.Fatalf("%+v", r)
	}
	if b, _ := os.ReadFile(spec.Stderr); !strings.Contains(string(b), "/no/such/binary") {
		t.Fatalf("stderr says %q", b)
	}
}

func TestSignalReachesTheGroup(t *testing.T) {
	task, _ := launch(t, shell(t.TempDir(), "sleep 1000 & sleep 1000"))
	if err := task.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r := ended(t, task); !r.Known || r.Status.Signal() != syscall.SIGTERM {
		t.Fatalf("%+v", r)
	}
}

// TestLeftoversAreKilled lets the task leave a process in a session of its own.
func TestLeftoversAreKilled(t *testing.T) {
	dir := t.TempDir()
	task, _ := launch(t, shell(dir, `setsid sh -c 'echo $$ > pid; exec sleep 1000' & while ! test -s pid; do sleep 0.01; done`))
	ended(t, task)
	b, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Fatalf("process %d lives: %v", pid, err)
	}
}

func TestAdopt(t *testing.T) {
	if _, err := Adopt(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrNeverRan) {
		t.Fatal(err)
	}
	dir := t.TempDir()
	task, meta := launch(t, shell(dir, "while ! test -e go; do sleep 0.01; done; exit 7"))
	task.Release()
	again, err := Adopt(meta)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Release()
	if again.TaskPID() != task.TaskPID() || again.PID() != task.PID() {
		t.Fatalf("adopted %d/%d, want %d/%d", again.PID(), again.TaskPID(), task.PID(), task.TaskPID())
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := ended(t, again); !r.Known || r.Status.ExitStatus() != 7 {
		t.Fatalf("%+v", r)
	}
	late, err := Adopt(meta) // ended meanwhile: the truth is on disk
	if err != nil {
		t.Fatal(err)
	}
	if r := ended(t, late); !r.Known || r.Status.ExitStatus() != 7 {
		t.Fatalf("%+v", r)
	}
}

// TestWardenKilled: what nobody knows is not invented, and nothing is left.
func TestWardenKilled(t *testing.T) {
	task, _ := launch(t, shell(t.TempDir(), "sleep 1000"))
	before, err := warden.Look(task.TaskPID())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(task.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if r := ended(t, task); r.Known {
		t.Fatalf("%+v", r)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		if _, err := procfs.ReadStat(before.PID); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the task outlived its warden")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	// What is written between the copy and the cut is lost, so the task waits for both.
	spec := shell(dir, "head -c 5000 /dev/zero | tr '\\0' x; while ! test -e stdout.1 || test $(wc -c < stdout) -gt 1000; do sleep 0.05; done; printf end")
	spec.MaxLog = 1000
	task, _ := launch(t, spec)
	ended(t, task)
	old, err := os.ReadFile(spec.Stdout + ".1")
	if err != nil || len(old) != 1000 {
		t.Fatalf("kept %d bytes, %v", len(old), err)
	}
	if now, _ := os.ReadFile(spec.Stdout); strings.TrimLeft(string(now), "\x00x") != "end" {
		t.Fatalf("stdout is %q", now)
	}
}

func TestSpecRoundTrip(t *testing.T) {
	if _, err := (Spec{Argv: []string{"a\x00b"}}).Encode(); err == nil {
		t.Fatal("a NUL was accepted")
	}
	if _, err := warden.DecodeSpec([]byte("9\x00")); err == nil {
		t.Fatal("an unknown version was accepted")
	}
}
