package consulstore

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cutover/cutover/orchestrator/store"
)

// watchWait is how long one blocking query waits.
const watchWait = time.Minute

// Watch implements store.Store. It waits on the head with a blocking query and reads each new slot of the ring. A slot
// that was written over, or whose changes did not fit, ends it. Consul being away does not: it goes on when it is back.
func (s *Store) Watch(ctx context.Context, from store.Revision) (<-chan store.Batch, error) {
	start, err := s.startAt(ctx, from)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return nil, store.ErrClosed
	}
	ch := make(chan store.Batch, 16)
	ctx, cancel := context.WithCancel(ctx)
	unlink := context.AfterFunc(s.reads, cancel)
	s.done.Go(func() {
		defer cancel()
		defer unlink()
		defer close(ch)
		s.follow(ctx, start, from, ch)
	})
	return ch, nil
}

// startAt returns the number of the write that holds what follows from.
func (s *Store) startAt(ctx context.Context, from store.Revision) (uint64, error) {
	ctx, end, err := s.reading(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	h, _, err := s.readHead(s.consistent(ctx))
	if err != nil {
		return 0, err
	}
	if from == h.Revision {
		return h.Seq + 1, nil
	}
	tooOld := fmt.Errorf("watch from revision %d, the store is at %d: %w", from, h.Revision, store.ErrCompacted)
	if from > h.Revision {
		return 0, tooOld
	}
	pairs, _, err := s.client.KV().List(s.ringKey(), s.consistent(ctx))
	if err != nil {
		return 0, s.readError("list the changes", err)
	}
	for _, pair := range pairs {
		at, err := decodeSlot(pair.Value)
		if err != nil {
			return 0, fmt.Errorf("consul key %s: %w", pair.Key, err)
		}
		for _, b := range at.Batches {
			if b.Revision == from+1 {
				return at.Seq, nil
			}
		}
	}
	return 0, tooOld
}

func decodeSlot(value []byte) (slot, error) {
	var at slot
	_, text, err := unseal(value)
	if err != nil {
		return at, err
	}
	if err := json.Unmarshal(text, &at); err != nil {
		return at, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return at, nil
}

// follow sends what the writes from seq on changed, until ctx ends or one is not there any more.
func (s *Store) follow(ctx context.Context, seq uint64, from store.Revision, ch chan<- store.Batch) {
	var index uint64
	for try := 0; ; try++ {
		q := s.consistent(ctx)
		q.WaitIndex, q.WaitTime = index, watchWait
		h, at, err := s.readHead(q)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			pause(ctx, min(try, 8))
			continue
		}
		if index = at; h.Seq+1 < seq {
			return // it went back: the reader has to begin anew
		}
		for try = 0; seq <= h.Seq; {
			next, ok, err := s.readSlot(ctx, seq)
			if err != nil {
				index = 0 // ask again, after a pause
				pause(ctx, 8)
				break
			}
			if !ok {
				return
			}
			for _, b := range next.Batches {
				if b.Revision <= from {
					continue
				}
				select {
				case ch <- b.store():
					from = b.Revision
				case <-ctx.Done():
					return
				}
			}
			seq++
		}
	}
}

// readSlot reads the changes of one write; false: they are not kept any more.
func (s *Store) readSlot(ctx context.Context, seq uint64) (slot, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	defer cancel()
	pair, _, err := s.client.KV().Get(s.slotKey(seq), s.consistent(ctx))
	if err != nil {
		return slot{}, false, err
	}
	if pair == nil {
		return slot{}, false, nil
	}
	at, err := decodeSlot(pair.Value)
	return at, err == nil && at.Seq == seq && !at.Dropped, err
}
