package protocol

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

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
