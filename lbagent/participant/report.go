package participant

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Evidence is what the newest reading of the App says. ReadAt is zero if there is none.
func (s *State) Evidence(app string) Evidence {
	sec := s.section(app)
	ev := Evidence{App: app, Version: sec.Version}
	t := s.openOn(app)
	if t != nil && t.Amend == nil {
		ev.Order = t.Order
	}
	tasks := map[string]string{}
	note := func(ups []Upstream) {
		for _, u := range ups {
			tasks[u.Name] = u.TaskID
		}
	}
	draining := map[string]Draining{}
	for _, d := range sec.Draining {
		tasks[d.Upstream.Name] = d.Upstream.TaskID
		draining[d.Upstream.Name] = d
	}
	note(sec.Committed.Upstreams)
	if t != nil {
		if c := t.change(app); c != nil {
			note(c.Target.Upstreams)
			note(c.Replacements)
			for _, u := range c.Target.Upstreams {
				delete(draining, u.Name) // its clock stands still: nothing of it is drained
			}
		}
	}
	if l := s.live.get(app); l != nil && l.reading != nil {
		r := l.reading
		ev.Process, ev.ReadAt, ev.Digest, ev.Routes = r.process, r.at, r.section.Digest, r.section.Routes
		for _, row := range r.section.Rows {
			st := UpstreamStatus{Name: row.Name, Address: row.Address, Weight: row.Weight, Mode: row.Mode, Registered: true,
				Healthy: row.Green || r.steady[row.Name], Status: row.Status, Sessions: row.Sessions, TaskID: tasks[row.Name]}
			if d, ok := draining[row.Name]; ok && !d.Held && row.Mode == driver.Draining && row.Sessions == 0 && l.provenByReading() {
				st.Drained, st.Forced = true, l.cut[row.Name]
			}
			ev.Rows = append(ev.Rows, st)
		}
	}
	for _, d := range sec.Drained {
		if slices.ContainsFunc(ev.Rows, func(r UpstreamStatus) bool { return r.Name == d.Upstream.Name }) {
			continue
		}
		ev.Rows = append(ev.Rows, UpstreamStatus{Name: d.Upstream.Name, Address: d.Upstream.Address, Weight: d.Upstream.Weight,
			Mode: driver.Draining, Status: "gone", Drained: true, Forced: d.Forced, TaskID: d.Upstream.TaskID})
	}
	return ev
}

// provenByReading: the newest reading began after the last change and shows the want.
func (l *live) provenByReading() bool {
	return (l.work == nil || !l.work.changes()) && l.conv.known && l.conv.digest == l.wantSum && l.reading != nil &&
		!l.reading.started.Before(l.conv.at) && l.reading.section.Digest == l.wantSum
}

// SectionReport is what a Watch tells of one App.
type SectionReport struct {
	App      string
	Version  Version
	Removed  bool
	Open     *OpenReport
	Evidence Evidence
	Drifts   []Drift
}

// OpenReport is the transaction that is open on a Section.
type OpenReport struct {
	TxnID    string
	Order    uint64
	Phase    Phase
	Fallback bool
	Refusal  *Refusal
	Apps     []string
}

// Report tells of one App; level-triggered, so a lost one costs nothing.
func (s *State) Report(app string) SectionReport {
	sec := s.section(app)
	r := SectionReport{App: app, Version: sec.Version, Removed: sec.Removed, Evidence: s.Evidence(app), Drifts: s.DriftsOf(app)}
	if t := s.openOn(app); t != nil && t.Amend == nil {
		r.Open = &OpenReport{TxnID: t.ID, Order: t.Order, Phase: t.Phase, Fallback: t.Fallback, Refusal: t.Refusal, Apps: t.names()}
	}
	return r
}

// Apps lists every App that the journal or the proxy knows, sorted.
func (s *State) Apps() []string {
	set := map[string]struct{}{}
	for app := range s.Durable.Sections {
		set[app] = struct{}{}
	}
	s.live.each(func(app string, _ *live) { set[app] = struct{}{} })
	for id := range s.attempts {
		for _, app := range s.txn(id).names() {
			set[app] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// Want is the Section that the proxy should hold for the App now.
func (s *State) Want(app string) driver.Section {
	t := s.openOn(app)
	stage := undone
	if t != nil {
		if s.Durable.Txns[t.ID] == nil {
			t = nil
		} else if t.Phase.restoring() {
			stage = s.attempts[t.ID].stage[app]
		}
	}
	return want(s.section(app), t, stage)
}

// Files reports the driver's digest of the App's published files, and whether they are what the want asks for.
func (s *State) Files(app string) (digest string, agree bool) {
	l := s.live.get(app)
	if l == nil || !l.pub.known {
		return "", false
	}
	return l.pub.digest, l.pub.want == driver.Digest(published(s.Want(app)))
}

// Problems says why this Host cannot take changes now; empty if it can.
func (s *State) Problems() []string {
	var out []string
	if s.Broken != nil {
		out = append(out, s.Broken.Message)
	}
	if s.readErr != nil {
		out = append(out, fmt.Sprintf("the proxy cannot be read: %v", s.readErr))
	}
	return append(out, s.unrestored()...)
}

// unrestored says which Sections an abort could not bring back.
func (s *State) unrestored() []string {
	var out []string
	for _, id := range s.openIDs() { // never all Apps: this is asked for every message of every Watch
		t := s.txn(id)
		if t.Phase != RestoreFailedPhase || t.Refusal == nil {
			continue
		}
		for _, app := range t.names() {
			out = append(out, fmt.Sprintf("%s is not restored: %s", app, t.Refusal.Message))
		}
		if len(out) > 16 {
			break
		}
	}
	return out
}

// tellsAs: nothing in r is worth a report after was. Worth one is everything but the time, and of the sessions only whether
// there are any.
func (r *reading) tellsAs(was *reading) bool {
	if was == nil || r.process != was.process || r.section.Digest != was.section.Digest || len(r.section.Rows) != len(was.section.Rows) {
		return false
	}
	for i := range r.section.Rows {
		a, b := &r.section.Rows[i], &was.section.Rows[i]
		if a.Name != b.Name || a.Red != b.Red || (a.Green || r.steady[a.Name]) != (b.Green || was.steady[b.Name]) || (a.Sessions > 0) != (b.Sessions > 0) {
			return false
		}
	}
	return true
}

// ReadPlan says what the runner should read: Urgent Apps as often as it can afford (about 20 ms), Watched ones less so
// (about 200 ms). All: everything, now. Failed: the proxy could not be read, which keeps this Host out of traffic until a
// reading works.
type ReadPlan struct {
	Urgent  []string
	Watched []string
	All     bool
	Failed  bool
}

// ReadPlan looks at what waits for a reading.
func (s *State) ReadPlan() ReadPlan {
	var p ReadPlan
	if s.Broken != nil {
		return p
	}
	p.All = s.lastAll.Before(s.readAll) || s.lastAll.IsZero()
	p.Failed = s.readErr != nil
	urgent := map[string]bool{}
	for _, w := range s.waits {
		for _, app := range w.apps {
			urgent[app] = true
		}
	}
	for _, w := range s.verifies {
		for _, id := range w.ids {
			if t := s.txn(id); t != nil {
				for _, app := range t.names() {
					urgent[app] = true
				}
			}
		}
	}
	for id, a := range s.attempts {
		t := s.txn(id)
		for _, app := range t.names() {
			switch {
			case t.Phase == Preparing, t.Phase == Activating, t.Phase.restoring(), len(a.prepare) > 0, !a.asked.IsZero():
				urgent[app] = true
			default:
				if !urgent[app] {
					p.Watched = append(p.Watched, app)
				}
			}
		}
	}
	for app := range s.restless {
		if l := s.live.get(app); l != nil && (!l.conv.known && (l.drift == nil || !s.leaves(l.drift)) || l.tries > 0 || !l.readSince(s.Process)) {
			urgent[app] = true
		}
	}
	for app := range s.restless {
		if sec := s.Durable.Sections[app]; sec != nil && len(sec.Draining) > 0 && !urgent[app] {
			p.Watched = append(p.Watched, app)
		}
	}
	for app := range urgent {
		if l := s.live.get(app); l != nil && l.work != nil && l.work.changes() {
			continue // a reading now would prove nothing
		}
		p.Urgent = append(p.Urgent, app)
	}
	slices.Sort(p.Urgent)
	slices.Sort(p.Watched)
	p.Watched = slices.Compact(p.Watched)
	return p
}

// Wake is when Step wants a Tick at the latest; the zero time if no deadline is pending.
func (s *State) Wake(now time.Time) time.Time {
	var at time.Time
	earlier := func(t time.Time) {
		if t.IsZero() {
			return
		}
		if !t.After(now) { // it was due in this Step already, and waits for something else
			t = now.Add(openTick)
		}
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	if s.Broken != nil {
		return at
	}
	if len(s.attempts)+len(s.waits)+len(s.verifies) > 0 {
		earlier(now.Add(openTick))
	}
	if len(s.survey.drifts) > 0 && !s.survey.mending && !s.survey.spent && s.Policy() == PolicyRepair {
		earlier(s.survey.retryAt)
	}
	for app := range s.restless {
		if l := s.live.get(app); l != nil && l.work == nil && l.tries > 0 {
			earlier(l.retryAt)
		}
		if sec := s.Durable.Sections[app]; sec != nil {
			for _, d := range sec.Draining {
				if d.Running {
					earlier(d.Until)
				}
			}
		}
	}
	return at
}
