package participant

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Policy is what a Host does about a difference that somebody else made.
type Policy string

// The policies. The strings are in the journal: never change one.
const (
	// PolicyRepair puts what is journaled in its place again. The default.
	PolicyRepair Policy = "repair"
	// PolicyReport leaves it alone and says so. What a transaction or an Amendment names is brought to its want all the
	// same, and so is a Section whose replaced upstreams still drain.
	PolicyReport Policy = "report"
)

// Cause is the likely cause of a Drift. The numbers are those of DriftCause in host.proto.
type Cause uint8

// The causes; host.proto says what each means.
const (
	EditedFile Cause = iota + 1
	ForeignCommand
	RestartedProxy
	ChangedBase
	UnknownSection
	Refused
)

var causeNames = [...]string{
	EditedFile: "edited-file", ForeignCommand: "foreign-command", RestartedProxy: "restarted-proxy", ChangedBase: "changed-base",
	UnknownSection: "unknown-section", Refused: "refused",
}

// String returns the word used in logs, metrics and by the command line.
func (c Cause) String() string {
	if int(c) < len(causeNames) && causeNames[c] != "" {
		return causeNames[c]
	}
	return fmt.Sprintf("cause(%d)", uint8(c))
}

// Drift is one difference between what is journaled, on disk and running that no message explains. An open transaction, an
// upstream that drains and a removed server that is only remembered are none.
type Drift struct {
	App     string // "": of what all Apps share, or of nobody
	Cause   Cause
	Since   time.Time // when this Host saw it first
	Place   string
	Summary string
	// Diff has a line "-" for what should be and "+" for what is.
	Diff string
	// Left: the policy leaves it alone. Manual: only the owner can put it right.
	Left   bool
	Manual bool
	// Repaired is when it was put right; zero while it stands.
	Repaired time.Time
}

// Surveyed is a Survey of the driver: everything that differs on disk, and in the proxy of no App. Started is when it
// began; More counts what was left out.
type Surveyed struct {
	Started time.Time
	Drifts  []Drift
	More    int
}

// Mended is the end of a Mend.
type Mended struct{ Err error }

// Mend asks the driver to put right what a Survey found.
type Mend struct{}

// Noticed tells of a Drift once, for logs and metrics.
type Noticed struct{ Drift Drift }

// Repaired tells once that a Drift is gone.
type Repaired struct{ Drift Drift }

func (Surveyed) event()  {}
func (Mended) event()    {}
func (Mend) effect()     {}
func (Noticed) effect()  {}
func (Repaired) effect() {}

const (
	// maxRepaired bounds the repairs that are remembered for people; the journal has them all.
	maxRepaired = 16
	// Places of the differences that the machine finds by itself.
	runningPlace   = "the running proxy"
	publishedPlace = "the published files"
)

// survey is what the last Survey found, and how mending it goes.
type survey struct {
	drifts  []Drift // sorted by place
	more    int
	mending bool
	// spent: a Mend was asked for what is in drifts. What is left of it is not known before the next Survey.
	spent   bool
	mended  time.Time // when the last Mend ended
	tries   int
	retryAt time.Time
	err     error
}

// Policy is what this Host does about drift.
func (s *State) Policy() Policy { return cmp.Or(s.Durable.Drift, PolicyRepair) }

// Drifts returns every difference that stands, sorted by App and place.
func (s *State) Drifts() []Drift {
	out := slices.Clone(s.survey.drifts)
	for app := range s.restless {
		if l := s.live.get(app); l != nil && l.drift != nil {
			out = append(out, *l.drift)
		}
	}
	if errors.Is(s.readErr, driver.ErrProxyMismatch) {
		cause := ChangedBase
		if errors.As(s.readErr, new(*driver.NotListeningError)) {
			cause = ForeignCommand
		}
		out = append(out, Drift{Cause: cause, Since: s.readErrAt, Place: runningPlace, Summary: s.readErr.Error(),
			Diff: "+" + s.readErr.Error() + "\n", Manual: true})
	}
	for i := range out {
		out[i].Left = s.leaves(&out[i])
	}
	slices.SortFunc(out, func(a, b Drift) int { return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Place, b.Place)) })
	return out
}

// DriftsOf returns those of one App; "" for those of none.
func (s *State) DriftsOf(app string) []Drift {
	var out []Drift
	for _, d := range s.survey.drifts {
		if d.App == app {
			out = append(out, d)
		}
	}
	if l := s.live.get(app); l != nil && l.drift != nil {
		out = append(out, *l.drift)
	}
	for i := range out {
		out[i].Left = s.leaves(&out[i])
	}
	return out
}

// DriftsLeftOut counts the differences that the last Survey did not list.
func (s *State) DriftsLeftOut() int { return s.survey.more }

// RecentRepairs returns the last differences that were put right, oldest first.
func (s *State) RecentRepairs() []Drift { return s.repaired }

// leaves says whether the policy leaves the difference alone now.
func (s *State) leaves(d *Drift) bool {
	if s.Policy() != PolicyReport || d.Cause == RestartedProxy || d.Cause == Refused || d.Cause == UnknownSection {
		return false // a restart takes back what was journaled; what is unknown, the next Sync decides
	}
	return d.App == "" || s.untouched(d.App)
}

// untouched: nothing of ours is under way for the App, so what differs there is somebody else's doing.
func (s *State) untouched(app string) bool {
	sec := s.section(app)
	return s.openOn(app) == nil && !sec.Unsettled && len(sec.Draining) == 0
}

// left: the App differs, and the policy leaves it so.
func (m *stepper) left(app string) bool {
	if m.s.Policy() != PolicyReport || !m.s.untouched(app) {
		return false
	}
	l := m.s.live.get(app)
	return l != nil && l.drift != nil && m.s.leaves(l.drift)
}

// stepSurveyed takes in what the driver found on disk. What a Publish or a Mend of ours has changed since is passed over:
// the next Survey tells.
func (m *stepper) stepSurveyed(ev Surveyed) {
	sv := &m.s.survey
	if sv.mending || ev.Started.Before(sv.mended) {
		return
	}
	known := map[string]Drift{}
	for _, d := range sv.drifts {
		known[d.App+"\x00"+d.Place] = d
	}
	var now []Drift
	fixable := false
	for _, d := range ev.Drifts {
		if l := m.s.live.get(d.App); d.App != "" && l != nil && (l.work != nil && l.work.Publish != nil || ev.Started.Before(l.pubAt)) {
			continue
		}
		key := d.App + "\x00" + d.Place
		d.Since = m.now
		if old, ok := known[key]; ok {
			d.Since = old.Since
		} else {
			m.emit(Noticed{Drift: d})
			m.told(d.App)
		}
		delete(known, key)
		fixable = fixable || !d.Manual
		now = append(now, d)
	}
	for _, key := range slices.Sorted(maps.Keys(known)) {
		d := known[key]
		m.told(d.App)
		if sv.tries > 0 && !d.Manual {
			m.repairedNow(d)
		}
	}
	if !fixable {
		sv.tries, sv.err = 0, nil
	}
	sv.drifts, sv.more, sv.spent = now, ev.More, false
}

func (m *stepper) told(app string) {
	if app != "" {
		m.reports[app] = true
	}
}

func (m *stepper) stepMended(ev Mended) {
	m.s.survey.mending, m.s.survey.mended, m.s.survey.err = false, m.now, ev.Err
	if m.s.Broken != nil {
		return
	}
	note := "what differed is put right"
	if ev.Err != nil {
		note = fmt.Sprintf("what differs could not be put right: %.500v", ev.Err)
	}
	m.record(Record{Kind: KindSettled, Note: note})
}

// mend puts right what a Survey found, if the policy says so. The record comes first (NO-SILENT-CHANGE). A Mend that does
// not help, as the next Survey says, is tried again after growing pauses.
func (m *stepper) mend() {
	sv := &m.s.survey
	if sv.mending || sv.spent || m.s.Policy() != PolicyRepair || m.now.Before(sv.retryAt) {
		return
	}
	var places []string
	for _, d := range sv.drifts {
		if !d.Manual {
			places = append(places, d.Place)
		}
	}
	if len(places) == 0 {
		return
	}
	slices.Sort(places)
	places = slices.Compact(places)
	note := strings.Join(places[:min(len(places), 8)], ", ")
	if len(places) > 8 {
		note += fmt.Sprintf(" and %d more", len(places)-8)
	}
	m.record(Record{Kind: KindDrift, Note: "put right: " + note})
	sv.tries++
	sv.mending, sv.spent, sv.retryAt = true, true, m.now.Add(backoff(sv.tries))
	m.emit(Mend{})
}

// notice compares the newest reading of the App with its want, and notes a difference that no message of ours explains.
func (m *stepper) notice(app string) {
	l := m.wanted(app)
	r := l.reading
	if r == nil || r.process != m.s.Process || l.work != nil && l.work.changes() || l.conv.known && r.started.Before(l.conv.at) {
		return // nothing is known of what runs now
	}
	away := m.changedWhileAway(app, l)
	if r.section.Digest == l.wantSum && !m.isStray(app) && !away {
		if l.drift != nil {
			l = m.live(app)
			m.repairedNow(*l.drift)
			l.drift = nil
			m.reports[app] = true
		}
		if l.equalIn != m.s.Process {
			m.live(app).equalIn = m.s.Process
		}
		return
	}
	cause := m.cause(app, l)
	if cause == 0 {
		return
	}
	d := Drift{App: app, Cause: cause, Since: r.at, Place: runningPlace, Summary: Difference(*l.want, r.section),
		Diff: DifferenceLines(*l.want, r.section)}
	switch {
	case away && r.section.Digest == l.wantSum:
		d.Place, d.Cause = publishedPlace, EditedFile
		d.Summary = "the published files of " + app + " are not those that the journal knows: somebody changed them while no agent ran"
	case cause == UnknownSection:
		d.Summary = "the proxy or its files hold " + app + ", which this host's journal does not know"
	case cause == Refused && l.lastErr != nil:
		d.Summary = "what should run cannot be brought into the proxy: " + refusalOf(app, l.lastErr).Message
	}
	if old := l.drift; old != nil {
		d.Since = old.Since
		if old.Cause != Refused && cause != Refused {
			d.Cause = old.Cause // the first look is the nearest to the cause
		}
		if *old == d {
			return
		}
	} else {
		m.emit(Noticed{Drift: d})
	}
	l = m.live(app)
	l.drift = &d
	m.reports[app] = true
}

// changedWhileAway: the published files are not those of the last settled want, and nothing of ours is under way.
func (m *stepper) changedWhileAway(app string, l *live) bool {
	return l.pub.known && l.pub.want == never && l.work == nil && m.s.untouched(app)
}

// cause is the likely cause of a difference; 0: it is none, a change of ours is on its way.
func (m *stepper) cause(app string, l *live) Cause {
	sec := m.s.section(app)
	switch {
	case m.isStray(app):
		return UnknownSection
	case m.s.openOn(app) != nil:
		return 0 // the transaction has the say; what stood before it is put right by it
	case l.drift != nil && l.tries <= maxSetAttempts:
		return l.drift.Cause
	case l.tries > maxSetAttempts:
		return Refused
	case sec.Unsettled || l.conv.known && l.conv.digest != l.wantSum:
		return 0
	case slices.ContainsFunc(m.s.survey.drifts, func(d Drift) bool { return d.App == app }):
		return EditedFile
	case l.equalIn != (driver.Process{}) && l.equalIn != m.s.Process:
		return RestartedProxy
	}
	return ForeignCommand
}

// repairedNow remembers a difference that is no more.
func (m *stepper) repairedNow(d Drift) {
	d.Repaired = m.now
	m.emit(Repaired{Drift: d})
	keep := m.s.repaired
	if len(keep) >= maxRepaired {
		keep = keep[len(keep)-maxRepaired+1:]
	}
	m.s.repaired = append(slices.Clone(keep), d)
}

// held is the want, and with it what somebody else put beside it as long as nothing of the want can serve and that does
// (NEVER-ZERO). what is held gets the checks of the want's upstreams. It is the want itself where nothing has to be held.
func (m *stepper) held(l *live) driver.Section {
	want, r := *l.want, l.reading
	if r == nil || r.process != m.s.Process {
		return want
	}
	names := map[string]bool{}
	var like *driver.Upstream
	for i := range want.Upstreams {
		u := &want.Upstreams[i]
		names[u.Name] = true
		if u.Mode == driver.Serving && like == nil {
			like = u
		}
		if row := r.row(u.Name); row != nil && u.Mode == driver.Serving && (row.Green || !row.Red && !l.holding) {
			return want
		}
	}
	if like == nil {
		return want // it is empty because somebody said so
	}
	out := want
	for _, row := range r.section.Rows {
		if names[row.Name] || row.Mode != driver.Serving || row.Red || row.Weight < 1 || !row.Address.IsValid() {
			continue
		}
		if len(out.Upstreams) == len(want.Upstreams) {
			out.Upstreams = slices.Clone(want.Upstreams)
		}
		out.Upstreams = append(out.Upstreams, driver.Upstream{Name: row.Name, Address: row.Address, Weight: row.Weight,
			Mode: driver.Serving, Health: like.Health})
	}
	return out
}

// DifferenceLines is what should run ("-") against what runs ("+"), as far as it differs.
func DifferenceLines(want driver.Section, have driver.SectionReading) string {
	var minus, plus []string
	for _, r := range driver.SortedRoutes(want.Routes) {
		minus = append(minus, routeLine(r))
	}
	for _, r := range have.Routes {
		plus = append(plus, routeLine(r))
	}
	for _, u := range driver.SortedUpstreams(want.Upstreams) {
		minus = append(minus, upstreamLine(u.Name, u.Address.String(), u.Weight, u.Mode))
	}
	for _, r := range have.Rows {
		plus = append(plus, upstreamLine(r.Name, r.Address.String(), r.Weight, r.Mode))
	}
	plus = append(plus, have.Foreign...)
	var b strings.Builder
	for _, line := range minus {
		if !slices.Contains(plus, line) {
			b.WriteString("-" + line + "\n")
		}
	}
	for _, line := range plus {
		if !slices.Contains(minus, line) {
			b.WriteString("+" + line + "\n")
		}
	}
	return b.String()
}

func routeLine(r driver.Route) string {
	line := "route " + r.Host + r.Path
	if r.Strip {
		line += " strip"
	}
	return line
}

func upstreamLine(name, address string, weight int, mode driver.Mode) string {
	return fmt.Sprintf("upstream %s %s weight %d %s", name, address, weight, mode)
}
