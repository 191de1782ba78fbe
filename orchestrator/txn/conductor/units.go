package conductor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// This file is about transactions that carry more than one proposal: several that belong together (lock-step), and several
// that need a reload of the same proxies and came together (merged). On the wire, at the Hosts and in the record of an open
// transaction it is one transaction with an id of its own. Its askers know nothing of that id: each hears of its proposal
// under the proposal's id, which is also the name of its decision.

// part is one proposal inside a transaction.
type part struct {
	id, deploy, app, actor, reason string
	record                         []byte
	deadline                       time.Time
	keys                           []txn.SectionKey
}

// unit is what commits or ends as a whole, whatever it was merged with: one proposal, or several in lock-step.
type unit struct {
	parts    []*part
	changes  []change // without bases
	rollback bool
	size     int
	// end: it was asked to leave, or is out of time: why, apart from what became of those that it was merged with.
	end *ending
}

type ending struct {
	cause  txn.Cause
	reason string
}

func newUnit(proposals []txn.Proposal) *unit {
	u := &unit{}
	for _, p := range proposals {
		m := &part{id: p.ID, deploy: p.Deploy, app: p.App, actor: p.Actor, reason: p.Reason, record: p.Record, deadline: p.Deadline}
		for _, ch := range p.Changes {
			key := txn.SectionKey{Group: ch.Group, App: ch.App}
			m.keys = append(m.keys, key)
			u.changes = append(u.changes, change{key: key, target: ch.Target})
		}
		u.parts = append(u.parts, m)
		u.rollback = u.rollback || p.Rollback
		u.size += proposalSize(p)
	}
	return u
}

func proposalSize(p txn.Proposal) int {
	size := len(p.Record)
	for _, ch := range p.Changes {
		size += proto.Size(ch.Target)
	}
	return size
}

func (u *unit) id() string { return u.parts[0].id }

// deadline of the unit is the first of its parts'.
func (u *unit) deadline() time.Time {
	at := u.parts[0].deadline
	for _, p := range u.parts[1:] {
		at = sooner(at, p.deadline)
	}
	return at
}

func (u *unit) apps() []string {
	var out []string
	for _, p := range u.parts {
		out = append(out, p.app)
	}
	for _, ch := range u.changes {
		out = append(out, ch.key.App)
	}
	return out
}

func (p *part) groups() []string {
	var out []string
	for _, k := range p.keys {
		out = append(out, k.Group)
	}
	return out
}

func (o *transaction) parts() []*part {
	var out []*part
	for _, u := range o.units {
		out = append(out, u.parts...)
	}
	return out
}

// unitOf returns the unit that has the proposal, or nil.
func (o *transaction) unitOf(id string) *unit {
	for _, u := range o.units {
		if slices.ContainsFunc(u.parts, func(p *part) bool { return p.id == id }) {
			return u
		}
	}
	return nil
}

// joint: more than one proposal goes by the transaction's own id.
func (o *transaction) joint() bool { return o.record.joint() }

// partsOf are the keys of the changes by the part that they belong to.
func partsOf[T any](p *part, list []T, key func(T) txn.SectionKey) []T {
	var out []T
	for _, v := range list {
		if slices.Contains(p.keys, key(v)) {
			out = append(out, v)
		}
	}
	return out
}

// newTransaction makes one transaction of the units, waiting for its locks. The cause says why it cannot even wait.
func (c *Conductor) newTransaction(units []*unit) (o *transaction, cause txn.Cause, reason string) {
	o = &transaction{
		units: units, views: map[string]registry.View{}, dead: map[string]bool{}, calls: map[string]context.CancelFunc{},
	}
	var deadline time.Time
	for _, u := range units {
		o.changes = append(o.changes, u.changes...)
		deadline = sooner(deadline, u.deadline())
	}
	for _, ch := range o.changes {
		group := ch.key.Group
		if _, ok := o.views[group]; ok {
			continue
		}
		view, ok := c.reg.View(group)
		switch {
		case !ok:
			cause, reason = txn.CauseUnknownGroup, fmt.Sprintf("group %s is not declared: see `cutover lb hosts`", group)
		case len(view.Hosts) == 0:
			cause, reason = txn.CauseNoHosts, fmt.Sprintf("group %s has no hosts, and nothing is proved without one: declare its hosts, see `cutover lb hosts`", group)
		}
		o.views[group] = view
	}
	o.record = c.recordOf(units, deadline)
	o.lockID = o.id()
	o.state = txn.NewState(o.id(), o.record.Deploy, deadline, c.pinned(o.views), time.Now())
	o.state.Policies = c.policies(o.views)
	c.txns[o.id()] = o
	for _, p := range o.parts() {
		c.parts[p.id] = o
	}
	return o, cause, reason
}

// recordOf is the record of a transaction of these units, without its views and changes. One proposal goes by its own id.
func (c *Conductor) recordOf(units []*unit, deadline time.Time) txnRecord {
	rec := txnRecord{Format: recordFormat, Epoch: c.opts.Fence.Epoch, Deadline: deadline}
	var deploys, actors, reasons []string
	for i, u := range units {
		rec.Rollback = rec.Rollback || u.rollback
		for _, p := range u.parts {
			rec.Parts = append(rec.Parts, partRecord{
				Unit: i, ID: p.id, Deploy: p.deploy, App: p.app, Actor: p.actor, Reason: p.reason, Record: p.record, Deadline: p.deadline, Keys: p.keys,
			})
			deploys, actors, reasons = append(deploys, p.deploy), append(actors, p.actor), append(reasons, p.app+": "+p.reason)
		}
	}
	if len(rec.Parts) == 1 {
		p := rec.Parts[0]
		rec.ID, rec.Deploy, rec.App, rec.Actor, rec.Reason, rec.Record, rec.Parts = p.ID, p.Deploy, p.App, p.Actor, p.Reason, p.Record, nil
		return rec
	}
	c.joints++
	rec.ID = fmt.Sprintf("%s%d.%d", jointPrefix, c.opts.Fence.Epoch, c.joints)
	slices.Sort(actors)
	rec.Deploy = strings.Join(deploys, ",")
	rec.Actor = strings.Join(slices.Compact(actors), ", ")
	rec.Reason = fmt.Sprintf("%d changes together: %s", len(deploys), clip(strings.Join(reasons, "; "), maxReason))
	return rec
}

// jointPrefix begins the ids of transactions that carry several proposals; the epoch and a counter make them unique.
const jointPrefix = "joint."

// maxReason bounds the reason of a transaction that carries the reasons of many.
const maxReason = 2000

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "..."
	}
	return s
}

// lockRequest asks for all that the units change. again: they had their turn, and are tried apart from the others now.
func (c *Conductor) lockRequest(o *transaction, again bool) txn.LockRequest {
	r := txn.LockRequest{ID: o.id(), Rollback: o.record.Rollback, Again: again, Merge: !again}
	for _, group := range sortedKeys(o.views) {
		if c.reloads(o.views[group]) {
			r.Exclusive = append(r.Exclusive, group)
		}
	}
	for _, ch := range o.changes {
		r.Sections = append(r.Sections, ch.key)
		for _, route := range ch.target.GetRoutes() {
			r.Claims = append(r.Claims, ch.key.Group+" "+routeKey(route))
		}
	}
	r.Weight = max(len(o.changes), len(o.parts()))
	for _, u := range o.units {
		r.Size += u.size
	}
	return r
}

// grantTogether makes one transaction of those that got their locks together, which is when their batch closes. One that
// cannot begin leaves it first.
func (c *Conductor) grantTogether(g txn.Grant) {
	var units []*unit
	var ready []*transaction
	for _, id := range g {
		o := c.txns[id]
		if o == nil {
			continue
		}
		if o.granted {
			return // taken up from an earlier term: it has held its Sections all along, and keeps them until it is undone
		}
		if len(g) > 1 {
			o.lockID = "" // the lock is that of the batch
			if reason := c.routeConflict(o); reason != "" {
				c.step(o, txn.AbortAsked{Cause: txn.CauseRouteConflict, Reason: reason})
				continue
			}
		}
		ready, units = append(ready, o), append(units, o.units...)
	}
	switch len(ready) {
	case 0:
		c.unlock(g[0])
		return
	case 1:
		ready[0].lockID = g[0]
		c.granted(ready[0])
		return
	}
	for _, o := range ready {
		delete(c.txns, o.id())
	}
	m, cause, reason := c.newTransaction(units)
	m.lockID = g[0]
	for _, o := range ready {
		maps.Copy(m.dead, o.dead)
	}
	c.log.Info("transactions are merged", "txn", m.id(), "units", len(units), "proposals", len(m.parts()))
	if cause != txn.CauseNone {
		c.step(m, txn.AbortAsked{Cause: cause, Reason: reason})
		return
	}
	c.granted(m)
}

// regroup takes a merged transaction apart that is undone on every Host: who is out ends with it, the others are tried
// again, before everything that waits and is no rollback. It happens before the locks are released.
func (c *Conductor) regroup(o *transaction, wasStuck bool) {
	if len(o.units) < 2 {
		return
	}
	now := time.Now()
	why := o.state.Undone(wasStuck, now)
	byID := map[string]*unit{}
	var units []txn.Unit
	for _, u := range o.units {
		byID[u.id()] = u
		units = append(units, txn.Unit{ID: u.id(), Apps: u.apps(), Deadline: u.deadline(), Left: u.end != nil})
		if u.end == nil && !now.Before(u.deadline()) {
			u.end = &ending{txn.CauseDeadline, "the deadline passed; last: " + o.state.Reason}
		}
	}
	out, batches := txn.Regroup(units, why, now)
	o.units = nil
	for _, id := range out {
		o.units = append(o.units, byID[id])
	}
	o.record.Parts = slices.DeleteFunc(slices.Clone(o.record.Parts), func(p partRecord) bool { return o.unitOf(p.ID) == nil })
	var requests []txn.LockRequest
	for _, batch := range batches {
		var again []*unit
		for _, id := range batch {
			again = append(again, byID[id])
		}
		n, cause, reason := c.newTransaction(again)
		maps.Copy(n.dead, o.dead)
		n.after = o.id()
		n.again = fmt.Sprintf("undone together with others that it was merged with, and tried again: %s", o.state.Reason)
		if cause != txn.CauseNone {
			c.step(n, txn.AbortAsked{Cause: cause, Reason: reason})
			continue
		}
		c.tell(n)
		requests = append(requests, c.lockRequest(n, true))
	}
	c.log.Info("a merged transaction is taken apart", "txn", o.id(), "cause", o.state.Cause, "out", out, "again", batches)
	if o.recorded {
		// The record names them no longer before one of a later round does (the writes share a key), so that a new leader
		// never takes what came of an earlier round for the end of a proposal.
		value := encode(o.record)
		c.submit(write{
			what: "parted",
			keys: []txn.SectionKey{txnKey(o.id())},
			ops: func() ([]store.Op, error) {
				return []store.Op{{Kind: store.Put, Key: prefixTxn + o.id(), Value: value}}, nil
			},
			done: func(_ store.Revision, err error) {
				if err != nil {
					c.log.Warn("the parting of a merged transaction was not recorded", "txn", o.id(), "error", err)
				}
			},
		})
	}
	var grants []txn.Grant
	c.locks, grants = c.locks.Add(requests...)
	c.grant(grants)
}

// roundBegins gives a merged transaction that is tried again the time of one round.
func (c *Conductor) roundBegins(o *transaction) {
	if len(o.units) > 1 {
		o.state.Deadline = txn.RoundDeadline(len(o.units), o.state.Deadline, time.Now())
		o.record.Deadline = o.state.Deadline
	}
}

// tell gives every asker the status of its own proposal.
func (c *Conductor) tell(o *transaction) {
	for _, u := range o.units {
		for _, p := range u.parts {
			c.opts.Listener.TxnChanged(c.statusOf(o, u, p))
		}
	}
}

// statusOf is the transaction as the asker of one part sees it.
func (c *Conductor) statusOf(o *transaction, u *unit, p *part) txn.Status {
	s := c.status(o)
	s.ID, s.Deploy = p.id, p.deploy
	if o.state.Phase == txn.Waiting && o.again != "" {
		s.Reason = o.again
	}
	if !o.joint() {
		return s
	}
	groups := p.groups()
	s.Hosts = slices.DeleteFunc(s.Hosts, func(h txn.HostVote) bool { return !slices.Contains(groups, h.Group) })
	switch s.Phase {
	case txn.Restoring, txn.RolledBack, txn.StuckRestoring:
	default:
		return s
	}
	if apps := o.state.Blamed(); len(apps) > 0 {
		s.Reason = "App " + strings.Join(apps, ", ") + ": " + s.Reason
	}
	if u.end != nil && s.Phase != txn.StuckRestoring {
		s.Cause, s.Reason = u.end.cause, u.end.reason
	} else if n := len(o.record.Parts) - len(u.parts); n > 0 && s.Phase == txn.Restoring {
		s.Reason += fmt.Sprintf(" (merged with %d other changes: all are undone, and tried again apart)", n)
	}
	return s
}
