package conductor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// maxRecordBytes bounds what a proposal may carry in all, so that its records fit into one Commit.
const maxRecordBytes = 320 << 10

// transaction is one open transaction: the machine's state, and what its effects need.
type transaction struct {
	record  txnRecord
	changes []change
	state   txn.State
	views   map[string]registry.View
	// granted: the locks are held; recorded: txn/<id> exists or is being written.
	granted, recorded bool
	// dead are names that were removed since the proposal: they count in no target.
	dead  map[string]bool
	calls map[string]context.CancelFunc // by Host
	// units are the proposals that go with this transaction; those of a merged one that is undone go on without it.
	units []*unit
	// lockID is the name that its locks are held or waited for under; "" if they are another's.
	lockID string
	// again: why it is tried once more, while it waits. after: the transaction that its units were in before.
	again, after string
	// verdict are callers of Abort that wait for a decision that is being written.
	verdict []func(error)
}

// change is one change of a transaction.
type change struct {
	key    txn.SectionKey
	target *lbagentv1.Section          // nil: removed
	base   *lbagentv1.CommittedSection // nil: the Group never had it
}

func (o *transaction) id() string { return o.record.ID }

func (o *transaction) host(name string) *txn.Host {
	for i := range o.state.Hosts {
		if o.state.Hosts[i].Name == name {
			return &o.state.Hosts[i]
		}
	}
	return nil
}

func (o *transaction) changeOf(key txn.SectionKey) *change {
	for i := range o.changes {
		if o.changes[i].key == key {
			return &o.changes[i]
		}
	}
	return nil
}

// Begin takes a proposal, or several that belong together: then all commit in one decision, or none (lock-step). What
// becomes of each is told to the Listener under its own id; an error means that nothing was taken. The Proposals belong to the
// Conductor afterwards.
func (c *Conductor) Begin(ctx context.Context, proposals ...txn.Proposal) error {
	if err := checkProposals(proposals); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var err error
	if e := c.ask(ctx, func() { err = c.begin(proposals) }); e != nil {
		return e
	}
	return err
}

// checkProposals checks each, and that one decision can hold all.
func checkProposals(proposals []txn.Proposal) error {
	size, changes := 0, 0
	ids := map[string]bool{}
	seen := map[txn.SectionKey]bool{}
	for _, p := range proposals {
		if ids[p.ID] {
			return fmt.Errorf("two proposals have the id %q", p.ID)
		}
		ids[p.ID] = true
		if err := checkProposal(p, seen); err != nil {
			return err
		}
		size += proposalSize(p)
		changes += len(p.Changes)
	}
	switch {
	case len(proposals) == 0:
		return errors.New("no proposal")
	case changes > store.MaxOps/2:
		return fmt.Errorf("%d changes, at most %d are possible", changes, store.MaxOps/2)
	case len(proposals) > 1 && max(len(proposals), changes) > txn.MaxMergedWeight:
		return fmt.Errorf("%d Apps with %d changes in lock-step, at most %d are possible", len(proposals), changes, txn.MaxMergedWeight)
	case size > maxRecordBytes:
		return fmt.Errorf("%d bytes in targets and record, at most %d are possible", size, maxRecordBytes)
	}
	return nil
}

// checkProposal checks one; seen are the Sections that others with it change.
func checkProposal(p txn.Proposal, seen map[txn.SectionKey]bool) error {
	if err := checkID(p.ID); err != nil {
		return err
	}
	for _, ch := range p.Changes {
		key := txn.SectionKey{Group: ch.Group, App: ch.App}
		switch {
		case ch.App == "" || ch.Group == "":
			return errors.New("a change needs a group and an app")
		case seen[key]:
			return fmt.Errorf("section %s of group %s is named twice", ch.App, ch.Group)
		case ch.Target != nil && ch.Target.GetApp() != ch.App:
			return fmt.Errorf("the target of %s is a section of %q", ch.App, ch.Target.GetApp())
		}
		seen[key] = true
		if _, err := deterministic.Marshal(ch.Target); err != nil {
			return fmt.Errorf("the target of %s: %w", ch.App, err)
		}
	}
	return nil
}

// checkID keeps ids usable as one segment of a key.
func checkID(id string) error {
	if strings.HasPrefix(id, jointPrefix) {
		return fmt.Errorf("id %q: %s begins the ids of transactions that carry several proposals", id, jointPrefix)
	}
	if id == "" || len(id) > 128 || strings.ContainsAny(id, "/ ") || !utf8.ValidString(id) {
		return fmt.Errorf("id %q: want 1 to 128 bytes without slashes and spaces", id)
	}
	return nil
}

func (c *Conductor) begin(proposals []txn.Proposal) error {
	for _, p := range proposals {
		if c.parts[p.ID] != nil || c.past.has(p.ID) {
			return fmt.Errorf("%s: %w", p.ID, ErrExists)
		}
	}
	if len(c.parts)+len(proposals) > c.opts.MaxOpen {
		return ErrTooMany
	}
	o, cause, reason := c.newTransaction([]*unit{newUnit(proposals)})
	if cause != txn.CauseNone {
		c.step(o, txn.AbortAsked{Cause: cause, Reason: reason})
		return nil
	}
	lock := c.lockRequest(o, false)
	if lock.Rollback {
		c.giveWay(lock.Sections)
	}
	c.tell(o)
	var granted []txn.Grant
	c.locks, granted = c.locks.Add(lock)
	c.grant(granted)
	return nil
}

// reloads: a Host of the view reloads its proxy for each change, or has not said yet whether it does. Then transactions of the
// Group run one at a time, merged if they come together.
func (c *Conductor) reloads(v registry.View) bool {
	return slices.ContainsFunc(v.Hosts, func(name string) bool {
		h := c.hosts[name]
		return h != nil && (h.state == nil || h.state.GetReloadPerChange())
	})
}

// pinned returns the Hosts of the views as the machine starts with them.
func (c *Conductor) pinned(views map[string]registry.View) []txn.Host {
	var out []txn.Host
	for _, group := range slices.Sorted(maps.Keys(views)) {
		for _, name := range views[group].Hosts {
			h := c.hosts[name]
			if h == nil {
				continue // no longer declared; load says so
			}
			p := txn.Host{Name: name, Group: group, Proxy: h.state.GetProxy(), Connected: h.up}
			if g, _ := c.reg.Group(group); !h.up && g.Policy.Spares(len(views[group].Hosts)) > 0 {
				p.AwaySince = h.downAt // it can be spared, so what it was waited for already counts
			}
			out = append(out, p)
		}
	}
	return out
}

// grant goes on with the requests that just got their locks.
func (c *Conductor) grant(grants []txn.Grant) {
	for _, g := range grants {
		if strings.HasPrefix(g[0], viewLocks) {
			continue // advanceChanges looks at what is undecided, not at who has the lock
		}
		if group, ok := strings.CutPrefix(g[0], collectLocks); ok {
			c.collectGranted(group)
			continue
		}
		if a := c.amends[lockedAmendment(g[0])]; a != nil && a.lockID() == g[0] {
			c.insertGranted(a)
		} else {
			c.grantTogether(g)
		}
	}
}

func (c *Conductor) unlock(id string) {
	var granted []txn.Grant
	c.locks, granted = c.locks.Release(id)
	c.grant(granted)
}

// granted fills in the bases, takes the order number, and makes the transaction durable; then the machine starts.
func (c *Conductor) granted(o *transaction) {
	o.granted = true
	c.roundBegins(o)
	c.repin(o)
	for i := range o.changes {
		ch := &o.changes[i]
		if s := c.sections[ch.key]; s != nil {
			ch.base = s.committed
		}
	}
	if reason := c.routeConflict(o); reason != "" {
		c.step(o, txn.AbortAsked{Cause: txn.CauseRouteConflict, Reason: reason})
		return
	}
	c.withOrder(func(order uint64) {
		if o.state.Phase != txn.Waiting {
			return
		}
		o.record.Order = order
		start := func(err error) {
			if err != nil {
				c.step(o, txn.AbortAsked{Cause: txn.CauseStore, Reason: fmt.Sprintf("the transaction could not be recorded: %v", err)})
				return
			}
			for _, name := range sortedKeys(c.hosts) {
				c.catchUp(o, c.hosts[name])
			}
			c.step(o, txn.Granted{Order: order})
		}
		if len(o.changes) == 0 {
			start(nil) // No Host takes part: the decision is its only record.
			return
		}
		c.describe(o)
		o.recorded = true
		c.submit(write{
			what: "txn",
			keys: o.firstKeys(),
			ops: func() ([]store.Op, error) {
				return []store.Op{{Kind: store.Put, Key: prefixTxn + o.id(), Value: encode(o.record)}}, nil
			},
			done: func(_ store.Revision, err error) { start(err) },
		})
	})
}

// firstKeys are what the first write of the transaction waits for.
func (o *transaction) firstKeys() []txn.SectionKey {
	keys := []txn.SectionKey{txnKey(o.id())}
	if o.after != "" {
		keys = append(keys, txnKey(o.after))
	}
	return keys
}

// describe completes the record with the pinned views and the bases.
func (c *Conductor) describe(o *transaction) {
	for _, group := range sortedKeys(o.views) {
		v := o.views[group]
		o.record.Views = append(o.record.Views, viewRecord{Group: group, Number: v.Number, Hosts: v.Hosts})
	}
	for _, ch := range o.changes {
		r := changeRecord{Group: ch.key.Group, App: ch.key.App, BaseTxn: ch.base.GetVersion().GetTxn(), Removes: ch.target == nil}
		for _, u := range ch.base.GetSection().GetUpstreams() {
			r.Base = append(r.Base, u.GetName())
		}
		if ch.target != nil {
			r.Target = encodeProto(ch.target)
		}
		o.record.Changes = append(o.record.Changes, r)
	}
}

// step gives one event to the machine and carries out the effects, in order.
func (c *Conductor) step(o *transaction, ev txn.Event) {
	before := o.state.Phase
	var effects []txn.Effect
	o.state, effects = c.rules.Step(o.state, ev, time.Now())
	if o.state.Phase != before {
		c.log.Info("transaction", "txn", o.id(), "deploy", o.record.Deploy, "order", o.state.Order, "from", before.String(),
			"to", o.state.Phase.String(), "cause", o.state.Cause, "reason", o.state.Reason)
		if before == txn.Waiting || before == txn.Preparing || before == txn.Activating || before == txn.Deciding {
			if !o.state.Undecided() {
				c.decided(o)
			}
		}
		if o.state.Phase == txn.RolledBack {
			c.regroup(o, before == txn.StuckRestoring)
		}
	}
	for _, e := range effects {
		c.carryOut(o, e)
	}
}

func (c *Conductor) carryOut(o *transaction, e txn.Effect) {
	switch e := e.(type) {
	case txn.Send:
		c.send(o, e)
	case txn.WriteMark:
		c.submit(write{
			what: "mark",
			keys: []txn.SectionKey{txnKey(o.id())},
			ops: func() ([]store.Op, error) {
				return []store.Op{{Kind: store.Put, Key: prefixMark + o.id(), Value: encodeOrder(o.state.Order)}}, nil
			},
			done: func(_ store.Revision, err error) {
				if err != nil {
					c.step(o, txn.WriteRefused{Cause: txn.CauseStore, Reason: fmt.Sprintf("the mark could not be recorded: %v", err)})
					return
				}
				c.step(o, txn.MarkWritten{})
			},
		})
	case txn.WriteDecision:
		c.decide(o)
	case txn.SaveAbort:
		c.saveAbort(o)
	case txn.Unlock:
		if o.granted {
			for _, ch := range o.changes {
				c.passed(ch.key, o.state.Order)
			}
		}
		if o.lockID != "" {
			c.unlock(o.lockID)
		}
	case txn.Changed:
		c.tell(o)
	case txn.Finish:
		c.finish(o)
	}
}

// passed notes that Hosts may have passed the order number on a Section.
func (c *Conductor) passed(key txn.SectionKey, order uint64) {
	c.passedOrders[key] = max(c.passedOrders[key], order)
}

// decided answers those who asked for an abort while the decision was being written.
func (c *Conductor) decided(o *transaction) {
	for _, answer := range o.verdict {
		if o.state.Phase == txn.Committed {
			answer(ErrCommitted)
		} else {
			answer(nil)
		}
	}
	o.verdict = nil
}

// saveAbort keeps the cause for the next leader. Nothing waits for it, and nothing is lost if it fails.
func (c *Conductor) saveAbort(o *transaction) {
	if !o.recorded {
		return
	}
	activate := slices.ContainsFunc(o.state.Hosts, func(h txn.Host) bool { return h.SentActivate })
	o.record.Aborted = &abortRecord{Cause: o.state.Cause, Reason: o.state.Reason, Activate: activate}
	value := encode(o.record)
	c.submit(write{
		what: "abort-cause",
		keys: []txn.SectionKey{txnKey(o.id())},
		ops: func() ([]store.Op, error) {
			if c.txns[o.id()] != o {
				return nil, nil // finished meanwhile
			}
			return []store.Op{{Kind: store.Put, Key: prefixTxn + o.id(), Value: value}}, nil
		},
		done: func(_ store.Revision, err error) {
			if err != nil {
				c.log.Warn("the cause of an abort was not recorded", "txn", o.id(), "error", err)
			}
		},
	})
}

// finish drops a transaction of which every Host was told.
func (c *Conductor) finish(o *transaction) {
	for _, cancel := range o.calls {
		cancel()
	}
	delete(c.txns, o.id())
	var ended []endedPart
	room := maxInlineEvidence / max(1, len(o.parts()))
	for _, u := range o.units {
		for _, p := range u.parts {
			delete(c.parts, p.id)
			e := endedRecord{Format: recordFormat, Status: encodeStatus(c.statusOf(o, u, p), room), App: p.app}
			if o.joint() {
				e.Joint = o.id()
			}
			if d := c.drains[p.id]; d != nil {
				e.Drained, e.Forced, e.Changes, e.Hosts = d.done, d.forced, d.changes, d.views
			} else {
				e.Drained = true
			}
			ended = append(ended, endedPart{p.id, e})
		}
	}
	c.endTxn(o.id(), o.recorded, ended...)
	for _, name := range sortedKeys(c.hosts) {
		c.refresh(c.hosts[name])
	}
}

// Abort asks for an abort, in any state. It waits for a decision that is being written: ErrCommitted if that was Commit,
// or if the transaction is committed already; ErrUnknown if it never began. An abort that is under way is no error.
func (c *Conductor) Abort(ctx context.Context, id string, cause txn.Cause, reason string) error {
	result := make(chan error, 1)
	answer := func(err error) { result <- err }
	err := c.ask(ctx, func() {
		o := c.parts[id]
		if o == nil {
			switch past, ok := c.past.get(id); {
			case !ok:
				answer(fmt.Errorf("%s: %w", id, ErrUnknown))
			case past.Status.Phase == txn.Committed:
				answer(ErrCommitted)
			default:
				answer(nil)
			}
			return
		}
		if o.state.Phase == txn.Committed {
			answer(ErrCommitted)
			return
		}
		if len(o.units) > 1 {
			// The others go on without it: it leaves when what they share is undone.
			o.unitOf(id).end = &ending{cause, reason}
		}
		c.step(o, txn.AbortAsked{Cause: cause, Reason: reason})
		if o.state.Phase == txn.Deciding {
			o.verdict = append(o.verdict, answer)
			return
		}
		answer(nil)
	})
	if err != nil {
		return err
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ended:
		return ErrStopped
	}
}
