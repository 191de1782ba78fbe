package conductor

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/cutover/cutover/internal/crashpoint"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// writeTimeout bounds one Commit of the store; after it its outcome is unknown.
const writeTimeout = 45 * time.Second

// errAbandoned: the Conductor is ending, and what was written is for the next Start to find out.
var errAbandoned = errors.New("abandoned")

// write is a Commit to be. Writes that share a key run one after the other, in order; the operations are built when the
// turn comes, from the state as it is then, so that two writers of one Section never race for its revision.
type write struct {
	what string // names the write in crash points
	keys []txn.SectionKey
	// ops returns the operations; an error means that the write is not wanted any more, and done gets it. No operation
	// at all: nothing to do, done is called as if written.
	ops  func() ([]store.Op, error)
	done func(store.Revision, error)
}

// writes is the queue of what waits, and the keys that a running write holds.
type writes struct {
	busy    map[txn.SectionKey]bool
	waiting []write
}

// txnKey serialises the writes of one transaction or Amendment.
func txnKey(id string) txn.SectionKey { return txn.SectionKey{App: id} }

// submit queues a write and starts what can start.
func (c *Conductor) submit(w write) {
	c.writes.waiting = append(c.writes.waiting, w)
	c.startWrites()
}

func (c *Conductor) startWrites() {
	claimed := map[txn.SectionKey]bool{}
	var rest, ready []write
	for _, w := range c.writes.waiting {
		free := !slices.ContainsFunc(w.keys, func(k txn.SectionKey) bool { return claimed[k] || c.writes.busy[k] })
		for _, k := range w.keys {
			claimed[k] = true
		}
		if free {
			ready = append(ready, w)
		} else {
			rest = append(rest, w)
		}
	}
	c.writes.waiting = rest
	for _, w := range ready {
		for _, k := range w.keys {
			c.writes.busy[k] = true
		}
	}
	for _, w := range ready {
		c.startWrite(w)
	}
}

func (c *Conductor) startWrite(w write) {
	ops, err := w.ops()
	if err != nil || len(ops) == 0 {
		c.finishWrite(w, 0, err)
		return
	}
	c.work.Go(func() {
		crashpoint.At("before-write-" + w.what)
		rev, err := c.commit(ops)
		if errors.Is(err, errAbandoned) {
			return
		}
		crashpoint.At("after-write-" + w.what)
		c.post(func() { c.finishWrite(w, rev, err) })
	})
}

func (c *Conductor) finishWrite(w write, rev store.Revision, err error) {
	for _, k := range w.keys {
		delete(c.writes.busy, k)
	}
	w.done(rev, err)
	c.startWrites()
}

// commit writes, and ends the term when nobody can know whether it did, or when another leader is there. An error that
// it returns means that nothing was written.
func (c *Conductor) commit(ops []store.Op) (store.Revision, error) {
	if c.ctx.Err() != nil {
		return 0, errAbandoned
	}
	// Not the Conductor's context: a write that has begun is finished, since the outcome must be known.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), writeTimeout)
	defer cancel()
	rev, err := c.opts.Store.Commit(ctx, c.opts.Fence, ops...)
	switch {
	case errors.Is(err, store.ErrClosed) && c.ctx.Err() != nil:
		return 0, errAbandoned
	case errors.Is(err, store.ErrUnknown), errors.Is(err, store.ErrFenced), errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrWentBack):
		c.fatal(err)
		return 0, errAbandoned
	}
	return rev, err
}

// orderBlock is how many order numbers are reserved at once: what a restart may skip. The next block is reserved when
// half is used.
const orderBlock = 64

// keyOrder holds the highest order number that may have been given out.
const keyOrder = "counter/order"

// orders gives out order numbers. Every number up to reserved is durable as possibly used.
type orders struct {
	last, reserved uint64
	extending      bool
	waiting        []func(uint64)
}

// withOrder calls f with the next order number, at once or when the next block is reserved.
func (c *Conductor) withOrder(f func(uint64)) {
	o := &c.orders
	o.waiting = append(o.waiting, f)
	c.giveOrders()
}

func (c *Conductor) giveOrders() {
	o := &c.orders
	for len(o.waiting) > 0 && o.last < o.reserved {
		f := o.waiting[0]
		o.waiting = o.waiting[1:]
		o.last++
		f(o.last)
	}
	if o.extending || o.reserved-o.last > orderBlock/2 {
		return
	}
	o.extending = true
	next := o.reserved + orderBlock
	c.submit(write{
		what: "order",
		ops: func() ([]store.Op, error) {
			return []store.Op{{Kind: store.Put, Key: keyOrder, Value: encodeOrder(next)}}, nil
		},
		done: func(_ store.Revision, err error) {
			o.extending = false
			if err != nil {
				c.fatal(err) // A single small record: only a store that takes nothing refuses it.
				return
			}
			o.reserved = next
			c.giveOrders()
		},
	})
}
