package store

import (
	"errors"
	"fmt"
)

// ErrLimit is wrapped when a Commit is larger than every implementation can do. Nothing was written.
var ErrLimit = errors.New("the commit exceeds the limits of the store")

// CheckOps says whether every implementation can carry out ops in one Commit. Implementations call it first.
//
// A key may appear more than once: preconditions (Create, Replace, Check) are judged against the state before the
// Commit, writes are applied in order, and the last one of a key wins.
func CheckOps(ops []Op) error {
	if len(ops) == 0 {
		return fmt.Errorf("a commit needs at least one operation: %w", ErrLimit)
	}
	if len(ops) > MaxOps {
		return fmt.Errorf("%d operations, at most %d are possible in one commit: split it: %w", len(ops), MaxOps, ErrLimit)
	}
	size := 0
	for _, op := range ops {
		switch {
		case op.Kind < Put || op.Kind > Check:
			return fmt.Errorf("operation of unknown kind %d on %q", op.Kind, op.Key)
		case op.Key == "":
			return errors.New("operation without a key")
		case len(op.Key) > MaxKeyBytes:
			return fmt.Errorf("key of %d bytes, at most %d are possible: %w", len(op.Key), MaxKeyBytes, ErrLimit)
		}
		size += len(op.Key) + len(op.Value)
	}
	if size > MaxCommitBytes {
		return fmt.Errorf("%d bytes, at most %d are possible in one commit: split it: %w", size, MaxCommitBytes, ErrLimit)
	}
	return oneHalf(ops)
}

// Conflict judges the preconditions of ops against the current revisions (0: absent). It returns nil or a
// *ConflictError of the first that does not hold.
func Conflict(ops []Op, current func(key string) Revision) error {
	for _, op := range ops {
		var want Revision
		switch op.Kind {
		case Create:
		case Replace, Check:
			want = op.Expect
		default:
			continue
		}
		if got := current(op.Key); got != want {
			return &ConflictError{Key: op.Key, Actual: got}
		}
	}
	return nil
}

// LastWrites returns the writing operations of a Commit with one entry per key: the last one wins, in order of first
// appearance.
func LastWrites(ops []Op) []Op {
	at := make(map[string]int, len(ops))
	out := make([]Op, 0, len(ops))
	for _, op := range ops {
		if op.Kind == Check {
			continue
		}
		if i, ok := at[op.Key]; ok {
			out[i] = op
			continue
		}
		at[op.Key] = len(out)
		out = append(out, op)
	}
	return out
}
