package memstore_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
	"github.com/cutover/cutover/orchestrator/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
