package probe

import (
	"fmt"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// fastInterval bounds the time between checks of an upstream that is on its way up or down.
const fastInterval = 100 * time.Millisecond

// fastFor is how long after registration, after a new worker generation, or after its last success an upstream that is
// not green is checked at the fast interval. Later its own interval holds, so that thousands of dead upstreams cost no more
// than living ones.
const fastFor = 30 * time.Second

// Verdict is what a single check found.
type Verdict uint8

// The verdicts.
const (
	// Unknown: no worker answered; it says nothing of the upstream.
	Unknown Verdict = iota
	Passed
	Failed
)

// Result is one check as a worker answered it.
type Result struct {
	Verdict    Verdict
	Generation string // of the worker that answered
	Worker     string // its pid
	Text       string // what it said, for people
}

// State is the sum of the checks of one upstream.
type State struct {
	Green  bool
	Red    bool
	Status string
}

// normal fills what a Health leaves open.
func normal(h driver.Health) driver.Health {
	if h.Interval <= 0 {
		h.Interval = time.Second
	}
	if h.Timeout <= 0 {
		h.Timeout = time.Second
	}
	h.Rise = max(h.Rise, 1)
	h.Fall = max(h.Fall, 1)
	return h
}

// tally counts the results of one upstream. It is a value: observe returns the next one.
type tally struct {
	health     driver.Health // normal
	generation string
	passed     int // in a row, at most rise
	failed     int // in a row, at most fall
	red        bool
	risen      bool // was green once
	fastSince  time.Time
	text       string
}

func newTally(h driver.Health, now time.Time) tally {
	return tally{health: normal(h), fastSince: now, text: "INI"}
}

// enter starts the count again for a new worker generation. Red stays: nothing good was seen since.
func (t tally) enter(generation string, now time.Time) tally {
	if generation == "" || generation == t.generation {
		return t
	}
	t.generation, t.passed, t.fastSince = generation, 0, now
	return t
}

// observe adds one result.
func (t tally) observe(r Result, now time.Time) tally {
	if r.Verdict == Unknown {
		return t
	}
	t = t.enter(r.Generation, now)
	t.text = r.Text
	if r.Verdict == Passed {
		t.fastSince = now
		t.failed = 0
		t.passed = min(t.passed+1, t.health.Rise)
		if t.passed == t.health.Rise {
			t.red, t.risen = false, true
		}
		return t
	}
	t.passed = 0
	t.failed = min(t.failed+1, t.health.Fall)
	// With no check asked for, a failed connect keeps a candidate from being green and takes nothing out.
	if t.failed == t.health.Fall && t.health.Kind != driver.HealthNone {
		t.red = true
	}
	return t
}

func (t tally) green() bool { return t.passed >= t.health.Rise && !t.red }

// state sums up for a reader that knows the present generation.
func (t tally) state(generation string) State {
	if generation != t.generation {
		t.passed = 0
	}
	s := State{Green: t.green(), Red: t.red}
	switch {
	case s.Green:
		s.Status = fmt.Sprintf("UP %s", t.text)
	case s.Red:
		s.Status = fmt.Sprintf("DOWN %d/%d %s", t.passed, t.health.Rise, t.text)
	case t.failed > 0:
		s.Status = fmt.Sprintf("FALLING %d/%d %s", t.failed, t.health.Fall, t.text)
	default:
		s.Status = fmt.Sprintf("RISING %d/%d %s", t.passed, t.health.Rise, t.text)
	}
	return s
}

// next says when to check again after a check that started at start; false: not before something changes.
func (t tally) next(start, now time.Time) (time.Time, bool) {
	if t.health.Kind == driver.HealthNone && t.green() {
		return time.Time{}, false
	}
	every := t.health.Interval
	if !t.green() && now.Sub(t.fastSince) < fastFor {
		every = min(every, fastInterval)
	}
	due := start.Add(every)
	if due.Before(now) {
		due = now
	}
	return due, true
}
