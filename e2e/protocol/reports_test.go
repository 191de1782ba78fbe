package protocol

import (
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// connect stands the Watch stream of Host i to the leader.
func (w *world) connect(i int) {
	l := w.lead(w.newest().epoch)
	w.say("%s and the leader of epoch %d are connected", hostName(i), l.epoch)
	w.unlinked(i)
	h := w.host(i)
	h.watch, h.held, h.slow, h.unread = l.epoch, 0, false, true
	if !w.feed(i, participant.Hello{Fence: w.fence(l, i)}) || !w.settle(i) {
		return
	}
	h = w.host(i)
	h.held = 0
	s := &l.hosts[i]
	s.up, s.tries, s.syncAt = true, 0, time.Time{}
	s.reports = txn.HostReports{Known: true, Sections: map[string]*lbagentv1.SectionReport{}}
	for _, app := range h.m.Apps() {
		s.reports.Sections[app] = reportOf(h.m.Report(app))
	}
	w.tellReports(l, i, h.m.Apps())
	for _, o := range slices.Clone(l.txns) {
		if o.host(i) != nil {
			w.step(l, o, txn.HostLink{Host: hostName(i), Connected: true})
		}
	}
	for _, a := range slices.Clone(l.amends) {
		a.hostIsBack(i)
		w.advanceAmend(l, a)
	}
	w.refresh(l, i)
}

// unlinked: the Watch stream of Host i has fallen.
func (w *world) unlinked(i int) {
	h := w.host(i)
	epoch := h.watch
	h.watch = 0
	l := w.lead(epoch)
	if l == nil || epoch == 0 {
		return
	}
	l.hosts[i].up, l.hosts[i].downAt = false, w.now
	for _, o := range slices.Clone(l.txns) {
		if o.host(i) != nil {
			w.step(l, o, txn.HostLink{Host: hostName(i)})
		}
	}
}

// flush carries the reports of all Hosts to their leaders.
func (w *world) flush() {
	for range 8 {
		quiet := true
		for i := range w.hosts {
			if h := w.hosts[i]; h.watch != 0 && h.disk.Epoch > h.watch {
				w.unlinked(i) // the stream of a leader that was replaced ends
				quiet = false
			}
			h := w.hosts[i]
			if h.held == 0 || h.slow || h.watch == 0 {
				continue
			}
			quiet = false
			w.reported(i)
		}
		if quiet {
			return
		}
	}
}

// reported: what Host i has to report reaches its leader.
func (w *world) reported(i int) {
	h := w.host(i)
	held := h.held
	h.held = 0
	l := w.lead(h.watch)
	if l == nil {
		return
	}
	s := &l.hosts[i]
	sections := map[string]*lbagentv1.SectionReport{}
	for app, r := range s.reports.Sections {
		sections[app] = r
	}
	var said []string
	for n, app := range apps {
		if held&(1<<n) != 0 {
			sections[app] = reportOf(h.m.Report(app))
			said = append(said, app)
		}
	}
	s.reports.Sections = sections
	w.tellReports(l, i, said)
	w.refresh(l, i)
}

// tellReports gives the machines what a message of the Watch stream says.
func (w *world) tellReports(l *leader, i int, said []string) {
	s := &l.hosts[i]
	for _, app := range said {
		r := s.reports.Sections[app]
		t := r.GetOpen()
		if t == nil {
			continue
		}
		if o := l.txn(t.GetTxnId()); o != nil && o.state.Order == t.GetOrder() && o.host(i) != nil {
			w.heardLapse(l, o, i, t)
			ev := txn.Reported{Host: hostName(i), Phase: t.GetPhase(), Fallback: t.GetFallback(), Refusal: t.GetRefusal()}
			if e := r.GetEvidence(); e != nil {
				ev.Evidence = []*lbagentv1.Evidence{e}
			}
			w.step(l, o, ev)
		}
	}
	pid := int64(w.hosts[i].m.Process.WorkerPID)
	if pid == 0 {
		pid = txn.NoProcess
	}
	for _, o := range slices.Clone(l.txns) {
		w.step(l, o, txn.ProcessSeen{Host: hostName(i), PID: pid, At: w.now})
	}
}

// answered gives an answer to the leader that asked.
func (w *world) answered(m *message) {
	l := w.lead(m.epoch)
	a := m.answer
	i := m.host
	w.say("the leader of epoch %d hears from %s: %s", l.epoch, hostName(i), answerText(m, a))
	switch m.call {
	case callSync:
		w.synced(l, i, m)
		return
	case callTraffic:
		l.hosts[i].direct = 0
		return
	case callSettleCommit, callSettleAbort:
		l.hosts[i].settle = 0
		if a.Refusal == nil {
			l.note(i, evidenceOf(a.Evidence))
		}
		w.refresh(l, i)
		return
	case callRemove, callInsert:
		w.amendAnswered(l, i, m)
		return
	default:
	}
	o := l.txn(m.id)
	if a.Refusal != nil && a.Refusal.Reason == participant.StaleEpoch {
		w.say("so the leader of epoch %d learns that its term is over", l.epoch)
		w.leaderDied(l)
		return
	}
	c := map[call]txn.Call{callPrepare: txn.CallPrepare, callActivate: txn.CallActivate, callVerify: txn.CallVerify,
		callCommit: txn.CallCommit, callAbort: txn.CallAbort}[m.call]
	refusal, evidence := refusalOf(a.Refusal), evidenceOf(a.Evidence)
	if m.call == callVerify && a.Refusal == nil {
		refusal, evidence = refusalOf(a.Verifies[0].Refusal), evidenceOf(a.Verifies[0].Evidence)
	}
	if refusal == nil {
		aborted := &lbagentv1.Aborted{Evidence: evidence, NeverActivated: a.NeverActivated}
		if app, err := txn.CheckAnswer(c, o.planned(w, w.hostGroup(i)), o.dead, evidence, aborted); err != nil {
			refusal = &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_SET_DIFFERS, App: app, Message: err.Error()}
		}
	}
	if refusal == nil && (c == txn.CallCommit || c == txn.CallAbort) {
		l.note(i, evidence)
	}
	if refusal == nil && c == txn.CallAbort {
		l.cameWith(o, i, evidence)
	}
	w.heardVote(l, o, i, m, refusal == nil)
	w.step(l, o, txn.Answer{Host: hostName(i), Call: c, SentAt: m.sentAt, Refusal: refusal, Evidence: evidence})
	if l.over {
		return
	}
	for _, am := range slices.Clone(l.amends) {
		if o.has(am.rec.undo) {
			w.advanceAmend(l, am)
		}
	}
	w.refresh(l, i)
}

// note takes evidence for a report.
func (l *leader) note(i int, evidence []*lbagentv1.Evidence) {
	s := &l.hosts[i]
	if !s.reports.Known {
		return
	}
	sections := map[string]*lbagentv1.SectionReport{}
	for app, r := range s.reports.Sections {
		sections[app] = r
	}
	for _, e := range evidence {
		old := sections[e.GetApp()]
		if old == nil || !e.GetReadAt().AsTime().Before(old.GetEvidence().GetReadAt().AsTime()) {
			sections[e.GetApp()] = &lbagentv1.SectionReport{App: e.GetApp(), Version: e.GetVersion(), Evidence: e}
		}
	}
	s.reports.Sections = sections
}

// refresh looks at everything that depends on what the Host said.
func (w *world) refresh(l *leader, i int) {
	s := &l.hosts[i]
	for _, o := range slices.Clone(l.txns) {
		if l.over {
			return
		}
		m := o.host(i)
		if m == nil || m.SentPrepare || (o.state.Phase != txn.Waiting && o.state.Phase != txn.Preparing) {
			continue
		}
		behind := w.behind(l, o, i)
		if m.CaughtUp != (behind == "") || m.Behind != behind {
			w.step(l, o, txn.HostCaughtUp{Host: hostName(i), OK: behind == "", Behind: behind})
		}
	}
	if l.over {
		return
	}
	w.watchDrains(l)
	w.settleInDoubt(l, i)
	if s.up && s.syncing == 0 && s.reports.Known && s.member.Standing != registry.Excluded {
		w.reconcile(l, i)
	}
}

func (w *world) behind(l *leader, o *open, i int) string {
	s := &l.hosts[i]
	if !s.up || !s.reports.Known {
		return "it is not connected"
	}
	for _, ch := range o.changes {
		if w.groupOf(ch.app) != w.hostGroup(i) {
			continue
		}
		for _, other := range l.txns {
			if other != o && other.changeOf(ch.app) != nil && other.state.Unfinished(hostName(i)) {
				return "it has not finished transaction " + other.id
			}
		}
		if why := txn.Behind(s.reports, apps[ch.app], o.id, l.secs[ch.app].sec); why != "" {
			return why
		}
	}
	return ""
}

// settleInDoubt tells the Host the decision of a transaction that it reports open and that is nobody's business here.
func (w *world) settleInDoubt(l *leader, i int) {
	s := &l.hosts[i]
	if !s.up || s.settle != 0 || w.now.Before(s.syncAt) && s.tries > 0 {
		return
	}
	var t *lbagentv1.OpenTxn
	for _, app := range apps {
		open := s.reports.Sections[app].GetOpen()
		if open == nil {
			continue
		}
		if o := l.txn(open.GetTxnId()); o == nil || !o.state.Undecided() && !o.state.Unfinished(hostName(i)) {
			t = open
			break
		}
	}
	if t == nil {
		return
	}
	fence := w.fence(l, i)
	l.calls++
	s.settle = l.calls
	m := &message{epoch: l.epoch, host: i, id: t.GetTxnId(), order: t.GetOrder(), try: l.calls, sentAt: w.now, what: " of " + t.GetTxnId()}
	if w.store.get("decision/"+m.id) != nil {
		m.call, m.req = callSettleCommit, participant.Commit{Fence: fence, TxnID: m.id, Order: m.order}
	} else {
		m.call, m.req = callSettleAbort, participant.Abort{Fence: fence, TxnID: m.id, Order: m.order, Apps: t.GetApps()}
		w.sentAbort(m.id)
	}
	w.wire = append(w.wire, m)
	w.say("%s reports %s open, which nobody has open here: the leader of epoch %d sends %s", hostName(i), m.id, l.epoch, m)
}

// reconcile sends Sync where the Host disagrees with the committed state and nothing is about to change that.
func (w *world) reconcile(l *leader, i int) {
	s := &l.hosts[i]
	why := ""
	for app := range apps {
		if w.groupOf(app) == w.hostGroup(i) && why == "" && !l.inMotion(app, i) {
			why = txn.Disagreement(s.reports, apps[app], l.secs[app].sec)
		}
	}
	if why == "" {
		s.tries, s.syncAt = 0, time.Time{}
		return
	}
	if w.now.Before(s.syncAt) {
		return
	}
	var undecided []uint64
	for _, o := range l.txns {
		if o.state.Undecided() && o.state.Order != 0 && o.host(i) != nil {
			undecided = append(undecided, o.state.Order)
		}
	}
	order, ok := txn.SyncOrder(l.last, undecided, l.passed)
	if !ok {
		return
	}
	l.calls++
	s.syncing = l.calls
	s.tries++
	s.syncAt = w.now.Add(time.Second)
	req := participant.Sync{Fence: w.fence(l, i), Order: order}
	var what []string
	for app := range apps {
		if w.groupOf(app) != w.hostGroup(i) {
			continue
		}
		sent := l.committedFor(app, i)
		req.Sections = append(req.Sections, participant.Committed{Section: sectionOf(sent.GetSection()), Version: versionOf(sent.GetVersion())})
		if app == 0 || w.sc.together != alone {
			what = append(what, sectionText(sent))
		}
	}
	m := &message{epoch: l.epoch, host: i, call: callSync, order: order, try: l.calls, sentAt: w.now, what: " to " + strings.Join(what, " and "), req: req}
	w.wire = append(w.wire, m)
	w.say("the leader of epoch %d sends %s to %s: %s", l.epoch, m, hostName(i), why)
}

// inMotion: the Host is about to get there by itself.
func (l *leader) inMotion(app, i int) bool {
	for _, o := range l.txns {
		if o.changeOf(app) == nil {
			continue
		}
		if o.writing == "decision" || o.state.Unfinished(hostName(i)) && (o.state.Phase != txn.Committed || o.host(i).Reason == "") {
			return true
		}
	}
	return app == 0 && slices.ContainsFunc(l.amends, func(a *amend) bool { return a.inMotion(i) })
}

func (w *world) synced(l *leader, i int, m *message) {
	s := &l.hosts[i]
	s.syncing = 0
	if m.answer.Refusal == nil {
		l.note(i, evidenceOf(m.answer.Evidence))
		sent := map[string]participant.Version{}
		for _, c := range m.req.(participant.Sync).Sections {
			if !slices.Contains(m.answer.Open, c.Section.App) {
				sent[c.Section.App] = c.Version
			}
		}
		for _, o := range slices.Clone(l.txns) {
			if o.state.Phase != txn.Committed || !o.state.Unfinished(hostName(i)) {
				continue
			}
			if !slices.ContainsFunc(o.planned(w, w.hostGroup(i)), func(ch txn.Change) bool { return sent[ch.Key.App].Txn < o.state.Order }) {
				w.step(l, o, txn.Answer{Host: hostName(i), Call: txn.CallCommit, SentAt: m.sentAt, Evidence: evidenceOf(m.answer.Evidence)})
			}
		}
		if v, ok := sent[shop]; ok {
			for _, a := range slices.Clone(l.amends) {
				a.syncedPast(i, v)
				w.advanceAmend(l, a)
			}
		}
	}
	if !l.over {
		w.refresh(l, i)
	}
}

// noAnswer: a call of the leader has failed in transport, or its time ran out.
func (w *world) noAnswer(m *message) {
	l := w.lead(m.epoch)
	w.say("%s of epoch %d is not answered", m, l.epoch)
	s := &l.hosts[m.host]
	switch m.call {
	case callSync:
		s.syncing = 0
		w.refresh(l, m.host)
	case callTraffic:
		s.direct = 0
	case callSettleCommit, callSettleAbort:
		s.settle = 0
		w.refresh(l, m.host)
	case callRemove, callInsert:
		st := l.amend(m.id).stage(m.call)
		st.hosts[m.host].flying = 0
		st.hosts[m.host].at = w.now.Add(time.Second)
	default:
		o := l.txn(m.id)
		w.step(l, o, txn.NoAnswer{Host: hostName(m.host), Call: o.host(m.host).Call, Attempt: m.try, Err: "lost"})
	}
}
