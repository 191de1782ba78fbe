package participant

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// verdict is what the last reading of a Section proves about its want.
type verdict uint8

const (
	unproven verdict = iota // no reading began after the last change, in the process that runs now
	differs                 // the running set is not the wanted one
	equal                   // it is
)

// wanted returns the want of the App and the digests of it and of its published part. They are cached by the identity
// of the journaled values, which never change in place.
func (m *stepper) wanted(app string) *live {
	sec := m.s.section(app)
	t := m.s.openOn(app)
	stage := undone
	if t != nil {
		if m.s.Durable.Txns[t.ID] == nil {
			t = nil // not staged yet: the want is that of the committed Section
		} else if t.Phase.restoring() {
			stage = m.s.attempts[t.ID].stage[app]
		}
	}
	l := m.s.live.get(app)
	if l != nil && l.want != nil && l.wantTxn == t && l.wantAt == stage && sameSection(l.wantSec, sec) {
		return l
	}
	l = m.live(app)
	w := want(sec, t, stage)
	l.want, l.wantTxn, l.wantSec, l.wantAt = &w, t, sec, stage
	l.wantSum = driver.Digest(w)
	l.pubSum = driver.Digest(published(w))
	return l
}

func sameSection(a, b *SectionState) bool {
	return a == b || a != nil && b != nil && absent(a) && absent(b)
}

func absent(s *SectionState) bool {
	return len(s.Committed.Routes) == 0 && len(s.Committed.Upstreams) == 0 && len(s.Draining) == 0
}

// proof says what the newest reading proves, if it began at or after since.
func (m *stepper) proof(app string, since time.Time) (*reading, verdict) {
	l := m.wanted(app)
	r := l.reading
	if !l.conv.known && r != nil && r.process == m.s.Process && r.section.Digest == l.wantSum && (l.work == nil || !l.work.changes()) && !hasWarm(*l.want) {
		// After a start of the agent the proxy usually holds the want already: no need to touch it. Warm upstreams are in no
		// file, so a driver that checks them by itself knows how only from a Converge of this process.
		l = m.live(app)
		l.conv = converged{known: true, digest: l.wantSum, at: r.started}
	}
	if l.work != nil && l.work.changes() || !l.conv.known || l.conv.digest != l.wantSum {
		return nil, unproven
	}
	if r == nil || r.started.Before(l.conv.at) || r.started.Before(since) || r.process != m.s.Process {
		return nil, unproven
	}
	if r.section.Digest != l.wantSum {
		return r, differs
	}
	return r, equal
}

// filesMatch reports whether the published files are those of the want.
func (m *stepper) filesMatch(app string) bool {
	l := m.wanted(app)
	return l.pub.known && l.pub.want == l.pubSum
}

// health judges the rows of a target: bad with a reason, good, or neither yet.
type health uint8

const (
	pending health = iota
	good
	bad
)

// judge looks at a Section's target in a reading: every fresh upstream must be green, and one of those that stay must
// be, unless the target is empty on purpose.
func (m *stepper) judge(t *Txn, app string, r *reading) (health, *Refusal) {
	sec, c := m.s.section(app), t.change(app)
	out := good
	var why *Refusal
	for _, u := range fresh(sec, c) {
		row := r.row(u.Name)
		switch {
		case row == nil:
			return bad, &Refusal{Reason: SetDiffers, App: app, Upstream: u.Name, Message: "the proxy does not hold " + u.Name}
		case row.Red:
			return bad, &Refusal{Reason: UpstreamNotGreen, App: app, Upstream: u.Name,
				Message: fmt.Sprintf("%s (%s) fails the proxy's own check: %s", u.Name, u.Address, row.Status)}
		case !row.Green && out == good:
			out = pending
			why = &Refusal{Reason: UpstreamNotGreen, App: app, Upstream: u.Name,
				Message: fmt.Sprintf("%s (%s) is not green in the proxy's own check yet: %s", u.Name, u.Address, row.Status)}
		}
	}
	if c.Stop {
		return out, why
	}
	staying := c.Target.Upstreams
	if t.Amend != nil {
		staying = without(staying, t.Amend.Retire)
	}
	green, red := tally(staying, r)
	if green > 0 {
		return out, why
	}
	no := noneGreen(app, staying, r)
	if red == len(staying) {
		return bad, no
	}
	return pending, no
}

// noneGreen says that not one upstream of a target is green: it names one of them, where it is and what the proxy says of
// it, so that whoever reads the refusal knows where to look.
func noneGreen(app string, ups []Upstream, r *reading) *Refusal {
	if len(ups) == 0 {
		return refuse(UpstreamNotGreen, app, "no upstream of the target is left")
	}
	u, says := ups[0], "is missing"
	for i := range ups {
		row := r.row(ups[i].Name)
		if row == nil {
			continue
		}
		if u, says = ups[i], "is "+row.Status; row.Red {
			break // the one that most surely says why
		}
	}
	more := ""
	if n := len(ups) - 1; n > 0 {
		more = fmt.Sprintf(", and of the %d others none is green", n)
	}
	return &Refusal{Reason: UpstreamNotGreen, App: app, Upstream: u.Name, Message: fmt.Sprintf(
		"no upstream of the target can serve: %s at %s %s in the proxy's own checks%s", u.Name, u.Address, says, more)}
}

// tally counts the green and the red among the named upstreams; a missing row is neither.
func tally(ups []Upstream, r *reading) (green, red int) {
	for _, u := range ups {
		if row := r.row(u.Name); row != nil {
			if row.Green {
				green++
			}
			if row.Red {
				red++
			}
		}
	}
	return green, red
}

// checkTime is how long the slowest fresh upstream of the transaction may take from its first check to green.
func (m *stepper) checkTime(t *Txn) time.Duration {
	var most time.Duration
	for i := range t.Changes {
		c := &t.Changes[i]
		for _, u := range fresh(m.s.section(c.App), c) {
			h := u.Health
			most = max(most, time.Duration(max(h.Rise, 1))*(h.Interval+h.Timeout))
		}
	}
	return most
}

// trouble is the reason why a Section's set is not proven, once waiting for it has no more point: at once for what will
// not mend itself, after patience for the rest. nil: wait on.
func (m *stepper) trouble(app string, v verdict, since time.Time, patience time.Duration) *Refusal {
	l := m.wanted(app)
	over := !m.now.Before(since.Add(patience))
	if l.lastErr != nil && v != equal {
		if _, transient := classify(l.lastErr); !transient || over {
			return refusalOf(app, l.lastErr)
		}
	}
	if v == differs && (l.tries > maxSetAttempts || over) {
		return m.differenceOf(app)
	}
	if v == unproven && over {
		if m.s.readErr != nil {
			r := refusalOf(app, m.s.readErr)
			if r.Reason == SetDiffers {
				r.Reason = ProxyDown
			}
			return r
		}
		return refuse(SetDiffers, app, "the running set could not be read back within %s", patience)
	}
	return nil
}

// differenceOf says how the running set differs from the wanted one.
func (m *stepper) differenceOf(app string) *Refusal {
	l := m.wanted(app)
	have := driver.SectionReading{}
	if l.reading != nil {
		have = l.reading.section
	}
	return refuse(SetDiffers, app, "the running set of %s differs: %s", app, Difference(*l.want, have))
}

// Difference describes in one line how a reading differs from a want; "" if it does not.
func Difference(want driver.Section, have driver.SectionReading) string {
	if driver.Digest(want) == have.Digest {
		return ""
	}
	var out []string
	rows := map[string]driver.Row{}
	for _, r := range have.Rows {
		rows[r.Name] = r
	}
	for _, u := range want.Upstreams {
		r, ok := rows[u.Name]
		delete(rows, u.Name)
		switch {
		case !ok && slices.ContainsFunc(have.Foreign, func(sentence string) bool { return strings.HasPrefix(sentence, u.Name+" ") }):
			// What is said of it below says why.
		case !ok:
			out = append(out, u.Name+" is missing")
		case r.Mode != u.Mode:
			out = append(out, fmt.Sprintf("%s is %s, not %s", u.Name, r.Mode, u.Mode))
		case r.Address != u.Address:
			out = append(out, fmt.Sprintf("%s is at %s, not %s", u.Name, r.Address, u.Address))
		case r.Weight != u.Weight:
			out = append(out, fmt.Sprintf("%s has weight %d, not %d", u.Name, r.Weight, u.Weight))
		}
	}
	for _, r := range have.Rows {
		if _, extra := rows[r.Name]; extra {
			out = append(out, r.Name+" is too many")
		}
	}
	out = append(out, have.Foreign...)
	if !slices.Equal(driver.SortedRoutes(want.Routes), driver.SortedRoutes(have.Routes)) {
		out = append(out, fmt.Sprintf("the routes are %v, not %v", have.Routes, want.Routes))
	}
	if len(out) == 0 {
		out = append(out, "the digests differ")
	}
	if len(out) > 8 {
		out = append(out[:8], fmt.Sprintf("and %d more", len(out)-8))
	}
	return strings.Join(out, "; ")
}

// evidence is what the last readings said about the transaction's Sections.
func (m *stepper) evidence(apps ...string) []Evidence {
	out := make([]Evidence, 0, len(apps))
	for _, app := range apps {
		out = append(out, m.s.Evidence(app))
	}
	return out
}
