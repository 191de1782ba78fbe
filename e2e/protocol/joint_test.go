package protocol

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// together is how the two changes of a scenario, shop to b and cart to d, go together.
type together uint8

const (
	alone    together = iota // shop only
	lockStep                 // one unit: both or none
	merged                   // each for itself, in one transaction since both wait for the same Frame lock
)

// part is one proposal inside a transaction: an App moves to an upstream.
type part struct {
	id  string
	app int
	up  string
}

// unit is what commits or ends as a whole, whatever it was merged with. left: somebody asked it to end.
type unit struct {
	parts    []part
	deadline time.Time
	left     bool
}

func (u unit) id() string { return u.parts[0].id }

func (u unit) changes(app int) bool {
	return slices.ContainsFunc(u.parts, func(p part) bool { return p.app == app })
}

// change is one change of a transaction.
type change struct {
	app    int
	target *lbagentv1.Section
	base   *lbagentv1.CommittedSection
}

func (c change) key(w *world) txn.SectionKey {
	return txn.SectionKey{Group: w.groupOf(c.app), App: apps[c.app]}
}

func (o *open) parts() []part {
	var out []part
	for _, u := range o.units {
		out = append(out, u.parts...)
	}
	return out
}

func (o *open) has(id string) bool {
	return slices.ContainsFunc(o.parts(), func(p part) bool { return p.id == id })
}

// joint: more than one proposal went by the transaction's own id.
func (o *open) joint() bool { return strings.HasPrefix(o.id, "joint.") }

func (o *open) changeOf(app int) *change {
	for i := range o.changes {
		if o.changes[i].app == app {
			return &o.changes[i]
		}
	}
	return nil
}

// planned are the changes as package txn judges them, of one Group or ("") of all.
func (o *open) planned(w *world, group string) []txn.Change {
	var out []txn.Change
	for _, c := range o.changes {
		if key := c.key(w); group == "" || key.Group == group {
			out = append(out, txn.Change{Key: key, Target: c.target, Base: c.base})
		}
	}
	return out
}

func (o *open) groups(w *world) []string {
	var out []string
	for _, c := range o.changes {
		if g := w.groupOf(c.app); !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	return out
}

func (o *open) text() string {
	var out []string
	for _, p := range o.parts() {
		out = append(out, apps[p.app]+" to "+p.up)
	}
	return strings.Join(out, ", ")
}

// carries is the open transaction that carries the proposal, or nil.
func (l *leader) carries(id string) *open {
	for _, o := range l.txns {
		if o.has(id) {
			return o
		}
	}
	return nil
}

// newOpen makes one transaction of the units, waiting for its locks.
func (w *world) newOpen(l *leader, units []unit, after string) *open {
	o := &open{units: units, after: after, dead: map[string]bool{}}
	deadline := units[0].deadline
	for _, u := range units {
		if u.deadline.Before(deadline) {
			deadline = u.deadline
		}
		for _, p := range u.parts {
			o.changes = append(o.changes, change{app: p.app, target: sectionProto(apps[p.app], p.up)})
		}
	}
	o.id = units[0].id()
	if len(o.parts()) > 1 {
		l.joints++
		o.id = fmt.Sprintf("joint.%d.%d", l.epoch, l.joints)
	}
	o.lockID = o.id
	for n, dead := range w.dead {
		if dead {
			o.dead[upNames[n]] = true
		}
	}
	o.state = txn.NewState(o.id, "d1", deadline, w.pinned(l, o), w.now)
	o.state.Policies = map[string]txn.Policy{groupNames[0]: w.sc.policy, groupNames[1]: w.sc.policy}
	l.txns = append(l.txns, o)
	slices.SortFunc(l.txns, func(a, b *open) int { return strings.Compare(a.id, b.id) })
	return o
}

// begin takes what is proposed: one App's change, or those of both.
func (w *world) begin(l *leader, ids ...string) {
	targets := []part{{app: 0, up: "b"}, {app: 1, up: "d"}}
	var units []unit
	for n, id := range ids {
		p := targets[n]
		p.id = id
		if n > 0 && w.sc.together == lockStep {
			units[0].parts = append(units[0].parts, p)
			continue
		}
		units = append(units, unit{parts: []part{p}, deadline: w.now.Add(txnDeadline)})
	}
	var requests []txn.LockRequest
	for n := range units {
		o := w.newOpen(l, units[n:n+1:n+1], "")
		w.say("the leader of epoch %d takes %s: %s", l.epoch, o.id, o.text())
		requests = append(requests, w.lockRequest(o, false))
	}
	var granted []txn.Grant
	l.locks, granted = l.locks.Add(requests...)
	w.grant(l, granted)
}

// lockRequest: in a scenario of merged changes every proxy reloads, so each takes the Frame lock.
func (w *world) lockRequest(o *open, again bool) txn.LockRequest {
	r := txn.LockRequest{ID: o.id, Again: again, Merge: !again, Weight: len(o.changes)}
	for _, c := range o.changes {
		r.Sections = append(r.Sections, c.key(w))
	}
	if w.sc.together == merged {
		r.Exclusive = o.groups(w)
	}
	return r
}

func (w *world) grant(l *leader, grants []txn.Grant) {
	for _, g := range grants {
		if l.over {
			return
		}
		if a := l.amend(strings.TrimPrefix(g[0], "amend/")); a != nil {
			w.insertGranted(l, a)
		} else if !strings.HasPrefix(g[0], viewLocks) {
			w.grantTogether(l, g)
		}
	}
}

// grantTogether makes one transaction of those that got their locks together.
func (w *world) grantTogether(l *leader, g txn.Grant) {
	var units []unit
	var ready []*open
	for _, id := range g {
		o := l.txn(id)
		if o == nil {
			continue
		}
		if o.granted {
			return // taken up from an earlier term: it has had them all along
		}
		ready, units = append(ready, o), append(units, o.units...)
	}
	switch len(ready) {
	case 0:
		w.unlock(l, g[0])
		return
	case 1:
		ready[0].lockID = g[0]
		w.granted(l, ready[0])
		return
	}
	l.txns = slices.DeleteFunc(l.txns, func(o *open) bool { return slices.Contains(ready, o) })
	m := w.newOpen(l, units, "")
	m.lockID = g[0]
	w.say("they wait for the same lock and are merged: %s", m.id)
	w.granted(l, m)
}

// regroup takes a merged transaction apart that is undone on every Host, before its locks are released.
func (w *world) regroup(l *leader, o *open, wasStuck bool) {
	if len(o.units) < 2 {
		return
	}
	var units []txn.Unit
	byID := map[string]unit{}
	for _, u := range o.units {
		byID[u.id()] = u
		unit := txn.Unit{ID: u.id(), Deadline: u.deadline, Left: u.left}
		for _, p := range u.parts {
			unit.Apps = append(unit.Apps, apps[p.app])
		}
		units = append(units, unit)
	}
	out, batches := txn.Regroup(units, o.state.Undone(wasStuck, w.now), w.now)
	o.units = nil
	for _, id := range out {
		o.units = append(o.units, byID[id])
	}
	var requests []txn.LockRequest
	for _, batch := range batches {
		var again []unit
		for _, id := range batch {
			again = append(again, byID[id])
		}
		n := w.newOpen(l, again, o.id)
		w.say("%s is tried again: %s", n.id, n.text())
		requests = append(requests, w.lockRequest(n, true))
	}
	rec := o.record()
	if w.commit(l, put(store.Put, "txn/"+o.id, rec, rec.text())) != nil {
		return
	}
	if w.burn(leaderDies, "the leader of epoch %d dies when it has parted what was merged", l.epoch) {
		w.leaderDied(l)
		return
	}
	var granted []txn.Grant
	l.locks, granted = l.locks.Add(requests...)
	w.grant(l, granted)
}

// claimParts makes a transaction that was taken up the one that carries its proposals: of several, the newest has them.
func (l *leader) claimParts(o *open) {
	for _, other := range l.txns {
		older, newer := other, o
		if older.state.Order > newer.state.Order {
			older, newer = newer, older
		}
		if other != o {
			older.units = slices.DeleteFunc(slices.Clone(older.units), func(u unit) bool { return newer.has(u.id()) })
		}
	}
}

// plan is what the Commit record of the transaction commits.
func (w *world) plan(l *leader, o *open) ([]txn.Committing, error) {
	c := txn.Commit{ID: o.id, Order: o.state.Order, Changes: o.planned(w, ""), Dead: o.dead, Hosts: map[string][]string{}, Voted: map[string]bool{}}
	for _, p := range o.parts() {
		c.Proposals = append(c.Proposals, txn.Named{ID: p.id, Keys: []txn.SectionKey{{Group: w.groupOf(p.app), App: apps[p.app]}}})
	}
	for _, h := range o.state.Hosts {
		c.Hosts[h.Group] = append(c.Hosts[h.Group], h.Name)
		c.Voted[h.Name] = true
	}
	return c.Plan(func(key txn.SectionKey) *lbagentv1.CommittedSection { return l.secs[appIndex(key.App)].sec })
}
