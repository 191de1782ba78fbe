package participant

import (
	"slices"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// stepAbort undoes a transaction for good. It is idempotent, and never refused by a lock (ROLLBACK-IS-FREE).
func (m *stepper) stepAbort(ev Abort) {
	t := m.s.txn(ev.TxnID)
	switch {
	case t == nil:
		m.abortClosed(ev)
	case t.Order != ev.Order || t.Amend != nil:
		m.replyNo(ev.To, refuse(WrongState, "", "transaction %s is open with order number %d, not %d", t.ID, t.Order, ev.Order))
	case m.s.Durable.Txns[t.ID] == nil:
		m.forget(t.ID, refuse(AbortedHere, "", "transaction %s is aborted by order", t.ID))
		m.passUnknown(ev, t.names())
	default:
		m.abortOpen(ev, t)
	}
}

// abortClosed answers for a transaction that is not open: it is aborted already, was never seen, or is committed.
func (m *stepper) abortClosed(ev Abort) {
	if o, ok := m.s.Durable.Outcome(ev.TxnID); ok {
		if o.Committed {
			m.replyNo(ev.To, closedRefusal(o))
			return
		}
		m.wait(ev.To, o.Apps, Answer{NeverActivated: o.NeverActivated}, true)
		return
	}
	for _, app := range ev.Apps {
		if sec := m.s.section(app); sec.Version.Txn == ev.Order && ev.Order != 0 {
			m.replyNo(ev.To, refuse(WrongState, app, "order number %d is committed here", ev.Order))
			return
		}
	}
	m.passUnknown(ev, ev.Apps)
}

// passUnknown journals that the order number has passed, so that a late Prepare finds itself refused.
func (m *stepper) passUnknown(ev Abort, apps []string) {
	apps = slices.Compact(slices.Sorted(slices.Values(apps)))
	var sections []*SectionState
	for _, app := range apps {
		_, known := m.s.Durable.Sections[app]
		sec := *m.s.section(app)
		sec.Stray = sec.Stray || !known // the journal still says nothing about what the proxy should hold
		sec.Passed = max(sec.Passed, ev.Order)
		sections = append(sections, &sec)
	}
	m.record(Record{Kind: KindAborted, TxnID: ev.TxnID, Order: ev.Order, Origin: ev.Origin, Note: "not staged here",
		Sections: sections,
		Closed:   &Outcome{TxnID: ev.TxnID, Order: ev.Order, NeverActivated: true, Apps: apps}})
	m.forgetTombstones()
	m.wait(ev.To, apps, Answer{NeverActivated: true}, true)
}

// abortOpen starts or joins the restore of a staged transaction.
func (m *stepper) abortOpen(ev Abort, t *Txn) {
	next := t.copy()
	for _, r := range ev.Replacements {
		if c := next.change(r.App); c != nil {
			c.Replacements = mergeUpstreams(c.Replacements, r.Upstreams)
		}
	}
	if ev.Origin != (Origin{}) {
		next.Origin = ev.Origin
	}
	if !t.Phase.restoring() {
		next.Fallback = false
		m.enterRestoring(next, "by order")
	} else if len(ev.Replacements) > 0 {
		m.enterRestoring(next, "with replacements")
	}
	a := m.attempt(t.ID)
	a.asked = m.now
	a.abort = append(a.abort, ev.To)
}

func mergeUpstreams(have, more []Upstream) []Upstream {
	out := slices.Clone(have)
	for _, u := range more {
		if !slices.ContainsFunc(out, func(x Upstream) bool { return x.Name == u.Name }) {
			out = append(out, u)
		}
	}
	return out
}

// restoreSelf is the Host's own abort: allowed, and due, at any moment before it has voted Verified.
func (m *stepper) restoreSelf(t *Txn, why *Refusal) bool {
	next := t.copy()
	next.Refusal = why
	next.Fallback = false
	note := "by itself"
	if why != nil {
		note += ": " + why.Error()
	}
	m.enterRestoring(next, note)
	a := m.attempt(t.ID)
	for _, to := range slices.Concat(a.prepare, a.amend) {
		m.replyNo(to, why)
	}
	for _, to := range a.activate {
		m.reply(to, Answer{Refusal: why, Evidence: m.evidence(t.names()...)})
	}
	a.prepare, a.activate, a.amend = nil, nil, nil
	return true
}

// enterRestoring journals the decision to undo and frees the proxy from work that no longer matters.
func (m *stepper) enterRestoring(t *Txn, note string) {
	m.enter(t, KindRestoring, Restoring, note)
	a := m.attempt(t.ID)
	a.asked = time.Time{}
	clear(a.stage)
	clear(a.drainFrom)
	// From here on requests are asked of the old upstreams.
	clear(a.passed)
	clear(a.tried)
	clear(a.reqErr)
	no := abortedRefusal(t.ID, t.Refusal)
	for _, to := range slices.Concat(a.prepare, a.activate) {
		if t.Refusal == nil { // an Abort by order: these callers are not answered elsewhere
			m.replyNo(to, no)
		}
	}
	if t.Refusal == nil {
		a.prepare, a.activate = nil, nil
	}
	for _, app := range t.names() {
		l := m.live(app)
		l.tries, l.retryAt, l.lastErr = 0, time.Time{}, nil
		if l.work != nil && len(l.work.Requests) > 0 {
			l.ignore = true
			m.emit(Cancel{App: app, Seq: l.work.Seq})
		}
	}
}

// advanceRestoring brings each Section back and compares the digests, then journals ABORTED.
func (m *stepper) advanceRestoring(id string, t *Txn) bool {
	a := m.attempt(id)
	all := true
	var why *Refusal
	for i := range t.Changes {
		c := &t.Changes[i]
		if a.stage[c.App] != keepTarget && m.onlyTargetServes(t, c) {
			// The last of the old ones died on the way back: what is left of the target serves on, as if it had died before.
			a.stage[c.App] = keepTarget
			delete(a.drainFrom, c.App)
			delete(a.passed, c.App)
		}
		if a.stage[c.App] == keepTarget {
			if no := m.mayDropTarget(t, c); no != nil {
				all, why = false, no
				continue
			}
			a.stage[c.App], a.drainFrom[c.App] = drainTarget, m.now
			if !t.Activated {
				a.stage[c.App] = undone
			}
		}
		if a.stage[c.App] == drainTarget {
			if !m.targetIdle(c, a.drainFrom[c.App]) {
				all, why = false, refuse(SetDiffers, c.App, "requests to the target of %s are still under way", c.App)
				continue
			}
			a.stage[c.App] = undone
		}
		if no := m.restored(t, c, a.since); no != nil {
			all, why = false, no
		}
	}
	if all {
		m.finishAbort(t)
		return true
	}
	if t.Phase == Restoring && !m.now.Before(a.since.Add(restorePatience)) {
		next := t.copy()
		next.Refusal = &Refusal{Reason: RestoreFailed, App: why.App, Upstream: why.Upstream, Output: why.Output,
			Message: "not restored after " + restorePatience.String() + ", still trying: " + why.Message}
		since := a.since
		m.enter(next, KindRestoreNo, RestoreFailedPhase, next.Refusal.Message)
		a.since = since // readings since the restore began stay proofs
		m.answerAbort(a, Answer{Refusal: next.Refusal, Evidence: m.evidence(t.names()...)})
		return true
	}
	if t.Phase == RestoreFailedPhase && len(a.abort) > 0 && !m.now.Before(a.asked.Add(verifyPatience)) {
		m.answerAbort(a, Answer{Refusal: t.Refusal, Evidence: m.evidence(t.names()...)})
	}
	return false
}

func (m *stepper) answerAbort(a *attempt, ans Answer) {
	for _, to := range a.abort {
		m.reply(to, ans)
	}
	a.abort = nil
}

// mayDropTarget decides whether the restore may stop routing to the target: not while the target serves here and
// nothing of the undo can (NEVER-ZERO). Replacements must all be green first.
func (m *stepper) mayDropTarget(t *Txn, c *TxnChange) *Refusal {
	sec := m.s.section(c.App)
	if len(c.Replacements) == 0 && (!t.Activated || c.Undo.Serving == 0 && !c.Undo.Died) {
		return nil
	}
	a := m.s.attempts[t.ID]
	l := m.wanted(c.App)
	r := l.reading
	if r == nil || r.process != m.s.Process || r.started.Before(a.since) {
		if no := m.trouble(c.App, unproven, a.since, restorePatience); no != nil {
			return no
		}
		return refuse(SetDiffers, c.App, "the proxy has not been read yet")
	}
	green, _ := tally(c.Replacements, r)
	if green < len(c.Replacements) {
		return refuse(UpstreamNotGreen, c.App, "%d of %d replacements are green", green, len(c.Replacements))
	}
	base := sec.Committed.Upstreams
	baseGreen, _ := tally(base, r)
	serves := t.Activated && canServe(without(c.Target.Upstreams, upstreamNames(base)), r)
	if serves && green+baseGreen == 0 {
		return refuse(UpstreamNotGreen, c.App,
			"no upstream of the old Section of %s can serve and the new ones do: abort with replacements", c.App)
	}
	if serves && len(c.Replacements) == 0 {
		return m.oldAnswers(t, c, base, r)
	}
	return nil
}

// canServe: an upstream with a check in flight is not green, and serves all the same: only what is red, or not there, does
// not.
func canServe(ups []Upstream, r *reading) bool {
	return slices.ContainsFunc(ups, func(u Upstream) bool { row := r.row(u.Name); return row != nil && !row.Red })
}

// onlyTargetServes: the newest reading knows of nothing that the undo leads to and that could serve, and the proxy still
// has some of the target that can (NEVER-ZERO).
func (m *stepper) onlyTargetServes(t *Txn, c *TxnChange) bool {
	if !t.Activated || c.Undo.Serving == 0 && !c.Undo.Died && len(c.Replacements) == 0 {
		return false
	}
	r := m.wanted(c.App).reading
	if r == nil || r.process != m.s.Process {
		return false
	}
	base := m.s.section(c.App).Committed.Upstreams
	return canServe(without(c.Target.Upstreams, upstreamNames(base)), r) && !canServe(base, r) && !canServe(c.Replacements, r)
}

// oldAnswers asks for a real request to one old upstream before the target is let go: one that has just died is green until
// its next checks. What does not answer goes on being asked until its checks have had the time to tell; what they still
// call green then is believed.
func (m *stepper) oldAnswers(t *Txn, c *TxnChange, base []Upstream, r *reading) *Refusal {
	a := m.s.attempts[t.ID]
	if a.passed[c.App] == m.s.Process {
		return nil
	}
	var green []string
	var told time.Duration
	for _, u := range base {
		if row := r.row(u.Name); row != nil && row.Green {
			green = append(green, u.Name)
		}
		told = max(told, time.Duration(max(u.Health.Fall, 1)+1)*(u.Health.Interval+u.Health.Timeout))
	}
	if len(green) == 0 || a.tried[c.App] > 0 && !r.started.Before(a.since.Add(told)) {
		return nil
	}
	if l := m.s.live.get(c.App); l.work == nil && !m.now.Before(l.retryAt) {
		m.start(c.App, Work{Phase: t.Phase, Requests: []RequestTo{{Upstream: green[a.tried[c.App]%len(green)], Host: requestHost(m.s.section(c.App).Committed.Routes)}}})
	}
	return refuse(UpstreamNotGreen, c.App, "no upstream of the old Section of %s has answered a request yet", c.App)
}

// targetIdle reports whether the target's new upstreams may go: no request of theirs is under way, or they had
// undoDrain to end.
func (m *stepper) targetIdle(c *TxnChange, since time.Time) bool {
	if !m.now.Before(since.Add(undoDrain)) {
		return true
	}
	r, v := m.proof(c.App, time.Time{})
	if v != equal {
		return false
	}
	for _, u := range fresh(m.s.section(c.App), c) {
		if row := r.row(u.Name); row != nil && row.Mode == driver.Draining && row.Sessions > 0 {
			return false
		}
	}
	return true
}

func upstreamNames(ups []Upstream) []string {
	out := make([]string, len(ups))
	for i, u := range ups {
		out[i] = u.Name
	}
	return out
}

// restored compares the Section with its undo: the running set, and the files where nothing was amended meanwhile.
func (m *stepper) restored(t *Txn, c *TxnChange, since time.Time) *Refusal {
	if _, v := m.proof(c.App, since); v != equal {
		if no := m.trouble(c.App, v, since, restorePatience); no != nil {
			return no
		}
		return refuse(SetDiffers, c.App, "%s is being restored", c.App)
	}
	if !m.filesMatch(c.App) {
		return refuse(SetDiffers, c.App, "the files of %s are not published yet", c.App)
	}
	l := m.s.live.get(c.App)
	if len(c.Replacements) == 0 && l.wantSum == c.Undo.Running && l.pub.digest != c.Undo.Published {
		// Same content, other files: publish once more, with the pause of a failed attempt.
		l = m.live(c.App)
		if !m.now.Before(l.retryAt) && l.work == nil {
			l.pub.want = never
			l.tries++
			l.retryAt = m.now.Add(backoff(l.tries))
		}
		return refuse(SetDiffers, c.App, "the files of %s have digest %s, before Prepare it was %s", c.App, l.pub.digest, c.Undo.Published)
	}
	return nil
}

// finishAbort journals ABORTED and answers.
func (m *stepper) finishAbort(t *Txn) {
	a := m.attempt(t.ID)
	var sections []*SectionState
	for i := range t.Changes {
		c := &t.Changes[i]
		sec := *m.s.section(c.App)
		sec.Draining = m.startClocks(sec.Draining)
		if len(c.Replacements) > 0 {
			sec.Committed.Upstreams = mergeUpstreams(sec.Committed.Upstreams, c.Replacements)
			sec.Died = false
			sec.Version.Amendments++
		}
		sec.Unsettled, sec.Published = false, m.s.live.get(c.App).pub.digest
		sections = append(sections, &sec)
	}
	why := t.Refusal
	if why != nil && why.Reason == RestoreFailed {
		why = nil
	}
	m.record(Record{Kind: KindAborted, TxnID: t.ID, Order: t.Order, Origin: t.Origin, Sections: sections,
		Closed: &Outcome{TxnID: t.ID, Order: t.Order, NeverActivated: !t.Activated, Refusal: why, Apps: t.names()}})
	m.answerAbort(a, Answer{NeverActivated: !t.Activated, Evidence: m.evidence(t.names()...)})
	delete(m.s.attempts, t.ID)
	m.forgetTombstones()
}
