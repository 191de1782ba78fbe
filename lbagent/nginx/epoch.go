package nginx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/lbagent/driver"
)

// A write number is the epoch of the agent above a counter of its writes. 53 bits hold it, which Lua's numbers need: 2
// million starts of the agent, 4 billion writes each.
const epochShift = 32

// epochLockWait bounds the wait for another agent that is writing a file at this moment.
const epochLockWait = 5 * time.Second

// nextEpoch counts a start of the agent, durably. When it returns, no older agent is writing a published file, and none
// will (FENCE).
func nextEpoch(p paths) (uint64, error) {
	unlock, err := lockEpoch(context.Background(), p, flock.Lock)
	if err != nil {
		return 0, err
	}
	defer unlock()
	last, err := readEpoch(p)
	if err != nil {
		return 0, err
	}
	return last + 1, atomicfile.Write(p.epoch(), fmt.Appendf(nil, "%d\n", last+1))
}

// readEpoch reads the epoch of the agent that was started last; 0 if there was none.
func readEpoch(p paths) (uint64, error) {
	text, err := os.ReadFile(p.epoch())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 21)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", p.epoch(), err)
	}
	return n, nil
}

// fenced runs f, which writes published files, unless a newer agent was started. No newer one starts before f ends.
func fenced(ctx context.Context, p paths, epoch uint64, f func() error) error {
	unlock, err := lockEpoch(ctx, p, flock.Share)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := readEpoch(p)
	if err != nil {
		return err
	}
	if now != epoch {
		return fmt.Errorf("%w: the agent of epoch %d drives this proxy, this is the one of epoch %d: stop one of them, or restart this one", driver.ErrProxyMismatch, now, epoch)
	}
	return f()
}

// lockEpoch locks the epoch: shared to write published files, exclusive to change it. The kernel unlocks it when the process
// ends, however it ends.
func lockEpoch(ctx context.Context, p paths, lock func(context.Context, string) (*os.File, error)) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, epochLockWait)
	defer cancel()
	f, err := lock(ctx, p.lock())
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("%w: it is another lbagent (fuser %s)", err, p.lock())
	}
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
