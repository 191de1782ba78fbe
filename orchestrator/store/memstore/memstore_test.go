package memstore_test

import (
	"testing"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
	"github.com/cutover/cutover/orchestrator/store/storetest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		s := memstore.New()
		t.Cleanup(func() { _ = s.Close() })
		return s
	})
}

func TestHistory(t *testing.T) {
	storetest.RunHistory(t, 20, func(t *testing.T) store.Store {
		s := memstore.NewWithHistory(20)
		t.Cleanup(func() { _ = s.Close() })
		return s
	})
}

func TestHistories(t *testing.T) {
	storetest.RunHistories(t, []store.Store{memstore.New()}, nil)
}

// BenchmarkCommit is what the port itself costs.
func BenchmarkCommit(b *testing.B) {
	s, value := memstore.New(), make([]byte, 512)
	defer s.Close()
	for b.Loop() {
		if _, err := s.Commit(b.Context(), store.Fence{}, store.Op{Kind: store.Put, Key: "a", Value: value}); err != nil {
			b.Fatal(err)
		}
	}
}
