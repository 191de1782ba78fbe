package participant

import (
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// A check in flight does not make an upstream ill in what people see; a failed one does, and one that never was green is
// not healthy.
func TestACheckInFlightIsToldAsHealthy(t *testing.T) {
	proc := driver.Process{MasterPID: 1, WorkerPID: 2, StartedAt: time.Unix(1, 0)}
	other := driver.Process{MasterPID: 1, WorkerPID: 3, StartedAt: time.Unix(9, 0)}
	read := func(p driver.Process, row driver.Row, before *reading) *reading {
		row.Name = "u"
		r := &reading{process: p, section: driver.SectionReading{Rows: []driver.Row{row}}}
		r.stay(before)
		return r
	}
	green := read(proc, driver.Row{Green: true}, nil)
	inFlight := read(proc, driver.Row{}, green)
	for name, tt := range map[string]struct {
		r    *reading
		want bool
	}{
		"in flight after green":           {inFlight, true},
		"in flight twice":                 {read(proc, driver.Row{}, inFlight), true},
		"red":                             {read(proc, driver.Row{Red: true}, inFlight), false},
		"rising for the first time":       {read(proc, driver.Row{}, read(proc, driver.Row{}, nil)), false},
		"in flight after red":             {read(proc, driver.Row{}, read(proc, driver.Row{Red: true}, green)), false},
		"in flight in another process":    {read(other, driver.Row{}, green), false},
		"the first reading after a start": {read(proc, driver.Row{}, nil), false},
	} {
		if got := tt.r.steady["u"]; got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
