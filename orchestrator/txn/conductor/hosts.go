package conductor

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
)

var _ registry.Handler = (*Conductor)(nil)

// heard is the Host that a link speaks of, whose context this is; nil if the Host was removed meanwhile. It may have been
// admitted again by then, at another address: what the link of before still had to say is not about that one.
func (c *Conductor) heard(ctx context.Context, name string) *host {
	if ctx.Err() != nil {
		return nil
	}
	return c.hosts[name]
}

// HostConnected implements registry.Handler.
func (c *Conductor) HostConnected(ctx context.Context, name string, first *lbagentv1.WatchResponse) {
	c.post(func() {
		h := c.heard(ctx, name)
		if h == nil {
			return
		}
		h.up, h.syncTries, h.syncAt = true, 0, time.Time{}
		h.reports = txn.HostReports{Known: true, Sections: map[string]*lbagentv1.SectionReport{}}
		c.takeReport(h, first)
		c.suspectAll(h)
		for _, id := range sortedKeys(c.txns) {
			if o := c.txns[id]; o != nil && o.host(name) != nil {
				c.step(o, txn.HostLink{Host: name, Connected: true})
			}
		}
		for _, id := range sortedKeys(c.amends) {
			if a := c.amends[id]; a != nil {
				a.hostIsBack(name)
				c.advanceAmendment(a)
			}
		}
		c.refresh(h)
		c.settleInDoubt(h)
		c.opts.Listener.HostsChanged()
	})
}

// HostReported implements registry.Handler.
func (c *Conductor) HostReported(ctx context.Context, name string, report *lbagentv1.WatchResponse) {
	c.post(func() {
		h := c.heard(ctx, name)
		if h == nil {
			return
		}
		problems := !slices.Equal(h.state.GetProblems(), report.GetHost().GetProblems()) && report.GetHost() != nil
		c.takeReport(h, report)
		if len(report.GetSections()) > 0 || report.GetComplete() {
			c.refresh(h)
		}
		if problems {
			c.opts.Listener.HostsChanged()
		}
	})
}

// HostDisconnected implements registry.Handler. What the Host reported stays known: it is the last that it said, and
// nothing can have changed there that was not sent to it.
func (c *Conductor) HostDisconnected(ctx context.Context, name string, _ string) {
	c.post(func() {
		h := c.heard(ctx, name)
		if h == nil {
			return
		}
		h.up, h.downAt = false, time.Now()
		for _, id := range sortedKeys(c.txns) {
			if o := c.txns[id]; o != nil && o.host(name) != nil {
				c.step(o, txn.HostLink{Host: name})
			}
		}
		c.opts.Listener.HostsChanged()
	})
}

// takeReport keeps a message of the Watch stream and tells the transactions that it speaks of.
func (c *Conductor) takeReport(h *host, msg *lbagentv1.WatchResponse) {
	if msg.GetHost() != nil {
		h.state = msg.GetHost()
		c.directTraffic(h)
	}
	if msg.GetComplete() {
		said := map[string]bool{}
		for _, s := range msg.GetSections() {
			said[s.GetApp()] = true
		}
		for app, old := range h.reports.Sections {
			if !said[app] && !old.GetEvidence().GetReadAt().AsTime().After(msg.GetSentAt().AsTime()) { // else it is newer there
				delete(h.reports.Sections, app)
				h.suspects[app] = true
			}
		}
	}
	for _, s := range msg.GetSections() {
		if old := h.reports.Sections[s.GetApp()]; !overtaken(s, old) {
			h.reports.Sections[s.GetApp()] = s
		}
		h.suspects[s.GetApp()] = true
		if open := s.GetOpen(); open != nil {
			c.tellReported(h, s, open)
		}
		c.tellServed(h, s.GetApp())
	}
	if state := msg.GetHost(); state != nil {
		pid := state.GetProcess().GetWorkerPid()
		if pid == 0 {
			pid = txn.NoProcess
		}
		for _, id := range sortedKeys(c.txns) {
			o := c.txns[id]
			if o == nil {
				continue
			}
			// The same process as before, and as its votes speak of, changes nothing; most reports say just that.
			if m := o.host(h.name); m != nil && (m.SeenPID != pid || m.PID != 0 && m.PID != pid) {
				c.step(o, txn.ProcessSeen{Host: h.name, PID: pid, At: msg.GetSentAt().AsTime()})
			}
		}
	}
}

// overtaken: an answer to a call has told something newer than this report, which was on its way meanwhile.
func overtaken(s, old *lbagentv1.SectionReport) bool {
	return old != nil && txn.CompareVersions(s.GetVersion(), old.GetVersion()) < 0 &&
		!s.GetEvidence().GetReadAt().AsTime().After(old.GetEvidence().GetReadAt().AsTime())
}

func (c *Conductor) tellReported(h *host, s *lbagentv1.SectionReport, open *lbagentv1.OpenTxn) {
	o := c.txns[open.GetTxnId()]
	if o == nil || o.state.Order != open.GetOrder() || o.host(h.name) == nil {
		return
	}
	r := txn.Reported{Host: h.name, Phase: open.GetPhase(), Fallback: open.GetFallback(), Refusal: open.GetRefusal()}
	if e := s.GetEvidence(); e != nil {
		r.Evidence = []*lbagentv1.Evidence{e}
	}
	c.step(o, r)
}

// noteEvidence takes the evidence of a Commit, Abort, Amend or Sync for a report: no transaction is open on those
// Sections any more, so nothing has to wait for the report that follows.
func (c *Conductor) noteEvidence(h *host, evidence []*lbagentv1.Evidence, removed map[string]bool) {
	if !h.reports.Known {
		return
	}
	for _, e := range evidence {
		next := &lbagentv1.SectionReport{App: e.GetApp(), Version: e.GetVersion(), Evidence: e, Removed: removed[e.GetApp()]}
		old := h.reports.Sections[e.GetApp()]
		if old == nil || !e.GetReadAt().AsTime().Before(old.GetEvidence().GetReadAt().AsTime()) {
			h.reports.Sections[e.GetApp()] = next
		}
		h.suspects[e.GetApp()] = true
	}
}

// refresh has the Host looked at when the burst of events at hand is over: looking is level-triggered, and costs more than an
// event.
func (c *Conductor) refresh(h *host) { h.look = true }

// lookAtHosts looks at the Hosts that something happened to, until nothing follows from it any more.
func (c *Conductor) lookAtHosts() {
	for range maxLooks {
		again := false
		for _, name := range sortedKeys(c.hosts) {
			if h := c.hosts[name]; h.look {
				h.look, again = false, true
				c.lookAt(h)
			}
		}
		if !again {
			return
		}
		for _, id := range sortedKeys(c.drains) {
			c.watchDrain(c.drains[id])
		}
	}
}

// maxLooks bounds how often Hosts are looked at before the next event is taken; what is left is looked at after that one.
const maxLooks = 16

// lookAt looks at everything that depends on what the Host said: who may prepare there, what it has released, whether it
// agrees with the committed state.
func (c *Conductor) lookAt(h *host) {
	for _, id := range sortedKeys(c.txns) {
		o := c.txns[id]
		if o == nil {
			continue
		}
		c.catchUp(o, h)
	}
	c.reconcile(h)
	c.directTraffic(h)
	if h.standing == registry.Joining {
		why := c.lacks(h)
		h.lacking.Store(&why)
		c.join(h)
	}
}

// catchUp tells the transaction whether the Host can prepare it.
func (c *Conductor) catchUp(o *transaction, h *host) {
	m := o.host(h.name)
	if m == nil || m.SentPrepare || (o.state.Phase != txn.Waiting && o.state.Phase != txn.Preparing) {
		return
	}
	behind := c.behind(o, h)
	if m.CaughtUp != (behind == "") || m.Behind != behind {
		c.step(o, txn.HostCaughtUp{Host: h.name, OK: behind == "", Behind: behind})
	}
}

// behind says why the Host cannot prepare the transaction yet, or "".
func (c *Conductor) behind(o *transaction, h *host) string {
	if !h.up || !h.reports.Known {
		return "it is not connected"
	}
	for _, ch := range o.changes {
		if ch.key.Group != h.group {
			continue
		}
		if id := c.unfinishedOn(ch.key, h, o); id != "" {
			return "it has not finished transaction " + id
		}
		var committed *lbagentv1.CommittedSection
		if s := c.sections[ch.key]; s != nil {
			committed = s.committed
		}
		if why := txn.Behind(h.reports, ch.key.App, o.id(), committed); why != "" {
			return why
		}
	}
	return ""
}

// unfinishedOn is a transaction other than o that changes the Section and that the Host has not finished, or "".
func (c *Conductor) unfinishedOn(key txn.SectionKey, h *host, o *transaction) string {
	found := ""
	for id, other := range c.txns {
		if other != o && other.changeOf(key) != nil && other.state.Unfinished(h.name) && (found == "" || id < found) {
			found = id
		}
	}
	return found
}

// syncPause is the pause before the n-th Sync in a row that has not brought agreement.
func syncPause(n int) time.Duration {
	if n == 0 {
		return 0
	}
	return min(100*time.Millisecond<<min(n, 10), 30*time.Second)
}

// reconcile sends Sync if the Host disagrees with the committed state anywhere that no transaction and no Amendment is
// about to change it.
func (c *Conductor) reconcile(h *host) {
	// Nobody touches an excluded Host: it may be out because its machine is being worked on.
	if !h.up || h.syncing || !h.reports.Known || h.standing == registry.Excluded {
		return
	}
	forgotten := c.forgotten(h)
	c.noteForgotten(h, forgotten)
	if forgotten != "" {
		return
	}
	app, why := c.disagreement(h)
	if why == "" {
		h.syncTries, h.syncAt = 0, time.Time{}
		return
	}
	if time.Now().Before(h.syncAt) {
		return
	}
	order, ok := c.syncOrder(h)
	if !ok {
		return
	}
	c.sync(h, order, app+": "+why)
}

// disagreement finds the first suspect Section on which the Host differs from the committed state. Those that agree are
// no suspects any more, so the cost does not grow with the number of Apps.
func (c *Conductor) disagreement(h *host) (app, why string) {
	for _, app := range sortedKeys(h.suspects) {
		key := txn.SectionKey{Group: h.group, App: app}
		if c.inMotion(h, key) {
			continue
		}
		var committed *lbagentv1.CommittedSection
		if s := c.sections[key]; s != nil {
			committed = s.committed
		}
		if why := txn.Disagreement(h.reports, app, committed); why != "" {
			return app, why
		}
		if report := h.reports.Sections[app]; report.GetOpen() == nil {
			delete(h.suspects, app)
			if s := c.sections[key]; s != nil && report != nil {
				h.agreed[app] = agreement{report, s}
			} else {
				delete(h.agreed, app)
			}
		}
	}
	return "", ""
}

// suspectAll makes everything be compared again.
func (c *Conductor) suspectAll(h *host) {
	for key := range c.sections {
		if key.Group == h.group {
			h.suspects[key.App] = true
		}
	}
	for app := range h.reports.Sections {
		h.suspects[app] = true
	}
}

// suspectPart makes one of fullSweep parts of everything be compared again, on all Hosts.
func (c *Conductor) suspectPart(part int) {
	in := func(app string) bool {
		h := uint32(2166136261) // FNV-1a
		for i := range len(app) {
			h = (h ^ uint32(app[i])) * 16777619
		}
		return int(h%fullSweep) == part
	}
	known := map[string]map[string]*section{} // by Group and App
	for key, s := range c.sections {
		if !in(key.App) {
			continue
		}
		if known[key.Group] == nil {
			known[key.Group] = map[string]*section{}
		}
		known[key.Group][key.App] = s
	}
	for _, h := range c.hosts {
		for app, s := range known[h.group] {
			if a := h.agreed[app]; a.section != s || a.report != h.reports.Sections[app] {
				h.suspects[app] = true
			}
		}
		for app := range h.reports.Sections {
			if in(app) && known[h.group][app] == nil {
				h.suspects[app] = true
			}
		}
	}
}

// inMotion: the Host is about to change the Section by itself. A Host that refuses a Commit is not: Sync brings it there.
func (c *Conductor) inMotion(h *host, key txn.SectionKey) bool {
	for _, o := range c.txns {
		if o.changeOf(key) == nil || !o.state.Unfinished(h.name) {
			continue
		}
		if m := o.host(h.name); o.state.Phase != txn.Committed || m.Reason == "" {
			return true
		}
	}
	for _, a := range c.amends {
		if a.key() == key && a.inMotion(h.name) {
			return true
		}
	}
	return c.writes.busy[key]
}

// syncOrder is the order number of a Sync to the Host (txn.SyncOrder). False: the Sync has to wait.
func (c *Conductor) syncOrder(h *host) (uint64, bool) {
	var undecided []uint64
	for _, o := range c.txns {
		if o.state.Undecided() && o.state.Order != 0 && o.host(h.name) != nil {
			undecided = append(undecided, o.state.Order)
		}
	}
	passed := uint64(0)
	for key, order := range c.passedOrders {
		if key.Group == h.group {
			passed = max(passed, order)
		}
	}
	return txn.SyncOrder(c.orders.last, undecided, passed)
}

// sync installs the committed state of the whole Group on the Host.
func (c *Conductor) sync(h *host, order uint64, why string) {
	h.syncing = true
	h.syncTries++
	h.syncAt = time.Now().Add(syncPause(h.syncTries))
	c.log.Info("host differs from the committed state: sync", "host", h.name, "why", why, "order", order)
	req := &lbagentv1.SyncRequest{Fence: c.reg.FenceOf(h.group), Order: order,
		Origin: &lbagentv1.Origin{Actor: "cutover", Reason: "reconcile: " + why}}
	sent := map[string]*lbagentv1.CommittedSection{}
	for key, s := range c.sections {
		if key.Group == h.group {
			sent[key.App] = c.committedFor(h, key, s.committed)
			req.Sections = append(req.Sections, sent[key.App])
		}
	}
	slices.SortFunc(req.Sections, func(a, b *lbagentv1.CommittedSection) int {
		return compareApps(a.GetSection().GetApp(), b.GetSection().GetApp())
	})
	call := func(ctx context.Context) reply {
		resp, err := h.link.Client().Sync(ctx, connect.NewRequest(req))
		if err != nil {
			return reply{err: err}
		}
		s := resp.Msg.GetSynced()
		return orEmpty(reply{refusal: resp.Msg.GetRefusal(), evidence: s.GetEvidence(), synced: s}, s != nil)
	}
	c.spawn(h, "sync", c.opts.CallTimeout, call, func(r reply) {
		h.syncing = false
		switch {
		case r.err != nil:
			c.log.Warn("sync was not answered", "host", h.name, "error", registry.Plain(r.err))
		case r.refusal != nil:
			c.noteHigherEpoch(h, r.refusal)
			c.log.Warn("sync was refused", "host", h.name, "reason", txn.RefusalWord(r.refusal.GetReason()), "message", r.refusal.GetMessage())
		default:
			c.synced(h, sent, r)
		}
		c.refresh(h)
	})
}

func compareApps(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// synced takes over that the Host holds what was sent, apart from Sections with an open transaction.
func (c *Conductor) synced(h *host, sent map[string]*lbagentv1.CommittedSection, r reply) {
	open := map[string]bool{}
	for _, app := range r.synced.GetOpen() {
		open[app] = true
	}
	for _, app := range r.synced.GetDeleted() {
		delete(h.reports.Sections, app)
	}
	removed := map[string]bool{}
	for _, app := range sortedKeys(sent) {
		s := sent[app]
		if open[app] {
			continue
		}
		removed[app] = s.GetRemoved()
		if s.GetRemoved() && h.reports.Known && txn.EvidenceOf(r.evidence, app) == nil {
			h.reports.Sections[app] = &lbagentv1.SectionReport{App: app, Version: s.GetVersion(), Removed: true}
		}
	}
	c.noteEvidence(h, r.evidence, removed)
	// A Host that was synced past a Commit or an Amendment has it.
	for _, id := range sortedKeys(c.txns) {
		o := c.txns[id]
		if o == nil || o.state.Phase != txn.Committed || !o.state.Unfinished(h.name) {
			continue
		}
		past := true
		for _, ch := range o.changes {
			if ch.key.Group == h.group && (open[ch.key.App] || sent[ch.key.App].GetVersion().GetTxn() < o.state.Order) {
				past = false
			}
		}
		if past {
			c.step(o, txn.Answer{Host: h.name, Call: txn.CallCommit, SentAt: r.sentAt, Evidence: r.evidence})
		}
	}
	for _, id := range sortedKeys(c.amends) {
		if a := c.amends[id]; a != nil && a.a.Group == h.group && !open[a.a.App] {
			a.syncedPast(h.name, sent[a.a.App].GetVersion())
			c.advanceAmendment(a)
		}
	}
}
