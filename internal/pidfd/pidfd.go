package pidfd

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Watch is the watch over one process. Close it.
type Watch struct {
	file *os.File
}

// Open watches the process that has the pid now. The caller checks that it is the one that it means after Open has
// returned: from then on the pid cannot change hands unnoticed. A process that is gone, also for its parent, gives ESRCH.
func Open(pid int) (*Watch, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	return &Watch{os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid))}, nil
}

// Wait blocks until the process has ended, which it says with true, or the watch is closed. It waits on the runtime's
// poller: a waiting goroutine costs no thread.
func (w *Watch) Wait() (ended bool) {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return false // closed
	}
	err = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		ended = err == nil && n > 0
		return ended
	})
	return err == nil && ended
}

// Close ends the watch, and a Wait with it. It may be called more than once, from any goroutine.
func (w *Watch) Close() { _ = w.file.Close() }
