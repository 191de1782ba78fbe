package protocol

import (
	"fmt"
	"slices"
	"time"

	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// amend is one pending Amendment: the removal of a dead task, or the insertion of a replacement.
type amend struct {
	rec    amendRecord
	call   call
	order  uint64
	ver    *lbagentv1.Version // nil until durable
	hosts  []stageHost
	locked bool
	failed bool
	over   bool
}

// amendRecord is amend/<id>.
type amendRecord struct {
	id, remove, insert, undo string
	spec                     uint64
	applied                  bool
	deadline                 time.Time
}

func (r amendRecord) text() string {
	return fmt.Sprint(r.id, r.remove, r.insert, r.undo, r.spec, r.applied)
}

// stageHost is how one Host stands in an Amendment. flying is the number of the call that is under way, or 0.
type stageHost struct {
	done   bool
	flying uint32
	tries  int
	at     time.Time
}

// stageHosts are all Hosts; those of another Group than shop's have nothing to do.
func (w *world) stageHosts() []stageHost {
	out := make([]stageHost, len(w.hosts))
	for i := range out {
		out[i].done = !w.holds(i, 0)
	}
	return out
}

func (a *amend) clone() *amend {
	c := *a
	c.hosts = slices.Clone(a.hosts)
	return &c
}

func (a *amend) stage(c call) *amend {
	if a.call != c || a.failed {
		return nil
	}
	return a
}

func (a *amend) ready() bool { return a.ver != nil && a.order != 0 && !a.failed }

func (a *amend) hostIsBack(i int) {
	if h := &a.hosts[i]; !h.done {
		*h = stageHost{}
	}
}

// inMotion: the Host is about to get there by the Amendment, so Sync must not.
func (a *amend) inMotion(i int) bool {
	h := a.hosts[i]
	if a.over || h.done {
		return false
	}
	if a.call == callRemove {
		return a.ver != nil && !a.failed && (h.flying != 0 || h.tries == 0)
	}
	return a.inserting(i)
}

func (a *amend) inserting(i int) bool {
	return a.call == callInsert && !a.failed && a.rec.applied && !a.hosts[i].done
}

func (a *amend) syncedPast(i int, v participant.Version) {
	if h := &a.hosts[i]; !h.done && a.ready() && txn.CompareVersions(&lbagentv1.Version{Txn: v.Txn, Amendments: v.Amendments}, a.ver) >= 0 {
		h.done, h.flying = true, 0
	}
}

func (l *leader) amend(id string) *amend {
	for _, a := range l.amends {
		if a.rec.id == id {
			return a
		}
	}
	return nil
}

func (l *leader) committed(name string) bool {
	return slices.Contains(upstreamNames(l.secs[appOf(name)].sec.GetSection()), name)
}

// taskEnded is what the engine does when a task has ended: it leaves every proxy at once, and a transaction whose new
// upstream it is must not go on.
func (w *world) taskEnded(l *leader, name string) {
	if slices.Contains(l.removed, name) || l.over {
		return
	}
	l.removed = append(l.removed, name)
	slices.Sort(l.removed)
	named := l.committed(name)
	for _, o := range slices.Clone(l.txns) {
		in := slices.ContainsFunc(o.changes, func(c change) bool { return slices.Contains(upstreamNames(c.target), name) })
		named = named || in
		dead := map[string]bool{name: true}
		for n := range o.dead {
			dead[n] = true
		}
		o.dead = dead
		if in {
			for n := range o.units {
				if len(o.units) > 1 && o.units[n].changes(appOf(name)) {
					o.units[n].left = true // the others go on without it
				}
			}
			w.step(l, o, txn.AbortAsked{Cause: txn.CauseTaskDied, Reason: name + " has ended"})
		}
	}
	id := fmt.Sprintf("rm-%s-%d", name, l.epoch)
	if l.over || !named || slices.ContainsFunc(l.amends, func(a *amend) bool { return a.rec.remove == name }) {
		return
	}
	a := &amend{rec: amendRecord{id: id, remove: name}, call: callRemove, hosts: w.stageHosts()}
	l.amends = append(l.amends, a)
	w.say("the leader of epoch %d removes %s by Amendment", l.epoch, name)
	w.amended(l, a, func(s *lbagentv1.Section) *lbagentv1.Section { return txn.Without(s, map[string]bool{name: true}) })
}

// amended makes the next committed Section durable together with the Amendment, and numbers it.
func (w *world) amended(l *leader, a *amend, change func(*lbagentv1.Section) *lbagentv1.Section) {
	v := l.shop().GetVersion()
	next := &lbagentv1.CommittedSection{Section: change(l.shop().GetSection()), Version: &lbagentv1.Version{Txn: v.GetTxn(), Amendments: v.GetAmendments() + 1}}
	if a.call == callInsert {
		for _, o := range l.txns {
			if !o.has(a.rec.undo) && o.changeOf(0) != nil && (o.state.Undecided() && o.granted || o.state.Phase == txn.Restoring || o.state.Phase == txn.StuckRestoring) {
				w.violate("FENCE", "the insertion %s is counted in shop while %s is open on it", a.rec.id, o.id)
			}
		}
	}
	if w.commit(l, put(store.Put, "amend/"+a.rec.id, a.rec, a.rec.text()), l.putSection(0, next)) != nil {
		return
	}
	l.loadSection(w, 0)
	a.ver = next.Version
	if w.burn(leaderDies, "the leader of epoch %d dies when the Amendment is durable", l.epoch) {
		w.leaderDied(l)
		return
	}
	w.number(l, a)
}

func (w *world) number(l *leader, a *amend) {
	a.order = l.nextOrder()
	l.passed = max(l.passed, a.order)
	if o := l.carrier(a); o != nil {
		w.step(l, o, txn.Replaced{})
	}
	w.advanceAmend(l, a)
}

// mayInsert: r is not in use, or is of the Spec that is committed.
func (w *world) mayInsert(l *leader) bool {
	return l.amend("in-r") == nil && !l.committed("r") && (w.spare == 0 || w.spare == l.shop().GetSection().GetSpec())
}

// insert begins the insertion of r, a task of the committed Spec: with the undo of a transaction, or behind the lock of the
// Section.
func (w *world) insert(l *leader, undo string) {
	w.spare = l.shop().GetSection().GetSpec()
	a := &amend{rec: amendRecord{id: "in-r", insert: "r", undo: undo, spec: w.spare, deadline: w.now.Add(30 * time.Second)}, call: callInsert, hosts: w.stageHosts()}
	l.amends = append(l.amends, a)
	w.say("the leader of epoch %d inserts r by Amendment", l.epoch)
	if l.carrier(a) != nil {
		if w.outdated(l, a) {
			return
		}
		w.behindUndo(l, a)
		w.applyInsert(l, a)
		return
	}
	var granted []txn.Grant
	l.locks, granted = l.locks.Add(txn.LockRequest{ID: "amend/" + a.rec.id, Sections: []txn.SectionKey{w.shopKey()}})
	w.grant(l, granted)
}

func (w *world) behindUndo(l *leader, a *amend) {
	var granted []txn.Grant
	l.locks, granted = l.locks.Add(txn.LockRequest{ID: "amend/" + a.rec.id, Sections: []txn.SectionKey{w.shopKey()}, Rollback: true})
	w.grant(l, granted)
}

func (w *world) insertGranted(l *leader, a *amend) {
	a.locked = true
	if a.rec.applied {
		w.advanceAmend(l, a)
		return
	}
	if !w.outdated(l, a) {
		w.applyInsert(l, a)
	}
}

// outdated gives the insertion up if it must not come into the committed Section any more.
func (w *world) outdated(l *leader, a *amend) bool {
	why := txn.Amendment{Spec: a.rec.spec}.Outdated(l.shop())
	if why != "" {
		w.say("it must not come in: %s", why)
		w.giveUp(l, a)
	}
	return why != ""
}

func (w *world) applyInsert(l *leader, a *amend) {
	a.rec.applied = true
	w.amended(l, a, func(s *lbagentv1.Section) *lbagentv1.Section {
		next := txn.Without(s, nil)
		if !slices.Contains(upstreamNames(next), "r") {
			next.Upstreams = append(next.Upstreams, sectionProto(shop, "r").Upstreams...)
		}
		return next
	})
}

// carrier is the undo that carries the insertion, as long as some Host owes its Aborted.
func (l *leader) carrier(a *amend) *open {
	o := l.carries(a.rec.undo)
	if a.rec.undo == "" || o == nil || o.state.Phase != txn.Restoring && o.state.Phase != txn.StuckRestoring {
		return nil
	}
	return o
}

// shop is the committed Section of shop.
func (l *leader) shop() *lbagentv1.CommittedSection { return l.secs[0].sec }

func (w *world) shopKey() txn.SectionKey { return txn.SectionKey{Group: w.groupOf(0), App: shop} }

// replacements are what Abort carries.
func (l *leader) replacements(o *open) []participant.Upstream {
	for _, a := range l.amends {
		if o.has(a.rec.undo) && !a.over && l.committed(a.rec.insert) {
			return []participant.Upstream{upstream(a.rec.insert)}
		}
	}
	return nil
}

func (l *leader) cameWith(o *open, i int, evidence []*lbagentv1.Evidence) {
	for _, a := range l.amends {
		if !o.has(a.rec.undo) || !a.inserting(i) || !a.ready() {
			continue
		}
		for _, row := range txn.EvidenceOf(evidence, shop).GetUpstreams() {
			if row.GetName() == a.rec.insert && row.GetMode() == lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING {
				a.hosts[i].done, a.hosts[i].flying = true, 0
			}
		}
	}
}

// committedFor is the committed Section as Sync installs it: without an insertion that is not verified there.
func (l *leader) committedFor(app, i int) *lbagentv1.CommittedSection {
	for _, a := range l.amends {
		if app == 0 && a.inserting(i) && a.ver != nil {
			v := l.shop().GetVersion()
			return &lbagentv1.CommittedSection{Section: txn.Without(l.shop().GetSection(), map[string]bool{a.rec.insert: true}),
				Version: &lbagentv1.Version{Txn: v.GetTxn(), Amendments: max(v.GetAmendments(), 1) - 1}}
		}
	}
	return l.secs[app].sec
}

func (w *world) advanceAmend(l *leader, a *amend) {
	if a.over || l.over || l.amend(a.rec.id) != a {
		return
	}
	if a.call == callInsert && !a.failed && !w.now.Before(a.rec.deadline) && l.carrier(a) == nil && !a.told() {
		w.giveUp(l, a)
		return
	}
	if a.ready() {
		for i := range a.hosts {
			h := &a.hosts[i]
			o := l.carrier(a)
			if h.done || h.flying != 0 || w.now.Before(h.at) || o != nil && o.state.Unfinished(hostName(i)) {
				continue
			}
			w.sendAmend(l, a, i)
			if l.over {
				return
			}
		}
	}
	if a.told() || a.failed && !a.locked {
		w.concludeAmend(l, a)
	}
}

// told: nobody has to be told any more.
func (a *amend) told() bool {
	return a.failed || a.ready() && !slices.ContainsFunc(a.hosts, func(h stageHost) bool { return !h.done })
}

func (w *world) sendAmend(l *leader, a *amend, i int) {
	l.calls++
	a.hosts[i].flying = l.calls
	ev := participant.Amend{Fence: w.fence(l, i), App: shop, Order: a.order, Base: versionOf(a.ver)}
	m := &message{epoch: l.epoch, host: i, call: a.call, id: a.rec.id, order: a.order, try: l.calls, sentAt: w.now}
	if a.call == callRemove {
		ev.Remove = []string{a.rec.remove}
		m.what = " without " + a.rec.remove
	} else {
		ev.Insert = []participant.Upstream{upstream(a.rec.insert)}
		ev.Deadline = max(a.rec.deadline.Sub(w.now), 0)
		m.what = " with " + a.rec.insert
	}
	m.req = ev
	w.wire = append(w.wire, m)
	w.say("the leader of epoch %d sends %s to %s", l.epoch, m, hostName(i))
	if w.burn(leaderDies, "the leader of epoch %d dies here", l.epoch) {
		w.leaderDied(l)
	}
}

func (w *world) amendAnswered(l *leader, i int, m *message) {
	a := l.amend(m.id)
	h := &a.hosts[i]
	h.flying = 0
	no := m.answer.Refusal
	switch {
	case no == nil:
		h.done = true
		open := false
		for _, o := range l.txns {
			open = open || o.state.Unfinished(hostName(i))
		}
		if !open {
			l.note(i, evidenceOf(m.answer.Evidence))
		}
	case no.Reason == participant.StaleOrder && m.order == a.order:
		a.order = 0
		w.number(l, a)
	case a.call == callInsert && no.Reason != participant.Busy && no.Reason != participant.BaseMismatch && no.Reason != participant.ProxyDown:
		w.giveUp(l, a)
		return
	}
	if no != nil {
		h.tries++
		h.at = w.now.Add(time.Second)
	}
	w.advanceAmend(l, a)
	if !l.over {
		w.refresh(l, i)
	}
}

// giveUp takes an insertion back, unless it came with an undo: that would lead to the dead upstreams.
func (w *world) giveUp(l *leader, a *amend) {
	if a.failed {
		return
	}
	if a.rec.undo != "" && a.rec.applied {
		for i := range a.hosts {
			a.hosts[i].done, a.hosts[i].flying = true, 0
		}
		w.advanceAmend(l, a)
		return
	}
	a.failed = true
	w.say("the leader of epoch %d gives the insertion of %s up", l.epoch, a.rec.insert)
	if a.rec.applied {
		v := l.shop().GetVersion()
		next := &lbagentv1.CommittedSection{Section: txn.Without(l.shop().GetSection(), map[string]bool{a.rec.insert: true}),
			Version: &lbagentv1.Version{Txn: v.GetTxn(), Amendments: v.GetAmendments() + 1}}
		if w.commit(l, put(store.Delete, "amend/"+a.rec.id, nil, ""), l.putSection(0, next)) != nil {
			return
		}
		l.loadSection(w, 0)
	}
	a.locked = false
	w.unlock(l, "amend/"+a.rec.id)
	w.advanceAmend(l, a)
	for i := range l.hosts {
		if !l.over {
			w.refresh(l, i)
		}
	}
}

func (w *world) concludeAmend(l *leader, a *amend) {
	a.over = true
	left := a.rec.remove
	if a.failed {
		left = a.rec.insert
	}
	if left != "" {
		l.track("amend/"+a.rec.id, 0, []string{left}, l.shop().GetVersion())
	}
	l.amends = slices.DeleteFunc(l.amends, func(x *amend) bool { return x == a })
	if a.locked || a.rec.undo != "" {
		w.unlock(l, "amend/"+a.rec.id)
	}
	if !l.over {
		_ = w.commit(l, put(store.Delete, "amend/"+a.rec.id, nil, ""))
	}
}

func (w *world) loadAmend(l *leader, r amendRecord) {
	a := &amend{rec: r, call: callRemove, hosts: w.stageHosts()}
	if r.insert != "" {
		a.call = callInsert
	}
	l.amends = append(l.amends, a)
}

func (w *world) resumeAmend(l *leader, a *amend) {
	if l.over {
		return
	}
	switch {
	case a.call == callRemove:
		for _, o := range l.txns {
			dead := map[string]bool{a.rec.remove: true}
			for n := range o.dead {
				dead[n] = true
			}
			o.dead = dead
		}
		a.ver = l.shop().GetVersion()
		w.number(l, a)
	case a.rec.undo != "":
		w.behindUndo(l, a)
		a.ver = l.shop().GetVersion()
		w.number(l, a)
	case a.rec.applied:
		a.locked = true
		l.locks, _ = l.locks.Add(txn.LockRequest{ID: "amend/" + a.rec.id, Sections: []txn.SectionKey{w.shopKey()}, Rollback: true})
		a.ver = l.shop().GetVersion()
		w.number(l, a)
	default:
		var granted []txn.Grant
		l.locks, granted = l.locks.Add(txn.LockRequest{ID: "amend/" + a.rec.id, Sections: []txn.SectionKey{w.shopKey()}})
		w.grant(l, granted)
	}
}

func (a *amend) key(k *keyBuilder) {
	k.text(a.rec.text())
	k.num(a.order)
	k.flags(a.ver != nil, a.locked, a.failed, a.over)
	if !a.rec.deadline.IsZero() {
		k.b = append(k.b, byte(seconds(a.rec.deadline.Sub(k.now))))
	}
}

func (a *amend) hostKey(k *keyBuilder, i int) {
	h := a.hosts[i]
	k.flags(h.done, h.flying != 0, h.tries > 0)
	k.at(h.at)
}
