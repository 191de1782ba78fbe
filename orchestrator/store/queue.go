package store

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// maxQueued bounds how many Commits can wait for the writer.
const maxQueued = 256

// Queue is the line of Commits before the one writer of a store, so that those which wait share a write. Safe for concurrent
// use.
type Queue struct {
	writer  string
	waiting chan *Queued
	closing <-chan struct{}
}

// Queued is one Commit in the line. Its writer takes it, sets Revision or Err, and calls Answered.
type Queued struct {
	Fence Fence
	Ops   []Op // the Queue's own copy
	Size  int  // bytes of the keys and values

	Revision Revision
	Err      error

	taken atomic.Bool // by the writer, or withdrawn by the caller: the first one wins
	done  chan struct{}
}

// NewQueue makes a line that takes nothing any more once closing is closed. writer is for errors: what does not answer.
func NewQueue(writer string, closing <-chan struct{}) *Queue {
	return &Queue{writer: writer, waiting: make(chan *Queued, maxQueued), closing: closing}
}

// Next yields the Commits in their order.
func (q *Queue) Next() <-chan *Queued { return q.waiting }

// Len is how many wait.
func (q *Queue) Len() int { return len(q.waiting) }

// Take makes the Commit the writer's. False: its caller has withdrawn it, and must find that nothing was written.
func (r *Queued) Take() bool { return r.taken.CompareAndSwap(false, true) }

// Answered hands Revision and Err to the caller, who owns them from then on.
func (r *Queued) Answered() { close(r.done) }

// Commit waits in the line and for the writer. A ctx that ends while the writer has the Commit is not heard: the outcome is
// known soon, and an unknown one would end the caller's term. After patience with the writer the outcome is ErrUnknown; 0 is
// for one that always answers in time.
func (q *Queue) Commit(ctx context.Context, fence Fence, ops []Op, patience time.Duration) (Revision, error) {
	r := &Queued{Fence: fence, Ops: make([]Op, len(ops)), done: make(chan struct{})}
	for i, op := range ops {
		op.Value = bytes.Clone(op.Value)
		r.Ops[i] = op
		r.Size += len(op.Key) + len(op.Value)
	}
	select {
	case <-q.closing:
		return 0, ErrClosed
	default:
	}
	select {
	case q.waiting <- r:
	case <-ctx.Done():
		return 0, fmt.Errorf("nothing was written: %w", ctx.Err())
	case <-q.closing:
		return 0, ErrClosed
	}
	select {
	case <-r.done:
		return r.Revision, r.Err
	case <-ctx.Done():
		if r.Take() {
			return 0, fmt.Errorf("nothing was written: %w", ctx.Err())
		}
	case <-q.closing:
		if r.Take() {
			return 0, ErrClosed
		}
	}
	var over <-chan time.Time
	if patience > 0 {
		timeout := time.NewTimer(patience)
		defer timeout.Stop()
		over = timeout.C
	}
	select {
	case <-r.done:
		return r.Revision, r.Err
	case <-over:
		return 0, fmt.Errorf("%s has not answered for %v: %w", q.writer, patience, ErrUnknown)
	}
}
