package protocol

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
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
	for app := range apps {
		l.loadSection(w, app)
		l.passed = max(l.passed, l.secs[app].sec.GetVersion().GetTxn())
	}
	w.loadMembers(l)
	for _, r := range w.store.recs {
		if id, ok := strings.CutPrefix(r.key, "ended/"); ok {
			e := r.val.(ended)
			l.ended = append(l.ended, e)
			if d := w.store.get("decision/" + id); d != nil {
				l.trackPart(id, d.val.(decision))
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
			w.loadAmend(l, r.val.(amendRecord))
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
	o := &open{id: id, units: rec.units, changes: slices.Clone(rec.changes), dead: map[string]bool{}, granted: true, lockID: id}
	f := txn.Found{Marked: w.store.get("mark/"+id) != nil}
	if rec.aborted != nil {
		marked := f.Marked
		f = *rec.aborted
		f.Marked = marked
	}
	if d := w.store.get("decision/" + id); d != nil {
		f.Decided, f.CommittedAt, f.Unproven = true, d.val.(decision).at, d.val.(decision).unproven
		l.trackCommit(o, d.val.(decision))
	}
	var hosts []txn.Host
	for _, name := range rec.hosts {
		hosts = append(hosts, txn.Host{Name: name, Group: w.hostGroup(hostIndex(name))})
	}
	s := txn.NewState(id, "d1", rec.deadline, hosts, w.now)
	s.Order = rec.order
	s.Policies = map[string]txn.Policy{groupNames[0]: w.sc.policy, groupNames[1]: w.sc.policy}
	o.state = rules.Recover(s, f, w.now)
	l.claimParts(o)
	l.txns = append(l.txns, o)
	w.say("it takes up %s: %s", id, o.state.Phase)
	w.recovered(l, o, f)
}

func (w *world) resume(l *leader) {
	for _, o := range slices.Clone(l.txns) {
		l.passed = max(l.passed, o.state.Order)
		if o.state.Phase != txn.Committed {
			r := txn.LockRequest{ID: o.id, Rollback: true}
			for _, c := range o.changes {
				r.Sections = append(r.Sections, c.key(w))
			}
			l.locks, _ = l.locks.Add(r)
		}
	}
	for _, o := range slices.Clone(l.txns) {
		w.tellExcluded(l, o)
		if l.over {
			return
		}
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
