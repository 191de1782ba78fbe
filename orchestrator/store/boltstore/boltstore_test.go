package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("BOLTSTORE_TEST_WRITER"); path != "" {
		writeUntilKilled(path)
	}
	leaktest.Main(m)
}

func open(t testing.TB, path string, opts Options) *Store {
	t.Helper()
	s, err := Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		return open(t, filepath.Join(dir, "state.db"), Options{})
	})
}

func TestHistory(t *testing.T) {
	storetest.RunHistory(t, 20, func(t *testing.T) store.Store {
		return open(t, filepath.Join(t.TempDir(), "state.db"), Options{History: 20})
	})
}

func TestHistories(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{})
	storetest.RunHistories(t, []store.Store{s}, nil)
}

func TestHistoryBytes(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{HistoryBytes: 1000})
	for range 10 {
		if _, err := s.Commit(t.Context(), store.Fence{}, store.Op{Kind: store.Put, Key: "k", Value: make([]byte, 300)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Watch(t.Context(), 6); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch from 6: %v, want ErrCompacted", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := s.Watch(ctx, 7); err != nil {
		t.Errorf("watch from 7: %v", err)
	}
}

func TestFileMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	open(t, path, Options{})
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v, want 0600", info.Mode(), err)
	}
}

func TestSecondProcessIsToldWhatToDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	open(t, path, Options{})
	_, err := Open(path, Options{LockTimeout: 20 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "stop the orchestrator") {
		t.Fatalf("got %v, want an error that names the file and what to do", err)
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, Options{})
	err := s.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keyFormat, number(store.FormatVersion+1))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "format 2") {
		t.Fatalf("got %v, want a refusal that names the format", err)
	}
}

// TestDamagedFileIsRefused: whatever happened to the file, Open says so and what to do: it does not panic, and it never
// takes the file for a new one.
func TestDamagedFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, Options{})
	for i := range 200 {
		op := store.Op{Kind: store.Put, Key: fmt.Sprint("key/", i), Value: bytes.Repeat([]byte{byte(i)}, 2000)}
		if _, err := s.Commit(t.Context(), store.Fence{Epoch: 1}, op); err != nil {
			t.Fatal(err)
		}
	}
	var used int64
	if err := s.db.View(func(tx *bolt.Tx) error { used = tx.Size(); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, len(good))
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	for name, data := range map[string][]byte{
		"empty":            {},
		"text":             []byte("hello"),
		"zeros":            make([]byte, len(good)),
		"first pages only": good[:8192],
		"half":             good[:used/2],
		"short by a page":  good[:used-4096],
		"noise":            noise,
		"noise after meta": append(bytes.Clone(good[:8192]), noise[8192:]...),
		"damaged meta":     append(bytes.Clone(noise[:8192]), good[8192:]...),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path, Options{LockTimeout: 100 * time.Millisecond})
		if err == nil {
			_ = s.Close()
			t.Errorf("%s: opened", name)
			continue
		}
		if !errors.Is(err, errNotWhole) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "put back a copy") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{})
	if rev, err := s.Revision(t.Context()); err != nil || rev != 200 {
		t.Fatalf("with the copy put back: revision %d, %v", rev, err)
	}
	left, err := filepath.Glob(path + ".new-*")
	if err != nil || len(left) > 0 {
		t.Fatalf("left behind: %v %v", left, err)
	}
}

func TestReopenKeepsEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, Options{})
	for i := range 3 {
		if _, err := s.Commit(t.Context(), store.Fence{Epoch: 7}, store.Op{Kind: store.Put, Key: "a", Value: []byte{byte(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{})
	rec, err := s.Get(t.Context(), "a")
	if err != nil || rec.Revision != 3 || rec.Value[0] != 2 {
		t.Fatalf("after reopening: %+v %v", rec, err)
	}
	if _, err := s.Commit(t.Context(), store.Fence{Epoch: 6}, store.Op{Kind: store.Put, Key: "a"}); !errors.Is(err, store.ErrFenced) {
		t.Fatalf("the fence was forgotten: %v", err)
	}
	ch, err := s.Watch(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if b := <-ch; b.Revision != store.Revision(i+1) {
			t.Fatalf("batch %d has revision %d", i, b.Revision)
		}
	}
}

// TestFailedWriteEndsTheTerm: what the disk did not confirm is unknown, and nothing is written after it.
func TestFailedWriteEndsTheTerm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	var fail bool
	s := open(t, path, Options{beforeSync: func() error {
		if fail {
			return syscall.EIO
		}
		return nil
	}})
	op := store.Op{Kind: store.Put, Key: "a"}
	if _, err := s.Commit(t.Context(), store.Fence{}, op); err != nil {
		t.Fatal(err)
	}
	fail = true
	if _, err := s.Commit(t.Context(), store.Fence{}, op); !errors.Is(err, store.ErrUnknown) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("got %v, want ErrUnknown with its cause", err)
	}
	fail = false
	_, err := s.Commit(t.Context(), store.Fence{}, op)
	if !errors.Is(err, store.ErrClosed) || !strings.Contains(err.Error(), path) {
		t.Fatalf("a write after a failed one: %v, want a refusal that names the file", err)
	}
	if _, err := s.Get(t.Context(), "a"); err != nil {
		t.Fatalf("reading goes on: %v", err)
	}
}

// TestCommitsShareOneSync: those that wait together are written together, each with its own outcome.
func TestCommitsShareOneSync(t *testing.T) {
	syncs := 0
	entered, release := make(chan struct{}, 100), make(chan struct{})
	s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{beforeSync: func() error {
		syncs++
		entered <- struct{}{}
		<-release
		return nil
	}})
	var wg sync.WaitGroup
	commit := func(op store.Op, wantConflict bool) {
		wg.Go(func() {
			_, err := s.Commit(t.Context(), store.Fence{}, op)
			var conflict *store.ConflictError
			if errors.As(err, &conflict) != wantConflict || (err != nil && !wantConflict) {
				t.Errorf("%v: %v", op.Key, err)
			}
		})
	}
	commit(store.Op{Kind: store.Create, Key: "first"}, false)
	<-entered
	for i := range 10 {
		commit(store.Op{Kind: store.Create, Key: fmt.Sprint(i)}, false)
		commit(store.Op{Kind: store.Create, Key: "first"}, true)
	}
	for s.queue.Len() < 20 {
		time.Sleep(time.Millisecond)
	}
	close(release)
	wg.Wait()
	if syncs != 2 {
		t.Errorf("%d syncs for 1 + 10 commits, want 2", syncs)
	}
	if rev, _ := s.Revision(t.Context()); rev != 11 {
		t.Errorf("revision %d, want 11", rev)
	}
}

// TestKilledProcess: what was acknowledged before kill -9 is there afterwards, and no half of a Commit.
func TestKilledProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BOLTSTORE_TEST_WRITER="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked := 0
	for acked < 20 {
		if _, err := fmt.Fscanln(out, &acked); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	s := open(t, path, Options{})
	a, err := s.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Get(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if a.Revision < store.Revision(acked) || a.Revision != b.Revision {
		t.Errorf("a is at %d and b at %d, %d was acknowledged", a.Revision, b.Revision, acked)
	}
}

func writeUntilKilled(path string) {
	s, err := Open(path, Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		rev, err := s.Commit(context.Background(), store.Fence{}, store.Op{Kind: store.Put, Key: "a"}, store.Op{Kind: store.Put, Key: "b"})
		if err != nil {
			os.Exit(1)
		}
		fmt.Println(rev)
	}
}

// FuzzDecodeChanges: whatever is in the file, decoding ends with a batch or an error.
func FuzzDecodeChanges(f *testing.F) {
	f.Add(encodeChanges([]store.Change{{Record: store.Record{Key: "a", Value: []byte("b")}}, {Record: store.Record{Key: "c"}, Deleted: true}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		batch, err := decodeChanges(1, b)
		if err != nil {
			return
		}
		again, err := decodeChanges(1, encodeChanges(batch.Changes))
		if err != nil || len(again.Changes) != len(batch.Changes) {
			t.Fatalf("%v %v", again, err)
		}
	})
}

// BenchmarkCommit is the time of one durable Commit of 512 bytes, one after the other.
func BenchmarkCommit(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "state.db"), Options{})
	value := bytes.Repeat([]byte("x"), 512)
	for b.Loop() {
		if _, err := s.Commit(b.Context(), store.Fence{}, store.Op{Kind: store.Put, Key: "a", Value: value}); err != nil {
			b.Fatal(err)
		}
	}
}
