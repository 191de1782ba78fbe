package protocol

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

const group = "g"

var shopKey = txn.SectionKey{Group: group, App: shop}

// leader is one orchestrator that leads, or believes that it does: the conductor without its goroutines. What it decides
// is decided by package txn; here is only who calls what, in the conductor's order.
type leader struct {
	epoch  uint64
	txns   []*open // sorted by id
	ended  []ended
	locks  txn.LockTable
	hosts  []seen
	shop   *lbagentv1.CommittedSection
	rev    uint64 // of the record of shop
	last   uint64 // the newest order number given out
	passed uint64
	amends []*amend
	drains []*drain
	calls  uint32 // numbers calls that are not a transaction's
	// removed are the dead tasks for which a removal was asked in this term.
	removed []string
	// over: the process is ending; nothing is begun any more.
	over bool
}

// ended is how a transaction ended.
type ended struct {
	id    string
	phase txn.Phase
	cause txn.Cause
}

// seen is what a leader knows of one Host.
type seen struct {
	up      bool
	downAt  time.Time
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
	target  *lbagentv1.Section
	base    *lbagentv1.CommittedSection
	dead    map[string]bool
	granted bool
	// writing: the mark or the decision is on its way to the store.
	writing string
	heard   [3]heard
}

func (l *leader) clone() *leader {
	c := *l
	c.txns = make([]*open, len(l.txns))
	for i, o := range l.txns {
		d := *o
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

func (o *open) host(i int) *txn.Host { return &o.state.Hosts[i] }

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
		return h.Attempt != m.try || h.Call == txn.CallNone
	}
}

// begin takes the proposal to move shop to b.
func (w *world) begin(l *leader, id string) {
	o := &open{id: id, target: sectionProto(shop, "b"), dead: map[string]bool{}}
	var hosts []txn.Host
	for i := range l.hosts {
		hosts = append(hosts, txn.Host{Name: hostName(i), Group: group, Connected: l.hosts[i].up})
	}
	o.state = txn.NewState(id, "d1", w.now.Add(txnDeadline), hosts, w.now)
	for n, dead := range w.dead {
		if dead {
			o.dead[upNames[n]] = true
		}
	}
	l.txns = append(l.txns, o)
	slices.SortFunc(l.txns, func(a, b *open) int { return strings.Compare(a.id, b.id) })
	w.say("the leader of epoch %d takes %s: shop to b", l.epoch, id)
	var granted []txn.Grant
	l.locks, granted = l.locks.Add(txn.LockRequest{ID: id, Sections: []txn.SectionKey{shopKey}})
	w.grant(l, granted)
}

// txnDeadline is of Prepare to Commit.
const txnDeadline = 20 * time.Second

func (w *world) grant(l *leader, grants []txn.Grant) {
	for _, g := range grants {
		id := g[0] // nothing is merged here
		if o := l.txn(id); o != nil {
			w.granted(l, o)
		} else if a := l.amend(strings.TrimPrefix(id, "amend/")); a != nil {
			w.insertGranted(l, a)
		}
	}
}

func (l *leader) nextOrder() uint64 {
	l.last++
	return l.last
}

func (w *world) granted(l *leader, o *open) {
	o.granted, o.base = true, l.shop
	o.state.Order = l.nextOrder()
	rec := txnRecord{order: o.state.Order, target: o.target, base: o.base, deadline: o.state.Deadline}
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
		w.unlock(l, o.id)
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
	f := txn.Found{Aborted: true, Cause: o.state.Cause, Reason: o.state.Reason}
	for _, h := range o.state.Hosts {
		f.Activate = f.Activate || h.SentActivate
	}
	rec := txnRecord{order: o.state.Order, target: o.target, base: o.base, deadline: o.state.Deadline, aborted: &f}
	_ = w.commit(l, put(store.Put, "txn/"+o.id, rec, rec.text()))
}

func (w *world) finish(l *leader, o *open) {
	l.txns = slices.DeleteFunc(l.txns, func(x *open) bool { return x == o })
	l.ended = append(l.ended, ended{o.id, o.state.Phase, o.state.Cause})
	w.say("%s is over at the leader of epoch %d: %s", o.id, l.epoch, o.state.Phase)
	if w.commit(l, put(store.Put, "ended/"+o.id, ended{o.id, o.state.Phase, o.state.Cause}, o.state.Phase.String()), put(store.Delete, "txn/"+o.id, nil, ""),
		put(store.Delete, "mark/"+o.id, nil, "")) != nil {
		return
	}
	for i := range l.hosts {
		w.refresh(l, i)
	}
}

// send builds the message now and puts it on the wire. An earlier call to the Host is given up by it.
func (w *world) send(l *leader, o *open, i int, c txn.Call, try uint32) {
	fence := participant.Fence{Cluster: "c", Group: group, Epoch: l.epoch, View: 1}
	left := max(o.state.Deadline.Sub(w.now), 0)
	m := &message{epoch: l.epoch, host: i, id: o.id, order: o.state.Order, try: try, sentAt: w.now, what: " of " + o.id}
	switch c {
	case txn.CallPrepare:
		target := sectionOf(txn.Without(o.target, o.dead))
		m.call = callPrepare
		m.req = participant.Prepare{Fence: fence, TxnID: o.id, Order: o.state.Order, Deadline: left,
			Changes: []participant.Change{{App: shop, Base: versionOf(o.base.GetVersion()), Target: &target}}}
		m.what += " to " + strings.Join(upstreamNames(txn.Without(o.target, o.dead)), ",")
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
		ab := participant.Abort{Fence: fence, TxnID: o.id, Order: o.state.Order, Apps: []string{shop}}
		if ups := l.replacements(o); len(ups) > 0 {
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
	l.shop, l.rev = w.store.get("section/shop").val.(*lbagentv1.CommittedSection), w.store.get("section/shop").rev
	l.passed = max(l.passed, o.state.Order)
	l.track(o.id, rec.retired, &lbagentv1.Version{Txn: o.state.Order}, "")
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
	} else if txn.BaseMoved(o.base, l.shop) {
		err = fmt.Errorf("the committed section is not the base any more")
	} else {
		next := txn.CommittedAfter(shop, o.target, o.state.Order, o.dead)
		rec := decision{at: w.now, retired: txn.RetiredNames(l.shop, next, o.dead), order: o.state.Order}
		if err = w.commit(l, put(store.Create, "decision/"+o.id, rec, strings.Join(rec.retired, " ")), l.putShop(next)); err == nil {
			w.decided(o.id)
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

// key is the part of a leader that is about no Host.
func (l *leader) key(k *keyBuilder) {
	k.num(l.epoch, l.last, l.passed, l.rev)
	k.text(sectionText(l.shop))
	for _, o := range l.txns {
		k.text(o.id)
		k.text(o.writing)
		k.text(string(o.state.Cause))
		s := &o.state
		k.num(s.Order, uint64(s.Phase), uint64(len(o.dead)))
		k.flags(s.Marking, s.Marked, o.granted)
		for _, t := range []time.Time{s.Deadline, s.RestoreBy, s.TidyBy} {
			if k.b = mark(k.b, t); !t.IsZero() {
				k.b = append(k.b, byte(seconds(t.Sub(k.now))))
			}
		}
	}
	for _, e := range l.ended {
		k.text(e.id)
		k.num(uint64(e.phase))
	}
	for _, a := range l.amends {
		a.key(k)
	}
	for _, d := range l.drains {
		k.text(d.id)
		k.text(strings.Join(d.released, " "))
	}
	k.text(strings.Join(l.removed, " "))
}

// hostKey is the part of a leader that is about Host i.
func (l *leader) hostKey(k *keyBuilder, i int) {
	s := &l.hosts[i]
	k.flags(s.up, s.syncing != 0, s.settle != 0, s.tries > 0, s.reports.Known)
	k.at(s.syncAt)
	if !s.up {
		k.at(s.downAt)
	}
	for _, app := range apps {
		r := s.reports.Sections[app]
		k.num(r.GetVersion().GetTxn(), r.GetVersion().GetAmendments(), uint64(r.GetOpen().GetPhase()))
		k.text(r.GetOpen().GetTxnId())
		e := r.GetEvidence()
		k.text(e.GetDigest())
		if e.GetReadAt() != nil {
			k.localAt(e.GetReadAt().AsTime())
		}
		for _, row := range e.GetUpstreams() {
			k.text(row.GetName())
			k.num(uint64(row.GetMode()))
			k.flags(row.GetDrained(), row.GetRegistered(), row.GetHealthy())
		}
	}
	for _, o := range l.txns {
		h := o.host(i)
		k.num(uint64(h.Vote), uint64(h.Call), uint64(h.PID), uint64(h.SeenPID+1))
		k.flags(h.SentPrepare, h.SentActivate, h.Done, h.Connected, h.CaughtUp, h.Unproven, h.Excluded, h.Unrestored != nil, h.Reason != "")
		k.text(string(h.Trouble))
		k.at(h.AwaySince, h.RetryAt, h.FreshAt, h.NotBefore, h.DownSince)
		k.flags(o.heard[i].verified.IsZero(), o.heard[i].lapsed.IsZero())
		k.localAt(h.ReadAt, h.SeenAt)
	}
	for _, a := range l.amends {
		a.hostKey(k, i)
	}
}
