package memstore

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cutover/cutover/orchestrator/store"
)

// DefaultHistory is how many Commits can be replayed to a Watch.
const DefaultHistory = 4096

// Store keeps records in memory. Safe for concurrent use.
type Store struct {
	limit int

	mu       sync.Mutex
	records  map[string]store.Record
	revision store.Revision
	fence    uint64
	history  []store.Batch
	changed  chan struct{} // closed and replaced at each Commit
	closed   chan struct{}
	watches  sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// New returns an empty Store with DefaultHistory.
func New() *Store { return NewWithHistory(DefaultHistory) }

// NewWithHistory returns an empty Store that keeps limit Commits for Watch.
func NewWithHistory(limit int) *Store {
	return &Store{
		limit:   limit,
		records: map[string]store.Record{},
		changed: make(chan struct{}),
		closed:  make(chan struct{}),
	}
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, fence store.Fence, ops ...store.Op) (store.Revision, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("nothing was written: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return 0, store.ErrClosed
	}
	if fence.Epoch < s.fence {
		return 0, &store.FencedError{Epoch: fence.Epoch, Seen: s.fence}
	}
	err := store.Conflict(ops, func(key string) store.Revision { return s.records[key].Revision })
	if err != nil {
		return 0, err
	}
	s.fence = fence.Epoch
	s.revision++
	batch := store.Batch{Revision: s.revision}
	for _, op := range store.LastWrites(ops) {
		if op.Kind == store.Delete {
			if _, ok := s.records[op.Key]; !ok {
				continue
			}
			delete(s.records, op.Key)
			batch.Changes = append(batch.Changes, store.Change{
				Record: store.Record{Key: op.Key, Revision: s.revision}, Deleted: true,
			})
			continue
		}
		rec := store.Record{Key: op.Key, Value: append([]byte{}, op.Value...), Revision: s.revision}
		s.records[op.Key] = rec
		batch.Changes = append(batch.Changes, store.Change{Record: rec})
	}
	s.history = append(s.history, batch)
	if over := len(s.history) - s.limit; over > 0 {
		clear(s.history[:over])
		s.history = s.history[over:] // the array is left behind when it has to grow
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return s.revision, nil
}

// Get implements store.Store.
func (s *Store) Get(_ context.Context, key string) (store.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return store.Record{}, store.ErrClosed
	}
	rec, ok := s.records[key]
	if !ok {
		return store.Record{}, fmt.Errorf("%q: %w", key, store.ErrNotFound)
	}
	rec.Value = bytes.Clone(rec.Value)
	return rec, nil
}

// List implements store.Store.
func (s *Store) List(_ context.Context, prefix, after string, limit int) ([]store.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return nil, store.ErrClosed
	}
	var out []store.Record
	for key, rec := range s.records {
		if strings.HasPrefix(key, prefix) && key > after {
			rec.Value = bytes.Clone(rec.Value)
			out = append(out, rec)
		}
	}
	slices.SortFunc(out, func(a, b store.Record) int { return cmp.Compare(a.Key, b.Key) })
	if limit > 0 && len(out) > limit {
		out = out[:limit]
	}
	return out, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, from store.Revision) (<-chan store.Batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return nil, store.ErrClosed
	}
	if _, _, err := s.nextLocked(from); err != nil {
		return nil, err
	}
	ch := make(chan store.Batch, 16)
	s.watches.Go(func() { store.Feed(ctx, s.closed, from, ch, s.next) })
	return ch, nil
}

// next returns copies of the kept batches after from, and the channel that tells of the next one.
func (s *Store) next(from store.Revision) (batches []store.Batch, changed <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nextLocked(from)
}

func (s *Store) nextLocked(from store.Revision) (batches []store.Batch, changed <-chan struct{}, err error) {
	if from == s.revision {
		return nil, s.changed, nil
	}
	if from > s.revision || len(s.history) == 0 || s.history[0].Revision > from+1 {
		return nil, nil, fmt.Errorf("watch from revision %d, the store is at %d: %w", from, s.revision, store.ErrCompacted)
	}
	for _, b := range s.history[from+1-s.history[0].Revision:] {
		c := store.Batch{Revision: b.Revision, Changes: slices.Clone(b.Changes)}
		for i := range c.Changes {
			c.Changes[i].Value = bytes.Clone(c.Changes[i].Value)
		}
		batches = append(batches, c)
	}
	return batches, s.changed, nil
}

// Revision implements store.Store.
func (s *Store) Revision(context.Context) (store.Revision, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return 0, store.ErrClosed
	}
	return s.revision, nil
}

// Close implements store.Store. It returns when all watches have ended.
func (s *Store) Close() error {
	s.mu.Lock()
	if !s.isClosed() {
		close(s.closed)
	}
	s.mu.Unlock()
	s.watches.Wait()
	return nil
}

func (s *Store) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}
