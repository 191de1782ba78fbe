package pidfd

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Watch is the watch over one process. Close it, or it stays open until the process ends.
type Watch struct {
	file *os.File
	done chan struct{}
	once sync.Once
}

// Open watches the process that has the pid now. The caller checks that it is the one that it means after Open has
// returned: from then on the pid cannot change hands unnoticed.
func Open(pid int) (*Watch, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	w := &Watch{file: os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid)), done: make(chan struct{})}
	conn, err := w.file.SyscallConn()
	if err != nil {
		_ = w.file.Close()
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	go func() {
		ended := false
		// The runtime's poller wakes us when the descriptor turns readable: the process has ended. Close ends the wait.
		err := conn.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			ended = err == nil && n > 0
			return ended
		})
		if err == nil && ended {
			close(w.done)
		}
		w.Close()
	}()
	return w, nil
}

// Done is closed when the process has ended. It stays open if the watch is closed first.
func (w *Watch) Done() <-chan struct{} { return w.done }

// Close ends the watch. It may be called more than once, from any goroutine.
func (w *Watch) Close() { w.once.Do(func() { _ = w.file.Close() }) }
