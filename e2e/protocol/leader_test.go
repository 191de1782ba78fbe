package protocol

import (
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// leader is one orchestrator that leads, or believes that it does: the conductor without its goroutines. What it decides
// is decided by package txn; here is only who calls what, in the conductor's order.
type leader struct {
	epoch  uint64
	txns   []*open // sorted by id
	ended  []ended
	locks  txn.LockTable
	hosts  []seen
	secs   [2]committed // by App
	last   uint64       // the newest order number given out
	passed uint64
	joints int // numbers the transactions that carry several proposals
	views  [2]view
	asks   []memberAsk
	amends []*amend
	drains []*drain
	calls  uint32 // numbers calls that are not a transaction's
	// removed are the dead tasks for which a removal was asked in this term.
	removed []string
	// over: the process is ending; nothing is begun any more.
	over bool
}

// committed is a committed Section, and the revision of its record.
type committed struct {
	sec *lbagentv1.CommittedSection
	rev uint64
}

// ended is how a proposal ended.
type ended struct {
	id    string
	phase txn.Phase
	cause txn.Cause
}

// seen is what a leader knows of one Host.
type seen struct {
	up      bool
	downAt  time.Time
	member  registry.Membership
	traffic traffic // as it reported last
	direct  uint32  // the call that tells it whether it may get traffic, or 0
	reports txn.HostReports
	syncing uint32 // the call that is under way, or 0
	settle  uint32
	tries   int
	syncAt  time.Time
}

// open is one open transaction.
type open struct {
	id      string
	state   txn.State
	units   []unit // those that go with this transaction
	changes []change
	dead    map[string]bool
	granted bool
	lockID  string
	after   string // the transaction that its units were in before
	// writing: the mark or the decision is on its way to the store.
	writing string
	heard   [3]heard // by Host
}

func (l *leader) clone() *leader {
	c := *l
	c.txns = make([]*open, len(l.txns))
	for i, o := range l.txns {
		d := *o
		d.units, d.changes = slices.Clone(o.units), slices.Clone(o.changes)
		c.txns[i] = &d
	}
	c.amends = make([]*amend, len(l.amends))
	for i, a := range l.amends {
		c.amends[i] = a.clone()
	}
	c.drains = make([]*drain, len(l.drains))
	for i, d := range l.drains {
		e := *d
		e.released = slices.Clone(d.released)
		c.drains[i] = &e
	}
	c.hosts = slices.Clone(l.hosts)
	c.ended = slices.Clone(l.ended)
	c.removed = slices.Clone(l.removed)
	c.asks = slices.Clone(l.asks)
	return &c
}

// lead returns the leader of that epoch for writing, or nil if it does not run.
func (w *world) lead(epoch uint64) *leader {
	at := slices.IndexFunc(w.leaders, func(l *leader) bool { return l.epoch == epoch })
	if at < 0 || w.leaders[at].over {
		return nil
	}
	if w.ownLeaders&(1<<at) == 0 {
		w.leaders[at] = w.leaders[at].clone()
		w.ownLeaders |= 1 << at
	}
	return w.leaders[at]
}

// newest returns the leader of the newest epoch, read only, or nil.
func (w *world) newest() *leader {
	if n := len(w.leaders); n > 0 {
		return w.leaders[n-1]
	}
	return nil
}

func (l *leader) txn(id string) *open {
	for _, o := range l.txns {
		if o.id == id {
			return o
		}
	}
	return nil
}

// host is Host i in the transaction, or nil if it does not take part.
func (o *open) host(i int) *txn.Host {
	for n := range o.state.Hosts {
		if o.state.Hosts[n].Name == hostName(i) {
			return &o.state.Hosts[n]
		}
	}
	return nil
}

// leaderDied ends the process; its calls are answered to nobody.
func (w *world) leaderDied(l *leader) { l.over = true }

// sweep drops the leaders that have ended.
func (w *world) sweep() {
	for at := 0; at < len(w.leaders); {
		l := w.leaders[at]
		if !l.over {
			at++
			continue
		}
		w.leaders = slices.Delete(slices.Clone(w.leaders), at, at+1)
		w.ownLeaders = 0 // what was owned is cloned once more: no harm
		for i, h := range w.hosts {
			if h.watch == l.epoch {
				w.host(i).watch = 0
			}
		}
	}
}

// orphaned: nobody waits for the answer to this message.
func (w *world) orphaned(m *message) bool {
	if m.orphan {
		return true
	}
	at := slices.IndexFunc(w.leaders, func(l *leader) bool { return l.epoch == m.epoch })
	if at < 0 || w.leaders[at].over {
		return true
	}
	l := w.leaders[at]
	switch m.call {
	case callSync:
		return l.hosts[m.host].syncing != m.try
	case callTraffic:
		return l.hosts[m.host].direct != m.try
	case callSettleCommit, callSettleAbort:
		return l.hosts[m.host].settle != m.try
	case callRemove, callInsert:
		a := l.amend(m.id)
		if a == nil {
			return true
		}
		s := a.stage(m.call)
		return s == nil || s.hosts[m.host].flying != m.try
	default:
		o := l.txn(m.id)
		if o == nil {
			return true
		}
		h := o.host(m.host)
		return h == nil || h.Attempt != m.try || h.Call == txn.CallNone
	}
}

// txnDeadline is of Prepare to Commit.
const txnDeadline = 20 * time.Second

func (l *leader) nextOrder() uint64 {
	l.last++
	return l.last
}

func (w *world) granted(l *leader, o *open) {
	o.granted = true
	if len(o.units) > 1 {
		o.state.Deadline = txn.RoundDeadline(len(o.units), o.state.Deadline, w.now)
	}
	o.state = o.state.Repinned(w.pinned(l, o))
	for i := range o.changes {
		o.changes[i].base = l.secs[o.changes[i].app].sec
	}
	o.state.Order = l.nextOrder()
	rec := o.record()
	if w.commit(l, put(store.Put, "txn/"+o.id, rec, rec.text())) != nil {
		return
	}
	for i := range l.hosts {
		w.refresh(l, i)
	}
	w.step(l, o, txn.Granted{Order: o.state.Order})
}

// step gives one event to the machine and carries out the effects, in their order.
func (w *world) step(l *leader, o *open, ev txn.Event) {
	if l.over {
		return
	}
	before := o.state.Phase
	var effects []txn.Effect
	o.state, effects = rules.Step(o.state, ev, w.now)
	if o.state.Phase != before {
		w.say("%s is %s at the leader of epoch %d%s", o.id, o.state.Phase, l.epoch, because(o.state.Reason))
		if o.state.Phase == txn.RolledBack {
			w.regroup(l, o, before == txn.StuckRestoring)
		}
	}
	for _, e := range effects {
		if l.over {
			return
		}
		w.carryOut(l, o, e)
		switch e.(type) {
		case txn.Changed, txn.Unlock:
		default:
			if !l.over && w.burn(leaderDies, "the leader of epoch %d dies here", l.epoch) {
				w.leaderDied(l)
			}
		}
	}
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func (w *world) carryOut(l *leader, o *open, e txn.Effect) {
	switch e := e.(type) {
	case txn.Send:
		w.send(l, o, hostIndex(e.Host), e.Call, e.Attempt)
	case txn.WriteMark:
		o.writing = "mark"
	case txn.WriteDecision:
		w.decisionAsked(l, o)
		o.writing = "decision"
	case txn.SaveAbort:
		w.saveAbort(l, o)
	case txn.Unlock:
		l.passed = max(l.passed, o.state.Order)
		w.unlock(l, o.lockID)
	case txn.Finish:
		w.finish(l, o)
	case txn.Changed:
	}
}

func (w *world) unlock(l *leader, id string) {
	var granted []txn.Grant
	l.locks, granted = l.locks.Release(id)
	w.grant(l, granted)
}

func (w *world) saveAbort(l *leader, o *open) {
	rec := o.record()
	_ = w.commit(l, put(store.Put, "txn/"+o.id, rec, rec.text()))
}

// record is txn/<id> as it stands.
func (o *open) record() txnRecord {
	rec := txnRecord{order: o.state.Order, units: o.units, changes: o.changes, deadline: o.state.Deadline}
	for _, h := range o.state.Hosts {
		rec.hosts = append(rec.hosts, h.Name)
	}
	if !o.state.Undecided() && o.state.Phase != txn.Committed {
		f := txn.Found{Aborted: true, Cause: o.state.Cause, Reason: o.state.Reason}
		for _, h := range o.state.Hosts {
			f.Activate = f.Activate || h.SentActivate
		}
		rec.aborted = &f
	}
	return rec
}

func (w *world) finish(l *leader, o *open) {
	l.txns = slices.DeleteFunc(l.txns, func(x *open) bool { return x == o })
	ops := []op{put(store.Delete, "txn/"+o.id, nil, ""), put(store.Delete, "mark/"+o.id, nil, "")}
	for _, p := range o.parts() {
		e := ended{p.id, o.state.Phase, o.state.Cause}
		w.judgeEnd(o, p)
		l.ended = append(l.ended, e)
		ops = append(ops, put(store.Put, "ended/"+p.id, e, e.phase.String()))
	}
	w.say("%s is over at the leader of epoch %d: %s", o.id, l.epoch, o.state.Phase)
	if w.commit(l, ops...) != nil {
		return
	}
	for i := range l.hosts {
		w.refresh(l, i)
	}
}

// send builds the message now and puts it on the wire. An earlier call to the Host is given up by it.
func (w *world) send(l *leader, o *open, i int, c txn.Call, try uint32) {
	fence := w.fence(l, i)
	changes := o.planned(w, fence.Group)
	left := max(o.state.Deadline.Sub(w.now), 0)
	m := &message{epoch: l.epoch, host: i, id: o.id, order: o.state.Order, try: try, sentAt: w.now, what: " of " + o.id}
	switch c {
	case txn.CallPrepare:
		p := participant.Prepare{Fence: fence, TxnID: o.id, Order: o.state.Order, Deadline: left}
		var to []string
		for _, ch := range changes {
			target := sectionOf(txn.Without(ch.Target, o.dead))
			p.Changes = append(p.Changes, participant.Change{App: ch.Key.App, Base: versionOf(ch.Base.GetVersion()), Target: &target})
			to = append(to, strings.Join(upstreamNames(txn.Without(ch.Target, o.dead)), ","))
		}
		m.call, m.req = callPrepare, p
		m.what += " to " + strings.Join(to, " and ")
	case txn.CallActivate:
		m.call, m.req = callActivate, participant.Activate{Fence: fence, TxnID: o.id, Order: o.state.Order, Deadline: left}
		if w.store.get("mark/"+o.id) == nil {
			w.violate("UNDO", "Activate is sent before the activating mark is durable: the next leader would not know who was told")
		}
	case txn.CallVerify:
		m.call, m.req = callVerify, participant.Verify{Fence: fence, TxnIDs: []string{o.id}}
	case txn.CallCommit:
		m.call, m.req = callCommit, participant.Commit{Fence: fence, TxnID: o.id, Order: o.state.Order}
		if w.store.get("decision/"+o.id) == nil {
			w.violate("ALL-OR-OLD", "Commit of %s is sent to %s and no Commit record exists", o.id, hostName(i))
		}
	case txn.CallAbort:
		m.call = callAbort
		ab := participant.Abort{Fence: fence, TxnID: o.id, Order: o.state.Order}
		for _, ch := range changes {
			ab.Apps = append(ab.Apps, ch.Key.App)
		}
		if ups := l.replacements(o); len(ups) > 0 && slices.Contains(ab.Apps, shop) {
			ab.Replacements = []participant.Section{{App: shop, Upstreams: ups}}
			m.what += " with r"
		}
		m.req = ab
		w.sentAbort(o.id)
	}
	w.wire = append(w.wire, m)
	w.say("the leader of epoch %d sends %s to %s", l.epoch, m, hostName(i))
}

func (w *world) sentAbort(id string) {
	if !slices.Contains(w.told, id) {
		w.told = append(slices.Clone(w.told), id)
	}
	if w.store.get("decision/"+id) != nil {
		w.violate("ALL-OR-OLD", "Abort of %s is sent although its Commit record exists", id)
	}
}

// landed: the write of the mark or of the decision has reached the store, and the leader hears of it.
func (w *world) landed(l *leader, o *open) {
	what := o.writing
	if !w.land(l, o) {
		return
	}
	if w.burn(leaderDies, "the leader of epoch %d dies before it hears that the %s is written", l.epoch, what) {
		w.leaderDied(l)
		return
	}
	if what == "mark" {
		w.step(l, o, txn.MarkWritten{})
		return
	}
	rec := w.store.get("decision/" + o.id).val.(decision)
	for _, c := range o.changes {
		l.loadSection(w, c.app)
	}
	l.passed = max(l.passed, o.state.Order)
	l.trackCommit(o, rec)
	w.step(l, o, txn.DecisionWritten{At: rec.at})
	for i := range l.hosts {
		w.refresh(l, i)
	}
}

// land makes the write of the mark or the decision durable. False: it was refused, or the term is over.
func (w *world) land(l *leader, o *open) bool {
	what := o.writing
	o.writing = ""
	var err error
	if what == "mark" {
		err = w.commit(l, put(store.Put, "mark/"+o.id, true, ""))
	} else if plan, no := w.plan(l, o); no != nil {
		err = no
	} else {
		rec := decision{at: w.now, order: o.state.Order}
		ops := []op{put(store.Create, "decision/"+o.id, nil, "")}
		for _, h := range o.state.Hosts {
			if h.Unproven {
				rec.unproven = append(rec.unproven, h.Name)
			}
		}
		for n, g := range groupNames {
			if slices.Contains(o.groups(w), g) {
				check := put(store.Check, "view/"+g, nil, "")
				check.Expect = store.Revision(l.views[n].rev)
				ops = append(ops, check)
			}
		}
		for _, p := range plan {
			app := appIndex(p.Key.App)
			rec.retired[app] = p.Retired
			ops = append(ops, l.putSection(app, p.Next))
		}
		ops[0].val, ops[0].txt = rec, rec.text()
		if o.joint() {
			for _, p := range o.parts() {
				one := rec
				one.retired = [2][]string{}
				one.retired[p.app] = rec.retired[p.app]
				ops = append(ops, put(store.Create, "decision/"+p.id, one, one.text()))
			}
		}
		if err = w.commit(l, ops...); err == nil {
			w.decided(o)
		}
	}
	if err == nil {
		w.say("the %s of %s is durable", what, o.id)
		return true
	}
	if !l.over {
		w.step(l, o, txn.WriteRefused{Cause: txn.CauseBaseMismatch, Reason: err.Error()})
	}
	return false
}

// tick lets time pass for a leader.
func (w *world) tick(l *leader) {
	for _, o := range slices.Clone(l.txns) {
		w.step(l, o, txn.Tick{})
	}
	for _, a := range slices.Clone(l.amends) {
		w.advanceAmend(l, a)
	}
	for i := range l.hosts {
		if !l.over {
			w.refresh(l, i)
		}
	}
}
