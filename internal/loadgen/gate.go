package loadgen

import (
	"context"
	"sync"
)

// gate lets requests to one entry point pass, or not. Safe for concurrent use.
type gate struct {
	mu       sync.Mutex
	changed  *sync.Cond
	closed   bool
	opened   uint64 // how often it has been opened
	underWay int
}

func newGate() *gate {
	g := &gate{}
	g.changed = sync.NewCond(&g.mu)
	return g
}

// enter waits until the gate is open, and says how often it has been opened; false if ctx ended first.
func (g *gate) enter(ctx context.Context) (opened uint64, ok bool) {
	stop := context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.changed.Broadcast()
	})
	defer stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.closed && ctx.Err() == nil {
		g.changed.Wait()
	}
	if ctx.Err() != nil {
		return 0, false
	}
	g.underWay++
	return g.opened, true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.underWay--
	g.changed.Broadcast()
}

// shut closes the gate and waits for what is under way.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for g.underWay > 0 {
		g.changed.Wait()
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		g.closed = false
		g.opened++
	}
	g.changed.Broadcast()
}
