package haproxy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockWait is how long a new agent waits for the one before it to end.
const lockWait = 5 * time.Second

var errLocked = errors.New("another process holds the lock")

// lockTree takes the tree for this process. The kernel gives the lock back when the process ends, however it ends.
func lockTree(o Options) (*os.File, error) {
	if err := makeDir(o.Dir); err != nil {
		return nil, fmt.Errorf("haproxy tree: %w", err)
	}
	path := filepath.Join(o.Dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("haproxy tree: %w", err)
	}
	end := time.Now().Add(lockWait)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = errLocked
			}
			return nil, errors.Join(fmt.Errorf("haproxy tree: %s: %w: one lbagent drives one haproxy, stop the other (fuser %s)", path, err, path), f.Close())
		}
		time.Sleep(20 * time.Millisecond) // bounded by lockWait; flock has no deadline of its own
	}
}
