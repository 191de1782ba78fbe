package participant

import (
	"slices"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// stepActivate asks a Ready transaction to become routable, or joins what is under way.
func (m *stepper) stepActivate(ev Activate) {
	t := m.s.txn(ev.TxnID)
	if t == nil {
		if o, ok := m.s.Durable.Outcome(ev.TxnID); ok {
			m.replyNo(ev.To, closedRefusal(o))
		} else {
			m.replyNo(ev.To, refuse(WrongState, "", "transaction %s is not prepared here", ev.TxnID))
		}
		return
	}
	if t.Order != ev.Order || t.Amend != nil {
		m.replyNo(ev.To, refuse(WrongState, "", "transaction %s is open with order number %d, not %d", t.ID, t.Order, ev.Order))
		return
	}
	switch t.Phase {
	case Ready:
		a := m.attempt(t.ID)
		if ev.Deadline > 0 {
			// The coordinator's newer word on the time left; it becomes durable with ACTIVATING.
			a.deadline = m.now.Add(min(ev.Deadline, MaxDeadline))
		}
		if a.asked.IsZero() {
			a.asked = m.now
		}
		a.activate = append(a.activate, ev.To)
	case Activating:
		a := m.attempt(t.ID)
		a.activate = append(a.activate, ev.To)
	case Verified, Lapsed:
		// Fresh evidence, like a Verify; the recorded vote alone proves nothing of now.
		m.s.verifies = append(m.s.verifies, &verifyWait{to: ev.To, ids: []string{t.ID}, since: m.now,
			deadline: m.now.Add(verifyPatience), single: true})
	case Failed:
		m.reply(ev.To, Answer{Refusal: t.Refusal, Evidence: m.evidence(t.names()...)})
	case Restoring, RestoreFailedPhase:
		m.replyNo(ev.To, abortedRefusal(t.ID, t.Refusal))
	default:
		m.replyNo(ev.To, refuse(WrongState, "", "transaction %s is %s", t.ID, t.Phase))
	}
}

// advanceReady waits for Activate; then every candidate must be green in a reading of the process that runs now. One
// that is not (the proxy was restarted, say) is warmed again first.
func (m *stepper) advanceReady(id string, t *Txn) bool {
	if !m.now.Before(m.s.deadline(t)) {
		return m.restoreSelf(t, refuse(DeadlinePassed, "", "the deadline of %s passed before it was activated", id))
	}
	a := m.s.attempts[id]
	if len(a.prepare) > 0 {
		all := true
		for _, app := range t.names() {
			no, ok := m.ready(t, app, a.since, time.Time{})
			if no != nil {
				return m.restoreSelf(t, no)
			}
			all = all && ok
		}
		if all {
			m.answerReady(id, t)
		}
	}
	if a.asked.IsZero() {
		return false
	}
	for _, app := range t.names() {
		no, ok := m.ready(t, app, a.asked, a.asked)
		if no != nil {
			return m.fail(t, no)
		}
		if !ok {
			return false
		}
	}
	next := t.copy()
	next.Activated = true
	m.enter(next, KindActivating, Activating, "")
	return true
}

// advanceActivating waits for the proof: the exact set, each new upstream green, one real request to each.
func (m *stepper) advanceActivating(id string, t *Txn) bool {
	if !m.now.Before(m.s.deadline(t)) {
		return m.restoreSelf(t, refuse(DeadlinePassed, "", "the deadline of %s passed before it was Verified", id))
	}
	a := m.s.attempts[id]
	all := true
	for _, app := range t.names() {
		r, v := m.proof(app, a.since)
		if v != equal {
			all = false
			if no := m.trouble(app, v, a.since, m.patience(t, a.since)); no != nil {
				return m.fail(t, no)
			}
			continue
		}
		if err := m.s.live.get(app).lastErr; err != nil && !m.filesMatch(app) && !m.now.Before(a.since.Add(m.patience(t, a.since))) {
			return m.fail(t, refusalOf(app, err)) // it runs, and cannot be published
		}
		switch h, why := m.judge(t, app, r); {
		case h == bad && !m.now.Before(m.s.live.get(app).conv.at.Add(redPatience)),
			h != good && !m.now.Before(a.since.Add(warmPatience+m.checkTime(t))):
			return m.fail(t, why)
		case h != good:
			all = false
			continue
		}
		done, no := m.requests(t, app)
		if no != nil {
			return m.fail(t, no)
		}
		all = all && done && m.filesMatch(app)
	}
	if !all {
		return false
	}
	if t.Amend != nil {
		return m.finishAmend(t)
	}
	next := t.copy()
	next.Refusal = nil
	m.enter(next, KindVerified, Verified, "")
	a = m.attempt(id)
	for _, to := range a.activate {
		m.reply(to, Answer{Evidence: m.evidence(t.names()...)})
	}
	a.activate, a.asked = nil, time.Time{}
	return true
}

// requests sees to it that each fresh upstream answered a real request through the process that runs now.
func (m *stepper) requests(t *Txn, app string) (done bool, no *Refusal) {
	sec, c := m.s.section(app), t.change(app)
	ups := fresh(sec, c)
	a := m.s.attempts[t.ID]
	if len(ups) == 0 || a.passed[app] == m.s.Process && a.passed[app] != (driver.Process{}) {
		return true, nil
	}
	l := m.s.live.get(app)
	if err := a.reqErr[app]; a.tried[app] >= maxRequestAttempts && err != nil {
		if reason, _ := classify(err); reason == ProxyDown {
			return false, refusalOf(app, err)
		}
		return false, refuse(RequestFailed, app, "a request through the proxy to %s: %v", app, err)
	}
	if l.work != nil || m.now.Before(l.retryAt) {
		return false, nil
	}
	host := requestHost(c.Target.Routes)
	w := Work{Phase: t.Phase}
	for _, u := range ups {
		w.Requests = append(w.Requests, RequestTo{Upstream: u.Name, Host: host})
	}
	m.start(app, w)
	return false, nil
}

// requestHost is the Host header of a real request.
func requestHost(routes []driver.Route) string {
	for _, r := range routes {
		if r.Host != "*" && r.Host != "" {
			return r.Host
		}
	}
	return "localhost"
}

// fail votes Failed. The Sections wait for Abort, or for the Host's own deadline; an Amendment undoes itself.
func (m *stepper) fail(t *Txn, no *Refusal) bool {
	if t.Amend != nil {
		return m.restoreSelf(t, no)
	}
	next := t.copy()
	next.Refusal = no
	m.enter(next, KindFailed, Failed, no.Error())
	a := m.attempt(t.ID)
	for _, to := range a.activate {
		m.reply(to, Answer{Refusal: no, Evidence: m.evidence(t.names()...)})
	}
	for _, to := range a.prepare {
		m.replyNo(to, no)
	}
	a.activate, a.prepare, a.asked = nil, nil, time.Time{}
	return true
}

// advanceFailed waits for Abort and, past the deadline, restores by itself.
func (m *stepper) advanceFailed(id string, t *Txn) bool {
	if !m.now.Before(m.s.deadline(t)) {
		return m.restoreSelf(t, t.Refusal)
	}
	return m.fallBack(id, t)
}

// advanceInDoubt watches a transaction that has voted: Verified, Lapsed and Verified again, and the fallback. It never
// ends by itself (the Host keeps both colours until it is told the decision).
func (m *stepper) advanceInDoubt(id string, t *Txn) bool {
	state, why := m.watch(id, t)
	switch {
	case state == bad && t.Phase == Verified:
		next := t.copy()
		next.Refusal = why
		m.enter(next, KindLapsed, Lapsed, why.Error())
		return true
	case state == good && t.Phase == Lapsed && !t.Fallback:
		next := t.copy()
		next.Refusal = nil
		m.enter(next, KindVerified, Verified, "again")
		return true
	}
	return m.fallBack(id, t)
}

// watch judges all Sections of a transaction by their newest readings.
func (m *stepper) watch(id string, t *Txn) (health, *Refusal) {
	a := m.attempt(id)
	out := good
	trouble := false
	var why *Refusal
	for _, app := range t.names() {
		r, v := m.proof(app, time.Time{})
		switch {
		case v == differs:
			trouble, out, why = true, pending, m.differenceOf(app)
			continue
		case v == unproven:
			out = pending
			if m.s.readErr != nil {
				trouble, why = true, refusalOf(app, m.s.readErr)
			} else if l := m.s.live.get(app); l != nil && l.lastErr != nil {
				trouble, why = true, refusalOf(app, l.lastErr)
			}
			continue
		}
		h, no := m.judge(t, app, r)
		if h == bad {
			return bad, no
		}
		if h == pending {
			out = pending
			continue
		}
		done, no := m.requests(t, app)
		if no != nil {
			return bad, no
		}
		if !done {
			out = pending
		}
	}
	// A proxy that restarts differs for a moment and is brought back; only a difference that stays has lapsed.
	switch {
	case !trouble:
		a.readFail = time.Time{}
	case a.readFail.IsZero():
		a.readFail = m.now
	case !m.now.Before(a.readFail.Add(lapsePatience)):
		return bad, why
	}
	return out, why
}

// fallBack lets the old upstreams serve again while no upstream of the target can: not a decision, but traffic
// (NEVER-ZERO, FAIL-STATIC). It lasts until the decision is known.
func (m *stepper) fallBack(id string, t *Txn) bool {
	if t.Fallback || !t.Activated {
		return false
	}
	a := m.attempt(id)
	now, waiting := false, false
	var note string
	for i := range t.Changes {
		c := &t.Changes[i]
		sec := m.s.section(c.App)
		old := slices.ContainsFunc(sec.Committed.Upstreams, func(u Upstream) bool { return !c.Target.has(u.Name) })
		if c.Stop || !old {
			continue
		}
		if len(c.Target.Upstreams) == 0 {
			now, note = true, "every upstream of the target of "+c.App+" has died"
			continue
		}
		r, v := m.proof(c.App, time.Time{})
		if v == unproven || r == nil {
			continue
		}
		green, red := tally(c.Target.Upstreams, r)
		if green == 0 {
			waiting = true
			if red == len(c.Target.Upstreams) {
				now, note = true, "no upstream of the target of "+c.App+" can serve"
			}
		}
	}
	switch {
	case !waiting && !now:
		a.noGreen = time.Time{}
		return false
	case !now && a.noGreen.IsZero():
		a.noGreen = m.now
		return false
	case !now && m.now.Before(a.noGreen.Add(fallbackPatience)):
		return false
	case !now:
		note = "no upstream of the target is green for " + fallbackPatience.String()
	}
	next := t.copy()
	next.Fallback = true
	phase := t.Phase
	if phase == Verified {
		phase = Lapsed
		next.Refusal = refuse(UpstreamNotGreen, "", "%s", note)
	}
	m.enter(next, KindFallback, phase, note)
	return true
}
