package flock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld means that another process, or another opening of the file in this one, holds the lock.
var ErrHeld = errors.New("another process holds the lock")

// retry is how often a held lock is tried again: flock(2) has no deadline of its own.
const retry = 10 * time.Millisecond

// Try locks the file, which it creates (0600) if need be, or returns ErrHeld at once. The caller closes the file to unlock.
func Try(path string) (*os.File, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	if err := try(f, unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Lock is Try that waits until ctx ends for another to let go; then the error is ErrHeld and that of ctx.
func Lock(ctx context.Context, path string) (*os.File, error) { return wait(ctx, path, unix.LOCK_EX) }

// Share is Lock for one of many that keep out only those who Lock.
func Share(ctx context.Context, path string) (*os.File, error) { return wait(ctx, path, unix.LOCK_SH) }

func open(path string) (*os.File, error) { return os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) }

func wait(ctx context.Context, path string, how int) (*os.File, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(retry)
	defer tick.Stop()
	for {
		err := try(f, how)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, ErrHeld) {
			return nil, errors.Join(err, f.Close())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%w (%w)", err, ctx.Err()), f.Close())
		}
	}
}

func try(f *os.File, how int) error {
	for {
		switch err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("%s: %w", f.Name(), ErrHeld)
		default:
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}
