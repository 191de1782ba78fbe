package pidfd_test

import (
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cutover/cutover/internal/pidfd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheEndIsToldAtOnce(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w, err := pidfd.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.Done():
		t.Fatal("told before it ended")
	case <-time.After(20 * time.Millisecond):
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the end was not told")
	}
	_ = cmd.Wait()
	if _, err := pidfd.Open(cmd.Process.Pid); err == nil {
		t.Error("a process that is gone can be watched")
	}
}

func TestCloseEndsTheWatch(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	w, err := pidfd.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	w.Close()
	select {
	case <-w.Done():
		t.Fatal("closing is not ending")
	case <-time.After(20 * time.Millisecond):
	}
}
