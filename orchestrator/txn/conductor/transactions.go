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

	"google.golang.org/protobuf/proto"

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

// Begin takes a proposal. What becomes of it is told to the Listener; an error means that nothing of it was taken.
// The Proposal belongs to the Conductor afterwards.
func (c *Conductor) Begin(ctx context.Context, p txn.Proposal) error {
	if err := checkProposal(p); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var err error
	if e := c.ask(ctx, func() { err = c.begin(p) }); e != nil {
		return e
	}
	return err
}

func checkProposal(p txn.Proposal) error {
	if err := checkID(p.ID); err != nil {
		return err
	}
	size := len(p.Record)
	seen := map[txn.SectionKey]bool{}
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
		size += proto.Size(ch.Target)
		if _, err := deterministic.Marshal(ch.Target); err != nil {
			return fmt.Errorf("the target of %s: %w", ch.App, err)
		}
	}
	if len(p.Changes) > store.MaxOps/2 {
		return fmt.Errorf("%d changes, at most %d are possible", len(p.Changes), store.MaxOps/2)
	}
	if size > maxRecordBytes {
		return fmt.Errorf("%d bytes in targets and record, at most %d are possible", size, maxRecordBytes)
	}
	return nil
}

// checkID keeps ids usable as one segment of a key.
func checkID(id string) error {
	if id == "" || len(id) > 128 || strings.ContainsAny(id, "/ ") || !utf8.ValidString(id) {
		return fmt.Errorf("id %q: want 1 to 128 bytes without slashes and spaces", id)
	}
	return nil
}

func (c *Conductor) begin(p txn.Proposal) error {
	if c.txns[p.ID] != nil || c.past.has(p.ID) {
		return fmt.Errorf("%s: %w", p.ID, ErrExists)
	}
	if len(c.txns) >= c.opts.MaxOpen {
		return ErrTooMany
	}
	now := time.Now()
	o := &transaction{
		record: txnRecord{
			Format: recordFormat, ID: p.ID, Deploy: p.Deploy, App: p.App, Epoch: c.opts.Fence.Epoch, Deadline: p.Deadline,
			Rollback: p.Rollback, Actor: p.Actor, Reason: p.Reason, Record: p.Record,
		},
		views: map[string]registry.View{}, dead: map[string]bool{}, calls: map[string]context.CancelFunc{},
	}
	var cause txn.Cause
	var reason string
	lock := txn.LockRequest{ID: p.ID, Rollback: p.Rollback}
	for _, ch := range p.Changes {
		key := txn.SectionKey{Group: ch.Group, App: ch.App}
		o.changes = append(o.changes, change{key: key, target: ch.Target})
		lock.Sections = append(lock.Sections, key)
		if _, ok := o.views[ch.Group]; ok {
			continue
		}
		view, ok := c.reg.View(ch.Group)
		switch {
		case !ok:
			cause, reason = txn.CauseUnknownGroup, fmt.Sprintf("group %s is not declared: see `cutover lb hosts`", ch.Group)
		case len(view.Hosts) == 0:
			cause, reason = txn.CauseNoHosts, fmt.Sprintf("group %s has no hosts, and nothing is proved without one: declare its hosts, see `cutover lb hosts`", ch.Group)
		}
		o.views[ch.Group] = view
		if c.reloads(view) {
			lock.Exclusive = append(lock.Exclusive, ch.Group)
		}
	}
	o.state = txn.NewState(p.ID, p.Deploy, p.Deadline, c.pinned(o.views), now)
	c.txns[p.ID] = o
	if cause != txn.CauseNone {
		c.step(o, txn.AbortAsked{Cause: cause, Reason: reason})
		return nil
	}
	if p.Rollback {
		c.giveWay(lock.Sections)
	}
	c.opts.Listener.TxnChanged(c.rules.Status(o.state))
	var granted []string
	c.locks, granted = c.locks.Add(lock)
	c.grant(granted)
	return nil
}

// reloads: a Host of the view reloads its proxy for each change, so transactions of the Group run one at a time.
func (c *Conductor) reloads(v registry.View) bool {
	return slices.ContainsFunc(v.Hosts, func(name string) bool { return c.hosts[name].state.GetReloadPerChange() })
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
			out = append(out, txn.Host{Name: name, Group: group, Proxy: h.state.GetProxy(), Connected: h.up})
		}
	}
	return out
}

// grant goes on with the requests that just got their locks.
func (c *Conductor) grant(ids []string) {
	for _, id := range ids {
		if o := c.txns[id]; o != nil {
			c.granted(o)
		} else if a := c.amends[lockedAmendment(id)]; a != nil {
			c.insertGranted(a)
		}
	}
}

func (c *Conductor) unlock(id string) {
	var granted []string
	c.locks, granted = c.locks.Release(id)
	c.grant(granted)
}

// granted fills in the bases, takes the order number, and makes the transaction durable; then the machine starts.
func (c *Conductor) granted(o *transaction) {
	o.granted = true
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
				c.refresh(c.hosts[name])
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
			keys: []txn.SectionKey{txnKey(o.id())},
			ops: func() ([]store.Op, error) {
				return []store.Op{{Kind: store.Put, Key: prefixTxn + o.id(), Value: encode(o.record)}}, nil
			},
			done: func(_ store.Revision, err error) { start(err) },
		})
	})
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
		c.unlock(o.id())
	case txn.Changed:
		c.opts.Listener.TxnChanged(c.rules.Status(o.state))
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
	ended := endedRecord{Format: recordFormat, Status: encodeStatus(c.rules.Status(o.state)), App: o.record.App}
	if d := c.drains[o.id()]; d != nil {
		ended.Drained, ended.Forced, ended.Changes, ended.Hosts = d.done, d.forced, d.changes, d.views
	} else {
		ended.Drained = true
	}
	c.endTxn(o.id(), ended, o.recorded)
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
		o := c.txns[id]
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
