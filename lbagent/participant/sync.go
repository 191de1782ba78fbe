package participant

import (
	"slices"
)

// stepSync installs the whole committed state of the Group and deletes what is not in it. Sections with a transaction
// open here are left to that transaction. Upstreams that leave drain, and go on serving until one of the installed ones
// is green (NEVER-ZERO).
func (m *stepper) stepSync(ev Sync) {
	named := make(map[string]*Committed, len(ev.Sections))
	for i := range ev.Sections {
		named[ev.Sections[i].Section.App] = &ev.Sections[i]
	}
	if ev.Fence.View < m.s.Durable.View {
		m.replyNo(ev.To, refuse(WrongGroup, "", "view %d is over: this host has seen %d", ev.Fence.View, m.s.Durable.View))
		return
	}
	all := m.apps()
	for app := range named {
		if m.s.live.get(app) == nil && m.s.Durable.Sections[app] == nil {
			all = append(all, app)
		}
	}
	slices.Sort(all)
	if ev.Order < m.s.Durable.Floor {
		m.replyNo(ev.To, refuse(StaleOrder, "", "this host has passed order number %d: a Sync at %d is stale", m.s.Durable.Floor, ev.Order))
		return
	}
	for _, app := range all {
		if sec := m.s.section(app); sec.Passed > ev.Order && m.s.openOn(app) == nil {
			m.replyNo(ev.To, refuse(StaleOrder, app, "%s has passed order number %d: a Sync at %d is stale", app, sec.Passed, ev.Order))
			return
		}
	}
	var ans Answer
	var changed []*SectionState
	var read []string
	for _, app := range all {
		if m.s.openOn(app) != nil {
			ans.Open = append(ans.Open, app)
			continue
		}
		m.live(app)
		read = append(read, app)
		sec := m.s.section(app)
		if c := named[app]; c != nil {
			if next := m.install(sec, c); next != nil {
				changed = append(changed, next)
			}
			continue
		}
		if next := m.install(sec, &Committed{Section: Section{App: app}, Removed: true}); next != nil {
			changed = append(changed, next)
			ans.Deleted = append(ans.Deleted, app)
		}
	}
	if len(changed) > 0 || ev.Order > m.s.Durable.Floor {
		m.record(Record{Kind: KindSynced, Order: ev.Order, Origin: ev.Origin, Floor: ev.Order, Sections: changed})
	}
	m.forgetTombstones()
	read = slices.DeleteFunc(read, func(app string) bool { return m.s.Durable.Sections[app] == nil })
	m.wait(ev.To, read, ans, true)
}

// install returns the Section after a Sync, or nil if it is that already.
func (m *stepper) install(sec *SectionState, c *Committed) *SectionState {
	_, known := m.s.Durable.Sections[sec.App]
	target := c.Section
	if c.Removed {
		target = Section{App: sec.App}
	}
	same := sec.Version == c.Version && sec.Removed == c.Removed && !sec.Stray && equalSections(&sec.Committed, &target)
	if known && same || !known && c.Removed && c.Version == (Version{}) && !m.isStray(sec.App) {
		return nil
	}
	next := *sec
	next.Stray = false
	drain := target.Drain
	if c.Removed {
		drain = sec.Committed.Drain
	}
	// None left at the same transaction: what Amendments took out has died.
	next.Died = !c.Removed && len(target.Upstreams) == 0 && c.Version.Txn == sec.Version.Txn && (sec.Died || len(sec.Committed.Upstreams) > 0)
	// What serves and is not committed stays until something committed can: it was not asked to be empty (NEVER-ZERO).
	next.Draining = m.replaced(sec, &target, drain, len(target.Upstreams) > 0 || next.Died)
	next.Committed = target
	next.Version, next.Removed = c.Version, c.Removed
	next.Drained = nil
	next.Unsettled = true
	return &next
}

func equalSections(a, b *Section) bool {
	return a.App == b.App && a.Spec == b.Spec && a.Drain == b.Drain && slices.Equal(a.Routes, b.Routes) &&
		slices.Equal(a.Upstreams, b.Upstreams)
}

// wait answers the caller once every App was read from now on, and equals its want if settled.
func (m *stepper) wait(to Token, apps []string, ans Answer, settled bool) {
	for _, app := range apps {
		m.live(app)
	}
	m.s.waits = append(m.s.waits, &wait{to: to, apps: apps, since: m.now, deadline: m.now.Add(readbackPatience),
		answer: ans, settled: settled})
}

// answerWaits answers the callers whose reading has come.
func (m *stepper) answerWaits() {
	m.s.waits = slices.DeleteFunc(m.s.waits, func(w *wait) bool {
		for _, app := range w.apps {
			if no := m.waiting(w, app); no != nil {
				if m.now.Before(w.deadline) {
					return false
				}
				m.reply(w.to, Answer{Refusal: no, Evidence: m.evidence(w.apps...)})
				return true
			}
		}
		ans := w.answer
		ans.Evidence = m.evidence(w.apps...)
		m.reply(w.to, ans)
		return true
	})
}

// waiting says what is still missing for the App; nil: nothing.
func (m *stepper) waiting(w *wait, app string) *Refusal {
	l := m.wanted(app)
	if !w.settled || m.isStray(app) || m.s.openOn(app) != nil || m.left(app) {
		if l.reading != nil && !l.reading.started.Before(w.since) && l.reading.process == m.s.Process {
			return nil
		}
		if m.s.readErr != nil {
			return refusalOf(app, m.s.readErr)
		}
		return refuse(ProxyDown, app, "%s has not been read yet", app)
	}
	if _, v := m.proof(app, w.since); v != equal || !m.filesMatch(app) {
		if no := m.trouble(app, v, w.since, w.deadline.Sub(w.since)); no != nil {
			return no
		}
		return refuse(SetDiffers, app, "%s has not been read as committed yet", app)
	}
	return nil
}
