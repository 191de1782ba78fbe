package participant

import (
	"fmt"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// TrafficOrder says whether the Host may get client traffic. The numbers are those of TrafficOrder in host.proto.
type TrafficOrder uint8

// The orders. TrafficUnknown is that of a Host to which no orchestrator has spoken: it may be one that nobody admitted.
const (
	TrafficUnknown TrafficOrder = iota
	TrafficIn
	TrafficOut
)

// Traffic is the newest order. It is durable: a Host that is out stays out when it starts again.
type Traffic struct {
	Order  TrafficOrder `json:"order"`
	Origin Origin       `json:"origin,omitzero"`
	At     time.Time    `json:"at,omitzero"`
}

// stepTraffic journals the order. It changes nothing of the proxy: only what the readiness endpoint answers.
func (m *stepper) stepTraffic(ev SetTraffic) {
	if m.s.Durable.Traffic.Order != ev.Order {
		next := Traffic{Order: ev.Order, Origin: ev.Origin, At: m.now}
		m.record(Record{Kind: KindTraffic, Origin: ev.Origin, Traffic: &next})
	}
	m.reply(ev.To, Answer{})
}

// noteShown notes that every Section was seen to serve what is committed, or aimed at, by the proxy that runs now. That is
// asked once for each start of a proxy (its master): later a Section that is in motion, or that somebody else has changed,
// must not take the whole Host out of traffic.
func (m *stepper) noteShown() {
	if m.s.shown == m.s.Process.MasterPID && m.s.shown != 0 {
		return
	}
	for app, sec := range m.s.Durable.Sections {
		if sec.Stray || m.shows(app, sec) {
			continue
		}
		m.s.unshown = app
		return
	}
	m.s.shown, m.s.unshown = m.s.Process.MasterPID, ""
}

// shows: the newest reading equals the want, or at least sends requests to nothing that is not wanted, and to something
// that is.
func (m *stepper) shows(app string, sec *SectionState) bool {
	l := m.wanted(app)
	r := l.reading
	if r == nil || r.process != m.s.Process {
		return false
	}
	if r.section.Digest == l.wantSum {
		return true
	}
	serving := 0
	for _, row := range r.section.Rows {
		if row.Mode != driver.Serving {
			continue
		}
		wanted := false
		for _, u := range l.want.Upstreams {
			wanted = wanted || u.Name == row.Name && u.Address == row.Address && u.Mode == driver.Serving
		}
		if !wanted {
			return false
		}
		if !row.Red {
			serving++
		}
	}
	return serving > 0 || len(sec.Committed.Upstreams) == 0
}

// Unready says why this Host should get no traffic; empty if it may. Nothing of it depends on the orchestrator being there
// (FAIL-STATIC). What only keeps the Host from taking changes is not among it: a full disk, a base configuration that is
// bad, an abort that could not be undone (both colours live, UNDO). That may befall all Hosts of a Group at once, and they
// serve all the same.
func (s *State) Unready() []string {
	var out []string
	switch t := s.Durable.Traffic; t.Order {
	case TrafficIn:
	case TrafficOut:
		why := "this host is to be out of traffic"
		if t.Origin.Actor != "" {
			why += fmt.Sprintf(" (%s: %s)", t.Origin.Actor, t.Origin.Reason)
		}
		out = append(out, why)
	case TrafficUnknown:
		out = append(out, "no orchestrator has said yet that this host may get traffic")
	}
	switch {
	case s.readErr != nil:
		out = append(out, fmt.Sprintf("the proxy cannot be read: %v", s.readErr))
	case s.Process.WorkerPID == 0:
		out = append(out, "the proxy has not been read yet")
	case s.shown != s.Process.MasterPID:
		out = append(out, fmt.Sprintf("the proxy has not been seen to serve what is committed yet (%s)", s.unshown))
	}
	return out
}
