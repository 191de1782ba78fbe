package engine

import (
	"sync"

	"github.com/cutover/cutover/orchestrator/txn"
)

// maxInbox is from when on the inbox merges: reports are level-triggered, so the newest of a transaction says enough.
const maxInbox = 1024

// inbox takes reports of the coordinator and the prober without ever blocking them: they may hold what the loop waits for.
type inbox struct {
	ready chan struct{} // cap 1

	mu    sync.Mutex
	items []any // txn.Status, txn.Drained, txn.Amended, ProbeEvent, func()
}

func newInbox() *inbox { return &inbox{ready: make(chan struct{}, 1)} }

func (b *inbox) put(item any) {
	b.mu.Lock()
	if len(b.items) < maxInbox || !b.merge(item) {
		b.items = append(b.items, item)
	}
	b.mu.Unlock()
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// merge replaces an older report of the same thing. What may not be lost (released names, ends of Amendments) is appended
// instead: there is one per record.
func (b *inbox) merge(item any) bool {
	for i, old := range b.items {
		switch item := item.(type) {
		case txn.Status:
			if o, ok := old.(txn.Status); ok && o.ID == item.ID {
				b.items[i] = item
				return true
			}
		case ProbeEvent:
			if o, ok := old.(ProbeEvent); ok && o.Task == item.Task {
				b.items[i] = item
				return true
			}
		case txn.Drained:
			if o, ok := old.(txn.Drained); ok && o.Txn == item.Txn && o.Group == item.Group {
				item.Released = append(append([]string(nil), o.Released...), item.Released...)
				b.items[i] = item
				return true
			}
		}
	}
	return false
}

func (b *inbox) take() []any {
	b.mu.Lock()
	defer b.mu.Unlock()
	items := b.items
	b.items = nil
	return items
}

// TxnChanged implements txn.Listener.
func (e *Engine) TxnChanged(s txn.Status) { e.inbox.put(s) }

// TxnDrained implements txn.Listener.
func (e *Engine) TxnDrained(d txn.Drained) { e.inbox.put(d) }

// Amended implements txn.Listener.
func (e *Engine) Amended(a txn.Amended) { e.inbox.put(a) }

// HostsChanged implements txn.Listener. Nothing that the engine decides depends on it.
func (e *Engine) HostsChanged() {}

// HandleProbe takes a change that the prober saw. It never blocks.
func (e *Engine) HandleProbe(p ProbeEvent) { e.inbox.put(p) }

var _ txn.Listener = (*Engine)(nil)
