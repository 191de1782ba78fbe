package store

import (
	"context"
	"errors"
	"fmt"
)

// FormatVersion is the version of the key space. It never goes back.
//
//	1: first release.
const FormatVersion = 1

// Revision numbers the Commits of a store, from 1. A record carries the revision of the Commit that wrote it.
type Revision uint64

// Fence is the term of the leader that writes. A store refuses a fence below the highest that it has seen.
type Fence struct {
	Epoch uint64
	// Session is the Consul session that holds the leader's lock; the Consul store checks in the same step that it still
	// does. The others ignore it.
	Session string
}

// Record is one stored value. The value belongs to the reader.
type Record struct {
	Key      string
	Value    []byte
	Revision Revision
}

// OpKind is what an Op does.
type OpKind uint8

// The kinds.
const (
	// Put writes the value whatever was there.
	Put OpKind = iota + 1
	// Create writes the value if the key is absent, else the Commit is a conflict. A decision is written so.
	Create
	// Replace writes the value if the record has the expected revision.
	Replace
	// Delete removes the key; an absent one is no error.
	Delete
	// Check changes nothing, and is a conflict unless the record has the expected revision (0: is absent).
	Check
)

// Op is one operation of a Commit. At most MaxOps of them, and MaxCommitBytes in all.
type Op struct {
	Kind   OpKind
	Key    string
	Value  []byte
	Expect Revision // Replace and Check only
}

// Limits of one Commit, in all implementations. MaxOps is below the 128 operations of a Consul transaction by what the
// Consul store needs for itself. Consul's own bound on bytes is on what is sent, which is compressed: a Commit of nearly
// MaxCommitBytes that cannot be compressed is refused there with ErrLimit.
const (
	MaxOps         = 120
	MaxCommitBytes = 512 << 10
	MaxKeyBytes    = 512
)

// Change is one record that a Commit wrote or deleted.
type Change struct {
	Record  // Value is nil when Deleted
	Deleted bool
}

// Batch is what one Commit changed.
type Batch struct {
	Revision Revision
	Changes  []Change
}

// Errors of a store. A Commit that fails in another way may or may not have happened: ErrUnknown is wrapped then, and
// the caller's term is over (lead.Term.Fatal).
var (
	ErrNotFound  = errors.New("no such record")
	ErrFenced    = errors.New("a newer leader has written: this term is over")
	ErrCompacted = errors.New("the revision is older than the kept history")
	ErrUnknown   = errors.New("the outcome of the write is unknown")
	ErrClosed    = errors.New("the store is closed")
	// ErrWentBack: the store has lost Commits that it had acknowledged. The term is over, as with ErrUnknown; the next one
	// rebuilds what can be rebuilt.
	ErrWentBack = errors.New("the store went back: it has lost what it had acknowledged")
)

// FencedError is an ErrFenced that says which epoch the store has seen.
type FencedError struct{ Epoch, Seen uint64 }

// Error names both epochs.
func (e *FencedError) Error() string {
	return fmt.Sprintf("epoch %d, the store has seen %d: %v", e.Epoch, e.Seen, ErrFenced)
}

// Unwrap returns ErrFenced.
func (e *FencedError) Unwrap() error { return ErrFenced }

// ConflictError says which precondition did not hold.
type ConflictError struct {
	Key    string
	Actual Revision // 0: absent
}

// Error names the key.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("record %q is at revision %d, not at the expected one", e.Key, e.Actual)
}

// Store is the port. Methods are safe for concurrent use.
type Store interface {
	// Commit applies ops atomically and durably if the fence is not stale and every precondition holds.
	// Errors: ErrFenced, *ConflictError, ErrUnknown, ErrWentBack, or one that says that nothing was written.
	Commit(ctx context.Context, fence Fence, ops ...Op) (Revision, error)
	// Get returns one record, or ErrNotFound.
	Get(ctx context.Context, key string) (Record, error)
	// List returns up to limit records whose key starts with prefix and sorts after the key after, in order of key.
	// limit 0 means all.
	List(ctx context.Context, prefix, after string, limit int) ([]Record, error)
	// Watch sends one Batch for each Commit after from, in order, until ctx ends or the channel's reader is too slow
	// (then the channel is closed and the reader starts again from its last revision). ErrCompacted if from is too old.
	Watch(ctx context.Context, from Revision) (<-chan Batch, error)
	// Revision returns the revision of the newest Commit.
	Revision(ctx context.Context) (Revision, error)
	// Close ends all watches and releases the file.
	Close() error
}
