package protocol

import (
	"slices"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// heard is what a leader was told of one Host in one transaction, kept beside the machine to judge it.
type heard struct {
	verified time.Time // when the question was sent whose Verified came last
	lapsed   time.Time // when Lapsed came last
}

// heardLapse notes a report that takes a vote back.
func (w *world) heardLapse(_ *leader, o *open, i int, t *lbagentv1.OpenTxn) {
	switch {
	case t.GetFallback(), t.GetPhase() != lbagentv1.TxnPhase_TXN_PHASE_VERIFIED && !o.heard[i].verified.IsZero():
		o.heard[i] = heard{lapsed: w.now}
	}
}

// heardVote notes an answer.
func (w *world) heardVote(_ *leader, o *open, i int, m *message, yes bool) {
	if m.call != callActivate && m.call != callVerify {
		return
	}
	h := &o.heard[i]
	switch {
	case !yes:
		*h = heard{lapsed: w.now}
	case !m.sentAt.Before(h.lapsed) && m.sentAt.After(h.verified):
		*h = heard{verified: m.sentAt}
	}
}

// decisionAsked: the machine asks for the Commit record. Every Host must have said Verified in this term, to a question
// that is not too old, and not have taken it back since.
func (w *world) decisionAsked(l *leader, o *open) {
	for i := range l.hosts {
		switch h := o.heard[i]; {
		case !h.lapsed.IsZero():
			w.violate("ALL-OR-OLD", "the Commit record of %s is asked for although %s has taken its Verified back", o.id, hostName(i))
		case h.verified.IsZero():
			w.violate("ALL-OR-OLD", "the Commit record of %s is asked for in epoch %d without a Verified of %s in this epoch", o.id, l.epoch, hostName(i))
		case w.now.Sub(h.verified) > rules.Fresh:
			w.violate("ALL-OR-OLD", "the Commit record of %s is asked for with a Verified of %s that is %v old", o.id, hostName(i), w.now.Sub(h.verified).Round(time.Second))
		}
	}
}

// decided: the Commit record has just been written. Every Host must be able to obey it.
func (w *world) decided(id string) {
	for i, h := range w.hosts {
		t := h.disk.Txns[id]
		if t == nil || t.Phase != participant.Verified && t.Phase != participant.Lapsed {
			phase := "not open"
			if t != nil {
				phase = t.Phase.String()
			}
			w.violate("ALL-OR-OLD", "the Commit record of %s is written although it is %s on %s", id, phase, hostName(i))
		}
	}
	if slices.Contains(w.told, id) {
		w.violate("ALL-OR-OLD", "the Commit record of %s is written after an Abort was sent", id)
	}
}

// recovered: a new leader has taken up a transaction.
func (w *world) recovered(_ *leader, o *open, f txn.Found) {
	if f.Decided != (o.state.Phase == txn.Committed) {
		w.violate("ALL-OR-OLD", "the record says %t and the new leader makes %s of %s", f.Decided, o.state.Phase, o.id)
	}
}

// journaled judges what a Host is about to journal.
func (w *world) journaled(i int, r participant.Record) {
	h := w.host(i)
	if w.telling {
		what := string(r.Kind)
		if r.TxnID != "" {
			what += " " + r.TxnID
		}
		w.say("%s journals %s", hostName(i), what)
	}
	if r.Kind != participant.KindSynced {
		for _, s := range r.Sections {
			if s.App == cart {
				w.violate("UNDO", "%s changes the Section cart, which no message names", hostName(i))
			}
		}
	}
	open := h.disk.Txns[r.TxnID]
	switch r.Kind {
	case participant.KindStaged:
		s := snapshot{id: r.TxnID, run: digestOf(h.run[0]), files: filesDigest(h.files[0]), amendments: h.m.Durable.Sections[shop].Version.Amendments}
		h.before = append(slices.DeleteFunc(h.before, func(x snapshot) bool { return x.id == r.TxnID }), s)
	case participant.KindCommitted:
		if w.store.get("decision/"+r.TxnID) == nil {
			w.violate("ALL-OR-OLD", "%s commits %s and no Commit record exists", hostName(i), r.TxnID)
		}
	case participant.KindRestoring:
		if open != nil && (open.Phase == participant.Verified || open.Phase == participant.Lapsed) && !slices.Contains(w.told, r.TxnID) && open.Amend == nil {
			w.violate("ALL-OR-OLD", "%s has voted Verified on %s and undoes it by itself", hostName(i), r.TxnID)
		}
	case participant.KindAborted:
		w.restored(i, r, open)
	default:
	}
}

// restored: a Host says that it is back where it was.
func (w *world) restored(i int, r participant.Record, open *participant.Txn) {
	h := w.host(i)
	if w.store.get("decision/"+r.TxnID) != nil {
		w.violate("ALL-OR-OLD", "%s undoes %s although its Commit record exists", hostName(i), r.TxnID)
	}
	at := slices.IndexFunc(h.before, func(s snapshot) bool { return s.id == r.TxnID })
	if open == nil || at < 0 || open.Amend != nil {
		return
	}
	s := h.before[at]
	if h.disk.Sections[shop].Version.Amendments != s.amendments || len(open.Changes[0].Replacements) > 0 {
		return // less Amendments: what died does not come back
	}
	if digestOf(h.run[0]) != s.run || filesDigest(h.files[0]) != s.files {
		w.violate("UNDO", "%s says that %s is undone, and runs %s with files of %s", hostName(i), r.TxnID, modes(h.run[0]), modes(h.files[0]))
	}
}

// answerChecked judges an answer against the proxy.
func (w *world) answerChecked(i int, m *message, a *participant.Answer) {
	h := w.hosts[i]
	refusal, evidence := a.Refusal, a.Evidence
	for _, v := range a.Verifies {
		refusal, evidence = v.Refusal, v.Evidence
	}
	if refusal != nil || m.call != callActivate && m.call != callVerify {
		return
	}
	for _, e := range evidence {
		if app := appIndex(e.App); e.Digest != digestOf(h.run[app]) || e.Process.WorkerPID != h.pid {
			w.violate("RUNNING = JOURNAL", "%s tells of %s what its proxy does not run", hostName(i), e.App)
		}
	}
}

// check are the invariants of every state.
func (w *world) check() {
	for n, killed := range w.killed {
		if killed {
			w.checkKilled(upNames[n])
		}
	}
	for i, h := range w.hosts {
		if digestOf(h.run[1]) != cartDigest || filesDigest(h.files[1]) != "f"+cartDigest {
			w.violate("UNDO", "%s has changed cart, which no message names: %s", hostName(i), modes(h.run[1]))
		}
		if !sameDurable(h.m.Durable, h.disk) || h.m.Durable.Epoch != h.disk.Epoch {
			w.violate("RUNNING = JOURNAL", "%s goes by what is not in its journal", hostName(i))
		}
		if len(h.disk.Txns) > 1 {
			w.violate("FENCE", "two transactions are open on shop on %s", hostName(i))
		}
		for _, t := range h.disk.Txns {
			w.checkOpen(i, h, t)
		}
	}
	for _, l := range w.leaders {
		for _, o := range l.txns {
			w.checkTxn(l, o)
		}
	}
	for _, id := range w.told {
		if w.store.get("decision/"+id) != nil {
			w.violate("ALL-OR-OLD", "%s is decided, and an Abort of it was sent", id)
		}
	}
}

func (w *world) checkKilled(name string) {
	for i, h := range w.hosts {
		for _, s := range []*driver.Section{h.run[0], h.files[0]} {
			if s == nil {
				continue
			}
			for _, u := range s.Upstreams {
				if u.Name == name && u.Mode == driver.Serving {
					w.violate("NO-ORPHAN-KILL", "the task of %s was ordered killed, and %s routes to it", name, hostName(i))
				}
			}
		}
	}
}

// checkOpen judges one transaction that is open on a Host.
func (w *world) checkOpen(i int, h *host, t *participant.Txn) {
	c := &t.Changes[0]
	if t.Activated && t.Amend == nil && w.store.get("decision/"+t.ID) == nil {
		for _, ups := range [][]participant.Upstream{c.Target.Upstreams, h.disk.Sections[shop].Committed.Upstreams} {
			for _, u := range ups {
				if w.killed[upIndex(u.Name)] {
					w.violate("UNDO", "the task of %s was ordered killed while %s may still need it for %s", u.Name, hostName(i), t.ID)
				}
			}
		}
	}
	for _, s := range h.before {
		if s.id == t.ID && t.Amend == nil && (c.Undo.Running != s.run || c.Undo.Published != s.files) {
			w.violate("UNDO", "%s keeps for the undo of %s another state than the one from before Prepare", hostName(i), t.ID)
		}
	}
}

func (w *world) checkTxn(l *leader, o *open) {
	s := &o.state
	switch s.Phase {
	case txn.RolledBack:
		for i, h := range w.hosts {
			if t := h.disk.Txns[o.id]; t != nil && t.Activated {
				w.violate("UNDO", "%s is shown as rolled back, and it is %s on %s", o.id, t.Phase, hostName(i))
			}
		}
	case txn.Committed:
		if w.store.get("decision/"+o.id) == nil {
			w.violate("ALL-OR-OLD", "%s is shown as succeeded, and no Commit record exists", o.id)
		}
	case txn.Waiting, txn.Preparing, txn.Activating, txn.Restoring:
		if rules.NextWake(*s).IsZero() {
			w.violate("EVERY-STATE-ENDS", "%s is %s at the leader of epoch %d without a deadline", o.id, s.Phase, l.epoch)
		}
	case txn.Deciding, txn.StuckRestoring: // a write or an answer moves it on
	}
}

// good is a good end: everything is decided and told, every Host holds exactly what is committed.
func (w *world) good() bool {
	l := w.newest()
	if l == nil || len(w.leaders) != 1 || len(l.txns)+len(l.amends) > 0 {
		return false
	}
	want := upstreamNames(l.shop.GetSection())
	for i, h := range w.hosts {
		if h.watch != l.epoch || len(h.disk.Txns) > 0 || len(h.works) > 0 || h.slow {
			return false
		}
		var serving []string
		if h.run[0] != nil {
			for _, u := range h.run[0].Upstreams {
				if u.Mode != driver.Serving {
					return false
				}
				serving = append(serving, u.Name)
			}
		}
		if txn.CompareVersions(versionTo(h.disk.Sections[shop].Version), l.shop.GetVersion()) < 0 || len(serving) != len(want) {
			return false
		}
		for _, name := range want {
			if !slices.Contains(serving, name) {
				return false
			}
		}
		if digestOf(h.run[0]) != digestOf(h.files[0]) || l.hosts[i].syncing != 0 {
			return false
		}
	}
	for _, d := range l.drains {
		if len(d.released) < len(d.retired) && !slices.ContainsFunc(d.retired, l.committed) {
			return false
		}
	}
	return true
}
