package protocol

import (
	"slices"
	"strings"
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
	proved := map[string]int{}
	for _, m := range o.state.Hosts {
		name := m.Name
		if m.Unproven {
			continue
		}
		proved[m.Group]++
		switch h := o.heard[hostIndex(name)]; {
		case !h.lapsed.IsZero():
			w.violate("ALL-OR-OLD", "the Commit record of %s is asked for although %s has taken its Verified back", o.id, name)
		case h.verified.IsZero():
			w.violate("ALL-OR-OLD", "the Commit record of %s is asked for in epoch %d without a Verified of %s in this epoch", o.id, l.epoch, name)
		case w.now.Sub(h.verified) > rules.Fresh:
			w.violate("ALL-OR-OLD", "the Commit record of %s is asked for with a Verified of %s that is %v old", o.id, name, w.now.Sub(h.verified).Round(time.Second))
		}
	}
	for _, g := range o.groups(w) {
		members := l.views[groupIndex(g)].members()
		if proved[g] == 0 || proved[g] < members-w.sc.policy.AllBut && w.sc.policy.Percent == 0 || proved[g]*100 < members*w.sc.policy.Percent {
			w.violate("ALL-OR-OLD", "the Commit record of %s is asked for with the Verified of %d of %d Hosts of group %s", o.id, proved[g], members, g)
		}
	}
}

// decided: the Commit record has just been written. Every Host that counts must be able to obey it, every Section of every
// proposal must be committed by it, and every proposal must be decided.
func (w *world) decided(o *open) {
	for _, m := range o.state.Hosts {
		if m.Unproven {
			continue
		}
		t := w.hosts[hostIndex(m.Name)].disk.Txns[o.id]
		if t == nil || t.Phase != participant.Verified && t.Phase != participant.Lapsed {
			phase := "not open"
			if t != nil {
				phase = t.Phase.String()
			}
			w.violate("ALL-OR-OLD", "the Commit record of %s is written although it is %s on %s", o.id, phase, m.Name)
		}
	}
	for _, p := range o.parts() {
		sec := w.store.get("section/" + apps[p.app]).val.(*lbagentv1.CommittedSection)
		if sec.GetVersion().GetTxn() != o.state.Order || w.store.get("decision/"+p.id) == nil {
			w.violate("ALL-OR-OLD", "%s is committed, and %s to %s, which it names, is not", o.id, apps[p.app], p.up)
		}
	}
	if slices.Contains(w.told, o.id) {
		w.violate("ALL-OR-OLD", "the Commit record of %s is written after an Abort was sent", o.id)
	}
}

// judgeEnd: a proposal is told how it has ended. What Hosts refused about others is no reason (ADR 0016).
func (w *world) judgeEnd(o *open, p part) {
	if o.state.Phase == txn.Committed {
		if w.store.get("decision/"+p.id) == nil {
			w.violate("ALL-OR-OLD", "%s is told as succeeded, and no Commit record of it exists", p.id)
		}
		return
	}
	blamed := o.state.Blamed()
	at := slices.IndexFunc(o.units, func(u unit) bool { return u.changes(p.app) })
	if o.state.Cause != txn.CauseHostRefused || len(blamed) == 0 || o.units[at].left || !w.now.Before(o.units[at].deadline) {
		return
	}
	if !slices.ContainsFunc(blamed, func(app string) bool { return o.units[at].changes(appIndex(app)) }) {
		w.violate("one fails for its own fault only", "%s (%s) is told as failed, and the Hosts refused %s", p.id, apps[p.app], strings.Join(blamed, ", "))
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
			if s.App == cart && w.sc.together == alone {
				w.violate("UNDO", "%s changes the Section cart, which no message names", hostName(i))
			}
		}
	}
	open := h.disk.Txns[r.TxnID]
	switch r.Kind {
	case participant.KindStaged:
		h.before = slices.DeleteFunc(h.before, func(x snapshot) bool { return x.id == r.TxnID })
		for _, c := range r.Txn.Changes {
			app := appIndex(c.App)
			h.before = append(h.before, snapshot{id: r.TxnID, app: app, run: digestOf(h.run[app]), files: filesDigest(h.files[app]),
				amendments: h.m.Durable.Sections[c.App].Version.Amendments})
		}
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
	if d := w.store.get("decision/" + r.TxnID); d != nil && !slices.Contains(d.val.(decision).unproven, hostName(i)) {
		w.violate("ALL-OR-OLD", "%s undoes %s although its Commit record exists", hostName(i), r.TxnID)
	}
	if open == nil || open.Amend != nil {
		return
	}
	for _, s := range h.before {
		if s.id != r.TxnID {
			continue
		}
		c := open.Changes[slices.IndexFunc(open.Changes, func(c participant.TxnChange) bool { return c.App == apps[s.app] })]
		if h.disk.Sections[c.App].Version.Amendments != s.amendments || len(c.Replacements) > 0 {
			continue // less Amendments: what died does not come back
		}
		if digestOf(h.run[s.app]) != s.run || filesDigest(h.files[s.app]) != s.files {
			w.violate("UNDO", "%s says that %s is undone, and runs %s with files of %s", hostName(i), r.TxnID, modes(h.run[s.app]), modes(h.files[s.app]))
		}
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
		if w.sc.together == alone && digestOf(h.run[1]) != cartDigest || w.sc.together == alone && filesDigest(h.files[1]) != "f"+cartDigest {
			w.violate("UNDO", "%s has changed cart, which no message names: %s", hostName(i), modes(h.run[1]))
		}
		w.checkSpecs(i, h)
		if h.m.Broken != nil {
			continue // it refuses everything, and starts from what is on the disk
		}
		if !sameDurable(h.m.Durable, h.disk) || h.m.Durable.Epoch != h.disk.Epoch {
			w.violate("RUNNING = JOURNAL", "%s goes by what is not in its journal", hostName(i))
		}
		var named [2]int
		for _, t := range h.disk.Txns {
			w.checkOpen(i, h, t)
			for _, c := range t.Changes {
				if named[appIndex(c.App)]++; named[appIndex(c.App)] > 1 {
					w.violate("FENCE", "two transactions are open on %s on %s", c.App, hostName(i))
				}
			}
		}
	}
	for _, l := range w.leaders {
		for _, o := range l.txns {
			w.checkTxn(l, o)
		}
	}
	for _, app := range apps {
		now := w.store.get("section/" + app).val.(*lbagentv1.CommittedSection).GetSection()
		for _, name := range upstreamNames(now) {
			if is := w.specOf(name); is != now.GetSpec() {
				w.violate("ALL-OR-OLD", "%s is committed at spec %d, and %s of spec %d is counted in it", app, now.GetSpec(), name, is)
			}
		}
	}
	for _, id := range w.told {
		if w.store.get("decision/"+id) != nil {
			w.violate("ALL-OR-OLD", "%s is decided, and an Abort of it was sent", id)
		}
	}
}

// specOf is the Spec that the task of an upstream is of.
func (w *world) specOf(name string) uint64 {
	if n := upIndex(name); n != upR {
		return upSpecs[n]
	}
	return w.spare
}

// checkSpecs: behind a Commit nothing of another Spec serves, apart from what is held until the target can serve there. An open
// transaction has the old and the new in service, and is judged by what it ends with.
func (w *world) checkSpecs(i int, h *host) {
	for app, name := range apps {
		sec := h.disk.Sections[name]
		if sec == nil {
			continue
		}
		other := func(u string) bool { return w.specOf(u) != sec.Committed.Spec }
		for _, u := range sec.Committed.Upstreams {
			if other(u.Name) {
				w.violate("ALL-OR-OLD", "%s is at spec %d on %s, and %s of spec %d is counted in it", name, sec.Committed.Spec, hostName(i), u.Name, w.specOf(u.Name))
			}
		}
		busy := slices.ContainsFunc(h.works, func(j participant.Work) bool { return j.App == name })
		for _, t := range h.disk.Txns {
			busy = busy || slices.ContainsFunc(t.Changes, func(c participant.TxnChange) bool { return c.App == name })
		}
		if busy || h.run[app] == nil {
			continue
		}
		for _, u := range h.run[app].Upstreams {
			held := slices.ContainsFunc(sec.Draining, func(d participant.Draining) bool { return d.Upstream.Name == u.Name && d.Held })
			if u.Mode == driver.Serving && other(u.Name) && !held {
				w.violate("ALL-OR-OLD", "%s is at spec %d on %s, and %s of spec %d serves there", name, sec.Committed.Spec, hostName(i), u.Name, w.specOf(u.Name))
			}
		}
	}
}

func (w *world) checkKilled(name string) {
	for i, h := range w.hosts {
		for _, s := range []*driver.Section{h.run[appOf(name)], h.files[appOf(name)]} {
			if s == nil || h.out {
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
	for n := range t.Changes {
		c := &t.Changes[n]
		if t.Activated && t.Amend == nil && !h.out && w.store.get("decision/"+t.ID) == nil {
			for _, ups := range [][]participant.Upstream{c.Target.Upstreams, h.disk.Sections[c.App].Committed.Upstreams} {
				for _, u := range ups {
					if w.killed[upIndex(u.Name)] {
						w.violate("UNDO", "the task of %s was ordered killed while %s may still need it for %s", u.Name, hostName(i), t.ID)
					}
				}
			}
		}
		for _, s := range h.before {
			if s.id == t.ID && apps[s.app] == c.App && t.Amend == nil && (c.Undo.Running != s.run || c.Undo.Published != s.files) {
				w.violate("UNDO", "%s keeps for the undo of %s another state than the one from before Prepare", hostName(i), t.ID)
			}
		}
	}
}

func (w *world) checkTxn(l *leader, o *open) {
	s := &o.state
	switch s.Phase {
	case txn.RolledBack:
		for i, h := range w.hosts {
			if t := h.disk.Txns[o.id]; t != nil && t.Activated && !h.out {
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
	if !w.allIn(l) {
		return false
	}
	for i, h := range w.hosts {
		if h.watch != l.epoch || len(h.disk.Txns) > 0 || len(h.works) > 0 || h.slow || h.away || h.m.Broken != nil {
			return false
		}
		if l.hosts[i].syncing != 0 {
			return false
		}
		for app := range apps {
			if w.holds(i, app) && !w.asCommitted(h, app, l.secs[app].sec) {
				return false
			}
		}
	}
	for _, d := range l.drains {
		if len(d.released) < len(d.retired) && !slices.ContainsFunc(d.retired, l.committed) {
			return false
		}
	}
	return true
}

// asCommitted: the Host runs exactly what is committed of the App, and nothing else.
func (w *world) asCommitted(h *host, app int, c *lbagentv1.CommittedSection) bool {
	return w.routesAsCommitted(h, app, c) && digestOf(h.run[app]) == digestOf(h.files[app]) &&
		len(h.run[app].Upstreams) == len(c.GetSection().GetUpstreams()) &&
		txn.CompareVersions(versionTo(h.disk.Sections[apps[app]].Version), c.GetVersion()) >= 0
}

// routesAsCommitted: the Host routes to exactly what is committed of the App; what was replaced may drain.
func (w *world) routesAsCommitted(h *host, app int, c *lbagentv1.CommittedSection) bool {
	want := upstreamNames(c.GetSection())
	var serving []string
	if h.run[app] != nil {
		for _, u := range h.run[app].Upstreams {
			if u.Mode == driver.Serving {
				serving = append(serving, u.Name)
			}
		}
	}
	slices.Sort(serving)
	slices.Sort(want)
	return slices.Equal(serving, want)
}
