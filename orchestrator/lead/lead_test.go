package lead_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/orchestrator/lead"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/boltstore"
	"github.com/cutover/cutover/orchestrator/store/memstore"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func acquire(t *testing.T, dir string, s store.Store) *lead.Term {
	t.Helper()
	term, err := lead.Acquire(t.Context(), dir, s)
	if err != nil {
		t.Fatal(err)
	}
	return term
}

func release(t *testing.T, term *lead.Term) {
	t.Helper()
	if err := term.Release(); err != nil {
		t.Fatal(err)
	}
}

func TestEpochGrowsWithEachStartAndIsDurable(t *testing.T) {
	dir := t.TempDir()
	for want := uint64(1); want <= 3; want++ {
		s, err := boltstore.Open(filepath.Join(dir, "state.db"), boltstore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		term := acquire(t, dir, s)
		if term.Epoch() != want || term.Fence().Epoch != want {
			t.Errorf("start %d has epoch %d", want, term.Epoch())
		}
		// FENCE: a write of the term before is refused at once.
		_, err = s.Commit(t.Context(), store.Fence{Epoch: want - 1}, store.Op{Kind: store.Put, Key: "x"})
		if !errors.Is(err, store.ErrFenced) {
			t.Errorf("a write of epoch %d in term %d: %v", want-1, want, err)
		}
		release(t, term)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, lead.LockFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("lock file: %v %v", info, err)
	}
}

func TestSecondLeaderWaitsAndIsToldWhatToDo(t *testing.T) {
	dir, s := t.TempDir(), memstore.New()
	first := acquire(t, dir, s)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := lead.Acquire(ctx, dir, s)
	if !errors.Is(err, lead.ErrHeld) || !strings.Contains(err.Error(), lead.LockFile) {
		t.Fatalf("got %v, want ErrHeld that names the file", err)
	}
	got := make(chan *lead.Term)
	go func() {
		term, err := lead.Acquire(t.Context(), dir, s)
		if err != nil {
			t.Error(err)
		}
		got <- term
	}()
	release(t, first)
	second := <-got
	if second.Epoch() != 2 {
		t.Errorf("second term has epoch %d, want 2", second.Epoch())
	}
	release(t, second)
}

func TestFatalEndsTheTermOnce(t *testing.T) {
	term := acquire(t, t.TempDir(), memstore.New())
	if term.Err() != nil {
		t.Fatal("a new term has an error")
	}
	term.Fatal(store.ErrUnknown)
	term.Fatal(errors.New("later"))
	<-term.Done()
	if !errors.Is(term.Err(), store.ErrUnknown) {
		t.Errorf("Err() = %v, want the first one", term.Err())
	}
	release(t, term)
	if !errors.Is(term.Err(), store.ErrUnknown) {
		t.Errorf("Release forgot why the term ended: %v", term.Err())
	}
}

func TestRaise(t *testing.T) {
	dir, s := t.TempDir(), memstore.New()
	term := acquire(t, dir, s)
	if err := term.Raise(t.Context(), 40); err != nil {
		t.Fatal(err)
	}
	<-term.Done()
	release(t, term)
	next := acquire(t, dir, s)
	defer release(t, next)
	if next.Epoch() <= 40 {
		t.Errorf("epoch %d after a host had seen 40", next.Epoch())
	}
	if err := next.Raise(t.Context(), next.Epoch()); err != nil || next.Err() != nil {
		t.Errorf("an older epoch ended the term: %v %v", err, next.Err())
	}
}
