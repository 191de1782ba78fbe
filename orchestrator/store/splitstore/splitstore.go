package splitstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cutover/cutover/orchestrator/store"
)

// Store is a store.Store of two halves. Safe for concurrent use.
type Store struct {
	deciding, rest store.Store

	mu     sync.Mutex
	fenced uint64 // the highest epoch that the rebuildable half has seen from here
}

var _ store.Store = (*Store)(nil)

// New joins two stores, which it owns from now on: Close closes both.
func New(deciding, rest store.Store) *Store { return &Store{deciding: deciding, rest: rest} }

// noKey is in the rebuildable half, and never a record's.
const noKey = "task/"

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, fence store.Fence, ops ...store.Op) (store.Revision, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	if !store.Decides(ops[0].Key) {
		rev, err := s.rest.Commit(ctx, fence, ops...)
		if err == nil {
			s.hasFenced(fence.Epoch)
		}
		return rev, err
	}
	rev, err := s.deciding.Commit(ctx, fence, ops...)
	if err != nil || !s.mustFence(fence.Epoch) {
		return rev, err
	}
	// It was accepted, so this is the leader: now the older ones are shut out of the other half too.
	if _, err := s.rest.Commit(ctx, fence, store.Op{Kind: store.Check, Key: noKey}); err != nil {
		return 0, fmt.Errorf("term %d could not take over the rebuildable half of the state: %w: %w", fence.Epoch, err, store.ErrUnknown)
	}
	s.hasFenced(fence.Epoch)
	return rev, nil
}

func (s *Store) mustFence(epoch uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return epoch > s.fenced
}

func (s *Store) hasFenced(epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fenced = max(s.fenced, epoch)
}

// half returns the store that holds key.
func (s *Store) half(key string) store.Store {
	if store.Decides(key) {
		return s.deciding
	}
	return s.rest
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	return s.half(key).Get(ctx, key)
}

// List implements store.Store. A prefix that both halves can hold is read from both, not at one moment.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]store.Record, error) {
	deciding, rest := store.Halves(prefix)
	var a, b []store.Record
	var err error
	if deciding {
		if a, err = s.deciding.List(ctx, prefix, after, limit); err != nil {
			return nil, err
		}
	}
	if rest {
		if b, err = s.rest.List(ctx, prefix, after, limit); err != nil {
			return nil, err
		}
	}
	return merge(a, b, limit), nil
}

// merge joins two lists in order of key, which share none. limit 0 means all.
func merge(a, b []store.Record, limit int) []store.Record {
	if len(a) == 0 {
		return b
	}
	if len(b) == 0 {
		return a
	}
	out := make([]store.Record, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].Key < b[0].Key {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	out = append(append(out, a...), b...)
	if limit > 0 && len(out) > limit {
		out = out[:limit]
	}
	return out
}

// Watch implements store.Store, for the rebuildable half.
func (s *Store) Watch(ctx context.Context, from store.Revision) (<-chan store.Batch, error) {
	return s.rest.Watch(ctx, from)
}

// Revision implements store.Store, for the rebuildable half.
func (s *Store) Revision(ctx context.Context) (store.Revision, error) { return s.rest.Revision(ctx) }

// Close implements store.Store. It closes both halves.
func (s *Store) Close() error { return errors.Join(s.deciding.Close(), s.rest.Close()) }
