package boltstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/cutover/cutover/orchestrator/store"
)

// replayChunk bounds how many batches a watch reads at once.
const replayChunk = 64

// Watch implements store.Store. A watch reads the change log of the file at its own pace, so a slow reader costs no
// memory; it is too slow when the log was trimmed before it got there, and then its channel is closed.
func (s *Store) Watch(ctx context.Context, from store.Revision) (<-chan store.Batch, error) {
	if _, err := s.replay(from); err != nil {
		return nil, err
	}
	// Under the lock that Close takes, so that it waits for this watch or this watch does not begin.
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closing:
		return nil, store.ErrClosed
	default:
	}
	ch := make(chan store.Batch, 16)
	s.done.Go(func() { store.Feed(ctx, s.closing, from, ch, s.next) })
	return ch, nil
}

// next reads what follows from. The channel is taken before the read, so a Commit after it closes this very one.
func (s *Store) next(from store.Revision) ([]store.Batch, <-chan struct{}, error) {
	s.mu.Lock()
	changed := s.changed
	s.mu.Unlock()
	batches, err := s.replay(from)
	return batches, changed, err
}

// replay reads the next batches after from.
func (s *Store) replay(from store.Revision) (out []store.Batch, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		newest := revisionOf(tx)
		if from == newest {
			return nil
		}
		c := tx.Bucket(bucketChanges).Cursor()
		k, v := c.Seek(number(uint64(from) + 1))
		if from > newest || k == nil || parseNumber(k) != uint64(from)+1 {
			return fmt.Errorf("watch from revision %d, the store is at %d: %w", from, newest, store.ErrCompacted)
		}
		for ; k != nil && len(out) < replayChunk; k, v = c.Next() {
			b, err := decodeChanges(store.Revision(parseNumber(k)), v)
			if err != nil {
				return fmt.Errorf("state file %s, change %d: %w", s.path, parseNumber(k), err)
			}
			out = append(out, b)
		}
		return nil
	})
	return out, err
}

// encodeChanges writes, for each change, a flag (1: deleted), the key and the value, both with their length.
func encodeChanges(changes []store.Change) []byte {
	b := binary.AppendUvarint(nil, uint64(len(changes)))
	for _, c := range changes {
		deleted := byte(0)
		if c.Deleted {
			deleted = 1
		}
		b = append(b, deleted)
		b = binary.AppendUvarint(b, uint64(len(c.Key)))
		b = append(b, c.Key...)
		b = binary.AppendUvarint(b, uint64(len(c.Value)))
		b = append(b, c.Value...)
	}
	return b
}

var errDamaged = errors.New("the record is damaged")

// decodeChanges is the inverse of encodeChanges; it copies everything.
func decodeChanges(rev store.Revision, b []byte) (store.Batch, error) {
	batch := store.Batch{Revision: rev}
	n, w := binary.Uvarint(b)
	if w <= 0 || n > store.MaxOps {
		return batch, errDamaged
	}
	b = b[w:]
	field := func() ([]byte, bool) {
		l, w := binary.Uvarint(b)
		if w <= 0 || l > uint64(len(b)-w) {
			return nil, false
		}
		f := b[w : w+int(l)]
		b = b[w+int(l):]
		return f, true
	}
	for range n {
		if len(b) == 0 {
			return batch, errDamaged
		}
		deleted := b[0] == 1
		b = b[1:]
		key, ok1 := field()
		value, ok2 := field()
		if !ok1 || !ok2 {
			return batch, errDamaged
		}
		c := store.Change{Record: store.Record{Key: string(key), Revision: rev}, Deleted: deleted}
		if !deleted {
			c.Value = append([]byte{}, value...)
		}
		batch.Changes = append(batch.Changes, c)
	}
	return batch, nil
}
