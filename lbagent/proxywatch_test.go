package lbagent

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
)

// Only a process that is not there has ended: one that cannot be watched, since no descriptor is left, may well live, and
// what it reported stays proof.
func TestWhatCannotBeWatchedHasNotEnded(t *testing.T) {
	for _, c := range []struct {
		err   error
		ended bool
	}{{syscall.ESRCH, true}, {syscall.EMFILE, false}, {syscall.ENOSYS, false}} {
		w := proxyWatch{open: func(pid int) (ProcessWatch, error) { return nil, fmt.Errorf("watch process %d: %w", pid, c.err) }}
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
