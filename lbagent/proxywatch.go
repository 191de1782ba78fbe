package lbagent

import (
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// proxyWatch learns of the end of the proxy's processes at once: what a process reported proves nothing any more when it
// has gone, and a vote that rests on it must not stand for as long as the next reading takes (RUNNING = JOURNAL). Used by
// the reader's goroutine only.
type proxyWatch struct {
	open    func(pid int) (ProcessWatch, time.Time, error)
	process driver.Process
	gone    chan struct{} // closed when a process of it has ended; nil: nothing is watched
	stop    func()
}

// follow watches the processes of p instead of those watched so far.
func (w *proxyWatch) follow(p driver.Process) {
	if p == w.process {
		return
	}
	w.close()
	w.process = p
	if p == (driver.Process{}) {
		return
	}
	gone := make(chan struct{})
	var once sync.Once
	tell := func() { once.Do(func() { close(gone) }) }
	var wg sync.WaitGroup
	var watches []ProcessWatch
	for _, pid := range []int{p.MasterPID, p.WorkerPID} {
		watch, started, err := w.open(pid)
		if errors.Is(err, syscall.ESRCH) {
			tell() // it has ended since it was read
		}
		if err != nil {
			continue // no descriptor is left, or an old kernel: then only readings tell
		}
		if p.Before(started) {
			tell() // and its pid is another process's by now
		}
		watches = append(watches, watch)
		wg.Go(func() {
			if watch.Wait() {
				tell()
			}
		})
	}
	w.gone, w.stop = gone, func() {
		for _, watch := range watches {
			watch.Close()
		}
		wg.Wait()
	}
}

// told: the end was passed on. The same process is not watched again, however long the state goes on naming it (a journal
// that cannot be written keeps it from changing).
func (w *proxyWatch) told() {
	process := w.process
	w.close()
	w.process = process
}

func (w *proxyWatch) close() {
	if w.stop != nil {
		w.stop()
	}
	*w = proxyWatch{open: w.open}
}
