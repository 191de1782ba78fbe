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

// commit is a Commit of the store: the fence, the preconditions, the writes. A refused fence ends the term.
func (w *world) commit(l *leader, ops ...op) error {
	s := &w.store
	if l.epoch < s.epoch {
		w.say("the store refuses a write of epoch %d: the term is over", l.epoch)
		w.leaderDied(l)
		return store.ErrFenced
	}
	plain := make([]store.Op, len(ops))
	for i, o := range ops {
		plain[i] = o.Op
	}
	err := store.Conflict(plain, func(key string) store.Revision {
		if r := s.get(key); r != nil {
			return store.Revision(r.rev)
		}
		return 0
	})
	if err != nil {
		return err
	}
	s.epoch = l.epoch
	s.rev++
	recs := slices.Clone(s.recs)
	for _, o := range ops {
		if o.Kind == store.Check {
			continue
		}
		at, found := slices.BinarySearchFunc(recs, o.Key, func(r record, k string) int { return strings.Compare(r.key, k) })
		switch {
		case o.Kind == store.Delete && found:
			recs = slices.Delete(recs, at, at+1)
		case o.Kind == store.Delete:
		case found:
			recs[at] = record{o.Key, s.rev, o.val, o.txt}
		default:
			recs = slices.Insert(recs, at, record{o.Key, s.rev, o.val, o.txt})
		}
	}
	s.recs = recs
	return nil
}

// op is one operation, with its value as it is.
type op struct {
	store.Op
	val any
	txt string
}

func put(kind store.OpKind, key string, val any, txt string) op {
	return op{Op: store.Op{Kind: kind, Key: key}, val: val, txt: txt}
}

func (l *leader) putShop(next *lbagentv1.CommittedSection) op {
	o := put(store.Replace, "section/shop", next, sectionText(next))
	o.Expect = store.Revision(l.rev)
	return o
}

func sectionText(s *lbagentv1.CommittedSection) string {
	return fmt.Sprint(s.GetVersion().GetTxn(), s.GetVersion().GetAmendments(), upstreamNames(s.GetSection()))
}

func upstreamNames(s *lbagentv1.Section) []string {
	var out []string
	for _, u := range s.GetUpstreams() {
		out = append(out, u.GetName())
	}
	return out
}

// txnRecord is txn/<id>.
type txnRecord struct {
	order    uint64
	target   *lbagentv1.Section
	base     *lbagentv1.CommittedSection
	deadline time.Time
	aborted  *txn.Found
}

func (r txnRecord) text() string {
	out := fmt.Sprint(r.order, upstreamNames(r.target))
	if r.aborted != nil {
		out += fmt.Sprint(r.aborted.Cause, r.aborted.Activate)
	}
	return out
}

// decision is decision/<id>: the Commit record.
type decision struct {
	at      time.Time
	retired []string
	order   uint64
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

// elect makes a new leader: the first write raises the fence of the store, so what is read after it stands.
func (w *world) elect() *leader {
	w.epochs++
	l := &leader{epoch: w.epochs, hosts: make([]seen, len(w.hosts))}
	for i := range l.hosts {
		l.hosts[i].downAt = w.now
	}
	w.leaders = append(slices.Clone(w.leaders), l)
	w.ownLeaders |= 1 << (len(w.leaders) - 1)
	w.say("an orchestrator is elected: epoch %d", l.epoch)
	l.last = w.orderReserved()
	if w.commit(l, put(store.Put, "counter/order", l.last+orderBlock, fmt.Sprint(l.last+orderBlock))) != nil {
		return l
	}
	sec := w.store.get("section/shop")
	l.shop, l.rev = sec.val.(*lbagentv1.CommittedSection), sec.rev
	l.passed = l.shop.GetVersion().GetTxn()
	for _, r := range w.store.recs {
		if id, ok := strings.CutPrefix(r.key, "ended/"); ok {
			e := r.val.(ended)
			l.ended = append(l.ended, e)
			if d := w.store.get("decision/" + id); d != nil {
				rec := d.val.(decision)
				l.track(id, rec.retired, &lbagentv1.Version{Txn: rec.order}, "")
			}
		}
	}
	for _, r := range w.store.recs {
		if id, ok := strings.CutPrefix(r.key, "txn/"); ok {
			w.recoverTxn(l, id, r.val.(txnRecord))
		}
	}
	for _, r := range w.store.recs {
		if _, ok := strings.CutPrefix(r.key, "amend/"); ok {
			l.loadAmend(r.val.(amendRecord), len(w.hosts))
		}
	}
	w.resume(l)
	return l
}

// orderBlock is how many order numbers a term reserves; small numbers keep stories readable.
const orderBlock = 10

func (w *world) orderReserved() uint64 {
	if r := w.store.get("counter/order"); r != nil {
		return r.val.(uint64)
	}
	return 1
}

func (w *world) recoverTxn(l *leader, id string, rec txnRecord) {
	o := &open{id: id, target: rec.target, base: rec.base, dead: map[string]bool{}, granted: true}
	f := txn.Found{Marked: w.store.get("mark/"+id) != nil}
	if rec.aborted != nil {
		marked := f.Marked
		f = *rec.aborted
		f.Marked = marked
	}
	if d := w.store.get("decision/" + id); d != nil {
		f.Decided, f.CommittedAt = true, d.val.(decision).at
		l.track(id, d.val.(decision).retired, &lbagentv1.Version{Txn: rec.order}, "")
	}
	var hosts []txn.Host
	for i := range l.hosts {
		hosts = append(hosts, txn.Host{Name: hostName(i), Group: group})
	}
	s := txn.NewState(id, "d1", rec.deadline, hosts, w.now)
	s.Order = rec.order
	o.state = rules.Recover(s, f, w.now)
	l.txns = append(l.txns, o)
	w.say("it takes up %s: %s", id, o.state.Phase)
	w.recovered(l, o, f)
}

func (w *world) resume(l *leader) {
	for _, o := range slices.Clone(l.txns) {
		l.passed = max(l.passed, o.state.Order)
		if o.state.Phase != txn.Committed {
			l.locks, _ = l.locks.Add(txn.LockRequest{ID: o.id, Rollback: true, Sections: []txn.SectionKey{shopKey}})
		}
	}
	for _, o := range slices.Clone(l.txns) {
		w.step(l, o, txn.Tick{})
		if l.over {
			return
		}
	}
	for _, a := range slices.Clone(l.amends) {
		w.resumeAmend(l, a)
	}
	for n, dead := range w.dead {
		if dead && !l.over {
			w.taskEnded(l, upNames[n])
		}
	}
}

// connect stands the Watch stream of Host i to the leader.
func (w *world) connect(i int) {
	l := w.lead(w.newest().epoch)
	w.say("%s and the leader of epoch %d are connected", hostName(i), l.epoch)
	w.unlinked(i)
	h := w.host(i)
	h.watch, h.held, h.slow, h.unread = l.epoch, 0, false, true
	if !w.feed(i, participant.Hello{Fence: participant.Fence{Cluster: "c", Group: group, Epoch: l.epoch, View: 1}}) || !w.settle(i) {
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
		w.step(l, o, txn.HostLink{Host: hostName(i), Connected: true})
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
		w.step(l, o, txn.HostLink{Host: hostName(i)})
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
		if o := l.txn(t.GetTxnId()); o != nil && o.state.Order == t.GetOrder() {
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
		var err error
		switch c {
		case txn.CallActivate, txn.CallVerify:
			err = txn.CheckVerified(shop, o.target, o.base.GetSection(), o.dead, evidence)
		case txn.CallAbort:
			err = txn.CheckAborted([]string{shop}, &lbagentv1.Aborted{Evidence: evidence, NeverActivated: a.NeverActivated})
		default:
		}
		if err != nil {
			refusal = &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_SET_DIFFERS, App: shop, Message: err.Error()}
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
		if am.rec.undo == o.id {
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
		if m.SentPrepare || (o.state.Phase != txn.Waiting && o.state.Phase != txn.Preparing) {
			continue
		}
		behind := l.behind(o, i)
		if m.CaughtUp != (behind == "") || m.Behind != behind {
			w.step(l, o, txn.HostCaughtUp{Host: hostName(i), OK: behind == "", Behind: behind})
		}
	}
	if l.over {
		return
	}
	l.watchDrains()
	w.settleInDoubt(l, i)
	if s.up && s.syncing == 0 && s.reports.Known {
		w.reconcile(l, i)
	}
}

func (l *leader) behind(o *open, i int) string {
	s := &l.hosts[i]
	if !s.up || !s.reports.Known {
		return "it is not connected"
	}
	for _, other := range l.txns {
		if other != o && other.state.Unfinished(hostName(i)) {
			return "it has not finished transaction " + other.id
		}
	}
	return txn.Behind(s.reports, shop, o.id, l.shop)
}

// settleInDoubt tells the Host the decision of a transaction that it reports open and that is nobody's business here.
func (w *world) settleInDoubt(l *leader, i int) {
	s := &l.hosts[i]
	t := s.reports.Sections[shop].GetOpen()
	if t == nil || !s.up || s.settle != 0 || w.now.Before(s.syncAt) && s.tries > 0 {
		return
	}
	if o := l.txn(t.GetTxnId()); o != nil && (o.state.Undecided() || o.state.Unfinished(hostName(i))) {
		return
	}
	fence := participant.Fence{Cluster: "c", Group: group, Epoch: l.epoch, View: 1}
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
	for _, o := range l.txns {
		if o.state.Unfinished(hostName(i)) && (o.state.Phase != txn.Committed || o.host(i).Reason == "") {
			return
		}
	}
	for _, a := range l.amends {
		if a.inMotion(i) {
			return
		}
	}
	for _, o := range l.txns {
		if o.writing == "decision" {
			return
		}
	}
	why := txn.Disagreement(s.reports, shop, l.shop)
	if why == "" {
		s.tries, s.syncAt = 0, time.Time{}
		return
	}
	if w.now.Before(s.syncAt) {
		return
	}
	var undecided []uint64
	for _, o := range l.txns {
		if o.state.Undecided() && o.state.Order != 0 {
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
	sent := l.committedFor(i)
	m := &message{epoch: l.epoch, host: i, call: callSync, order: order, try: l.calls, sentAt: w.now, what: " to " + sectionText(sent)}
	m.req = participant.Sync{Fence: participant.Fence{Cluster: "c", Group: group, Epoch: l.epoch, View: 1}, Order: order, Sections: []participant.Committed{
		{Section: section(cart, "c"), Version: participant.Version{Txn: 1}},
		{Section: sectionOf(sent.GetSection()), Version: versionOf(sent.GetVersion())},
	}}
	w.wire = append(w.wire, m)
	w.say("the leader of epoch %d sends %s to %s: %s", l.epoch, m, hostName(i), why)
}

func (w *world) synced(l *leader, i int, m *message) {
	s := &l.hosts[i]
	s.syncing = 0
	if m.answer.Refusal == nil && !slices.Contains(m.answer.Open, shop) {
		l.note(i, evidenceOf(m.answer.Evidence))
		v := m.req.(participant.Sync).Sections[1].Version
		for _, o := range slices.Clone(l.txns) {
			if o.state.Phase == txn.Committed && o.state.Unfinished(hostName(i)) && v.Txn >= o.state.Order {
				w.step(l, o, txn.Answer{Host: hostName(i), Call: txn.CallCommit, SentAt: m.sentAt, Evidence: evidenceOf(m.answer.Evidence)})
			}
		}
		for _, a := range slices.Clone(l.amends) {
			a.syncedPast(i, v)
			w.advanceAmend(l, a)
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
