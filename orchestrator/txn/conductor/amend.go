package conductor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

const (
	// maxAmendments bounds pending Amendments: removals wait for Hosts that are away.
	maxAmendments = 8192
	// insertPatience is the deadline of an insert that names none.
	insertPatience = 2 * time.Minute
)

// amendment is one pending Amendment. Its removal and its insertion are separate messages with order numbers of their
// own: the removal goes out at once, the insertion waits for the lock of the Section.
type amendment struct {
	a      txn.Amendment
	record amendRecord
	hosts  []string // of the Group's view
	remove *stage   // nil: nothing to remove
	insert *stage   // nil: nothing to insert or retire
	// locked: the Section is held for the insertion.
	locked bool
	// ending: how it ended is being written. over: Amended was told; only the release of the names is still watched.
	ending, over bool
}

func (a *amendment) key() txn.SectionKey { return txn.SectionKey{Group: a.a.Group, App: a.a.App} }

// lockID is the name of the Amendment in the lock table; ids of transactions have no slash.
func (a *amendment) lockID() string { return prefixAmend + a.a.ID }

func lockedAmendment(lockID string) string { return strings.TrimPrefix(lockID, prefixAmend) }

// heldNames are the upstreams that the Amendment may still bring or leave in traffic.
func (a *amendment) heldNames() []string {
	if a.over {
		return nil
	}
	out := slices.Concat(a.a.Remove, a.a.Retire)
	for _, u := range a.a.Insert {
		out = append(out, u.GetName())
	}
	return out
}

// Amend takes an Amendment; the Listener is told how it ends, and again as its names are released. The same id again
// joins the pending one.
func (c *Conductor) Amend(ctx context.Context, a txn.Amendment) error {
	if err := checkAmendment(a); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var err error
	if e := c.ask(ctx, func() { err = c.amend(a) }); e != nil {
		return e
	}
	return err
}

func checkAmendment(a txn.Amendment) error {
	if err := checkID(a.ID); err != nil {
		return err
	}
	switch {
	case a.Group == "" || a.App == "":
		return errors.New("an amendment needs a group and an app")
	case len(a.Remove)+len(a.Insert)+len(a.Retire) == 0:
		return errors.New("an amendment must remove, insert or retire something")
	case len(a.Retire) > 0 && len(a.Insert) == 0:
		return errors.New("upstreams retire only behind inserted ones: scale down with a transaction")
	case a.Undo != "" && (len(a.Insert) == 0 || len(a.Remove) > 0):
		return errors.New("an undo takes insertions: what is dead is removed by an amendment of its own")
	}
	size := 0
	for _, u := range a.Insert {
		if _, err := deterministic.Marshal(u); err != nil {
			return err
		}
		size += proto.Size(u)
	}
	for _, name := range slices.Concat(a.Remove, a.Retire) {
		size += len(name)
	}
	if size > maxRecordBytes/2 {
		return fmt.Errorf("%d bytes, at most %d are possible", size, maxRecordBytes/2)
	}
	return nil
}

func (c *Conductor) amend(a txn.Amendment) error {
	if c.amends[a.ID] != nil {
		return nil
	}
	view, ok := c.reg.View(a.Group)
	if !ok {
		return fmt.Errorf("%w: group %s is not declared", ErrInvalid, a.Group)
	}
	if err := c.checkUndo(&a); err != nil {
		return err
	}
	if len(c.amends) >= maxAmendments {
		return ErrTooMany
	}
	if a.Deadline.IsZero() {
		a.Deadline = time.Now().Add(insertPatience)
	}
	m := newAmendment(a, view.Hosts)
	c.amends[a.ID] = m
	if m.remove != nil {
		c.noteDead(m)
		c.startRemove(m)
		c.giveUpDead(m)
	}
	if m.insert != nil {
		c.startInsert(m)
	}
	return nil
}

func newAmendment(a txn.Amendment, hosts []string) *amendment {
	m := &amendment{a: a, hosts: hosts, record: amendRecord{
		Format: recordFormat, ID: a.ID, Group: a.Group, App: a.App, Remove: a.Remove, Retire: a.Retire, Spec: a.Spec, Actor: a.Actor,
		Reason: a.Reason, Deadline: a.Deadline, Undo: a.Undo,
	}}
	for _, u := range a.Insert {
		m.record.Insert = append(m.record.Insert, encodeProto(u))
	}
	if len(a.Remove) > 0 {
		m.remove = newStage(hosts)
	}
	if len(a.Insert) > 0 {
		m.insert = newStage(hosts)
	}
	return m
}

// noteDead subtracts the removed names from every open transaction on the Section: what is dead is in no target.
func (c *Conductor) noteDead(a *amendment) {
	for _, o := range c.txns {
		if o.changeOf(a.key()) != nil {
			for _, name := range a.a.Remove {
				o.dead[name] = true
			}
		}
	}
}

// giveUpDead gives up insertions of which nothing lives any longer: no Host could ever verify them, and what waits for the
// Section must not wait for their deadline. One that belongs to an undo goes on with what else is started.
func (c *Conductor) giveUpDead(removal *amendment) {
	for _, id := range sortedKeys(c.amends) {
		a := c.amends[id]
		if a == nil || a.key() != removal.key() || a.insert == nil || a.over || a.carried() {
			continue
		}
		dead := func(u *lbagentv1.Upstream) bool { return c.removedByAmendment(a.key(), u.GetName()) }
		if !slices.ContainsFunc(a.a.Insert, func(u *lbagentv1.Upstream) bool { return !dead(u) }) {
			c.giveUp(a, "every replacement has ended")
		}
	}
}

func (a *amendment) keys() []txn.SectionKey {
	return []txn.SectionKey{a.key(), txnKey(a.lockID())}
}

// startRemove counts the removal in the committed Section, durably, and then tells the Hosts. It waits for no lock: a
// dead upstream cannot serve under either outcome of an open transaction.
func (c *Conductor) startRemove(a *amendment) {
	c.writeAmended(a, a.remove, func(s *lbagentv1.CommittedSection) *lbagentv1.CommittedSection {
		gone := map[string]bool{}
		for _, name := range a.a.Remove {
			gone[name] = true
		}
		return &lbagentv1.CommittedSection{Section: txn.Without(s.GetSection(), gone)}
	})
}

// writeAmended makes the next committed Section durable together with the Amendment, and then numbers the stage.
// An App without a committed Section stays so; the Hosts are told all the same, for the open transaction there.
func (c *Conductor) writeAmended(a *amendment, s *stage, change func(*lbagentv1.CommittedSection) *lbagentv1.CommittedSection) {
	var next *lbagentv1.CommittedSection
	c.submit(write{
		what: "amendment",
		keys: a.keys(),
		ops: func() ([]store.Op, error) {
			ops := []store.Op{{Kind: store.Put, Key: prefixAmend + a.a.ID, Value: encode(a.record)}}
			now := c.sections[a.key()]
			if now == nil || now.committed.GetRemoved() {
				return ops, nil
			}
			next = change(now.committed)
			v := now.version()
			next.Version = &lbagentv1.Version{Txn: v.GetTxn(), Amendments: v.GetAmendments() + 1}
			return append(ops, now.put(a.key(), next)), nil
		},
		done: func(rev store.Revision, err error) {
			if err != nil {
				c.log.Error("an amendment could not be recorded", "amendment", a.a.ID, "error", err)
				s.failed = true
				a.record.Failure = fmt.Sprintf("it could not be recorded: %v", err)
				if s == a.insert {
					a.locked = false
					c.unlock(a.lockID())
				}
				c.advanceAmendment(a)
				return
			}
			version := &lbagentv1.Version{}
			if next != nil {
				c.install(a.key(), next, rev, 0)
				version = next.GetVersion()
			} else if now := c.sections[a.key()]; now != nil {
				version = now.version()
			}
			c.numberStage(a, s, version)
		},
	})
}

func (c *Conductor) numberStage(a *amendment, s *stage, version *lbagentv1.Version) {
	s.version = version
	c.withOrder(func(order uint64) {
		s.order = order
		c.passed(a.key(), order)
		if s == a.insert {
			c.abortAgain(a)
		}
		c.advanceAmendment(a)
	})
}

// startInsert asks for the Section: inserts wait while a transaction is open on it, unless they belong to its undo.
func (c *Conductor) startInsert(a *amendment) {
	if c.carrier(a) != nil {
		c.carry(a)
		return
	}
	var granted []txn.Grant
	c.locks, granted = c.locks.Add(txn.LockRequest{ID: a.lockID(), Sections: []txn.SectionKey{a.key()}})
	c.grant(granted)
}

// insertGranted goes on with an insertion that has the Section now.
func (c *Conductor) insertGranted(a *amendment) {
	a.locked = true
	if a.record.Applied {
		c.advanceAmendment(a) // carried: it only waited for the undo to be over
		return
	}
	if !c.outdated(a) {
		c.applyInsert(a)
	}
}

// outdated gives the insertion up if it must not come into the committed Section any more.
func (c *Conductor) outdated(a *amendment) bool {
	var now *lbagentv1.CommittedSection
	if s := c.sections[a.key()]; s != nil {
		now = s.committed
	}
	why := a.a.Outdated(now)
	if why != "" {
		c.giveUp(a, why)
	}
	return why != ""
}

// applyInsert counts the insertion in the committed Section, durably, and then tells the Hosts.
func (c *Conductor) applyInsert(a *amendment) {
	a.record.Applied = true
	c.writeAmended(a, a.insert, func(s *lbagentv1.CommittedSection) *lbagentv1.CommittedSection {
		a.record.Retired = nil
		retire := map[string]bool{}
		for _, name := range a.a.Retire {
			retire[name] = true
		}
		next := txn.Without(s.GetSection(), retire)
		for _, u := range s.GetSection().GetUpstreams() {
			if retire[u.GetName()] {
				a.record.Retired = append(a.record.Retired, encodeProto(u))
			}
		}
		addMissing(next, a.a.Insert)
		return &lbagentv1.CommittedSection{Section: next}
	})
}

// addMissing appends the upstreams whose names the Section does not have.
func addMissing(s *lbagentv1.Section, upstreams []*lbagentv1.Upstream) {
	for _, u := range upstreams {
		if !slices.ContainsFunc(s.Upstreams, func(have *lbagentv1.Upstream) bool { return have.GetName() == u.GetName() }) {
			s.Upstreams = append(s.Upstreams, u)
		}
	}
}

// giveWay gives up insertions that hold a Section which a rollback wants (ROLLBACK-IS-FREE).
func (c *Conductor) giveWay(keys []txn.SectionKey) {
	for _, id := range sortedKeys(c.amends) {
		a := c.amends[id]
		if a != nil && a.locked && slices.Contains(keys, a.key()) {
			c.giveUp(a, "a rollback takes the section")
		}
	}
}

// giveUp takes an insertion back: the committed Section gets what retired again and loses what was inserted, and the
// reconciler brings every Host there. Hosts keep the old ones until others are green (NEVER-ZERO).
func (c *Conductor) giveUp(a *amendment, why string) {
	if a.insert == nil || a.insert.failed {
		return
	}
	if a.record.Applied && (a.carried() || c.bareWithout(a)) {
		c.leaveToSync(a, why)
		return
	}
	a.insert.stop()
	a.record.Failure = why
	c.log.Warn("an insertion is given up", "amendment", a.a.ID, "group", a.a.Group, "app", a.a.App, "reason", why)
	if !a.record.Applied {
		c.unlock(a.lockID())
		a.locked = false
		c.advanceAmendment(a)
		return
	}
	a.record.Undone = true
	var next *lbagentv1.CommittedSection
	c.submit(write{
		what: "amendment-undone",
		keys: a.keys(),
		ops: func() ([]store.Op, error) {
			ops := []store.Op{{Kind: store.Put, Key: prefixAmend + a.a.ID, Value: encode(a.record)}}
			now := c.sections[a.key()]
			if now == nil || now.committed.GetRemoved() {
				return ops, nil
			}
			v := now.version()
			next = &lbagentv1.CommittedSection{Section: c.withoutInsertion(a, now.committed), Version: &lbagentv1.Version{Txn: v.GetTxn(), Amendments: v.GetAmendments() + 1}}
			return append(ops, now.put(a.key(), next)), nil
		},
		done: func(rev store.Revision, err error) {
			if err != nil {
				c.log.Error("an insertion could not be taken back", "amendment", a.a.ID, "error", err)
			} else if next != nil {
				c.install(a.key(), next, rev, 0)
			}
			a.locked = false
			c.unlock(a.lockID())
			c.advanceAmendment(a)
			for _, name := range a.hosts {
				if h := c.hosts[name]; h != nil {
					c.refresh(h)
				}
			}
		},
	})
}

// bareWithout: what the insertion replaces is gone, so taking it back would leave Hosts that serve through it with nothing
// (NEVER-ZERO). It stays, and a Host that does not have it gets it by Sync.
func (c *Conductor) bareWithout(a *amendment) bool {
	now := c.sections[a.key()]
	return now != nil && !now.committed.GetRemoved() && len(c.withoutInsertion(a, now.committed).GetUpstreams()) == 0
}

// withoutInsertion is the Section as if the insertion had not been.
func (c *Conductor) withoutInsertion(a *amendment, now *lbagentv1.CommittedSection) *lbagentv1.Section {
	inserted := map[string]bool{}
	for _, u := range a.a.Insert {
		inserted[u.GetName()] = true
	}
	s := txn.Without(now.GetSection(), inserted)
	var back []*lbagentv1.Upstream
	for _, b := range a.record.Retired {
		var u lbagentv1.Upstream
		if proto.Unmarshal(b, &u) == nil && !c.removedByAmendment(a.key(), u.GetName()) {
			back = append(back, &u)
		}
	}
	addMissing(s, back)
	return s
}

// committedFor is the committed Section as Sync installs it on the Host: without an insertion that is not verified there.
func (c *Conductor) committedFor(h *host, key txn.SectionKey, now *lbagentv1.CommittedSection) *lbagentv1.CommittedSection {
	for _, a := range c.amends {
		if a.key() == key && a.inserting(h.name) && a.insert.version != nil {
			v := now.GetVersion()
			return &lbagentv1.CommittedSection{Section: c.withoutInsertion(a, now),
				Version: &lbagentv1.Version{Txn: v.GetTxn(), Amendments: max(v.GetAmendments(), 1) - 1}}
		}
	}
	return now
}

// removedByAmendment: a pending Amendment says that the upstream is dead.
func (c *Conductor) removedByAmendment(key txn.SectionKey, name string) bool {
	for _, a := range c.amends {
		if a.key() == key && slices.Contains(a.a.Remove, name) {
			return true
		}
	}
	return false
}

// concludeAmendment makes the end of an insertion durable, then tells it: the asker acts on it for good, so the next leader
// must not come to another one. A removal has only one end.
func (c *Conductor) concludeAmendment(a *amendment) {
	if a.insert == nil {
		c.amendmentOver(a)
		return
	}
	a.ending = true
	a.record.Ended = true
	c.submit(write{
		what: "amendment-ended",
		keys: a.keys(),
		ops: func() ([]store.Op, error) {
			return []store.Op{{Kind: store.Put, Key: prefixAmend + a.a.ID, Value: encode(a.record)}}, nil
		},
		done: func(_ store.Revision, err error) {
			if err != nil {
				c.log.Error("the end of an amendment could not be recorded: it is tried again", "amendment", a.a.ID, "error", err)
				a.ending, a.record.Ended = false, false
				return
			}
			c.amendmentOver(a)
		},
	})
}

// amendmentOver tells the end, and watches until the names that left are released.
func (c *Conductor) amendmentOver(a *amendment) {
	a.over = true
	if a.locked || a.carried() {
		a.locked = false
		c.unlock(a.lockID())
	}
	failure := a.record.Failure
	out := txn.Amended{ID: a.a.ID, Group: a.a.Group, App: a.a.App, Done: failure == "", Reason: failure}
	left := slices.Clone(a.a.Remove)
	if a.insert != nil && failure != "" {
		for _, u := range a.a.Insert {
			left = append(left, u.GetName())
		}
	} else {
		left = append(left, a.a.Retire...)
	}
	version := &lbagentv1.Version{}
	if s := c.sections[a.key()]; s != nil {
		version = s.version()
	}
	d := &drain{
		id: a.lockID(), app: a.a.App, amendment: &out, released: map[string]bool{},
		changes: []retiredRecord{{Group: a.a.Group, App: a.a.App, Retired: left}},
		views:   []viewRecord{{Group: a.a.Group, Hosts: a.hosts}},
		min:     map[txn.SectionKey]*lbagentv1.Version{a.key(): version},
	}
	c.drains[d.id] = d
	c.waitingFor(d)
	first := out
	first.Released = sortedKeys(d.released)
	d.said(first.Released, nil)
	c.opts.Listener.Amended(first)
	c.watchDrain(d)
}

// forgetAmendment drops an Amendment of which everything is told and released.
func (c *Conductor) forgetAmendment(id string) {
	a := c.amends[id]
	if a == nil {
		return
	}
	delete(c.amends, id)
	c.submit(write{
		what: "amendment-over",
		keys: []txn.SectionKey{txnKey(a.lockID())},
		ops: func() ([]store.Op, error) {
			return []store.Op{{Kind: store.Delete, Key: prefixAmend + id}}, nil
		},
		done: func(_ store.Revision, err error) {
			if err != nil {
				c.log.Warn("an ended amendment was not forgotten", "amendment", id, "error", err)
			}
		},
	})
}
