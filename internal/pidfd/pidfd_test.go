package pidfd_test

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/pidfd"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// start runs a process, and waits for its end in the background.
func start(t *testing.T) (cmd *exec.Cmd, w *pidfd.Watch, told chan bool) {
	t.Helper()
	cmd = exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	w, err := pidfd.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	told = make(chan bool, 1)
	go func() { told <- w.Wait() }()
	select {
	case <-told:
		t.Fatal("told before anything happened")
	case <-time.After(20 * time.Millisecond):
	}
	return cmd, w, told
}

func TestTheEndIsToldAtOnce(t *testing.T) {
	cmd, w, told := start(t)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case ended := <-told:
		if !ended {
			t.Error("the end was told as a Close")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the end was not told")
	}
	if !w.Wait() {
		t.Error("the end is not told to those who ask later")
	}
	_ = cmd.Wait()
	if _, err := pidfd.Open(cmd.Process.Pid); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a process that is gone: %v, want ESRCH", err)
	}
}

func TestCloseEndsTheWatch(t *testing.T) {
	_, w, told := start(t)
	w.Close()
	w.Close()
	select {
	case ended := <-told:
		if ended {
			t.Error("closing is not ending")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Close did not end Wait")
	}
	if w.Wait() {
		t.Error("a closed watch tells of an end")
	}
}
