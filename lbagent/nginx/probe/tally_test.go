package probe

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cutover/cutover/lbagent/driver"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func passed(generation string) Result {
	return Result{Verdict: Passed, Generation: generation, Text: "ok"}
}
func failed(generation string) Result {
	return Result{Verdict: Failed, Generation: generation, Text: "no"}
}

func TestTally(t *testing.T) {
	http := driver.Health{Kind: driver.HealthHTTP, Rise: 2, Fall: 3}
	for _, tt := range []struct {
		name       string
		health     driver.Health
		results    []Result
		green, red bool
	}{
		{"nothing seen", http, nil, false, false},
		{"rising", http, []Result{passed("a")}, false, false},
		{"risen", http, []Result{passed("a"), passed("a")}, true, false},
		{"one failure is not green and not red", http, []Result{passed("a"), passed("a"), failed("a")}, false, false},
		{"fallen", http, []Result{passed("a"), passed("a"), failed("a"), failed("a"), failed("a")}, false, true},
		{"red until risen", http, []Result{failed("a"), failed("a"), failed("a"), passed("a")}, false, true},
		{"red and risen", http, []Result{failed("a"), failed("a"), failed("a"), passed("a"), passed("a")}, true, false},
		{"failures must be in a row", http, []Result{failed("a"), failed("a"), passed("a"), failed("a"), failed("a")}, false, false},
		{"a new generation starts again", http, []Result{passed("a"), passed("a"), passed("b")}, false, false},
		{"red outlives a generation", http, []Result{failed("a"), failed("a"), failed("a"), passed("b")}, false, true},
		{"no worker answered", http, []Result{passed("a"), {}, passed("a")}, true, false},
		{"no check: one connect", driver.Health{}, []Result{passed("a")}, true, false},
		{"no check: never red", driver.Health{}, []Result{failed("a"), failed("a"), failed("a")}, false, false},
	} {
		tl := newTally(tt.health, noon)
		generation := ""
		for _, r := range tt.results {
			tl = tl.observe(r, noon)
			if r.Generation != "" {
				generation = r.Generation
			}
		}
		if s := tl.state(generation); s.Green != tt.green || s.Red != tt.red {
			t.Errorf("%s: %+v, want green %t, red %t", tt.name, s, tt.green, tt.red)
		}
		if s := tl.state("another"); s.Green {
			t.Errorf("%s: green for a generation that has seen nothing: %+v", tt.name, s)
		}
	}
}

func TestTallyNext(t *testing.T) {
	slow := driver.Health{Kind: driver.HealthTCP, Interval: 10 * time.Second, Rise: 1, Fall: 1}
	tl := newTally(slow, noon)
	after := func(tl tally, now time.Time) time.Duration {
		due, ok := tl.next(now, now)
		if !ok {
			return -1
		}
		return due.Sub(now)
	}
	if d := after(tl, noon); d != fastInterval {
		t.Errorf("before green: checked again after %s, want %s", d, fastInterval)
	}
	if d := after(tl, noon.Add(time.Minute)); d != 10*time.Second {
		t.Errorf("dead for a minute: checked again after %s, want its own interval", d)
	}
	tl = tl.observe(passed("a"), noon)
	if d := after(tl, noon); d != 10*time.Second {
		t.Errorf("green: checked again after %s, want its own interval", d)
	}
	none := newTally(driver.Health{}, noon).observe(passed("a"), noon)
	if d := after(none, noon); d != -1 {
		t.Errorf("no check and connected: checked again after %s", d)
	}
}

// Laws: green and red exclude each other; green needs the last rise results to be successes of one generation.
func TestTallyLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := driver.Health{
			Kind: rapid.SampledFrom([]driver.HealthKind{driver.HealthNone, driver.HealthTCP, driver.HealthHTTP}).Draw(t, "kind"),
			Rise: rapid.IntRange(1, 4).Draw(t, "rise"), Fall: rapid.IntRange(1, 4).Draw(t, "fall"),
		}
		tl := newTally(h, noon)
		run, last := 0, ""
		for range rapid.IntRange(0, 30).Draw(t, "n") {
			r := Result{
				Verdict:    rapid.SampledFrom([]Verdict{Unknown, Passed, Passed, Failed}).Draw(t, "verdict"),
				Generation: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "generation"),
			}
			tl = tl.observe(r, noon)
			switch {
			case r.Verdict == Unknown:
			case r.Verdict == Failed:
				run, last = 0, r.Generation
			case r.Generation != last:
				run, last = 1, r.Generation
			default:
				run++
			}
			s := tl.state(last)
			if s.Green && s.Red {
				t.Fatalf("green and red: %+v", s)
			}
			if s.Green != (run >= h.Rise) {
				t.Fatalf("green is %t after %d successes in a row, rise %d: %+v", s.Green, run, h.Rise, tl)
			}
		}
	})
}
