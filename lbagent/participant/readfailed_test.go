package participant

import (
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// A reading that fails says nothing against one that began later and has worked: a reading of all goes on for long beside
// the others.
func TestAnOldReadingThatFailsSaysNothing(t *testing.T) {
	now := time.Unix(1000, 0)
	s := Recover(Identity{Cluster: "test", Group: "public"}, Durable{}, now)
	proc := driver.Process{MasterPID: 1, WorkerPID: 2, StartedAt: time.Unix(1, 0)}
	step := func(ev Event) {
		now = now.Add(time.Millisecond)
		s, _ = Step(s, ev, now)
	}
	step(Reading{Started: now, All: true, Reading: driver.Reading{Process: proc, At: now}})
	before := now
	now = now.Add(5 * time.Second)
	step(Reading{Started: now, Apps: []string{"shop"}, Reading: driver.Reading{Process: proc, At: now}})
	step(ReadFailed{Started: before, Err: driver.ErrBusy})
	if p := s.Problems(); len(p) > 0 {
		t.Errorf("%v, and a later reading has worked", p)
	}
	step(ReadFailed{Started: now, Err: driver.ErrBusy})
	if len(s.Problems()) == 0 {
		t.Error("the newest reading has failed, and nothing is said of it")
	}
	step(Reading{Started: before, All: true, Reading: driver.Reading{Process: proc, At: before}})
	if len(s.Problems()) == 0 {
		t.Error("a reading that began before the one that failed takes that back")
	}
	step(Reading{Started: now, All: true, Reading: driver.Reading{Process: proc, At: now}})
	if p := s.Problems(); len(p) > 0 {
		t.Errorf("%v, and the newest reading has worked", p)
	}
}
