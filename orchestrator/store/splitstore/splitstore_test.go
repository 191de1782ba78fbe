package splitstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/servertest/consultest"
	"github.com/cutover/cutover/internal/servertest/redistest"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/consulstore"
	"github.com/cutover/cutover/orchestrator/store/memstore"
	"github.com/cutover/cutover/orchestrator/store/redisstore"
	"github.com/cutover/cutover/orchestrator/store/splitstore"
	"github.com/cutover/cutover/orchestrator/store/storetest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// below puts all keys below a folder, so that the suite runs in one half.
type below struct {
	store.Store
	folder string
}

func (b below) Commit(ctx context.Context, fence store.Fence, ops ...store.Op) (store.Revision, error) {
	moved := make([]store.Op, len(ops))
	for i, op := range ops {
		if op.Key != "" {
			op.Key = b.folder + op.Key
		}
		moved[i] = op
	}
	rev, err := b.Store.Commit(ctx, fence, moved...)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		err = &store.ConflictError{Key: strings.TrimPrefix(conflict.Key, b.folder), Actual: conflict.Actual}
	}
	return rev, err
}

func (b below) Get(ctx context.Context, key string) (store.Record, error) {
	rec, err := b.Store.Get(ctx, b.folder+key)
	rec.Key = strings.TrimPrefix(rec.Key, b.folder)
	return rec, err
}

func (b below) List(ctx context.Context, prefix, after string, limit int) ([]store.Record, error) {
	if after != "" {
		after = b.folder + after
	}
	records, err := b.Store.List(ctx, b.folder+prefix, after, limit)
	for i := range records {
		records[i].Key = strings.TrimPrefix(records[i].Key, b.folder)
	}
	return records, err
}

func (b below) Watch(ctx context.Context, from store.Revision) (<-chan store.Batch, error) {
	in, err := b.Store.Watch(ctx, from)
	if err != nil {
		return nil, err
	}
	out := make(chan store.Batch)
	go func() {
		defer close(out)
		for batch := range in {
			for i := range batch.Changes {
				batch.Changes[i].Key = strings.TrimPrefix(batch.Changes[i].Key, b.folder)
			}
			select {
			case out <- batch:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store {
		return below{splitstore.New(memstore.New(), memstore.New()), "task/x/"}
	})
}

func put(key, value string) store.Op {
	return store.Op{Kind: store.Put, Key: key, Value: []byte(value)}
}

func commit(t *testing.T, s store.Store, fence store.Fence, ops ...store.Op) {
	t.Helper()
	if _, err := s.Commit(t.Context(), fence, ops...); err != nil {
		t.Fatal(err)
	}
}

func keys(t *testing.T, s store.Store, prefix, after string, limit int) string {
	t.Helper()
	records, err := s.List(t.Context(), prefix, after, limit)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range records {
		out = append(out, r.Key)
	}
	return strings.Join(out, " ")
}

func TestEachKeyIsInItsHalf(t *testing.T) {
	deciding, rest := memstore.New(), memstore.New()
	s := splitstore.New(deciding, rest)
	defer s.Close()
	for _, key := range []string{
		"decision/1", "mark/1", "txn/1", "ended/1", "evidence/1/h/0", "section/g/a", "amend/1", "view/g", "counter/order", "lead/epoch",
		"framework/id", "task", "something/new",
	} {
		commit(t, s, store.Fence{}, put(key, ""))
	}
	for _, key := range []string{"app/a", "spec/a/1", "deploy/1", "event/1/1", "task/1", "upkeep/1", "idem/1"} {
		commit(t, s, store.Fence{}, put(key, ""))
	}
	if diff := cmp.Diff("amend/1 counter/order decision/1 ended/1 evidence/1/h/0 framework/id lead/epoch mark/1 section/g/a something/new task txn/1 view/g",
		keys(t, deciding, "", "", 0)); diff != "" {
		t.Errorf("what decides (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("app/a deploy/1 event/1/1 idem/1 spec/a/1 task/1 upkeep/1", keys(t, rest, "", "", 0)); diff != "" {
		t.Errorf("what can be rebuilt (-want +got):\n%s", diff)
	}
	for _, tc := range []struct {
		prefix, after string
		limit         int
		want          string
	}{
		{"", "", 3, "amend/1 app/a counter/order"},
		{"", "event/1/1", 3, "evidence/1/h/0 framework/id idem/1"},
		{"task", "", 0, "task task/1"},
		{"task/", "", 0, "task/1"},
		{"decision/", "", 0, "decision/1"},
		{"e", "", 0, "ended/1 event/1/1 evidence/1/h/0"},
	} {
		if got := keys(t, s, tc.prefix, tc.after, tc.limit); got != tc.want {
			t.Errorf("List(%q, %q, %d) = %q, want %q", tc.prefix, tc.after, tc.limit, got, tc.want)
		}
	}
	// No store does what this one could not do in one step.
	for _, s := range []store.Store{s, memstore.New()} {
		if _, err := s.Commit(t.Context(), store.Fence{}, put("task/2", ""), put("decision/2", "")); !errors.Is(err, store.ErrLimit) {
			t.Errorf("a commit in both halves: %v, want ErrLimit", err)
		}
	}
}

// FENCE: a term that has begun in one half has begun in both.
func TestFirstCommitOfATermFencesBothHalves(t *testing.T) {
	rest := memstore.New()
	s := splitstore.New(memstore.New(), rest)
	defer s.Close()
	commit(t, s, store.Fence{Epoch: 1}, put("task/1", ""))
	commit(t, s, store.Fence{Epoch: 2}, put("counter/order", "1"))
	if _, err := rest.Commit(t.Context(), store.Fence{Epoch: 1}, put("task/1", "late")); !errors.Is(err, store.ErrFenced) {
		t.Errorf("an old leader writes a task after the new one began: %v, want ErrFenced", err)
	}
	before, err := rest.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, store.Fence{Epoch: 2}, put("counter/order", "2"))
	if after, err := rest.Revision(t.Context()); err != nil || after != before {
		t.Errorf("the second commit of the term fenced again: %d after %d, %v", after, before, err)
	}
	// Whoever is refused where it decides fences nobody.
	if _, err := s.Commit(t.Context(), store.Fence{Epoch: 9}, store.Op{Kind: store.Create, Key: "counter/order"}); err == nil {
		t.Fatal("created twice")
	}
	commit(t, s, store.Fence{Epoch: 2}, put("task/1", ""))
	// Nor does a term begin that could not fence both.
	if err := rest.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), store.Fence{Epoch: 10}, put("counter/order", "3")); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("a term began without the other half: %v, want ErrUnknown", err)
	}
}

// Redis loses its last second under a leader that decides all the time: the leader is told and ends, nothing that decides
// is lost, and the next one finds what Redis still has.
func TestRedisLosesItsLastSecond(t *testing.T) {
	consul, redis := consultest.Start(t, consultest.Options{}), redistest.Start(t, redistest.Options{})
	open := func() *splitstore.Store {
		deciding, err := consulstore.Open(t.Context(), consul.URL, consulstore.Options{Prefix: consulstore.Prefix("c"), WithoutSession: true})
		if err != nil {
			t.Fatal(err)
		}
		rest, err := redisstore.Open(t.Context(), redis.URL, redisstore.Options{Cluster: "c"})
		if err != nil {
			t.Fatal(err)
		}
		s := splitstore.New(deciding, rest)
		t.Cleanup(func() { s.Close() })
		return s
	}
	leader, term := open(), store.Fence{Epoch: 1}
	deploy := func(s store.Store, term store.Fence, n int) error {
		id := fmt.Sprintf("%03d", n)
		for _, op := range []store.Op{
			put("deploy/"+id, "open"), {Kind: store.Create, Key: "decision/" + id, Value: []byte(id)}, put("deploy/"+id, "done"),
		} {
			if _, err := s.Commit(t.Context(), term, op); err != nil {
				return err
			}
		}
		return nil
	}
	for n := range 20 {
		if err := deploy(leader, term, n); err != nil {
			t.Fatal(err)
		}
	}
	backup := redis.Backup(t)
	decided := 20
	for ; decided < 40; decided++ {
		if err := deploy(leader, term, decided); err != nil {
			t.Fatal(err)
		}
	}
	redis.Rollback(t, backup)
	if err := deploy(leader, term, decided); !errors.Is(err, store.ErrWentBack) {
		t.Fatalf("the leader goes on over a Redis that went back: %v, want ErrWentBack", err)
	}
	next := open()
	commit(t, next, store.Fence{Epoch: 2}, put("counter/order", "1"))
	if got := strings.Fields(keys(t, next, "decision/", "", 0)); len(got) != decided {
		t.Errorf("%d of %d decisions are there", len(got), decided)
	}
	if got := strings.Fields(keys(t, next, "deploy/", "", 0)); len(got) != 20 {
		t.Errorf("%d deploys are in Redis, want the 20 of before", len(got))
	}
	if err := deploy(leader, term, 90); !errors.Is(err, store.ErrFenced) && !errors.Is(err, store.ErrWentBack) {
		t.Errorf("the old leader goes on: %v", err)
	}
	if _, err := leader.Commit(t.Context(), term, put("decision/late", "")); !errors.Is(err, store.ErrFenced) {
		t.Errorf("the old leader decides: %v, want ErrFenced", err)
	}
	if err := deploy(next, store.Fence{Epoch: 2}, 91); err != nil {
		t.Errorf("the next leader: %v", err)
	}
}
