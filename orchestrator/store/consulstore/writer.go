package consulstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/orchestrator/store"
)

const (
	// maxGroupBytes bounds the Commits that share a transaction, so that company never makes one too large.
	maxGroupBytes = 64 << 10
	// maxBody bounds what is sent. Consul refuses more than 512 KiB by default (limits.txn_max_req_len).
	maxBody = 500 << 10
	// maxKnown bounds the revisions that the writer remembers.
	maxKnown = 1 << 16
	// backoff is the longest pause before a write is tried again.
	backoff = 250 * time.Millisecond
)

// snapshot is what the writer knows of the store: exactly what was there at the head with this index. It stays true until
// somebody replaces the head, and then the compare-and-set of the next write fails.
type snapshot struct {
	valid bool
	head  head
	index uint64 // of the head in Consul, 0: there is none
	revs  map[string]store.Revision
}

// plan is one transaction: what it carries out, and what makes it sure that it is carried out once.
type plan struct {
	base     uint64 // index of the head that it replaces
	next     head
	session  string
	ops      api.TxnOps
	requests []*store.Queued
	revs     map[string]store.Revision // after it, of the keys that it writes
}

// write is the only writer of this Store.
func (s *Store) write() {
	for {
		var r *store.Queued
		select {
		case r = <-s.queue.Next():
		case <-s.closing:
			return
		}
		for r != nil {
			var group []*store.Queued
			group, r = s.collect(r)
			if len(group) > 0 {
				s.carryOut(group)
			}
		}
	}
}

// collect takes first and what waits already and fits beside it. What does not fit is returned, to be the first next.
func (s *Store) collect(first *store.Queued) (group []*store.Queued, rest *store.Queued) {
	ops, bytes := 0, 0
	for r := first; ; {
		fits := len(group) == 0 || (r.Fence == group[0].Fence && ops+len(r.Ops) <= store.MaxOps && bytes+r.Size <= maxGroupBytes)
		if !fits {
			return group, r
		}
		if r.Take() {
			group = append(group, r)
			ops, bytes = ops+len(r.Ops), bytes+r.Size
		}
		select {
		case r = <-s.queue.Next():
		default:
			return group, nil
		}
	}
}

// carryOut answers every request of the group.
func (s *Store) carryOut(group []*store.Queued) {
	ctx, cancel := context.WithTimeout(s.writes, s.opts.WriteTimeout)
	defer cancel()
	err := s.attempt(ctx, group)
	for _, r := range group {
		if err != nil {
			r.Revision, r.Err = 0, err
		}
		r.Answered()
	}
}

// attempt repeats until the outcome of every request is known; an error is the outcome of all of them.
func (s *Store) attempt(ctx context.Context, group []*store.Queued) error {
	for try := 0; ; try++ {
		fresh, err := s.learn(ctx, group)
		if err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("nothing was written: consul does not answer: %w", err)
			}
			var status api.StatusError
			if errors.As(err, &status) && status.Code == 403 {
				return fmt.Errorf("nothing was written: the token may not read %s/: %w", s.opts.Prefix, err)
			}
			if errors.Is(err, errDamaged) {
				return fmt.Errorf("nothing was written: %w", err)
			}
			pause(ctx, try)
			continue
		}
		p, refused := s.plan(group)
		if refused && !fresh {
			s.known = snapshot{} // a refusal is an answer of its own: it needs a read of its own
			continue
		}
		if len(p.requests) == 0 {
			return nil
		}
		if p.size() > maxBody {
			return fmt.Errorf("nothing was written: %d bytes after compression and encoding, Consul takes %d in one transaction: split it: %w", p.size(), maxBody, store.ErrLimit)
		}
		switch err := s.send(ctx, p); {
		case err == nil:
			return nil
		case !errors.Is(err, errStale):
			s.known = snapshot{}
			return err
		}
		s.known = snapshot{}
		if ctx.Err() != nil {
			return fmt.Errorf("nothing was written: %w", ctx.Err())
		}
		pause(ctx, try)
	}
}

// plan judges the group against what is known and makes the transaction of those that pass. The outcome of the others is
// in them; refused says that there are some.
func (s *Store) plan(group []*store.Queued) (p plan, refused bool) {
	p = plan{base: s.known.index, next: s.known.head, session: group[0].Fence.Session, revs: map[string]store.Revision{}}
	p.next.Format, p.next.Nonce = store.FormatVersion, rand.Text()
	p.next.Seq++
	revision := func(key string) store.Revision {
		if rev, ok := p.revs[key]; ok {
			return rev
		}
		return s.known.revs[key]
	}
	ring := slot{Seq: p.next.Seq, Nonce: p.next.Nonce}
	writes, order := map[string]store.Op{}, []string(nil)
	for _, r := range group {
		r.Revision, r.Err = 0, nil
		if r.Fence.Epoch < p.next.Epoch {
			r.Err = &store.FencedError{Epoch: r.Fence.Epoch, Seen: p.next.Epoch}
		} else {
			r.Err = store.Conflict(r.Ops, revision)
		}
		if r.Err != nil {
			refused = true
			continue
		}
		p.requests = append(p.requests, r)
		p.next.Revision++
		p.next.Epoch = r.Fence.Epoch
		r.Revision = p.next.Revision
		b := batch{Revision: r.Revision}
		for _, op := range store.LastWrites(r.Ops) {
			if op.Kind == store.Delete && revision(op.Key) == 0 {
				continue
			}
			if _, ok := writes[op.Key]; !ok {
				order = append(order, op.Key)
			}
			writes[op.Key] = op
			p.revs[op.Key] = r.Revision
			if op.Kind == store.Delete {
				p.revs[op.Key] = 0
			}
			b.Changes = append(b.Changes, change{Key: op.Key, Value: op.Value, Deleted: op.Kind == store.Delete})
		}
		ring.Batches = append(ring.Batches, b)
	}
	if p.session != "" {
		p.kv(api.KVTxnOp{Verb: api.KVCheckSession, Key: LeaderKey(s.opts.Prefix), Session: p.session})
	}
	p.kv(api.KVTxnOp{Verb: api.KVCAS, Key: s.headKey(), Index: p.base, Value: encode(p.next)})
	for _, key := range order {
		if op := writes[key]; op.Kind == store.Delete {
			p.kv(api.KVTxnOp{Verb: api.KVDelete, Key: s.recordKey(key)})
		} else {
			p.kv(api.KVTxnOp{Verb: api.KVSet, Key: s.recordKey(key), Value: seal(p.revs[key], op.Value)})
		}
	}
	kept := api.KVTxnOp{Verb: api.KVSet, Key: s.slotKey(ring.Seq), Value: seal(0, encode(ring))}
	if p.size()+size(kept) > maxBody {
		ring.Batches, ring.Dropped = nil, true
		kept.Value = seal(0, encode(ring))
	}
	p.kv(kept)
	return p, refused
}

func (p *plan) kv(op api.KVTxnOp) { p.ops = append(p.ops, &api.TxnOp{KV: &op}) }

// size is what the transaction takes as JSON, where values are in base64.
func (p *plan) size() int {
	n := 16
	for _, op := range p.ops {
		n += size(*op.KV)
	}
	return n
}

func size(op api.KVTxnOp) int { return len(op.Key) + len(op.Value)*4/3 + 160 }

// learn makes sure that the writer knows the head, and the revision of every key that the group needs. fresh: it has
// asked, so what is known was true after the group was taken.
func (s *Store) learn(ctx context.Context, group []*store.Queued) (fresh bool, err error) {
	missing, seen := []string(nil), map[string]bool{}
	for _, r := range group {
		for _, op := range r.Ops {
			if _, ok := s.known.revs[op.Key]; !ok && op.Kind != store.Put && !seen[op.Key] {
				seen[op.Key] = true
				missing = append(missing, op.Key)
			}
		}
	}
	if s.known.valid && len(missing) == 0 {
		return false, nil
	}
	// At most MaxOps keys: they and the head fit one transaction, which is one moment.
	keys := []string{s.headKey()}
	for _, key := range missing {
		keys = append(keys, s.recordKey(key))
	}
	pairs, err := s.readAll(ctx, keys)
	if err != nil {
		return false, err
	}
	next := snapshot{valid: true, index: pairs[0].ModifyIndex, revs: map[string]store.Revision{}}
	if next.index != 0 {
		if next.head, err = s.decodeHead(pairs[0].Value); err != nil {
			return false, err
		}
	}
	if s.known.valid && s.known.index == next.index && len(s.known.revs)+len(missing) <= maxKnown {
		next.revs = s.known.revs
	} else if s.known.valid {
		s.known = snapshot{} // it moved, or is too much: what was known of other keys is not true any more
		return s.learn(ctx, group)
	}
	for i, key := range missing {
		next.revs[key] = 0
		if pair := pairs[i+1]; pair.ModifyIndex != 0 {
			if next.revs[key], _, err = unseal(pair.Value); err != nil {
				return false, fmt.Errorf("record %q in Consul: %w", key, err)
			}
		}
	}
	s.known = next
	return true, nil
}

// readAll reads up to 128 keys at one moment. An absent one has ModifyIndex 0.
func (s *Store) readAll(ctx context.Context, keys []string) ([]*api.KVPair, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	defer cancel()
	var ops api.TxnOps
	for _, key := range keys {
		ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVGetOrEmpty, Key: key}})
	}
	ok, resp, _, err := s.client.Txn().Txn(ops, s.consistent(ctx))
	switch {
	case err != nil:
		return nil, fmt.Errorf("consul: read: %w", err)
	case !ok:
		return nil, fmt.Errorf("consul: read: %s", what(resp.Errors))
	case len(resp.Results) != len(keys):
		// Access control filters silently: what may not be read must never be taken for absent.
		return nil, fmt.Errorf("consul: %d of %d keys below %s/ can be read: see to the token's policy: %w", len(resp.Results), len(keys), s.opts.Prefix, errDamaged)
	}
	pairs := make([]*api.KVPair, len(keys))
	for i, r := range resp.Results {
		if r.KV == nil || r.KV.Key != keys[i] {
			return nil, fmt.Errorf("consul: it answered another question than %s: %w", keys[i], errDamaged)
		}
		pairs[i] = r.KV
	}
	return pairs, nil
}
