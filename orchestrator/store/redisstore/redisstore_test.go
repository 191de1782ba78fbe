package redisstore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/servertest/redistest"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/redisstore"
	"github.com/cutover/cutover/orchestrator/store/storetest"
)

// patience is how long a server may take to come back.
const patience = 2 * time.Minute

func TestMain(m *testing.M) { leaktest.Main(m) }

func open(t testing.TB, server *redistest.Server, cluster string, opts redisstore.Options) *redisstore.Store {
	t.Helper()
	opts.Cluster = cluster
	s, err := redisstore.Open(t.Context(), server.URL, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(key, value string) store.Op {
	return store.Op{Kind: store.Put, Key: key, Value: []byte(value)}
}

func commit(t *testing.T, s store.Store, epoch uint64, ops ...store.Op) store.Revision {
	t.Helper()
	rev, err := s.Commit(t.Context(), store.Fence{Epoch: epoch}, ops...)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestConformance(t *testing.T) {
	server := redistest.Start(t, redistest.Options{})
	storetest.Run(t, func(t *testing.T) store.Store {
		return open(t, server, rand.Text(), redisstore.Options{})
	})
	t.Run("history", func(t *testing.T) {
		storetest.RunHistory(t, 50, func(t *testing.T) store.Store {
			return open(t, server, rand.Text(), redisstore.Options{History: 50})
		})
	})
}

func TestHistoryIsBoundedInBytes(t *testing.T) {
	s := open(t, redistest.Start(t, redistest.Options{}), "c", redisstore.Options{HistoryBytes: 10_000})
	for range 30 {
		commit(t, s, 1, put("k", strings.Repeat("x", 999)))
	}
	if _, err := s.Watch(t.Context(), 19); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("11 Commits of 1,000 bytes in 10,000: %v, want ErrCompacted", err)
	}
	if _, err := s.Watch(t.Context(), 20); err != nil {
		t.Errorf("10 Commits of 1,000 bytes in 10,000: %v", err)
	}
}

func TestUnfitServersAreRefused(t *testing.T) {
	evicts := redistest.Start(t, redistest.Options{Policy: "allkeys-lru"})
	if _, err := redisstore.Open(t.Context(), evicts.URL, redisstore.Options{Cluster: "c"}); err == nil || !strings.Contains(err.Error(), "noeviction") {
		t.Errorf("a Redis that evicts: %v", err)
	}
	primary := redistest.Start(t, redistest.Options{})
	replica := redistest.Start(t, redistest.Options{ReplicaOf: primary})
	if _, err := redisstore.Open(t.Context(), replica.URL, redisstore.Options{Cluster: "c"}); err == nil || !strings.Contains(err.Error(), "primary") {
		t.Errorf("a replica: %v", err)
	}
	primary.Do(t, "HSET", "{cutover:c}:head", "format", "999", "revision", "1", "nonce", "x")
	if _, err := redisstore.Open(t.Context(), primary.URL, redisstore.Options{Cluster: "c"}); err == nil || !strings.Contains(err.Error(), "999") {
		t.Errorf("a state of the future: %v", err)
	}
	primary.Kill()
	if _, err := redisstore.Open(t.Context(), primary.URL, redisstore.Options{Cluster: "c"}); err == nil {
		t.Error("opened without a server")
	}
}

func TestAddresses(t *testing.T) {
	for address, ok := range map[string]bool{
		"redis://10.0.0.1:6379": false, "redis://:secret@redis.example:6379": false, "http://127.0.0.1:1": false,
		"redis://127.0.0.1:1?db=1": false, "": false, "redis://:secret@127.0.0.1:1": true, "redis://:secret@127.0.0.1:1/2?plaintext=allowed": true,
	} {
		_, err := redisstore.Open(t.Context(), address, redisstore.Options{Cluster: "c"})
		if refused := strings.Contains(err.Error(), "address of Redis"); refused == ok {
			t.Errorf("%q: %v", address, err)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

// Redis losing its last second is seen at once by whoever knew that second, by every kind of call.
func TestWentBack(t *testing.T) {
	calls := map[string]func(s store.Store) error{
		"Commit": func(s store.Store) error {
			_, err := s.Commit(t.Context(), store.Fence{Epoch: 1}, put("a", "3"))
			return err
		},
		"Get":      func(s store.Store) error { _, err := s.Get(t.Context(), "a"); return err },
		"List":     func(s store.Store) error { _, err := s.List(t.Context(), "", "", 0); return err },
		"Revision": func(s store.Store) error { _, err := s.Revision(t.Context()); return err },
		"Watch":    func(s store.Store) error { _, err := s.Watch(t.Context(), 2); return err },
	}
	server := redistest.Start(t, redistest.Options{})
	stores := map[string]store.Store{}
	for name := range calls {
		s := open(t, server, name, redisstore.Options{})
		commit(t, s, 1, put("a", "1"))
		stores[name] = s
	}
	watched, err := stores["Watch"].Watch(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	backup := server.Backup(t)
	for _, s := range stores {
		commit(t, s, 1, put("a", "2"))
	}
	server.Rollback(t, backup)
	for name, call := range calls {
		if err := call(stores[name]); !errors.Is(err, store.ErrWentBack) {
			t.Errorf("%s after Redis went back: %v, want ErrWentBack", name, err)
		}
		// It stays so, whatever Redis does next: the term is over.
		if _, err := stores[name].Commit(t.Context(), store.Fence{Epoch: 1}, put("a", "4")); !errors.Is(err, store.ErrWentBack) {
			t.Errorf("%s, then Commit: %v, want ErrWentBack", name, err)
		}
		next := open(t, server, name, redisstore.Options{})
		if rec, err := next.Get(t.Context(), "a"); err != nil || string(rec.Value) != "1" {
			t.Errorf("the next term finds %q, %v", rec.Value, err)
		}
		commit(t, next, 2, put("a", "5"))
	}
	for deadline := time.After(30 * time.Second); ; {
		select {
		case _, ok := <-watched:
			if !ok {
				return
			}
		case <-deadline:
			t.Fatal("the watch goes on although Redis went back")
		}
	}
}

// Going back is seen also when somebody else has meanwhile written as much as was lost, or more: the revision alone is
// no proof.
func TestWentBackUnderAnotherWriter(t *testing.T) {
	for _, more := range []int{0, 3} {
		server := redistest.Start(t, redistest.Options{})
		leader, late := open(t, server, "c", redisstore.Options{}), open(t, server, "c", redisstore.Options{})
		commit(t, late, 1, put("a", "1"))
		backup := server.Backup(t)
		commit(t, leader, 2, put("a", "2"))
		// With it Redis forgot epoch 2, so an old leader gets in.
		server.Rollback(t, backup)
		for range 1 + more {
			commit(t, late, 1, put("a", "late"))
		}
		if _, err := leader.Commit(t.Context(), store.Fence{Epoch: 2}, put("b", "1")); !errors.Is(err, store.ErrWentBack) {
			t.Errorf("%d foreign Commits after going back: %v, want ErrWentBack", 1+more, err)
		}
	}
}

// A failover that lost nothing is none of our business; one that lost what was
// acknowledged is going back.
func TestFailover(t *testing.T) {
	for _, behind := range []bool{false, true} {
		primary := redistest.Start(t, redistest.Options{})
		s := open(t, primary, "c", redisstore.Options{})
		commit(t, s, 1, put("a", "1"))
		replica := redistest.Start(t, redistest.Options{ReplicaOf: primary})
		replica.Promote(t)
		if behind {
			commit(t, s, 1, put("a", "2")) // the primary acknowledges what the new one will never have
		}
		primary.Kill()
		replica.TakePlaceOf(t, primary)
		_, err := s.Commit(t.Context(), store.Fence{Epoch: 1}, put("a", "3"))
		if behind != errors.Is(err, store.ErrWentBack) || !behind && err != nil {
			t.Errorf("failover, behind=%v: %v", behind, err)
		}
	}
}

// A Commit whose answer is lost happened once or not at all, and the caller is told which.
func TestInterruptedServerCostsTimeOnly(t *testing.T) {
	server := redistest.Start(t, redistest.Options{AppendFsync: "always"})
	s := open(t, server, "c", redisstore.Options{CallTimeout: 150 * time.Millisecond, WriteTimeout: patience})
	done, rounds := make(chan error, 1), make(chan int)
	const last = 1200
	go func() {
		defer close(rounds)
		rev := store.Revision(0)
		for n := range last {
			kind := store.Replace
			if rev == 0 {
				kind = store.Create
			}
			next, err := s.Commit(context.Background(), store.Fence{Epoch: 1}, store.Op{Kind: kind, Key: "n", Value: fmt.Append(nil, n), Expect: rev})
			if err != nil {
				done <- fmt.Errorf("commit %d: %w", n, err)
				return
			}
			rev = next
			rounds <- n
		}
		done <- nil
	}()
	for n := range rounds {
		switch n {
		case 100, 500, 900:
			server.Kill()
			server.Start()
		case 200, 300, 600, 700:
			server.Freeze()
			time.AfterFunc(400*time.Millisecond, server.Thaw) // longer than a call waits: its answer is lost
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	rec, err := s.Get(t.Context(), "n")
	if err != nil || string(rec.Value) != fmt.Sprint(last-1) || rec.Revision != last {
		t.Errorf("n = %q at %d, %v: want %d at %d", rec.Value, rec.Revision, err, last-1, last)
	}
}

// Clients of several processes on one state, while Redis is killed and frozen: every answer has its place in one order.
func TestHistories(t *testing.T) {
	server := redistest.Start(t, redistest.Options{AppendFsync: "always"})
	for name, opts := range map[string]redisstore.Options{
		"patient":   {CallTimeout: 100 * time.Millisecond, WriteTimeout: patience},
		"impatient": {CallTimeout: 50 * time.Millisecond, WriteTimeout: 80 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			stores := []store.Store{open(t, server, name, opts), open(t, server, name, opts)}
			unknown := storetest.RunHistories(t, stores, func() {
				for range 3 {
					time.Sleep(20 * time.Millisecond) // into the middle of the history
					server.Freeze()
					time.Sleep(200 * time.Millisecond) // longer than anybody waits for one answer
					server.Thaw()
				}
				server.Kill()
				server.Start()
			})
			if name == "patient" && unknown > 0 {
				t.Errorf("%d outcomes are unknown although Redis came back in time", unknown)
			}
		})
	}
}

func TestSilentServer(t *testing.T) {
	server := redistest.Start(t, redistest.Options{})
	s := open(t, server, "c", redisstore.Options{WriteTimeout: 3 * time.Second, CallTimeout: time.Second})
	commit(t, s, 1, put("a", "1"))
	server.Freeze()
	if _, err := s.Commit(t.Context(), store.Fence{Epoch: 1}, put("a", "2")); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("a write that was sent and not answered: %v, want ErrUnknown", err)
	}
	if _, err := s.Get(t.Context(), "a"); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("a read without an answer: %v", err)
	}
	server.Thaw()
	server.Kill()
	if _, err := s.Commit(t.Context(), store.Fence{Epoch: 1}, put("a", "3")); err == nil || errors.Is(err, store.ErrUnknown) {
		t.Errorf("a write that could not be sent: %v, want an error that says that nothing was written", err)
	}
}

// BenchmarkCommit is the time of one Commit of 512 bytes, one after the other.
func BenchmarkCommit(b *testing.B) {
	for _, fsync := range []string{"everysec", "always"} {
		b.Run(fsync, func(b *testing.B) {
			s := open(b, redistest.Start(b, redistest.Options{AppendFsync: fsync}), "c", redisstore.Options{})
			value := strings.Repeat("x", 512)
			for b.Loop() {
				if _, err := s.Commit(b.Context(), store.Fence{}, put("a", value)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
