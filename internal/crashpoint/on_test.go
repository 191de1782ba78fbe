//go:build crashpoints

package crashpoint_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cutover/cutover/internal/crashpoint"
)

// The child of the tests below: it comes to two moments, three times each, and says so.
func TestMain(m *testing.M) {
	if os.Getenv("CRASHPOINT_CHILD") == "" {
		os.Exit(m.Run())
	}
	for range 3 {
		crashpoint.At("here")
		fmt.Print("h")
		crashpoint.At("there")
		fmt.Print("t")
	}
}

// child runs the child with the file's content and returns what it printed and how it ended.
func child(t *testing.T, file string, env ...string) (string, *os.ProcessState) {
	t.Helper()
	dir := t.TempDir()
	if file != "" {
		if err := os.WriteFile(filepath.Join(dir, crashpoint.File), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "CRASHPOINT_CHILD=1"), env...)
	out, err := cmd.Output()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, crashpoint.File)); file != "" && cmd.ProcessState.ExitCode() != 0 && err == nil {
		t.Error("the file is still there: the next process would die again")
	}
	return string(out), cmd.ProcessState
}

func TestDiesWhereItIsTold(t *testing.T) {
	for _, c := range []struct {
		file, env, want string
		dies            bool
	}{
		{"here", "", "", true},
		{"there", "", "h", true},
		{"there 2", "", "hth", true},
		{"here 3 kill\n", "", "htht", true},
		{"here 4", "", "hththt", false},
		{"elsewhere", "", "hththt", false},
		{"", "", "hththt", false},
		{"", "CUTOVER_CRASH_AT=there", "h", true},
	} {
		out, state := child(t, c.file, c.env)
		status := state.Sys().(syscall.WaitStatus)
		if dies := status.Signaled() && status.Signal() == syscall.SIGKILL; out != c.want || dies != c.dies {
			t.Errorf("%q %q: printed %q and ended with %v, want %q, dies %v", c.file, c.env, out, state, c.want, c.dies)
		}
	}
}

// A process that is stopped has done nothing past the moment, and goes on as if nothing had been.
func TestStandsStillWhereItIsTold(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, crashpoint.File), []byte("there 2 stop"), 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CRASHPOINT_CHILD=1")
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("want a stopped process, got %v %v", status, err)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || out.String() != "hththt" {
		t.Errorf("printed %q and ended with %v", out.String(), err)
	}
}
