package haproxy

import (
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// A worker that has the pid of the one before, as after the restart of a container, has not loaded what that one had.
func TestTaintIsOfAProcess(t *testing.T) {
	began := time.Now()
	bad := driver.Process{MasterPID: 1, WorkerPID: 8, StartedAt: began}
	next := bad
	next.StartedAt = began.Add(time.Minute)
	d := &Driver{}
	for _, c := range []struct {
		now    driver.Process
		loaded bool
		want   driver.Process
	}{{bad, true, bad}, {bad, false, bad}, {next, false, driver.Process{}}, {next, true, next}} {
		if got := d.taint(d.tainted, c.now, c.loaded); got != c.want || d.tainted != c.want {
			t.Errorf("%+v, loaded %t: %+v is tainted, want %+v", c.now, c.loaded, got, c.want)
		}
	}
}
