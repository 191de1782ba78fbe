package participant

import (
	"slices"
	"strings"
	"time"
)

// stepPrepare opens a transaction, or joins the one that is open with this id.
func (m *stepper) stepPrepare(ev Prepare) {
	if t := m.s.txn(ev.TxnID); t != nil {
		m.rejoinPrepare(ev, t)
		return
	}
	if o, ok := m.s.Durable.Outcome(ev.TxnID); ok {
		m.replyNo(ev.To, closedRefusal(o))
		return
	}
	t, no := m.newTxn(ev)
	if no != nil {
		m.replyNo(ev.To, no)
		return
	}
	m.open(t)
	m.attempt(t.ID).prepare = []Token{ev.To}
}

// rejoinPrepare answers a repeated Prepare: it waits with the first one, or learns why Ready is no longer an answer.
func (m *stepper) rejoinPrepare(ev Prepare, t *Txn) {
	switch {
	case t.Order != ev.Order || t.Amend != nil:
		m.replyNo(ev.To, refuse(WrongState, "", "transaction %s is open with order number %d, not %d", t.ID, t.Order, ev.Order))
	case t.Phase == Preparing || t.Phase == Ready:
		a := m.attempt(t.ID)
		a.prepare = append(a.prepare, ev.To)
	case t.Phase.restoring():
		m.replyNo(ev.To, abortedRefusal(t.ID, t.Refusal))
	default:
		m.replyNo(ev.To, refuse(WrongState, "", "transaction %s is %s", t.ID, t.Phase))
	}
}

// newTxn checks a Prepare against what the journal holds: order, lock, base, content. Nothing is written yet.
func (m *stepper) newTxn(ev Prepare) (*Txn, *Refusal) {
	if ev.Fence.View < m.s.Durable.View {
		return nil, refuse(WrongGroup, "", "view %d is over: this host has seen %d", ev.Fence.View, m.s.Durable.View)
	}
	budget := clampDeadline(ev.Deadline)
	t := &Txn{ID: ev.TxnID, Order: ev.Order, Phase: Preparing, Origin: ev.Origin, Budget: budget, Deadline: m.now.Add(budget)}
	if len(ev.Changes) == 0 {
		return nil, refuse(WrongState, "", "a transaction must name a Section")
	}
	for _, c := range ev.Changes {
		if no := m.admissible(c.App, ev.Order); no != nil {
			return nil, no
		}
		sec := m.s.section(c.App)
		if c.Base.Txn != sec.Version.Txn {
			return nil, refuse(BaseMismatch, c.App, "this host has %s at %d, not at %d: Sync it first", c.App, sec.Version.Txn, c.Base.Txn)
		}
		tc := TxnChange{App: c.App, Target: Section{App: c.App}, Remove: c.Target == nil}
		if c.Target != nil {
			tc.Target = *c.Target
		}
		tc.Stop = len(tc.Target.Upstreams) == 0
		if no := sameAddresses(sec, tc.Target.Upstreams); no != nil {
			return nil, no
		}
		t.Changes = append(t.Changes, tc)
	}
	slices.SortFunc(t.Changes, func(a, b TxnChange) int { return strings.Compare(a.App, b.App) })
	for i := 1; i < len(t.Changes); i++ {
		if t.Changes[i].App == t.Changes[i-1].App {
			return nil, refuse(WrongState, t.Changes[i].App, "%s is named twice", t.Changes[i].App)
		}
	}
	return t, nil
}

// admissible checks the lock and the order number of one Section for something new.
func (m *stepper) admissible(app string, order uint64) *Refusal {
	if other := m.s.openOn(app); other != nil {
		return refuse(Busy, app, "%s is open on %s", other.ID, app)
	}
	if passed := m.s.passed(app); order <= passed {
		return refuse(StaleOrder, app, "%s has passed order number %d: %d is stale", app, passed, order)
	}
	if m.isStray(app) {
		return strayRefusal(app)
	}
	return nil
}

// isStray: the proxy may hold the App although no journaled message put it there.
func (m *stepper) isStray(app string) bool {
	sec := m.s.Durable.Sections[app]
	if sec != nil && !sec.Stray {
		return false
	}
	l := m.s.live.get(app)
	if l == nil {
		return false
	}
	return l.reading != nil && l.reading.section.Digest != "" || l.pub.known && l.pub.digest != ""
}

// sameAddresses: a name is one task incarnation, so it cannot move to another address.
func sameAddresses(sec *SectionState, ups []Upstream) *Refusal {
	known := slices.Clone(sec.Committed.Upstreams)
	for _, d := range sec.Draining {
		known = append(known, d.Upstream)
	}
	for _, u := range ups {
		for _, k := range known {
			if k.Name == u.Name && k.Address != u.Address {
				return &Refusal{Reason: InvalidConfig, App: sec.App, Upstream: u.Name,
					Message: "upstream " + u.Name + " is at " + k.Address.String() + " here: a task at another address needs another name"}
			}
		}
	}
	return nil
}

// open takes the lock: the transaction exists in memory until STAGED.
func (m *stepper) open(t *Txn) {
	m.s.attempts[t.ID] = newAttempt(t, m.now)
	m.ownAttempt[t.ID] = true
	for _, app := range t.names() {
		l := m.live(app)
		l.lastErr, l.tries, l.retryAt = nil, 0, time.Time{}
		m.reports[app] = true
	}
}

// forget drops a transaction that is not staged: the proxy knows nothing of it, so there is nothing to undo or record.
func (m *stepper) forget(id string, no *Refusal) {
	a := m.attempt(id)
	for _, to := range slices.Concat(a.prepare, a.amend) {
		m.replyNo(to, no)
	}
	for _, app := range a.t.names() {
		m.reports[app] = true
		if l := m.s.live.get(app); l != nil && l.work != nil && l.work.Stage != nil {
			l = m.live(app)
			l.ignore = true
			m.emit(Cancel{App: app, Seq: l.work.Seq})
		}
	}
	delete(m.s.attempts, id)
}

// advanceUnstaged takes the snapshot and stages, then journals STAGED: the record with the undo, before the first
// runtime command (UNDO).
func (m *stepper) advanceUnstaged(id string, t *Txn) bool {
	a := m.attempt(id)
	if !m.now.Before(m.s.deadline(t)) {
		m.forget(id, refuse(DeadlinePassed, "", "the deadline of %s passed before it was staged", id))
		return false
	}
	all := true
	for _, app := range t.names() {
		if m.isStray(app) {
			m.forget(id, strayRefusal(app))
			return false
		}
		_, v := m.proof(app, a.since)
		if v != equal || !m.filesMatch(app) {
			all = false
			if no := m.trouble(app, v, a.since, snapshotPatience); no != nil {
				m.forget(id, no)
				return false
			}
		}
		if _, done := a.staged[app]; done {
			continue
		}
		all = false
		l := m.live(app)
		if l.work == nil && v != differs && !m.now.Before(l.retryAt) {
			st := *t
			st.Activated = true
			w := published(want(m.s.section(app), &st, undone))
			m.start(app, Work{Phase: Preparing, ReadPublished: true, Stage: &w})
		}
	}
	if !all {
		return false
	}
	var sections []*SectionState
	staged := t.copy()
	for i := range staged.Changes {
		c := &staged.Changes[i]
		l := m.wanted(c.App)
		c.Undo = Undo{Running: l.wantSum, Published: l.pub.digest, Serving: len(m.s.section(c.App).Committed.Upstreams),
			Died: m.s.section(c.App).Died}
		sec := *m.s.section(c.App)
		sec.Passed = max(sec.Passed, t.Order)
		sec.Stray = false
		sec.Draining = m.stopClocks(sec.Draining, &c.Target)
		sections = append(sections, &sec)
	}
	a.t = nil
	m.enter(staged, KindStaged, Preparing, "", sections...)
	return true
}

func strayRefusal(app string) *Refusal {
	return refuse(SetDiffers, app, "the proxy holds %s, which this host's journal does not know: Sync it first", app)
}

// stopClocks stops the drain clocks of upstreams that a target names again.
func (m *stepper) stopClocks(ds []Draining, target *Section) []Draining {
	out := slices.Clone(ds)
	for i := range out {
		if d := &out[i]; target.has(d.Upstream.Name) && d.Running {
			d.Running, d.Left, d.Until = false, max(d.Until.Sub(m.now), 0), time.Time{}
		}
	}
	return out
}

// startClocks lets the clocks go on that stopClocks stopped.
func (m *stepper) startClocks(ds []Draining) []Draining {
	out := slices.Clone(ds)
	for i := range out {
		if d := &out[i]; !d.Running && !d.Held {
			d.Running, d.Until, d.Left = true, m.now.Add(d.Left), 0
		}
	}
	return out
}

// advanceWarm waits until this proxy's own checks are green for each new upstream, then journals WARM and votes Ready.
func (m *stepper) advanceWarm(id string, t *Txn) bool {
	if !m.now.Before(m.s.deadline(t)) {
		return m.restoreSelf(t, refuse(DeadlinePassed, "", "the deadline of %s passed before it was Ready", id))
	}
	a := m.s.attempts[id]
	for _, app := range t.names() {
		no, ok := m.ready(t, app, a.since, a.since)
		if no != nil {
			return m.restoreSelf(t, no)
		}
		if !ok {
			return false
		}
	}
	m.enter(t.copy(), KindWarm, Ready, "")
	a = m.attempt(id)
	if t.Amend != nil {
		a.asked = m.now
	}
	m.answerReady(id, t)
	return true
}

// ready reports whether the App's candidates are proven green in a reading that began at or after fresh; patience is
// counted from since.
func (m *stepper) ready(t *Txn, app string, since, after time.Time) (*Refusal, bool) {
	r, v := m.proof(app, after)
	if v != equal {
		return m.trouble(app, v, since, m.patience(t, since)), false
	}
	switch h, why := m.judge(t, app, r); {
	case h == good:
		return nil, true
	case !m.now.Before(since.Add(warmPatience + m.checkTime(t))):
		return why, false
	default:
		return nil, false
	}
}

// patience bounds the retries of one phase: a part of the time left, so that a no comes with its reason and not too late.
func (m *stepper) patience(t *Txn, since time.Time) time.Duration {
	return min(proxyPatience, m.s.deadline(t).Sub(since)*3/4)
}

func (m *stepper) answerReady(id string, t *Txn) {
	a := m.attempt(id)
	for _, to := range a.prepare {
		m.reply(to, Answer{Evidence: m.evidence(t.names()...)})
	}
	a.prepare = nil
}

func clampDeadline(d time.Duration) time.Duration {
	if d <= 0 {
		return DefaultDeadline
	}
	return min(d, MaxDeadline)
}

func closedRefusal(o Outcome) *Refusal {
	if o.Committed {
		return refuse(WrongState, "", "transaction %s is committed here", o.TxnID)
	}
	return abortedRefusal(o.TxnID, o.Refusal)
}

// abortedRefusal says that this Host has aborted, and why if it did so by itself.
func abortedRefusal(id string, why *Refusal) *Refusal {
	if why == nil {
		return refuse(AbortedHere, "", "transaction %s is aborted here", id)
	}
	r := refuse(AbortedHere, why.App, "transaction %s is aborted here: %s: %s", id, why.Reason, why.Message)
	r.Upstream, r.Output = why.Upstream, why.Output
	return r
}
