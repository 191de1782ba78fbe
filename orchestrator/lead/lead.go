package lead

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/orchestrator/store"
)

// LockFile is the name of the lock in the data directory. The file is never removed: a lock on a removed name would
// exclude nobody.
const LockFile = "leader.lock"

// keyEpoch holds the last epoch given out, in decimal.
const keyEpoch = "lead/epoch"

// ErrHeld is wrapped when another process leads.
var ErrHeld = errors.New("another process leads")

// Term is the time for which this process leads. Safe for concurrent use.
type Term struct {
	epoch uint64
	store store.Store
	lock  *os.File

	once sync.Once
	done chan struct{}
	err  error // set before done is closed
}

// Acquire takes the lock in dir and the next epoch. It waits for the lock until ctx ends; the error then names the
// file. The caller ends the term with Release.
func Acquire(ctx context.Context, dir string, s store.Store) (*Term, error) {
	lock, err := acquireLock(ctx, filepath.Join(dir, LockFile))
	if err != nil {
		return nil, err
	}
	epoch, err := nextEpoch(ctx, s, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take the next epoch: %w", err), lock.Close())
	}
	return &Term{epoch: epoch, store: s, lock: lock, done: make(chan struct{})}, nil
}

// acquireLock locks the file. The kernel lets go of the lock when the process ends, however it ends.
func acquireLock(ctx context.Context, path string) (*os.File, error) {
	f, err := flock.Lock(ctx, path)
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("%w: stop the orchestrator that runs on this data directory, or choose another one (%w)", ErrHeld, err)
	}
	if err != nil {
		return nil, fmt.Errorf("leader lock: %w", err)
	}
	return f, nil
}

// nextEpoch makes the epoch after the last one, and after above, durable, and returns it.
func nextEpoch(ctx context.Context, s store.Store, above uint64) (uint64, error) {
	op := store.Op{Kind: store.Create, Key: keyEpoch}
	rec, err := s.Get(ctx, keyEpoch)
	last := uint64(0)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return 0, err
	default:
		if last, err = strconv.ParseUint(string(rec.Value), 10, 64); err != nil {
			return 0, fmt.Errorf("record %q is damaged: %w", keyEpoch, err)
		}
		op.Kind, op.Expect = store.Replace, rec.Revision
	}
	epoch := max(last, above) + 1
	if epoch == 0 {
		return 0, errors.New("the epochs are used up")
	}
	op.Value = strconv.AppendUint(nil, epoch, 10)
	// The fence is the new epoch: from this Commit on the store refuses every older term.
	if _, err := s.Commit(ctx, store.Fence{Epoch: epoch}, op); err != nil {
		return 0, err
	}
	return epoch, nil
}

// Epoch returns the number of the term.
func (t *Term) Epoch() uint64 { return t.epoch }

// Fence returns what every write of this term carries.
func (t *Term) Fence() store.Fence { return store.Fence{Epoch: t.epoch} }

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

// Fatal ends the term because of err: the process must end now, without finishing anything. The first call counts.
// The lock is kept until the process ends, so that no other term begins while this one still runs.
func (t *Term) Fatal(err error) {
	t.once.Do(func() {
		t.err = fmt.Errorf("term %d is over: %w", t.epoch, err)
		close(t.done)
	})
}

// Raise makes the next term's epoch greater than above, and ends this one: a Host has seen a higher epoch than ours
// (the store was restored from an older copy), so nothing of this term counts there. Call it only for a Host that
// certainly belongs to this cluster.
func (t *Term) Raise(ctx context.Context, above uint64) error {
	if above < t.epoch {
		return nil
	}
	if _, err := nextEpoch(ctx, t.store, above); err != nil {
		return fmt.Errorf("raise the epoch above %d: %w", above, err)
	}
	t.Fatal(fmt.Errorf("a host has seen epoch %d: the next term starts above it", above))
	return nil
}

// Release ends the term in good order and lets go of the lock. Only after everything that writes has stopped.
func (t *Term) Release() error {
	t.once.Do(func() { close(t.done) })
	return t.lock.Close()
}
