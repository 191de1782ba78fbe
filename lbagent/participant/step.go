package participant

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Step is the machine: the state after ev at time now, and what must be done. s is left alone. now must not go back.
func Step(s State, ev Event, now time.Time) (State, []Effect) {
	m := &stepper{s: s, now: now, ownLive: map[string]bool{}, ownAttempt: map[string]bool{}, reports: map[string]bool{},
		lives: s.live.own(), touched: map[string]struct{}{}}
	m.s.live = m.lives.liveTable
	m.s.attempts = cloned(s.attempts)
	m.s.waits = slices.Clone(s.waits)
	m.s.verifies = slices.Clone(s.verifies)
	m.dispatch(ev)
	if m.s.Broken == nil {
		m.settle()
		m.mend()
	}
	m.noteRest()
	for _, app := range slices.Sorted(maps.Keys(m.reports)) {
		m.emit(Report{App: app})
	}
	return m.s, append(m.journal, m.effects...)
}

// stepper is one Step under way. It owns a copy of what it changes.
type stepper struct {
	s          State
	now        time.Time
	journal    []Effect
	effects    []Effect
	lives      liveWriter // what s.live shares its parts with
	ownLive    map[string]bool
	ownAttempt map[string]bool
	reports    map[string]bool
	touched    map[string]struct{} // Apps whose rest may have changed, beside those in ownLive and reports
}

func (m *stepper) emit(e Effect) { m.effects = append(m.effects, e) }

func (m *stepper) reply(to Token, a Answer) {
	if to != 0 {
		m.emit(Reply{To: to, Answer: a})
	}
}

func (m *stepper) replyNo(to Token, r *Refusal) { m.reply(to, Answer{Refusal: r}) }

// record journals r and applies it: the only way in which the durable part changes.
func (m *stepper) record(r Record) {
	d := &m.s.Durable
	r.At = m.now
	r.Epoch, r.View, r.Floor = max(r.Epoch, d.Epoch), max(r.View, d.View), max(r.Floor, d.Floor)
	r.Drift = cmp.Or(r.Drift, d.Drift)
	for _, s := range r.Sections {
		m.reports[s.App] = true
	}
	if r.Txn != nil {
		for _, app := range r.Txn.names() {
			m.reports[app] = true
		}
	}
	if r.Closed != nil {
		for _, app := range r.Closed.Apps {
			m.reports[app] = true
		}
	}
	*d = d.Apply(r)
	m.journal = append(m.journal, Journal{Record: r})
}

// live returns the App's volatile part for writing.
func (m *stepper) live(app string) *live {
	if m.ownLive[app] {
		return m.s.live.get(app)
	}
	l := &live{}
	if old := m.s.live.get(app); old != nil {
		*l = *old
	}
	m.lives.put(app, l)
	m.ownLive[app] = true
	return l
}

// attempt returns the volatile part of an open transaction for writing.
func (m *stepper) attempt(id string) *attempt {
	if m.ownAttempt[id] {
		return m.s.attempts[id]
	}
	a := *m.s.attempts[id]
	a.staged, a.tried = maps.Clone(a.staged), maps.Clone(a.tried)
	a.passed, a.stage = maps.Clone(a.passed), maps.Clone(a.stage)
	a.drainFrom, a.reqErr = maps.Clone(a.drainFrom), maps.Clone(a.reqErr)
	a.prepare, a.activate = slices.Clone(a.prepare), slices.Clone(a.activate)
	a.abort, a.amend = slices.Clone(a.abort), slices.Clone(a.amend)
	m.s.attempts[id] = &a
	m.ownAttempt[id] = true
	return &a
}

func (m *stepper) dispatch(ev Event) {
	to, fence, isMessage := envelope(ev)
	if m.s.Broken != nil {
		// Works that were begun before still end; nothing new is done until the journal is open again.
		if done, ok := ev.(WorkDone); ok && done.App != "" {
			m.live(done.App).work = nil
		}
		if done, ok := ev.(Mended); ok {
			m.stepMended(done)
		}
		if isMessage {
			m.replyNo(to, m.s.Broken)
		}
		return
	}
	if isMessage {
		if no := m.fence(fence); no != nil {
			m.replyNo(to, no)
			return
		}
	}
	switch ev := ev.(type) {
	case Prepare:
		m.stepPrepare(ev)
	case Activate:
		m.stepActivate(ev)
	case Verify:
		m.stepVerify(ev)
	case Commit:
		m.stepCommit(ev)
	case Abort:
		m.stepAbort(ev)
	case Amend:
		m.stepAmend(ev)
	case Sync:
		m.stepSync(ev)
	case SetTraffic:
		m.stepTraffic(ev)
	case Collect:
		m.stepCollect(ev)
	case Hello:
		if ev.Drift != "" && ev.Drift != m.s.Policy() {
			m.record(Record{Kind: KindEpoch, Drift: ev.Drift, Note: "the policy on drift is " + string(ev.Drift)})
		}
		m.reply(ev.To, Answer{})
	case WorkDone:
		m.stepWorkDone(ev)
	case Reading:
		m.stepReading(ev)
	case ReadFailed:
		m.stepReadFailed(ev)
	case Surveyed:
		m.stepSurveyed(ev)
	case Mended:
		m.stepMended(ev)
	case ProcessSeen:
		m.seeProcess(ev.Process)
	case ProcessGone:
		if ev.Process.Same(m.s.Process) {
			m.seeProcess(driver.Process{}) // until another one is read, nothing runs
		}
	case AppsFound:
		for _, app := range ev.Apps {
			m.live(app)
		}
	case JournalFailed:
		m.stepJournalFailed(ev)
	case Tick:
	}
}

// envelope returns what every message has.
func envelope(ev Event) (Token, Fence, bool) {
	switch ev := ev.(type) {
	case Prepare:
		return ev.To, ev.Fence, true
	case Activate:
		return ev.To, ev.Fence, true
	case Verify:
		return ev.To, ev.Fence, true
	case Commit:
		return ev.To, ev.Fence, true
	case Abort:
		return ev.To, ev.Fence, true
	case Amend:
		return ev.To, ev.Fence, true
	case Sync:
		return ev.To, ev.Fence, true
	case SetTraffic:
		return ev.To, ev.Fence, true
	case Collect:
		return ev.To, ev.Fence, true
	case Hello:
		return ev.To, ev.Fence, true
	}
	return 0, Fence{}, false
}

// fence is the one check of epoch and membership (invariant FENCE). A higher epoch is journaled before anything that its
// message leads to.
func (m *stepper) fence(f Fence) *Refusal {
	d := &m.s.Durable
	if f.Cluster != m.s.Self.Cluster || f.Group != m.s.Self.Group {
		return refuse(WrongGroup, "", "this host is of cluster %q, group %q; the message is for %q, %q",
			m.s.Self.Cluster, m.s.Self.Group, f.Cluster, f.Group)
	}
	if f.Epoch < d.Epoch {
		r := refuse(StaleEpoch, "", "epoch %d is over: this host has seen %d", f.Epoch, d.Epoch)
		r.MaxEpoch = d.Epoch
		return r
	}
	if f.Epoch > d.Epoch || f.View > d.View {
		m.record(Record{Kind: KindEpoch, Epoch: f.Epoch, View: f.View})
	}
	return nil
}

// stepJournalFailed ends all service: what cannot be remembered is not promised, and not acted on. The proxy is left as
// it is (FAIL-STATIC). Only Recover on a journal that was opened again ends this state.
func (m *stepper) stepJournalFailed(ev JournalFailed) {
	m.s.Broken = refuse(JournalBroken, "", "the journal cannot be written: %v: free or repair the disk of the agent's directory", ev.Err)
	for _, id := range m.s.openIDs() {
		a := m.attempt(id)
		for _, list := range [][]Token{a.prepare, a.activate, a.abort, a.amend} {
			for _, to := range list {
				m.replyNo(to, m.s.Broken)
			}
		}
		a.prepare, a.activate, a.abort, a.amend = nil, nil, nil, nil
	}
	for _, w := range m.s.waits {
		m.replyNo(w.to, m.s.Broken)
	}
	m.collected(m.s.Broken)
	for _, w := range m.s.verifies {
		m.replyNo(w.to, m.s.Broken)
	}
	m.s.waits, m.s.verifies = nil, nil
}

// settle brings everything as far as it goes without a further event.
func (m *stepper) settle() {
	for range 16 { // a transaction passes at most a few phases in one Step
		moved := false
		for _, id := range m.s.openIDs() {
			if m.advance(id) {
				moved = true
			}
		}
		if !moved {
			break
		}
	}
	apps := m.restless()
	for _, app := range apps {
		m.drains(app)
	}
	for _, app := range apps {
		m.notice(app)
		m.schedule(app)
	}
	m.answerWaits()
	m.answerVerifies()
}

// restless returns, sorted, the Apps for which something may be due: those that this Step touched, those of open
// transactions, and those that are not at rest. On a Host with a thousand Apps that is a few of them, so the cost of a
// Step hardly grows with their number.
func (m *stepper) restless() []string {
	set := make(map[string]struct{})
	for app := range m.ownLive {
		set[app] = struct{}{}
	}
	for app := range m.reports {
		set[app] = struct{}{}
	}
	for id := range m.s.attempts {
		for _, app := range m.s.txn(id).names() {
			set[app] = struct{}{}
		}
	}
	for app := range m.s.restless {
		if l, sec := m.s.live.get(app), m.s.Durable.Sections[app]; l == nil || l.work == nil || sec != nil && len(sec.Draining) > 0 {
			set[app] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// noteRest brings State.restless up to date with what this Step has touched.
func (m *stepper) noteRest() {
	next, own := m.s.restless, false
	note := func(app string) {
		_, is := next[app]
		if should := !m.s.atRest(app); should != is {
			if !own {
				// Not maps.Clone: a copy of a map that once held every App would stay as large as that.
				next, own = make(map[string]struct{}, len(m.s.restless)+1), true
				maps.Copy(next, m.s.restless)
			}
			if should {
				next[app] = struct{}{}
			} else {
				delete(next, app)
			}
		}
	}
	for app := range m.ownLive {
		note(app)
	}
	for app := range m.reports {
		note(app)
	}
	for app := range m.touched {
		note(app)
	}
	m.s.restless = next
}

// apps returns every App that the journal or the volatile part knows, sorted.
func (m *stepper) apps() []string {
	set := make(map[string]struct{}, len(m.s.Durable.Sections))
	for app := range m.s.Durable.Sections {
		set[app] = struct{}{}
	}
	m.s.live.each(func(app string, _ *live) { set[app] = struct{}{} })
	for id := range m.s.attempts {
		for _, app := range m.s.txn(id).names() {
			set[app] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// advance moves one open transaction by at most one phase and reports whether it did.
func (m *stepper) advance(id string) bool {
	t := m.s.txn(id)
	if t == nil {
		return false
	}
	switch t.Phase {
	case Preparing:
		if m.s.Durable.Txns[id] == nil {
			return m.advanceUnstaged(id, t)
		}
		return m.advanceWarm(id, t)
	case Ready:
		return m.advanceReady(id, t)
	case Activating:
		return m.advanceActivating(id, t)
	case Verified, Lapsed:
		return m.advanceInDoubt(id, t)
	case Failed:
		return m.advanceFailed(id, t)
	default:
		return m.advanceRestoring(id, t)
	}
}

// enter journals t in a new phase and restarts the clock of the phase.
func (m *stepper) enter(t *Txn, kind RecordKind, phase Phase, note string, sections ...*SectionState) {
	t.Phase = phase
	t.Deadline = m.s.deadline(t)
	m.record(Record{Kind: kind, TxnID: t.ID, Order: t.Order, Origin: t.Origin, Note: note, Txn: t, Sections: sections})
	m.attempt(t.ID).since = m.now
}

// classify turns a driver's error into a reason; transient ones are worth another try.
func classify(err error) (reason Reason, transient bool) {
	var refused *driver.RefusedError
	switch {
	case errors.As(err, &refused):
		return InvalidConfig, false
	case errors.Is(err, driver.ErrBusy):
		return Busy, true
	case errors.Is(err, driver.ErrProxyDown):
		return ProxyDown, true
	case errors.Is(err, driver.ErrProxyMismatch):
		return ProxyMismatch, false
	default:
		return SetDiffers, true
	}
}

// refusalOf is the Refusal that reports a driver's error.
func refusalOf(app string, err error) *Refusal {
	reason, _ := classify(err)
	r := refuse(reason, app, "%v", err)
	var refused *driver.RefusedError
	if errors.As(err, &refused) {
		r.Output = tail(refused.Output, driver.MaxOutput)
		r.Message = refused.Checker + " refused the configuration of " + app
	}
	if len(r.Message) > 4096 {
		r.Message = r.Message[:4096]
	}
	return r
}

func tail(s string, n int) string {
	if len(s) > n {
		return s[len(s)-n:]
	}
	return s
}
