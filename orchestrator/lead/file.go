package lead

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/orchestrator/store"
)

// LockFile is the name of the lock in the data directory. The file is never removed: a lock on a removed name would
// exclude nobody.
const LockFile = "leader.lock"

// ErrHeld is wrapped when another process leads.
var ErrHeld = errors.New("another process leads")

// Acquire takes the lock in dir and the next epoch: the embedded leadership of one machine. It waits for the lock until
// ctx ends; the error then names the file. The caller ends the term with Release.
func Acquire(ctx context.Context, dir string, s store.Store) (*Term, error) {
	lock, err := acquireLock(ctx, filepath.Join(dir, LockFile))
	if err != nil {
		return nil, err
	}
	epoch, err := nextEpoch(ctx, s, "", 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take the next epoch: %w", err), lock.Close())
	}
	return &Term{
		fence: store.Fence{Epoch: epoch}, release: lock.Close, done: make(chan struct{}),
		raise: func(ctx context.Context, above uint64) error {
			_, err := nextEpoch(ctx, s, "", above)
			return err
		},
	}, nil
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
