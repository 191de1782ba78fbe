package conductor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// load reads everything that earlier terms left. The first write of the term, the reservation of order numbers, raises
// the fence of the store, so what is read after it cannot be changed by an older leader any more.
func (c *Conductor) load(ctx context.Context) error {
	if err := c.loadOrders(ctx); err != nil {
		return err
	}
	loads := []struct {
		prefix string
		take   func(store.Record) error
	}{
		{prefixSection, c.loadSection},
		{prefixEnded, c.loadEnded},
		{prefixTxn, func(r store.Record) error { return c.loadTxn(ctx, r) }},
		{prefixAmend, c.loadAmendment},
	}
	// Each without pages: Consul has none, and reads all of them for each. And all beside each other: it is another machine's.
	reading, together := errgroup.WithContext(ctx)
	records := make([][]store.Record, len(loads))
	for i, load := range loads {
		reading.Go(func() (err error) {
			records[i], err = c.opts.Store.List(together, load.prefix, "", 0)
			return err
		})
	}
	if err := reading.Wait(); err != nil {
		return err
	}
	for i, load := range loads {
		for _, r := range records[i] {
			if err := load.take(r); err != nil {
				return fmt.Errorf("record %q: %w", r.Key, err)
			}
		}
	}
	slices.SortStableFunc(c.past.order, func(a, b string) int {
		return cmp.Compare(c.past.byID[a].Status.Order, c.past.byID[b].Status.Order)
	})
	return nil
}

func (c *Conductor) loadOrders(ctx context.Context) error {
	last := uint64(0)
	rec, err := c.opts.Store.Get(ctx, keyOrder)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return err
	default:
		if last, err = strconv.ParseUint(string(rec.Value), 10, 64); err != nil {
			return fmt.Errorf("record %q is damaged: %w", keyOrder, err)
		}
	}
	next := last + orderBlock
	if _, err := c.opts.Store.Commit(ctx, c.opts.Fence, store.Op{Kind: store.Put, Key: keyOrder, Value: encodeOrder(next)}); err != nil {
		return fmt.Errorf("reserve order numbers: %w", err)
	}
	c.orders.last, c.orders.reserved = last, next
	return nil
}

func (c *Conductor) loadSection(r store.Record) error {
	group, app, ok := strings.Cut(strings.TrimPrefix(r.Key, prefixSection), "/")
	if !ok {
		return errors.New("the key names no app")
	}
	var s lbagentv1.CommittedSection
	if err := proto.Unmarshal(r.Value, &s); err != nil {
		return err
	}
	c.install(txn.SectionKey{Group: group, App: app}, &s, r.Revision, s.GetVersion().GetTxn())
	return nil
}

func (c *Conductor) loadEnded(r store.Record) error {
	var e endedRecord
	if err := decode(r.Key, r.Value, &e); err != nil {
		return err
	}
	c.past.put(e.Status.ID, e)
	if !e.Drained {
		c.resumeDrain(e.Status.ID, e)
	}
	return nil
}

// loadTxn takes up a transaction that was open: with a decision it is committed, without one it is aborted for good,
// and every Host of its views is told.
func (c *Conductor) loadTxn(ctx context.Context, r store.Record) error {
	var rec txnRecord
	if err := decode(r.Key, r.Value, &rec); err != nil {
		return err
	}
	o := &transaction{record: rec, granted: true, recorded: true, views: map[string]registry.View{}, dead: map[string]bool{},
		calls: map[string]context.CancelFunc{}, lockID: rec.ID, units: rec.units()}
	for _, v := range rec.Views {
		o.views[v.Group] = registry.View{Group: v.Group, Number: v.Number, Hosts: v.Hosts}
		for _, name := range v.Hosts {
			if c.hosts[name] == nil {
				c.log.Warn("a host of an open transaction is no longer declared: its answer is not waited for", "txn", rec.ID, "host", name)
			}
		}
	}
	for _, ch := range rec.Changes {
		next := change{key: txn.SectionKey{Group: ch.Group, App: ch.App}}
		if !ch.Removes {
			next.target = &lbagentv1.Section{}
			if err := proto.Unmarshal(ch.Target, next.target); err != nil {
				return err
			}
		}
		if len(ch.Base) > 0 || ch.BaseTxn > 0 {
			next.base = &lbagentv1.CommittedSection{Section: &lbagentv1.Section{App: ch.App}, Version: &lbagentv1.Version{Txn: ch.BaseTxn}}
			for _, name := range ch.Base {
				next.base.Section.Upstreams = append(next.base.Section.Upstreams, &lbagentv1.Upstream{Name: name})
			}
		}
		o.changes = append(o.changes, next)
	}
	for _, u := range o.units {
		// What is tried again after this term's undo needs its whole proposal: a unit without its changes would be a decision
		// about nothing.
		u.size = 0
		for _, p := range u.parts {
			u.size += len(p.record)
			for _, ch := range partsOf(p, o.changes, func(ch change) txn.SectionKey { return ch.key }) {
				u.changes = append(u.changes, change{key: ch.key, target: ch.target})
				u.size += proto.Size(ch.target)
			}
		}
	}
	var found txn.Found
	var decision decisionRecord
	d, err := c.opts.Store.Get(ctx, prefixDecision+rec.ID)
	switch {
	case err == nil:
		if err := decode(d.Key, d.Value, &decision); err != nil {
			return err
		}
		found.Decided, found.CommittedAt = true, decision.CommittedAt
		for _, v := range decision.Votes {
			if v.Vote == voteUnproven {
				found.Unproven = append(found.Unproven, v.Host)
			}
		}
	case !errors.Is(err, store.ErrNotFound):
		return err
	}
	if _, err := c.opts.Store.Get(ctx, prefixMark+rec.ID); err == nil {
		found.Marked = true
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if a := rec.Aborted; a != nil {
		found.Aborted, found.Cause, found.Reason, found.Activate = true, a.Cause, a.Reason, a.Activate
	}
	now := time.Now()
	o.state = txn.NewState(rec.ID, rec.Deploy, rec.Deadline, c.pinned(o.views), now)
	o.state.Order, o.state.Policies = rec.Order, c.policies(o.views)
	o.state = c.rules.Recover(o.state, found, now)
	if found.Decided {
		for i := range o.state.Hosts {
			for _, v := range decision.Votes {
				if v.Host == o.state.Hosts[i].Name {
					o.state.Hosts[i].PID, o.state.Hosts[i].Evidence = v.PID, decodeEvidence(v.Evidence)
				}
			}
		}
		c.trackCommit(o, decision.Changes)
	}
	c.txns[rec.ID] = o
	c.claimParts(o)
	return nil
}

// claimParts makes the transaction the one that carries its proposals. A merged one that was undone and taken apart may have
// left a record in which they are still named, as does what came after it: the newest has them.
func (c *Conductor) claimParts(o *transaction) {
	o.units = slices.DeleteFunc(o.units, func(u *unit) bool {
		other := c.parts[u.id()]
		return other != nil && other.state.Order > o.state.Order
	})
	for _, p := range o.parts() {
		if other := c.parts[p.id]; other != nil {
			other.units = slices.DeleteFunc(other.units, func(u *unit) bool { return u.id() == o.unitOf(p.id).id() })
		}
		c.parts[p.id] = o
	}
}

func (c *Conductor) loadAmendment(r store.Record) error {
	var rec amendRecord
	if err := decode(r.Key, r.Value, &rec); err != nil {
		return err
	}
	a := txn.Amendment{ID: rec.ID, Group: rec.Group, App: rec.App, Remove: rec.Remove, Retire: rec.Retire, Spec: rec.Spec, Actor: rec.Actor,
		Reason: rec.Reason, Deadline: rec.Deadline}
	for _, b := range rec.Insert {
		var u lbagentv1.Upstream
		if err := proto.Unmarshal(b, &u); err != nil {
			return err
		}
		a.Insert = append(a.Insert, &u)
	}
	view, _ := c.reg.View(rec.Group)
	m := newAmendment(a, view.Hosts)
	m.record = rec
	c.amends[rec.ID] = m
	return nil
}

// resume goes on with what load found; the first thing that the owner does.
func (c *Conductor) resume() {
	c.giveOrders()
	// Open transactions hold their Sections until they are decided or restored; then nothing else can have them.
	for _, id := range slices.Sorted(maps.Keys(c.txns)) {
		o := c.txns[id]
		c.passedBy(o)
		if o.state.Phase == txn.Committed {
			continue
		}
		lock := txn.LockRequest{ID: id, Rollback: true}
		for _, ch := range o.changes {
			lock.Sections = append(lock.Sections, ch.key)
		}
		c.locks, _ = c.locks.Add(lock)
	}
	for _, id := range sortedKeys(c.txns) {
		o := c.txns[id]
		c.log.Info("taking up a transaction of an earlier term", "txn", id, "deploy", o.record.Deploy, "phase", o.state.Phase.String())
		c.tell(o)
		for _, h := range o.state.Hosts {
			if m, ok := c.reg.Member(h.Name); !ok || m.Standing == registry.Excluded || m.Standing == registry.Removed {
				c.step(o, txn.HostExcluded{Host: h.Name, Gone: !ok || m.Standing == registry.Removed})
			}
		}
		c.step(o, txn.Tick{})
	}
	for _, id := range sortedKeys(c.amends) {
		if a := c.amends[id]; a != nil {
			c.resumeAmendment(a)
		}
	}
	for _, id := range sortedKeys(c.drains) {
		c.watchDrain(c.drains[id])
	}
}

func (c *Conductor) passedBy(o *transaction) {
	for _, ch := range o.changes {
		c.passed(ch.key, o.state.Order)
	}
}

// resumeAmendment: what was durable is told again under a new order number; what was not begins anew.
func (c *Conductor) resumeAmendment(a *amendment) {
	version := &lbagentv1.Version{}
	if s := c.sections[a.key()]; s != nil {
		version = s.version()
	}
	if a.remove != nil {
		c.noteDead(a)
	}
	if a.record.Ended {
		a.insert.failed = a.record.Failure != ""
		for _, name := range a.hosts {
			a.insert.done(name)
		}
		c.amendmentOver(a)
		return
	}
	if a.remove != nil {
		c.numberStage(a, a.remove, version)
	}
	switch {
	case a.insert == nil:
	case a.record.Undone, a.record.Failure != "":
		a.insert.failed = true
		c.advanceAmendment(a)
	case a.carried():
		c.queueBehind(a)
		c.numberStage(a, a.insert, version)
	case a.record.Applied:
		var granted []txn.Grant
		a.locked = true
		c.locks, granted = c.locks.Add(txn.LockRequest{ID: a.lockID(), Sections: []txn.SectionKey{a.key()}, Rollback: true})
		for _, g := range granted {
			if g[0] != a.lockID() {
				c.grant([]txn.Grant{g})
			}
		}
		c.numberStage(a, a.insert, version)
	default:
		c.startInsert(a)
	}
}
