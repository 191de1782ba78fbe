package storetest

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/cutover/cutover/orchestrator/store"
)

// model is the dumb version that an implementation must agree with.
type model struct {
	records map[string]store.Record
	rev     store.Revision
	fence   uint64
	batches []store.Batch
}

func (m *model) commit(fence uint64, ops []store.Op) error {
	if fence < m.fence {
		return store.ErrFenced
	}
	for _, op := range ops {
		have := m.records[op.Key].Revision
		switch {
		case op.Kind == store.Create && have != 0,
			(op.Kind == store.Replace || op.Kind == store.Check) && have != op.Expect:
			return &store.ConflictError{Key: op.Key, Actual: have}
		}
	}
	m.fence = fence
	m.rev++
	before := map[string]bool{}
	for k := range m.records {
		before[k] = true
	}
	touched := map[string]bool{}
	for _, op := range ops {
		switch op.Kind {
		case store.Check:
			continue
		case store.Delete:
			delete(m.records, op.Key)
		default:
			m.records[op.Key] = store.Record{Key: op.Key, Value: op.Value, Revision: m.rev}
		}
		touched[op.Key] = true
	}
	b := store.Batch{Revision: m.rev}
	for _, k := range sortedKeys(touched) {
		rec, ok := m.records[k]
		switch {
		case ok:
			b.Changes = append(b.Changes, store.Change{Record: rec})
		case before[k]:
			b.Changes = append(b.Changes, store.Change{Record: store.Record{Key: k, Revision: m.rev}, Deleted: true})
		}
	}
	m.batches = append(m.batches, b)
	return nil
}

// testModel runs random histories against the implementation and the model; both must give the same outcomes, the same
// records, and the same batches to a Watch from the start.
func testModel(t *testing.T, open func(t *testing.T) store.Store) {
	rapid.Check(t, func(rt *rapid.T) {
		s := open(t)
		defer s.Close()
		m := &model{records: map[string]store.Record{}}
		keys := []string{"a", "a/b", "a/c", "b"}
		for range rapid.IntRange(1, 12).Draw(rt, "commits") {
			fence := m.fence
			if rapid.IntRange(0, 5).Draw(rt, "fence moves") == 0 {
				fence = uint64(rapid.IntRange(0, 4).Draw(rt, "fence"))
			}
			ops := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) store.Op {
				op := store.Op{
					Kind: store.OpKind(rapid.IntRange(int(store.Put), int(store.Check)).Draw(rt, "kind")),
					Key:  rapid.SampledFrom(keys).Draw(rt, "key"),
				}
				if op.Kind == store.Replace || op.Kind == store.Check {
					op.Expect = m.records[op.Key].Revision
					if rapid.IntRange(0, 3).Draw(rt, "wrong revision") == 0 {
						op.Expect = store.Revision(rapid.IntRange(0, 6).Draw(rt, "expect"))
					}
				}
				if op.Kind <= store.Replace {
					op.Value = rapid.SliceOfN(rapid.Byte(), 0, 3).Draw(rt, "value")
				}
				return op
			}), 1, 4).Draw(rt, "ops")
			rev, err := s.Commit(t.Context(), store.Fence{Epoch: fence}, ops...)
			want := m.commit(fence, ops)
			var conflict, wantConflict *store.ConflictError
			switch {
			case want == nil:
				if err != nil || rev != m.rev {
					rt.Fatalf("Commit(%d, %v) = %d, %v, want revision %d", fence, ops, rev, err, m.rev)
				}
			case errors.As(want, &wantConflict):
				if !errors.As(err, &conflict) || *conflict != *wantConflict {
					rt.Fatalf("Commit(%d, %v): %v, want %v", fence, ops, err, want)
				}
			case !errors.Is(err, want):
				rt.Fatalf("Commit(%d, %v): %v, want %v", fence, ops, err, want)
			}
		}
		var records []store.Record
		for _, k := range sortedKeys(m.records) {
			records = append(records, m.records[k])
		}
		got, err := s.List(t.Context(), "", "", 0)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(records, got, cmpopts.EquateEmpty()); diff != "" {
			rt.Fatalf("records (-want +got):\n%s", diff)
		}
		ch, err := s.Watch(t.Context(), 0)
		if err != nil {
			rt.Fatal(err)
		}
		sorted := cmpopts.SortSlices(func(a, b store.Change) bool { return a.Key < b.Key })
		for _, want := range m.batches {
			if diff := cmp.Diff(want, next(t, ch), cmpopts.EquateEmpty(), sorted); diff != "" {
				rt.Fatalf("batch %d (-want +got):\n%s", want.Revision, diff)
			}
		}
	})
}
