package orchestrator

import (
	"github.com/cutover/cutover/healthcheck"
	"github.com/cutover/cutover/orchestrator/engine"
)

// probes gives the engine its Prober, in the engine's words.
type probes struct{ prober *healthcheck.Prober }

var _ engine.Prober = probes{}

func (p probes) Add(t engine.ProbeTarget) error {
	check := healthcheck.Check{Kind: healthcheck.TCP, Interval: t.Interval, Timeout: t.Timeout, Grace: t.Grace, Rise: t.Rise, Fall: t.Fall}
	if t.HTTPPath != "" {
		check.Kind, check.Path = healthcheck.HTTP, t.HTTPPath
	}
	return p.prober.Add(healthcheck.Target{ID: t.Task, Address: t.Address, Check: check, Settled: t.Settled})
}

func (p probes) Remove(task string) { p.prober.Remove(task) }

func (p probes) LastError(task string) string {
	s, ok := p.prober.State(task)
	if !ok {
		return ""
	}
	return s.LastError
}

// probeEvent turns a change that the prober saw into the engine's words; false if it is none that matters.
func probeEvent(e healthcheck.Event) (engine.ProbeEvent, bool) {
	out := engine.ProbeEvent{Task: e.ID, Why: e.State.LastError}
	switch e.Change {
	case healthcheck.BecameHealthy:
		out.Verdict, out.Why = engine.ProbeHealthy, ""
	case healthcheck.BecameUnhealthy:
		out.Verdict = engine.ProbeUnhealthy
	case healthcheck.GraceExpired:
		out.Verdict = engine.ProbeOverdue
	default:
		return out, false
	}
	return out, true
}
