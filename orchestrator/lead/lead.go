package lead

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/cutover/cutover/orchestrator/store"
)

// keyEpoch holds the last epoch given out.
const keyEpoch = "lead/epoch"

// Leader is who leads, as it says itself.
type Leader struct {
	// Name is the orchestrator's, unique in the cluster.
	Name string `json:"name"`
	// URL is where its API answers other orchestrators.
	URL string `json:"url"`
}

// Term is the time for which this process leads. Safe for concurrent use.
type Term struct {
	fence   store.Fence
	raise   func(ctx context.Context, above uint64) error // makes the next term's epoch greater than above
	release func() error

	once sync.Once
	done chan struct{}
	err  error // set before done is closed
}

// Epoch returns the number of the term.
func (t *Term) Epoch() uint64 { return t.fence.Epoch }

// Fence returns what every write of this term carries.
func (t *Term) Fence() store.Fence { return t.fence }

// Done is closed when the term has ended.
func (t *Term) Done() <-chan struct{} { return t.done }

// Err returns why the term ended: nil while it lasts and after Release.
func (t *Term) Err() error {
	select {
	case <-t.done:
		return t.err
	default:
		return nil
	}
}

// Fatal ends the term because of err: nothing of it may be finished. The first call counts. The lock is kept until
// Release, so that no other term begins while this one still runs.
func (t *Term) Fatal(err error) {
	t.once.Do(func() {
		t.err = fmt.Errorf("term %d is over: %w", t.fence.Epoch, err)
		close(t.done)
	})
}

// Raise makes the next term's epoch greater than above, and ends this one: a Host has seen a higher epoch than ours
// (the store was restored from an older copy, or replaced), so nothing of this term counts there. Call it only for a Host
// that certainly belongs to this cluster. The write is fenced: a leader that was replaced raises nothing.
func (t *Term) Raise(ctx context.Context, above uint64) error {
	if above <= t.fence.Epoch {
		return nil
	}
	if err := t.raise(ctx, above); err != nil {
		return fmt.Errorf("raise the epoch above %d: %w", above, err)
	}
	t.Fatal(fmt.Errorf("a host has seen epoch %d: the next term starts above it", above))
	return nil
}

// Release ends the term in good order and lets go of the lock. Only after everything that writes has stopped.
func (t *Term) Release() error {
	t.once.Do(func() { close(t.done) })
	return t.release()
}

// nextEpoch makes the epoch after the last one, and after above, durable, and returns it.
func nextEpoch(ctx context.Context, s store.Store, session string, above uint64) (uint64, error) {
	last, op, err := readNumber(ctx, s, keyEpoch)
	if err != nil {
		return 0, err
	}
	epoch := max(last, above) + 1
	if epoch == 0 {
		return 0, errors.New("the epochs are used up")
	}
	op.Value = encodeNumber(epoch)
	// The fence is the new epoch: from this Commit on the store refuses every older term.
	if _, err := s.Commit(ctx, store.Fence{Epoch: epoch, Session: session}, op); err != nil {
		return 0, err
	}
	return epoch, nil
}

// readNumber reads a record that holds a number in decimal, and returns the operation that would replace it.
func readNumber(ctx context.Context, s store.Store, key string) (n uint64, op store.Op, err error) {
	op = store.Op{Kind: store.Create, Key: key}
	rec, err := s.Get(ctx, key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return 0, op, nil
	case err != nil:
		return 0, op, err
	}
	if n, err = strconv.ParseUint(string(rec.Value), 10, 64); err != nil {
		return 0, op, fmt.Errorf("record %q is damaged: %w", key, err)
	}
	op.Kind, op.Expect = store.Replace, rec.Revision
	return n, op, nil
}

func encodeNumber(n uint64) []byte { return strconv.AppendUint(nil, n, 10) }
