package boltstore

import (
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/cutover/cutover/orchestrator/store"
)

// write is the only writer. It takes the Commits that wait, up to maxGroup, puts them into one bbolt transaction and so
// under one fsync, and answers each.
//
// A Commit that fails its fence or a precondition writes nothing, so the others of its group need no second attempt:
// the conditions of one are judged completely, against what the earlier ones of the group wrote, before it writes.
// bbolt's own Batch was not used: it waits for company, which costs each lonely Commit its whole delay.
func (s *Store) write() {
	for {
		select {
		case r := <-s.queue.Next():
			s.writeGroup(s.collect(r))
		case <-s.closing:
			return
		}
	}
}

// collect takes r and what else waits already.
func (s *Store) collect(r *store.Queued) []*store.Queued {
	group := make([]*store.Queued, 0, maxGroup)
	for {
		if r.Take() {
			group = append(group, r)
		}
		if len(group) == maxGroup {
			return group
		}
		select {
		case r = <-s.queue.Next():
		default:
			return group
		}
	}
}

func (s *Store) writeGroup(group []*store.Queued) {
	if len(group) == 0 {
		return
	}
	err := s.brokenErr()
	if err == nil {
		if err = s.apply(group); err != nil {
			err = fmt.Errorf("state file %s: %w: %w", s.path, err, store.ErrUnknown)
		}
	}
	s.mu.Lock()
	if err != nil && s.broken == nil {
		s.broken = fmt.Errorf("state file %s takes no writes since an earlier one failed (%w): see to the disk and start again: %w", s.path, err, store.ErrClosed)
	}
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	for _, r := range group {
		if err != nil {
			r.Revision, r.Err = 0, err
		}
		r.Answered()
	}
}

func (s *Store) brokenErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// apply carries out the group in one transaction; an error means that the outcome of all of them is unknown.
func (s *Store) apply(group []*store.Queued) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		wrote := false
		for _, r := range group {
			ok, err := s.applyOne(tx, r)
			if err != nil {
				return err
			}
			wrote = wrote || ok
		}
		if !wrote {
			return nil
		}
		if err := s.trim(tx); err != nil {
			return err
		}
		if s.opts.beforeSync != nil {
			return s.opts.beforeSync()
		}
		return nil
	})
}

// applyOne carries out one Commit, or refuses it in r.Err without having written.
func (s *Store) applyOne(tx *bolt.Tx, r *store.Queued) (wrote bool, err error) {
	meta, records := tx.Bucket(bucketMeta), tx.Bucket(bucketRecords)
	seen := parseNumber(meta.Get(keyFence))
	if r.Fence.Epoch < seen {
		r.Err = &store.FencedError{Epoch: r.Fence.Epoch, Seen: seen}
		return false, nil
	}
	r.Err = store.Conflict(r.Ops, func(key string) store.Revision {
		v := records.Get([]byte(key))
		if v == nil {
			return 0
		}
		return store.Revision(parseNumber(v[:8]))
	})
	if r.Err != nil {
		return false, nil //nolint:nilerr // the request's own error, which it carries; the batch goes on
	}
	if r.Fence.Epoch > seen {
		if err := meta.Put(keyFence, number(r.Fence.Epoch)); err != nil {
			return false, err
		}
	}
	r.Revision = revisionOf(tx) + 1
	if err := meta.Put(keyRevision, number(uint64(r.Revision))); err != nil {
		return false, err
	}
	var changes []store.Change
	for _, op := range store.LastWrites(r.Ops) {
		key := []byte(op.Key)
		if op.Kind == store.Delete {
			if records.Get(key) == nil {
				continue
			}
			if err := records.Delete(key); err != nil {
				return false, err
			}
			changes = append(changes, store.Change{Record: store.Record{Key: op.Key}, Deleted: true})
			continue
		}
		if err := records.Put(key, encodeRecord(r.Revision, op.Value)); err != nil {
			return false, err
		}
		changes = append(changes, store.Change{Record: store.Record{Key: op.Key, Value: op.Value}})
	}
	encoded := encodeChanges(changes)
	s.history++
	s.historyBytes += int64(len(encoded))
	return true, tx.Bucket(bucketChanges).Put(number(uint64(r.Revision)), encoded)
}

// trim removes the oldest batches beyond the bounds of the history. The newest one always stays.
func (s *Store) trim(tx *bolt.Tx) error {
	c := tx.Bucket(bucketChanges).Cursor()
	for s.history > 1 && (s.history > s.opts.History || s.historyBytes > s.opts.HistoryBytes) {
		k, v := c.First()
		if k == nil {
			return nil
		}
		size := int64(len(v))
		if err := c.Delete(); err != nil {
			return err
		}
		s.history--
		s.historyBytes -= size
	}
	return nil
}
