package flock_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestTry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f, err := flock.Try(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := f.Stat(); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := flock.Try(path); !errors.Is(err, flock.ErrHeld) {
		t.Errorf("a held lock: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err = flock.Try(path); err != nil {
		t.Fatalf("a lock that was given back: %v", err)
	}
	_ = f.Close()
	if _, err := flock.Try(filepath.Join(path, "x")); err == nil || errors.Is(err, flock.ErrHeld) {
		t.Errorf("a path that cannot be: %v", err)
	}
}

func TestLockWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := flock.Try(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := flock.Lock(ctx, path); !errors.Is(err, flock.ErrHeld) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("past the deadline: %v", err)
	}
	got := make(chan *os.File, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		f, err := flock.Lock(ctx, path)
		if err != nil {
			t.Error(err)
		}
		got <- f
	}()
	_ = first.Close()
	if f := <-got; f != nil {
		_ = f.Close()
	}
}

func TestShare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	a, err := flock.Share(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := flock.Share(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flock.Try(path); !errors.Is(err, flock.ErrHeld) {
		t.Errorf("beside those who share: %v", err)
	}
	_, _ = a.Close(), b.Close()
	if f, err := flock.Try(path); err != nil {
		t.Error(err)
	} else {
		_ = f.Close()
	}
}
