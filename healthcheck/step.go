package healthcheck

import (
	"fmt"
	"time"
)

// Phase is the health of a target.
type Phase int

// The phases. A target starts in Starting and never returns to it.
const (
	Starting Phase = iota
	Healthy
	Unhealthy
)

func (p Phase) String() string {
	switch p {
	case Starting:
		return "starting"
	case Healthy:
		return "healthy"
	case Unhealthy:
		return "unhealthy"
	}
	return fmt.Sprintf("Phase(%d)", int(p))
}

// State is what is known of a target. The zero value with Since set to the
// start of probing is the first state.
type State struct {
	Phase Phase
	// Since is when the phase began.
	Since time.Time
	// GraceExpired says that the target was not healthy when its grace ended;
	// it stays set until the target is healthy.
	GraceExpired bool
	// Successes and Failures count the results in a row; one of them is 0.
	Successes, Failures int
	// LastError is the text of the last failed probe, kept over successes so
	// that a flapping target can be explained; empty if none failed.
	LastError   string
	LastErrorAt time.Time
	LastProbeAt time.Time
}

// Result is the outcome of one probe.
type Result struct {
	// Err says in words what failed and where; empty means success.
	Err string
	// Latency is how long the probe took.
	Latency time.Duration
}

// Change is the kind of a Transition.
type Change int

// The changes. None is never delivered.
const (
	None Change = iota
	// BecameHealthy: Starting or Unhealthy to Healthy.
	BecameHealthy
	// BecameUnhealthy: Healthy to Unhealthy.
	BecameUnhealthy
	// GraceExpired: still Starting when the grace ended; the phase is unchanged.
	GraceExpired
)

func (c Change) String() string {
	switch c {
	case None:
		return "none"
	case BecameHealthy:
		return "healthy"
	case BecameUnhealthy:
		return "unhealthy"
	case GraceExpired:
		return "grace expired"
	}
	return fmt.Sprintf("Change(%d)", int(c))
}

// Step gives the state after a probe's result, and what changed. It is pure; c
// must be normalized.
func Step(c Check, s State, r Result, now time.Time) (State, Change) {
	s.LastProbeAt = now
	if r.Err != "" {
		s.Successes = 0
		s.Failures++
		s.LastError, s.LastErrorAt = r.Err, now
		if s.Phase == Healthy && s.Failures >= c.Fall {
			s.Phase, s.Since = Unhealthy, now
			return s, BecameUnhealthy
		}
		return Expire(c, s, now)
	}
	s.Failures = 0
	s.Successes++
	if s.Phase != Healthy && s.Successes >= c.Rise {
		s.Phase, s.Since, s.GraceExpired = Healthy, now, false
		return s, BecameHealthy
	}
	return Expire(c, s, now)
}

// Expire gives the state at a time without a result: the grace may have ended.
func Expire(c Check, s State, now time.Time) (State, Change) {
	if s.Phase == Starting && !s.GraceExpired && now.Sub(s.Since) >= c.Grace {
		s.GraceExpired = true
		return s, GraceExpired
	}
	return s, None
}
