package participant

import (
	"maps"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// start begins a Work for the App. REQUIRES: none is under way for it.
func (m *stepper) start(app string, w Work) {
	m.s.seq++
	w.App, w.Seq = app, m.s.seq
	l := m.live(app)
	l.work, l.workProc = &w, m.s.Process
	m.emit(Start{Work: w})
}

// schedule gives a Section the Work that its want asks for: files before runtime (a proxy that restarts at any moment
// comes back to the truth), nothing while a Work runs, and pauses that grow while the proxy does not follow.
func (m *stepper) schedule(app string) {
	l := m.wanted(app)
	if l.work != nil || m.now.Before(l.retryAt) || m.isStray(app) {
		return
	}
	sec := m.s.section(app)
	if !l.pub.known && !sec.Unsettled {
		m.start(app, Work{ReadPublished: true})
		return
	}
	_, v := m.proof(app, time.Time{})
	l = m.s.live.get(app)
	if !l.conv.known && (l.reading == nil || l.reading.process != m.s.Process) {
		return // look before touching anything
	}
	if t := m.s.openOn(app); t != nil && t.Phase == Failed && l.lastErr != nil {
		return // it has been said that this does not work; the Abort that follows tells what to do instead
	}
	publish := !l.pub.known || l.pub.want != l.pubSum
	converge := !l.conv.known || l.conv.digest != l.wantSum || v == differs
	if m.left(app) {
		return // somebody else changed it, and the policy is to report that
	}
	if !publish && !converge {
		if v == equal {
			m.settled(app, sec)
		}
		return
	}
	l = m.live(app)
	if v == differs || l.lastErr != nil {
		l.tries++
		l.retryAt = m.now.Add(backoff(l.tries))
	}
	w := Work{}
	if t := m.s.openOn(app); t != nil {
		w.Phase = t.Phase
	} else if l.drift != nil && !sec.Unsettled {
		m.drifted(app, sec, l.drift)
	}
	to := *l.want
	if l.drift != nil {
		to = m.held(l)
	}
	holds := len(to.Upstreams) > len(l.want.Upstreams)
	if holds {
		if r := l.reading; !publish && l.holding && l.conv.digest == driver.Digest(to) && !r.started.Before(l.conv.at) && r.section.Digest == l.conv.digest {
			l.tries, l.retryAt = 0, time.Time{}
			return // until one of ours is green
		}
		l.tries++
		l.retryAt = m.now.Add(backoff(l.tries))
	}
	l.holding = holds
	if publish {
		p := published(*l.want)
		w.Publish = &p
	}
	if converge {
		w.Converge = &to
	}
	m.start(app, w)
}

// drifted journals that the running set is no longer what the journal says and no message of ours explains it: somebody
// else changed the proxy, or it came back with less. It is about to be put right, which is a change as well
// (NO-SILENT-CHANGE); settled records the outcome.
func (m *stepper) drifted(app string, sec *SectionState, d *Drift) {
	next := *sec
	next.Unsettled = true
	m.record(Record{Kind: KindDrift, Order: sec.Version.Txn, Note: d.Cause.String() + ": " + app + ": " + d.Summary, Sections: []*SectionState{&next}})
}

// settled journals the outcome of a change that no transaction is open for (NO-SILENT-CHANGE: one record before the
// effect, one after it).
func (m *stepper) settled(app string, sec *SectionState) {
	l := m.live(app)
	l.tries, l.lastErr = 0, nil
	if !sec.Unsettled || m.s.openOn(app) != nil {
		return
	}
	next := *sec
	next.Unsettled, next.Published = false, l.pub.digest
	m.record(Record{Kind: KindSettled, Order: sec.Version.Txn, Note: l.wantSum, Sections: []*SectionState{&next}})
}

// stepWorkDone takes in what a Work came to.
func (m *stepper) stepWorkDone(ev WorkDone) {
	if c := m.s.collecting; c != nil && ev.App == "" && ev.Seq == c.seq {
		m.collectDone(ev.Err)
		return
	}
	if old := m.s.live.get(ev.App); old == nil || old.work == nil || old.work.Seq != ev.Seq {
		return
	}
	l := m.live(ev.App)
	w, ignore := l.work, l.ignore
	l.work, l.ignore = nil, false
	if ev.PublishedKnown {
		m.sawFiles(ev.App, l, w, ev.Published)
	}
	if ignore {
		return // only Stage and Requests are cancelled: neither leaves anything behind
	}
	t := m.s.openOn(ev.App)
	if ev.Err != nil {
		m.workFailed(ev.App, l, w, t, ev.Err)
		return
	}
	l.lastErr = nil
	switch {
	case w.Stage != nil:
		if t != nil && m.s.Durable.Txns[t.ID] == nil {
			m.attempt(t.ID).staged[ev.App] = ev.Published
		}
	case len(w.Requests) > 0:
		if t != nil && l.workProc == m.s.Process {
			a := m.attempt(t.ID)
			a.passed[ev.App] = l.workProc
			a.tried[ev.App] = 0
			delete(a.reqErr, ev.App)
		}
	case len(w.Cut) > 0:
		cut := maps.Clone(l.cut)
		if cut == nil {
			cut = map[string]bool{}
		}
		for _, name := range w.Cut {
			cut[name] = true
		}
		l.cut = cut
		l.conv.at = m.now
		l.retryAt = m.now.Add(cutRetry)
	}
	if w.Publish != nil {
		l.pubAt = m.now
	}
	if w.Converge != nil {
		l.conv = converged{known: true, digest: driver.Digest(*w.Converge), at: m.now}
	}
}

// sawFiles notes the digest of the published files.
func (m *stepper) sawFiles(app string, l *live, w *Work, digest string) {
	switch {
	case w.Publish != nil:
		l.pub = publishedState{known: true, want: driver.Digest(*w.Publish), digest: digest}
	case l.pub.known:
		if l.pub.digest != digest {
			l.pub.want, l.pub.digest = never, digest // somebody changed them: publish again
		}
	default:
		sec := m.s.section(app)
		l.pub = publishedState{known: true, want: never, digest: digest}
		if !sec.Unsettled && digest == sec.Published {
			// They are as they were when the Section was last settled.
			l.pub.want = driver.Digest(published(baseWant(sec)))
		}
	}
}

// workFailed counts the attempt; the phases decide what it means for them.
func (m *stepper) workFailed(app string, l *live, w *Work, t *Txn, err error) {
	l.lastErr = err
	if w.Publish != nil {
		l.pub = publishedState{known: true, want: never, digest: l.pub.digest}
	}
	if w.changes() {
		l.conv = converged{known: true, digest: never, at: m.now}
	}
	switch {
	case w.Stage != nil && t != nil && m.s.Durable.Txns[t.ID] == nil:
		reason, transient := classify(err)
		since := m.s.attempts[t.ID].since
		if !transient || reason != Busy && !m.now.Before(since.Add(snapshotPatience)) || reason == SetDiffers {
			no := refusalOf(app, err)
			if no.Reason == SetDiffers {
				no.Reason = InvalidConfig
			}
			m.forget(t.ID, no)
			return
		}
	case len(w.Requests) > 0 && t != nil:
		a := m.attempt(t.ID)
		a.tried[app]++
		a.reqErr[app] = err
		l.lastErr = nil
	}
	l.tries++
	l.retryAt = m.now.Add(backoff(l.tries))
}

// stepReading takes in what the proxy reported.
func (m *stepper) stepReading(ev Reading) {
	if !ev.Started.Before(m.s.readErrAt) { // else it looked before one that failed
		m.s.readErr = nil
	}
	if ev.Started.After(m.s.readAt) {
		m.s.readAt = ev.Started
	}
	old := m.s.Process
	m.seeProcess(ev.Reading.Process)
	proc := m.s.Process
	if ev.All && old != m.s.Process {
		m.s.readAll = ev.Started // this is the reading that is asked for
	}
	set := func(app string) {
		l := m.live(app)
		if l.reading != nil && l.reading.started.After(ev.Started) {
			return
		}
		now := &reading{started: ev.Started, at: ev.Reading.At, process: proc, section: ev.Reading.Sections[app]}
		now.stay(l.reading)
		if !now.tellsAs(l.reading) {
			m.reports[app] = true
		}
		l.reading = now
	}
	if ev.All {
		m.s.Tombstones = ev.Reading.Tombstones
		for app := range ev.Reading.Sections {
			set(app)
		}
		for _, app := range m.apps() {
			if _, seen := ev.Reading.Sections[app]; !seen {
				set(app)
			}
		}
		if ev.Started.After(m.s.lastAll) {
			m.s.lastAll = ev.Started
		}
		m.noteShown()
		return
	}
	for _, app := range ev.Apps {
		set(app)
	}
}

// stepReadFailed takes in that the proxy could not be read, unless a reading that began later has worked: it says more.
func (m *stepper) stepReadFailed(ev ReadFailed) {
	if ev.Started.Before(m.s.readAt) {
		return
	}
	if m.s.readErr == nil {
		m.s.readErrAt = ev.Started
	}
	m.s.readErr = ev.Err
}

// seeProcess notices that another process runs. All that was read of the old one proves nothing any more, so everything
// is read again; a Section that the new process does not hold as journaled is converged by schedule.
func (m *stepper) seeProcess(p driver.Process) {
	if p.Same(m.s.Process) {
		return
	}
	m.s.Process = p
	m.s.readAll = m.now
	for _, app := range m.apps() {
		m.touched[app] = struct{}{} // none of them is proven any more
	}
	for _, id := range m.s.openIDs() {
		clear(m.attempt(id).tried)
		for _, app := range m.s.txn(id).names() {
			m.reports[app] = true
		}
	}
}
