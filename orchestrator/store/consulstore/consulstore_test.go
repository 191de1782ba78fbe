package consulstore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/internal/consulclient"
	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/servertest/consultest"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/consulstore"
	"github.com/cutover/cutover/orchestrator/store/storetest"
)

// patience is how long a server may take to come back.
const patience = 2 * time.Minute

func TestMain(m *testing.M) { leaktest.Main(m) }

// open opens the state below prefix, without a session unless opts say otherwise.
func open(t testing.TB, server *consultest.Server, prefix string, opts consulstore.Options) *consulstore.Store {
	t.Helper()
	opts.Prefix, opts.Client.Token = prefix, server.Token
	s, err := consulstore.Open(t.Context(), server.URL, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func prefix() string { return "cutover/" + rand.Text() }

func TestConformance(t *testing.T) {
	server := consultest.Start(t, consultest.Options{})
	storetest.Run(t, func(t *testing.T) store.Store {
		return open(t, server, prefix(), consulstore.Options{WithoutSession: true})
	})
	t.Run("history", func(t *testing.T) {
		storetest.RunHistory(t, 16, func(t *testing.T) store.Store {
			return open(t, server, prefix(), consulstore.Options{WithoutSession: true, History: 16})
		})
	})
}

// lock takes the leader's lock with a new session.
func lock(t *testing.T, client *api.Client, prefix string) string {
	t.Helper()
	session, _, err := client.Session().CreateNoChecks(&api.SessionEntry{Behavior: api.SessionBehaviorRelease, LockDelay: time.Millisecond}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		ok, _, err := client.KV().Acquire(&api.KVPair{Key: consulstore.LeaderKey(prefix), Session: session}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			return session
		}
		if time.Now().After(deadline) {
			t.Fatal("the lock was not free")
		}
	}
}

func put(key, value string) store.Op {
	return store.Op{Kind: store.Put, Key: key, Value: []byte(value)}
}

// FENCE: who lost the lock can write nothing, whatever it believes and whatever epoch it has.
func TestSessionThatLostTheLockIsFenced(t *testing.T) {
	server := consultest.Start(t, consultest.Options{})
	client, prefix := server.Client(t), prefix()
	old, next := open(t, server, prefix, consulstore.Options{}), open(t, server, prefix, consulstore.Options{})

	if _, err := old.Commit(t.Context(), store.Fence{Epoch: 1}, put("a", "1")); err == nil {
		t.Fatal("a write that names no session was accepted")
	}
	first := store.Fence{Epoch: 1, Session: lock(t, client, prefix)}
	if _, err := old.Commit(t.Context(), first, put("a", "1")); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Session().Destroy(first.Session, nil); err != nil {
		t.Fatal(err)
	}
	// The lock is free, and nobody else has written: only the session can tell.
	if _, err := old.Commit(t.Context(), first, put("a", "late")); !errors.Is(err, store.ErrFenced) {
		t.Fatalf("a write of a lost session: %v, want ErrFenced", err)
	}
	second := store.Fence{Epoch: 2, Session: lock(t, client, prefix)}
	if _, err := next.Commit(t.Context(), second, store.Op{Kind: store.Check, Key: "none"}); err != nil {
		t.Fatal(err)
	}
	for _, fence := range []store.Fence{first, {Epoch: 9, Session: first.Session}} {
		if _, err := old.Commit(t.Context(), fence, put("a", "late")); !errors.Is(err, store.ErrFenced) {
			t.Errorf("a write of %+v: %v, want ErrFenced", fence, err)
		}
	}
	// The epoch fences too: the holder of the lock with a number that is too low.
	if _, err := next.Commit(t.Context(), store.Fence{Epoch: 1, Session: second.Session}, put("a", "low")); !errors.Is(err, store.ErrFenced) {
		t.Errorf("an epoch below the highest: %v, want ErrFenced", err)
	}
	rec, err := next.Get(t.Context(), "a")
	if err != nil || string(rec.Value) != "1" {
		t.Errorf("a = %q, %v", rec.Value, err)
	}
}

// A Commit whose answer is lost happened once or not at all, and the caller is told which: kill -9 of Consul in the
// middle of a row of increments must lose none and count none twice.
func TestKilledServerCostsTimeOnly(t *testing.T) {
	server := consultest.Start(t, consultest.Options{})
	s := open(t, server, prefix(), consulstore.Options{WithoutSession: true, CallTimeout: 2 * time.Second, WriteTimeout: patience})
	done, rounds := make(chan error, 1), make(chan int)
	go func() {
		defer close(rounds)
		rev := store.Revision(0)
		for n := range 400 {
			next, err := s.Commit(context.Background(), store.Fence{Epoch: 1}, store.Op{
				Kind: map[bool]store.OpKind{true: store.Create, false: store.Replace}[rev == 0],
				Key:  "n", Value: fmt.Append(nil, n), Expect: rev,
			})
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
		if n == 100 || n == 250 {
			server.Kill()
			server.Start()
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	rec, err := s.Get(t.Context(), "n")
	if err != nil || string(rec.Value) != "399" || rec.Revision != 400 {
		t.Errorf("n = %q at %d, %v: want 399 at 400", rec.Value, rec.Revision, err)
	}
}

// Clients of several processes on one state, while Consul is killed and frozen: every answer has its place in one order.
func TestHistories(t *testing.T) {
	server := consultest.Start(t, consultest.Options{})
	for name, opts := range map[string]consulstore.Options{
		"patient":   {WithoutSession: true, CallTimeout: time.Second, WriteTimeout: patience},
		"impatient": {WithoutSession: true, CallTimeout: 50 * time.Millisecond, WriteTimeout: 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			p := prefix()
			stores := []store.Store{open(t, server, p, opts), open(t, server, p, opts)}
			unknown := storetest.RunHistories(t, stores, func() {
				for range 3 {
					time.Sleep(30 * time.Millisecond) // into the middle of the history
					server.Freeze()
					time.Sleep(120 * time.Millisecond) // longer than the impatient wait for an answer
					server.Thaw()
				}
				server.Kill()
				server.Start()
			})
			if name == "patient" && unknown > 0 {
				t.Errorf("%d outcomes are unknown although Consul came back in time", unknown)
			}
		})
	}
}

func TestUnreachableServer(t *testing.T) {
	server := consultest.Start(t, consultest.Options{})
	s := open(t, server, prefix(), consulstore.Options{WithoutSession: true, WriteTimeout: 3 * time.Second, CallTimeout: time.Second})
	if _, err := s.Commit(t.Context(), store.Fence{}, put("a", "1")); err != nil {
		t.Fatal(err)
	}
	server.Freeze()
	// It was sent and no answer came.
	if _, err := s.Commit(t.Context(), store.Fence{}, put("a", "2")); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("a write that was sent and not answered: %v, want ErrUnknown", err)
	}
	if _, err := s.Get(t.Context(), "a"); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("a read without an answer: %v", err)
	}
	server.Thaw()
	server.Kill()
	if _, err := s.Commit(t.Context(), store.Fence{}, put("a", "3")); err == nil || errors.Is(err, store.ErrUnknown) {
		t.Errorf("a write that could not be sent: %v, want an error that says that nothing was written", err)
	}
	if _, err := consulstore.Open(t.Context(), server.URL, consulstore.Options{Prefix: "p"}); err == nil {
		t.Error("opened without a server")
	}
}

// The policy of docs/stores.md is enough, and without the right to read nothing is taken for absent.
func TestAccessControl(t *testing.T) {
	server := consultest.Start(t, consultest.Options{ACL: true})
	client := server.Client(t)
	token := func(name, rules string) string {
		policy, _, err := client.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, _, err := client.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{ID: policy.ID}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return token.SecretID
	}
	open := func(token string) (*consulstore.Store, error) {
		return consulstore.Open(t.Context(), server.URL, consulstore.Options{
			Prefix: "cutover/shop", WithoutSession: true, Client: consulclient.Options{Token: token},
		})
	}
	s, err := open(token("cutover", `key_prefix "cutover/shop/" { policy = "write" }`))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Commit(t.Context(), store.Fence{}, put("a", "1")); err != nil {
		t.Fatal(err)
	}
	reader, err := open(token("reader", `key_prefix "cutover/shop/" { policy = "read" }`))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if _, err := reader.Commit(t.Context(), store.Fence{}, put("a", "2")); err == nil || errors.Is(err, store.ErrUnknown) || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("a write with a token that may only read: %v", err)
	}
	if s, err := open(token("other", `key_prefix "other/" { policy = "write" }`)); err == nil {
		t.Error("a token that may not read the prefix was accepted")
		s.Close()
	}
}

func TestLargeCommits(t *testing.T) {
	server := consultest.Start(t, consultest.Options{})
	s := open(t, server, prefix(), consulstore.Options{WithoutSession: true})
	random := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rand.Read(b)
		return b
	}
	// Nothing of it can be compressed, and the changes do not fit beside it: a watch has to begin anew.
	big := random(300 << 10)
	if _, err := s.Commit(t.Context(), store.Fence{}, store.Op{Kind: store.Put, Key: "big", Value: big}); err != nil {
		t.Fatal(err)
	}
	rec, err := s.Get(t.Context(), "big")
	if err != nil || string(rec.Value) != string(big) {
		t.Fatalf("%d bytes, %v", len(rec.Value), err)
	}
	if _, err := s.Watch(t.Context(), 0); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("a watch over changes that were not kept: %v, want ErrCompacted", err)
	}
	_, err = s.Commit(t.Context(), store.Fence{}, store.Op{Kind: store.Put, Key: "bigger", Value: random(500 << 10)})
	if !errors.Is(err, store.ErrLimit) {
		t.Errorf("more than Consul takes: %v, want ErrLimit", err)
	}
	if _, err := s.Get(t.Context(), "bigger"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("it was refused, and yet: %v", err)
	}
}

// BenchmarkCommit is the time of one durable Commit of 512 bytes, one after the other.
func BenchmarkCommit(b *testing.B) {
	server := consultest.Start(b, consultest.Options{})
	s := open(b, server, prefix(), consulstore.Options{WithoutSession: true})
	value := strings.Repeat("x", 512)
	for b.Loop() {
		if _, err := s.Commit(b.Context(), store.Fence{}, put("a", value)); err != nil {
			b.Fatal(err)
		}
	}
}
