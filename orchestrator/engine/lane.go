package engine

import "sync"

// lane runs calls of one neighbour one after the other, in order, outside the loop: a neighbour that is slow, or that waits
// for the loop itself, never blocks it. Its length is bounded by the records that the calls are about (a few per task,
// Deploy and Amendment), so it needs no bound of its own.
type lane struct {
	mu     sync.Mutex
	cond   *sync.Cond
	calls  []func()
	closed bool
}

func newLane() *lane {
	l := &lane{}
	l.cond = sync.NewCond(&l.mu)
	return l
}

func (l *lane) push(call func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.calls = append(l.calls, call)
		l.cond.Signal()
	}
}

// run ends after close; calls that were not started by then are dropped: a restart makes them again.
func (l *lane) run() {
	for {
		l.mu.Lock()
		for len(l.calls) == 0 && !l.closed {
			l.cond.Wait()
		}
		if l.closed {
			l.mu.Unlock()
			return
		}
		call := l.calls[0]
		l.calls = l.calls[1:]
		l.mu.Unlock()
		call()
	}
}

func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed, l.calls = true, nil
	l.cond.Broadcast()
}
