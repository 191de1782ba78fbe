package participant

import (
	"cmp"
	"slices"
	"time"
)

// stepCommit obeys the decision. It needs the Host's vote; what was never verified here is brought by Sync.
func (m *stepper) stepCommit(ev Commit) {
	t := m.s.txn(ev.TxnID)
	if t == nil {
		o, ok := m.s.Durable.Outcome(ev.TxnID)
		switch {
		case ok && o.Committed:
			m.reply(ev.To, Answer{Evidence: m.evidence(o.Apps...)})
		case ok:
			m.replyNo(ev.To, closedRefusal(o))
		default:
			m.replyNo(ev.To, refuse(WrongState, "", "transaction %s is not known here: Sync this host", ev.TxnID))
		}
		return
	}
	if t.Order != ev.Order || t.Amend != nil {
		m.replyNo(ev.To, refuse(WrongState, "", "transaction %s is open with order number %d, not %d", t.ID, t.Order, ev.Order))
		return
	}
	if !t.Phase.inDoubt() {
		no := refuse(WrongState, "", "transaction %s is %s, not VERIFIED", t.ID, t.Phase)
		m.replyNo(ev.To, no)
		m.giveWay(t, no)
		return
	}
	m.commit(t)
	m.reply(ev.To, Answer{Evidence: m.evidence(t.names()...)})
}

// giveWay undoes a transaction that was committed without this Host, as the Group's policy permits: Sync brings it to what was
// committed, and need not wait for the deadline. The old upstreams live until this Host has let go of them (NO-ORPHAN-KILL).
func (m *stepper) giveWay(t *Txn, why *Refusal) {
	switch {
	case m.s.Durable.Txns[t.ID] == nil:
		m.forget(t.ID, why)
	case !t.Phase.restoring():
		m.restoreSelf(t, why)
	}
}

// commit makes the target the committed Section. The drain clock of what it replaces starts now; in fallback it is held
// until an upstream of the target is green here (NEVER-ZERO).
func (m *stepper) commit(t *Txn) {
	var sections []*SectionState
	for i := range t.Changes {
		c := &t.Changes[i]
		sec := *m.s.section(c.App)
		drain := c.Target.Drain
		if c.Remove {
			drain = sec.Committed.Drain
		}
		sec.Draining = m.replaced(&sec, &c.Target, drain, t.Fallback && !c.Stop)
		sec.Committed = c.Target
		sec.Died = len(c.Target.Upstreams) == 0 && !c.Stop && !c.Remove
		sec.Version = Version{Txn: t.Order}
		sec.Removed = c.Remove
		sec.Passed = max(sec.Passed, t.Order)
		sec.Drained = nil
		l := m.wanted(c.App)
		sec.Unsettled = t.Fallback || !l.pub.known || l.pub.want != l.pubSum
		sec.Published = l.pub.digest
		sections = append(sections, &sec)
	}
	m.record(Record{Kind: KindCommitted, TxnID: t.ID, Order: t.Order, Origin: t.Origin, Sections: sections,
		Closed: &Outcome{TxnID: t.ID, Order: t.Order, Committed: true, Apps: t.names()}})
	delete(m.s.attempts, t.ID)
	for _, app := range t.names() {
		l := m.live(app)
		l.cut = nil
		l.conv.at = m.now // what was read before the decision does not prove Drained
	}
	if slices.ContainsFunc(t.Changes, func(c TxnChange) bool { return c.Remove }) {
		m.forgetTombstones()
	}
}

// replaced returns the draining upstreams after next becomes the committed Section.
func (m *stepper) replaced(sec *SectionState, next *Section, drain time.Duration, hold bool) []Draining {
	var out []Draining
	for _, d := range m.startClocks(sec.Draining) {
		if !next.has(d.Upstream.Name) {
			out = append(out, d)
		}
	}
	for _, u := range sec.Committed.Upstreams {
		if next.has(u.Name) {
			continue
		}
		d := Draining{Upstream: u, Running: true, Until: m.now.Add(drain)}
		if hold {
			d = Draining{Upstream: u, Held: true, Left: drain}
		}
		out = append(out, d)
	}
	return out
}

// drains moves the upstreams that a Commit replaced towards their end: released when the committed ones can serve, cut
// at the deadline, gone when no worker has a session of theirs. Nothing leaves while a transaction is open on the
// Section; that would move its base.
func (m *stepper) drains(app string) {
	sec := m.s.section(app)
	if len(sec.Draining) == 0 || m.s.openOn(app) != nil {
		return
	}
	r, v := m.proof(app, time.Time{})
	if v != equal {
		return
	}
	if m.release(app, sec, r) {
		return
	}
	l := m.s.live.get(app)
	var stay []Draining
	var gone []Drained
	var cut []string
	for _, d := range sec.Draining {
		row := r.row(d.Upstream.Name)
		switch {
		case d.Held:
			stay = append(stay, d)
		case row == nil || row.Sessions == 0:
			gone = append(gone, Drained{Upstream: d.Upstream, Forced: l.cut[d.Upstream.Name]})
		default:
			stay = append(stay, d)
			if d.Running && !m.now.Before(d.Until) {
				cut = append(cut, d.Upstream.Name)
			}
		}
	}
	if len(gone) > 0 {
		next := *sec
		next.Draining = stay
		next.Drained = slices.Concat(sec.Drained, gone)
		if len(next.Drained) > maxDrained {
			next.Drained = next.Drained[len(next.Drained)-maxDrained:]
		}
		next.Unsettled = true
		m.record(Record{Kind: KindDrained, Order: sec.Version.Txn, Sections: []*SectionState{&next}})
		return
	}
	if len(cut) > 0 && l.work == nil && !m.now.Before(l.retryAt) {
		m.start(app, Work{Cut: cut})
	}
}

// release lets held upstreams drain once an upstream of the committed Section is green here, or the App was stopped or
// scaled to zero: then nothing is meant to serve.
func (m *stepper) release(app string, sec *SectionState, r *reading) bool {
	if !slices.ContainsFunc(sec.Draining, func(d Draining) bool { return d.Held }) {
		return false
	}
	why := "an upstream of the committed Section is green: the old ones drain"
	if green, _ := tally(sec.Committed.Upstreams, r); green == 0 {
		if len(sec.Committed.Upstreams) > 0 || sec.Died {
			return false
		}
		why = "nothing is committed to serve: the old ones drain"
	}
	next := *sec
	next.Draining = slices.Clone(sec.Draining)
	for i := range next.Draining {
		if d := &next.Draining[i]; d.Held {
			*d = Draining{Upstream: d.Upstream, Running: true, Until: m.now.Add(d.Left)}
		}
	}
	next.Unsettled = true
	m.record(Record{Kind: KindDrain, Order: sec.Version.Txn, Note: why,
		Sections: []*SectionState{&next}})
	return true
}

// forgetTombstones bounds what removed Apps leave behind: beyond maxTombstones the oldest go, and the Group's floor of
// passed order numbers takes their place.
func (m *stepper) forgetTombstones() {
	var dead []*SectionState
	for _, s := range m.s.Durable.Sections {
		if absent(s) && !s.Stray && !s.Unsettled && m.s.openOn(s.App) == nil {
			dead = append(dead, s)
		}
	}
	if len(dead) <= maxTombstones {
		return
	}
	slices.SortFunc(dead, func(a, b *SectionState) int {
		return cmp.Or(cmp.Compare(a.Passed, b.Passed), cmp.Compare(a.App, b.App))
	})
	dead = dead[:len(dead)-maxTombstones*3/4]
	var names []string
	for _, s := range dead {
		names = append(names, s.App)
		m.lives.delete(s.App)
		delete(m.ownLive, s.App)
		m.touched[s.App] = struct{}{}
	}
	m.record(Record{Kind: KindEpoch, Note: "old tombstones", Floor: dead[len(dead)-1].Passed, Forget: names})
}

// stepVerify asks for evidence from a reading that begins after the question.
func (m *stepper) stepVerify(ev Verify) {
	m.s.verifies = append(m.s.verifies, &verifyWait{to: ev.To, ids: ev.TxnIDs, since: m.now, deadline: m.now.Add(verifyPatience)})
}

// answerVerifies answers those whose every transaction is judged by a reading that is fresh for them.
func (m *stepper) answerVerifies() {
	m.s.verifies = slices.DeleteFunc(m.s.verifies, func(w *verifyWait) bool {
		answers := make([]VerifyAnswer, 0, len(w.ids))
		for _, id := range w.ids {
			ans, ok := m.verify(id, w)
			if !ok {
				return false
			}
			answers = append(answers, ans)
		}
		if w.single {
			m.reply(w.to, Answer{Refusal: answers[0].Refusal, Evidence: answers[0].Evidence})
		} else {
			m.reply(w.to, Answer{Verifies: answers})
		}
		return true
	})
}

// verify is the answer for one transaction, if it is known yet.
func (m *stepper) verify(id string, w *verifyWait) (VerifyAnswer, bool) {
	ans := VerifyAnswer{TxnID: id}
	t := m.s.txn(id)
	if t == nil {
		if o, ok := m.s.Durable.Outcome(id); ok {
			ans.Refusal = closedRefusal(o)
		} else {
			ans.Refusal = refuse(WrongState, "", "transaction %s is not open here", id)
		}
		return ans, true
	}
	if !t.Phase.inDoubt() {
		ans.Refusal = t.Refusal
		if ans.Refusal == nil {
			ans.Refusal = refuse(WrongState, "", "transaction %s is %s", id, t.Phase)
		}
		return ans, true
	}
	over := !m.now.Before(w.deadline)
	for _, app := range t.names() {
		if _, v := m.proof(app, w.since); v != equal && !over && (t.Phase == Verified || t.Refusal == nil || v == unproven) {
			return ans, false
		}
	}
	state, why := m.watch(id, t)
	ans.Evidence = m.evidence(t.names()...)
	switch {
	case t.Phase == Verified && state == good:
		return ans, true
	case t.Phase == Lapsed && t.Refusal != nil:
		ans.Refusal = t.Refusal
		return ans, true
	case !over:
		return ans, false
	case why == nil:
		why = refuse(SetDiffers, "", "transaction %s could not be read back within %s", id, verifyPatience)
	}
	ans.Refusal = why
	return ans, true
}
