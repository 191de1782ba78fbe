package haproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cutover/cutover/internal/flock"
)

// lockWait is how long a new agent waits for the one before it to end.
const lockWait = 5 * time.Second

// lockTree takes the tree for this process. The kernel gives the lock back when the process ends, however it ends.
func lockTree(o Options) (*os.File, error) {
	if err := makeDir(o.Dir); err != nil {
		return nil, fmt.Errorf("haproxy tree: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	path := filepath.Join(o.Dir, "lock")
	f, err := flock.Lock(ctx, path)
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("haproxy tree: %w: one lbagent drives one haproxy, stop the other (fuser %s)", err, path)
	}
	if err != nil {
		return nil, fmt.Errorf("haproxy tree: %w", err)
	}
	return f, nil
}
