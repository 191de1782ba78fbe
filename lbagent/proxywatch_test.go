package lbagent

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Only a process that is not there has ended: one that cannot be watched, since no descriptor is left, may well live, and
// what it reported stays proof.
func TestWhatCannotBeWatchedHasNotEnded(t *testing.T) {
	for _, c := range []struct {
		err   error
		ended bool
	}{{syscall.ESRCH, true}, {syscall.EMFILE, false}, {syscall.ENOSYS, false}} {
		w := proxyWatch{open: func(pid int) (ProcessWatch, time.Time, error) {
			return nil, time.Time{}, fmt.Errorf("watch process %d: %w", pid, c.err)
		}}
		w.follow(driver.Process{MasterPID: 1, WorkerPID: 2})
		select {
		case <-w.gone:
			if !c.ended {
				t.Errorf("%v: it is told as ended", c.err)
			}
		default:
			if c.ended {
				t.Errorf("%v: it is not told as ended", c.err)
			}
		}
		w.close()
	}
}

// A pid that was read may be another process's when it is watched: the one that was meant has ended then.
func TestAPidThatChangedHandsIsAnEnd(t *testing.T) {
	watch, own, err := watchProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	watch.Close()
	for name, c := range map[string]struct {
		read  time.Time
		ended bool
	}{"this process": {own, false}, "one of before": {own.Add(-time.Minute), true}} {
		w := proxyWatch{open: watchProcess}
		w.follow(driver.Process{MasterPID: os.Getpid(), WorkerPID: os.Getpid(), StartedAt: c.read})
		select {
		case <-w.gone:
			if !c.ended {
				t.Errorf("%s: it is told as ended", name)
			}
		default:
			if c.ended {
				t.Errorf("%s: it is not told as ended", name)
			}
		}
		w.close()
	}
}
