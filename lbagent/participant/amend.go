package participant

import (
	"fmt"
	"slices"
)

// stepAmend changes one committed Section without a vote. Removal of dead upstreams applies at once, to the committed
// Section and to target and undo of an open transaction alike. Insertion and retirement run as a transaction of their
// own that decides for itself, so they are warmed, verified and undone by the same rules.
func (m *stepper) stepAmend(ev Amend) {
	id := fmt.Sprintf("amend/%s/%d", ev.App, ev.Order)
	if m.s.txn(id) != nil {
		a := m.attempt(id)
		a.amend = append(a.amend, ev.To)
		return
	}
	if o, ok := m.s.Durable.Outcome(id); ok {
		if o.Committed {
			m.wait(ev.To, []string{ev.App}, Answer{}, true)
		} else {
			m.replyNo(ev.To, closedRefusal(o))
		}
		return
	}
	open := m.s.openOn(ev.App)
	inserts := len(ev.Insert)+len(ev.Retire) > 0
	sec := m.s.section(ev.App)
	switch passed := m.s.passed(ev.App); {
	case ev.Order <= passed:
		m.replyNo(ev.To, refuse(StaleOrder, ev.App, "%s has passed order number %d: %d is stale", ev.App, passed, ev.Order))
		return
	case inserts && open != nil:
		m.replyNo(ev.To, refuse(Busy, ev.App, "%s is open on %s: a removal alone would be taken now", open.ID, ev.App))
		return
	case open == nil && m.isStray(ev.App):
		m.replyNo(ev.To, strayRefusal(ev.App))
		return
	case inserts && (ev.Base.Txn != sec.Version.Txn || sec.Removed):
		m.replyNo(ev.To, refuse(BaseMismatch, ev.App, "this host has %s at %d, not at %d: Sync it first", ev.App, sec.Version.Txn, ev.Base.Txn))
		return
	}
	left := Section{Upstreams: without(sec.Committed.Upstreams, ev.Remove)}
	if inserts {
		stay := append(without(left.Upstreams, ev.Retire), without(ev.Insert, ev.Retire)...)
		if no := sameAddresses(sec, ev.Insert); no != nil {
			m.replyNo(ev.To, no)
			return
		}
		if len(stay) == 0 {
			m.replyNo(ev.To, refuse(WrongState, ev.App, "that would retire every upstream of %s: scale to zero with a transaction", ev.App))
			return
		}
	}
	if len(ev.Remove) > 0 || !inserts {
		m.remove(id, ev, sec, open, inserts)
	}
	if !inserts {
		m.wait(ev.To, []string{ev.App}, Answer{}, true)
		return
	}
	sec = m.s.section(ev.App)
	target := sec.Committed
	target.App = ev.App
	target.Upstreams = mergeUpstreams(sec.Committed.Upstreams, ev.Insert)
	budget := clampDeadline(ev.Deadline)
	m.open(&Txn{ID: id, Order: ev.Order, Phase: Preparing, Origin: ev.Origin, Budget: budget, Deadline: m.now.Add(budget),
		Changes: []TxnChange{{App: ev.App, Target: target}},
		Amend:   &AmendOp{Retire: slices.Clone(ev.Retire), Counted: len(ev.Remove) > 0}})
	m.attempt(id).amend = []Token{ev.To}
}

// remove journals the removal of dead upstreams. It needs no base and no lock, and may take the last one: what is dead
// cannot serve. It never passes the open transaction, whose own messages stay welcome (FENCE).
func (m *stepper) remove(id string, ev Amend, sec *SectionState, open *Txn, inserts bool) {
	next := *sec
	next.Committed.Upstreams = without(sec.Committed.Upstreams, ev.Remove)
	next.Draining = slices.DeleteFunc(slices.Clone(sec.Draining), func(d Draining) bool { return slices.Contains(ev.Remove, d.Upstream.Name) })
	next.Died = len(next.Committed.Upstreams) == 0 && (next.Died || len(sec.Committed.Upstreams) > 0)
	next.Version.Amendments++
	next.Unsettled = true
	r := Record{Kind: KindAmended, TxnID: id, Order: ev.Order, Origin: ev.Origin, Note: fmt.Sprintf("remove %q", ev.Remove),
		Sections: []*SectionState{&next}}
	if !inserts {
		next.Passed = max(next.Passed, ev.Order)
		r.Closed = &Outcome{TxnID: id, Order: ev.Order, Committed: true, Apps: []string{ev.App}}
	}
	if open != nil {
		t := open.copy()
		c := t.change(ev.App)
		c.Target.Upstreams = without(c.Target.Upstreams, ev.Remove)
		c.Replacements = without(c.Replacements, ev.Remove)
		if m.s.Durable.Txns[t.ID] != nil {
			r.Txn = t
		} else {
			a := m.attempt(t.ID)
			a.t = t
			delete(a.staged, ev.App) // what was checked is no longer what will be published
		}
	}
	m.record(r)
}

// finishAmend makes the verified insertions part of the committed Section, and lets the retired ones drain.
func (m *stepper) finishAmend(t *Txn) bool {
	c := &t.Changes[0]
	sec := *m.s.section(c.App)
	next := c.Target
	next.Upstreams = without(c.Target.Upstreams, t.Amend.Retire)
	sec.Draining = m.replaced(&SectionState{Committed: c.Target, Draining: sec.Draining}, &next, sec.Committed.Drain, false)
	sec.Committed, sec.Died = next, false
	if !t.Amend.Counted {
		sec.Version.Amendments++
	}
	sec.Passed = max(sec.Passed, t.Order)
	sec.Unsettled = true
	m.record(Record{Kind: KindAmended, TxnID: t.ID, Order: t.Order, Origin: t.Origin, Sections: []*SectionState{&sec},
		Closed: &Outcome{TxnID: t.ID, Order: t.Order, Committed: true, Apps: t.names()}})
	a := m.attempt(t.ID)
	delete(m.s.attempts, t.ID)
	for _, to := range a.amend {
		m.wait(to, t.names(), Answer{}, true)
	}
	return true
}
