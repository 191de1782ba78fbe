package store

import "context"

// Feed is the body of a watch: it sends to ch what next returns after from, and closes ch when ctx or the store ends or next
// fails. next returns a few batches, and a channel that is closed by the next Commit after its read.
func Feed(ctx context.Context, closed <-chan struct{}, from Revision, ch chan<- Batch, next func(from Revision) ([]Batch, <-chan struct{}, error)) {
	defer close(ch)
	for {
		batches, changed, err := next(from)
		if err != nil {
			return
		}
		for _, b := range batches {
			select {
			case ch <- b:
				from = b.Revision
			case <-ctx.Done():
				return
			case <-closed:
				return
			}
		}
		if len(batches) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		case <-closed:
			return
		}
	}
}
