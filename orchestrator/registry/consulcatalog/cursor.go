package consulcatalog

import "time"

// Times of the queries.
const (
	// minPause is between two queries: a service whose entries change all the time is read that often.
	minPause = 100 * time.Millisecond
	// retryMax bounds the pause after failures in a row.
	retryMax = 15 * time.Second
)

// cursor is where the next query begins, and when: pure, so that every answer of Consul can be tried.
type cursor struct {
	// index is what the next query waits to be passed; 0: it does not wait.
	index uint64
	fails int
}

// answered is the cursor after an answer with this index.
func (c cursor) answered(index uint64) (next cursor, pause time.Duration) {
	switch {
	case index < c.index:
		// Consul was restored from a snapshot, or its data is new: what follows is counted from the beginning.
		index = 0
	case index == 0:
		index = 1 // the next query must wait, or it comes back at once
	}
	return cursor{index: index}, minPause
}

// failed is the cursor after a query that was not answered: the next one does not wait, since what happened meanwhile is not
// known.
func (c cursor) failed() (next cursor, pause time.Duration) {
	next = cursor{fails: c.fails + 1}
	return next, min(minPause<<min(c.fails, 10), retryMax)
}
