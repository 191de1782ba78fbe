package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/orchestrator/store"
)

// patience bounds every wait of the suite.
const patience = 3 * time.Minute

// Run checks everything that store.Store promises. open returns a new empty Store, which it closes with the test.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	t.Run("operations", func(t *testing.T) { testOperations(t, open(t)) })
	t.Run("atomicity", func(t *testing.T) { testAtomicity(t, open(t)) })
	t.Run("repeated keys", func(t *testing.T) { testRepeatedKeys(t, open(t)) })
	t.Run("fence", func(t *testing.T) { testFence(t, open(t)) })
	t.Run("limits", func(t *testing.T) { testLimits(t, open(t)) })
	t.Run("list", func(t *testing.T) { testList(t, open(t)) })
	t.Run("values are owned", func(t *testing.T) { testOwnership(t, open(t)) })
	t.Run("watch", func(t *testing.T) { testWatch(t, open(t)) })
	t.Run("watch ends", func(t *testing.T) { testWatchEnds(t, open(t)) })
	t.Run("ended context", func(t *testing.T) { testEndedContext(t, open(t)) })
	t.Run("concurrent counters", func(t *testing.T) { testConcurrency(t, open(t)) })
	t.Run("close", func(t *testing.T) { testClose(t, open(t)) })
	t.Run("model", func(t *testing.T) { testModel(t, open) })
}

// RunHistory checks the bounded history of a Store that keeps limit Commits for Watch.
func RunHistory(t *testing.T, limit int, open func(t *testing.T) store.Store) {
	s := open(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := range limit * 3 {
		commit(t, s, put("k", fmt.Sprint(i)))
	}
	newest := store.Revision(limit * 3)
	if _, err := s.Watch(ctx, 0); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("Watch from 0 after the history moved on: %v, want ErrCompacted", err)
	}
	if _, err := s.Watch(ctx, newest+1); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("Watch from a revision of the future: %v, want ErrCompacted", err)
	}
	ch, err := s.Watch(ctx, newest-store.Revision(limit))
	if err != nil {
		t.Fatalf("Watch of all that is kept: %v", err)
	}
	for i := range limit {
		if b := next(t, ch); b.Revision != newest-store.Revision(limit-i-1) {
			t.Fatalf("batch %d has revision %d", i, b.Revision)
		}
	}
	// A reader that does not read is cut off once its place in the history is gone, and costs the writer nothing.
	slow, err := s.Watch(ctx, newest)
	if err != nil {
		t.Fatal(err)
	}
	for i := range limit*2 + 1000 {
		commit(t, s, put("k", fmt.Sprint(i)))
	}
	for last := newest; ; {
		select {
		case b, ok := <-slow:
			if !ok {
				return
			}
			if b.Revision != last+1 {
				t.Fatalf("a slow reader got revision %d after %d", b.Revision, last)
			}
			last = b.Revision
			if last == newest+store.Revision(limit*2+1000) {
				return // It kept up: also fine.
			}
		case <-ctx.Done():
			t.Fatal("the slow reader's channel was not closed")
		}
	}
}

func testOperations(t *testing.T, s store.Store) {
	ctx := t.Context()
	if _, err := s.Get(ctx, "a"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("Get of an absent key: %v, want ErrNotFound", err)
	}
	wantRevision(t, s, 0)
	if rev := commit(t, s, put("a", "1")); rev != 1 {
		t.Fatalf("first revision is %d, want 1", rev)
	}
	wantRecord(t, s, "a", "1", 1)
	wantConflict(t, s, store.Op{Kind: store.Create, Key: "a", Value: []byte("x")}, 1)
	wantConflict(t, s, store.Op{Kind: store.Replace, Key: "a", Value: []byte("x"), Expect: 7}, 1)
	wantConflict(t, s, store.Op{Kind: store.Replace, Key: "none", Value: []byte("x"), Expect: 7}, 0)
	wantConflict(t, s, store.Op{Kind: store.Check, Key: "a"}, 1)
	wantRecord(t, s, "a", "1", 1)
	wantRevision(t, s, 1)

	commit(t, s, store.Op{Kind: store.Replace, Key: "a", Value: []byte("2"), Expect: 1})
	wantRecord(t, s, "a", "2", 2)
	commit(t, s, store.Op{Kind: store.Check, Key: "a", Expect: 2}, store.Op{Kind: store.Check, Key: "none"})
	wantRecord(t, s, "a", "2", 2)
	wantRevision(t, s, 3) // Every Commit has a revision of its own, a check alone too.
	commit(t, s, store.Op{Kind: store.Create, Key: "empty"})
	wantRecord(t, s, "empty", "", 4)
	commit(t, s, store.Op{Kind: store.Delete, Key: "a"}, store.Op{Kind: store.Delete, Key: "never was"})
	if _, err := s.Get(ctx, "a"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("Get of a deleted key: %v, want ErrNotFound", err)
	}
	commit(t, s, store.Op{Kind: store.Create, Key: "a", Value: []byte("again")})
	wantRecord(t, s, "a", "again", 6)
}

func testAtomicity(t *testing.T, s store.Store) {
	commit(t, s, put("held", "1"))
	_, err := s.Commit(t.Context(), store.Fence{}, put("new", "x"), put("held", "2"),
		store.Op{Kind: store.Create, Key: "held"}, put("newer", "x"))
	var conflict *store.ConflictError
	if !errors.As(err, &conflict) || conflict.Key != "held" || conflict.Actual != 1 {
		t.Fatalf("got %v, want a conflict on held at 1", err)
	}
	wantRecord(t, s, "held", "1", 1)
	if all, err := s.List(t.Context(), "", "", 0); err != nil || len(all) != 1 {
		t.Fatalf("a refused commit left %d records, %v", len(all), err)
	}
	wantRevision(t, s, 1)
}

func testRepeatedKeys(t *testing.T, s store.Store) {
	// Preconditions are judged against the state before the Commit; the last write of a key wins.
	commit(t, s, store.Op{Kind: store.Check, Key: "a"}, put("a", "1"), put("b", "1"), put("a", "2"),
		store.Op{Kind: store.Delete, Key: "b"})
	wantRecord(t, s, "a", "2", 1)
	if _, err := s.Get(t.Context(), "b"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("b: %v, want ErrNotFound", err)
	}
	ch, err := s.Watch(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if b := next(t, ch); len(b.Changes) != 1 || string(b.Changes[0].Value) != "2" {
		t.Fatalf("the batch has %v, want a=2 alone", b.Changes)
	}
}

func testFence(t *testing.T, s store.Store) {
	ctx := t.Context()
	if _, err := s.Commit(ctx, store.Fence{Epoch: 5}, put("a", "5")); err != nil {
		t.Fatal(err)
	}
	for _, epoch := range []uint64{0, 4} {
		if _, err := s.Commit(ctx, store.Fence{Epoch: epoch}, put("a", "stale")); !errors.Is(err, store.ErrFenced) {
			t.Errorf("epoch %d after 5: %v, want ErrFenced", epoch, err)
		}
	}
	// A check alone is a write too: the new leader's first act must shut out the old one.
	if _, err := s.Commit(ctx, store.Fence{Epoch: 6}, store.Op{Kind: store.Check, Key: "none"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, store.Fence{Epoch: 5}, put("a", "stale")); !errors.Is(err, store.ErrFenced) {
		t.Errorf("epoch 5 after 6: %v, want ErrFenced", err)
	}
	// A conflicting Commit changes nothing, its fence included.
	_, err := s.Commit(ctx, store.Fence{Epoch: 9}, store.Op{Kind: store.Create, Key: "a"})
	var conflict *store.ConflictError
	if !errors.As(err, &conflict) {
		t.Fatalf("got %v, want a conflict", err)
	}
	if _, err := s.Commit(ctx, store.Fence{Epoch: 6}, put("a", "6")); err != nil {
		t.Errorf("epoch 6 after a refused commit of 9: %v", err)
	}
	wantRecord(t, s, "a", "6", 3)
}

func testLimits(t *testing.T, s store.Store) {
	ops := make([]store.Op, store.MaxOps)
	for i := range ops {
		ops[i] = put(fmt.Sprintf("k%03d", i), "v")
	}
	commit(t, s, ops...)
	big := bytes.Repeat([]byte("x"), store.MaxCommitBytes-64) // an implementation may have put a folder before the key
	commit(t, s, store.Op{Kind: store.Put, Key: "b", Value: big})
	for name, ops := range map[string][]store.Op{
		"none":     nil,
		"too many": append(ops, put("one more", "v")),
		"too big":  {{Kind: store.Put, Key: "bb", Value: append(big, make([]byte, 64)...)}},
		"long key": {put(strings.Repeat("k", store.MaxKeyBytes+1), "v")},
	} {
		if _, err := s.Commit(t.Context(), store.Fence{}, ops...); !errors.Is(err, store.ErrLimit) {
			t.Errorf("%s: %v, want ErrLimit", name, err)
		}
	}
	for name, op := range map[string]store.Op{"no key": put("", "v"), "no kind": {Key: "k"}, "odd kind": {Kind: 99, Key: "k"}} {
		if _, err := s.Commit(t.Context(), store.Fence{}, op); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	wantRevision(t, s, 2)
}

func testList(t *testing.T, s store.Store) {
	commit(t, s, put("a/2", ""), put("a/1", ""), put("a/10", ""), put("a", ""), put("b/1", ""), put("a0", ""))
	for _, tc := range []struct {
		prefix, after string
		limit         int
		want          string
	}{
		{"", "", 0, "a a/1 a/10 a/2 a0 b/1"},
		{"a/", "", 0, "a/1 a/10 a/2"},
		{"a/", "a/1", 0, "a/10 a/2"},
		{"a/", "a/1", 1, "a/10"},
		{"a/", "", 2, "a/1 a/10"},
		{"a/", "b", 0, ""},
		{"b/", "a/1", 0, "b/1"},
		{"c", "", 0, ""},
	} {
		records, err := s.List(t.Context(), tc.prefix, tc.after, tc.limit)
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, r := range records {
			keys = append(keys, r.Key)
		}
		if got := strings.Join(keys, " "); got != tc.want {
			t.Errorf("List(%q, %q, %d) = %q, want %q", tc.prefix, tc.after, tc.limit, got, tc.want)
		}
	}
}

func testOwnership(t *testing.T, s store.Store) {
	value := []byte("good")
	commit(t, s, store.Op{Kind: store.Put, Key: "a", Value: value})
	copy(value, "evil")
	rec, err := s.Get(t.Context(), "a")
	if err != nil || string(rec.Value) != "good" {
		t.Fatalf("the store kept the writer's slice: %q %v", rec.Value, err)
	}
	copy(rec.Value, "evil")
	wantRecord(t, s, "a", "good", 1)
	ch, err := s.Watch(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	copy(next(t, ch).Changes[0].Value, "evil")
	wantRecord(t, s, "a", "good", 1)
}

func testWatch(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	commit(t, s, put("a", "1"), put("b", "1"))
	commit(t, s, store.Op{Kind: store.Delete, Key: "a"}, put("c", "2"))
	early, err := s.Watch(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	late, err := s.Watch(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, store.Op{Kind: store.Check, Key: "a"})
	commit(t, s, put("d", "4"))
	want := []store.Batch{
		{Revision: 1, Changes: []store.Change{
			{Record: store.Record{Key: "a", Value: []byte("1"), Revision: 1}},
			{Record: store.Record{Key: "b", Value: []byte("1"), Revision: 1}},
		}},
		{Revision: 2, Changes: []store.Change{
			{Record: store.Record{Key: "a", Revision: 2}, Deleted: true},
			{Record: store.Record{Key: "c", Value: []byte("2"), Revision: 2}},
		}},
		{Revision: 3},
		{Revision: 4, Changes: []store.Change{{Record: store.Record{Key: "d", Value: []byte("4"), Revision: 4}}}},
	}
	for i, w := range want {
		if diff := cmp.Diff(w, next(t, early)); diff != "" {
			t.Errorf("batch %d (-want +got):\n%s", i, diff)
		}
	}
	for i, w := range want[2:] {
		if diff := cmp.Diff(w, next(t, late)); diff != "" {
			t.Errorf("late batch %d (-want +got):\n%s", i, diff)
		}
	}
}

func testWatchEnds(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	byContext, err := s.Watch(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	byClose, err := s.Watch(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	wantClosed(t, byContext)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, byClose)
}

func testEndedContext(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Commit(ctx, store.Fence{}, put("a", "1"))
	// Whoever wins the race: an error must mean that nothing was written, and never that nobody knows.
	if errors.Is(err, store.ErrUnknown) {
		t.Fatalf("an ended context made the outcome unknown: %v", err)
	}
	_, getErr := s.Get(t.Context(), "a")
	if wrote := getErr == nil; wrote != (err == nil) {
		t.Fatalf("Commit said %v, Get says %v", err, getErr)
	}
}

func testConcurrency(t *testing.T, s store.Store) {
	const writers, increments = 8, 25
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range increments {
				for {
					var op store.Op
					rec, err := s.Get(t.Context(), "counter")
					switch {
					case errors.Is(err, store.ErrNotFound):
						op = store.Op{Kind: store.Create, Key: "counter", Value: []byte{1, 0}}
					case err != nil:
						t.Error(err)
						return
					default:
						n := int(rec.Value[0]) + int(rec.Value[1])<<8 + 1
						op = store.Op{Kind: store.Replace, Key: "counter", Value: []byte{byte(n), byte(n >> 8)}, Expect: rec.Revision}
					}
					_, err = s.Commit(t.Context(), store.Fence{Epoch: 1}, op)
					var conflict *store.ConflictError
					if errors.As(err, &conflict) {
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					break
				}
			}
		})
	}
	wg.Wait()
	rec, err := s.Get(t.Context(), "counter")
	if err != nil {
		t.Fatal(err)
	}
	if n := int(rec.Value[0]) + int(rec.Value[1])<<8; n != writers*increments {
		t.Errorf("the counter is at %d, want %d: an update was lost", n, writers*increments)
	}
	wantRevision(t, s, writers*increments)
}

func testClose(t *testing.T, s store.Store) {
	commit(t, s, put("a", "1"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("second Close: %v", err)
	}
	ctx := t.Context()
	_, commitErr := s.Commit(ctx, store.Fence{}, put("a", "2"))
	_, getErr := s.Get(ctx, "a")
	_, listErr := s.List(ctx, "", "", 0)
	_, revErr := s.Revision(ctx)
	_, watchErr := s.Watch(ctx, 0)
	for name, err := range map[string]error{"Commit": commitErr, "Get": getErr, "List": listErr, "Revision": revErr, "Watch": watchErr} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
}

func put(key, value string) store.Op {
	return store.Op{Kind: store.Put, Key: key, Value: []byte(value)}
}

func commit(t testing.TB, s store.Store, ops ...store.Op) store.Revision {
	t.Helper()
	rev, err := s.Commit(context.Background(), store.Fence{}, ops...)
	if err != nil {
		t.Fatalf("Commit: %v", err)
	}
	return rev
}

func wantRecord(t *testing.T, s store.Store, key, value string, rev store.Revision) {
	t.Helper()
	got, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("Get(%q): %v", key, err)
	}
	if diff := cmp.Diff(store.Record{Key: key, Value: []byte(value), Revision: rev}, got); diff != "" {
		t.Fatalf("Get(%q) (-want +got):\n%s", key, diff)
	}
}

func wantRevision(t *testing.T, s store.Store, want store.Revision) {
	t.Helper()
	if got, err := s.Revision(t.Context()); err != nil || got != want {
		t.Fatalf("Revision() = %d, %v, want %d", got, err, want)
	}
}

func wantConflict(t *testing.T, s store.Store, op store.Op, actual store.Revision) {
	t.Helper()
	_, err := s.Commit(t.Context(), store.Fence{}, op)
	var conflict *store.ConflictError
	if !errors.As(err, &conflict) || conflict.Key != op.Key || conflict.Actual != actual {
		t.Fatalf("%+v: %v, want a conflict on %q at %d", op, err, op.Key, actual)
	}
}

func next(t *testing.T, ch <-chan store.Batch) store.Batch {
	t.Helper()
	select {
	case b, ok := <-ch:
		if !ok {
			t.Fatal("the watch ended")
		}
		return b
	case <-time.After(patience):
		t.Fatal("no batch came")
	}
	return store.Batch{}
}

func wantClosed(t *testing.T, ch <-chan store.Batch) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case _, ok := <-ch:
			if !ok {
				return
			}
		case <-deadline:
			t.Fatal("the watch did not end")
		}
	}
}

// sortedKeys returns the keys of m in order.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
