package lead_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/internal/servertest/consultest"
	"github.com/cutover/cutover/orchestrator/lead"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
)

// patience bounds a wait for something that takes a fraction of it.
const patience = 60 * time.Second

const lockKey = "cutover/test/leader"

func elect(t *testing.T, s *consultest.Server, name string, st store.Store, ttl time.Duration) *lead.Consul {
	t.Helper()
	c, err := lead.NewConsul(lead.ConsulOptions{
		Client: s.Client(t), Key: lockKey, Self: lead.Leader{Name: name, URL: "http://127.0.0.1:1/" + name}, Store: st,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})), TTL: ttl,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func win(t *testing.T, c *lead.Consul) *lead.Term {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	term, err := c.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return term
}

// campaign acquires in the background.
func campaign(t *testing.T, c *lead.Consul) <-chan *lead.Term {
	got := make(chan *lead.Term, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		term, err := c.Acquire(ctx)
		if err != nil {
			t.Error(err)
			close(got)
			return
		}
		got <- term
	}()
	return got
}

func receive(t *testing.T, ch <-chan *lead.Term) *lead.Term {
	t.Helper()
	select {
	case term, ok := <-ch:
		if !ok {
			t.FailNow()
		}
		return term
	case <-time.After(patience):
		t.Fatal("nobody leads")
		return nil
	}
}

func over(t *testing.T, term *lead.Term) {
	t.Helper()
	select {
	case <-term.Done():
	case <-time.After(patience):
		t.Fatal("the term is not over")
	}
}

func sees(t *testing.T, c *lead.Consul, want string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		l, known, changed := c.Leader()
		if known && l.Name == want || !known && want == "" {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("sees %+v (%t), want %q", l, known, want)
		}
	}
}

func TestConsulHandsOver(t *testing.T) {
	t.Parallel()
	s, st := consultest.Start(t, consultest.Options{}), memstore.New()
	a, b := elect(t, s, "a", st, 0), elect(t, s, "b", st, 0)
	first := win(t, a)
	sees(t, a, "a")
	sees(t, b, "a")
	if l, _, _ := b.Leader(); l.URL != "http://127.0.0.1:1/a" {
		t.Errorf("leader is %+v", l)
	}
	if b.Heard().IsZero() {
		t.Error("it knows the leader, and not since when")
	}
	if first.Epoch() != 1 || first.Fence().Session == "" {
		t.Errorf("first fence is %+v", first.Fence())
	}
	next := campaign(t, b)
	select {
	case <-next:
		t.Fatal("two lead at once")
	case <-time.After(300 * time.Millisecond):
	}
	started := time.Now()
	release(t, first)
	second := receive(t, next)
	t.Logf("handed over in %v", time.Since(started))
	if second.Epoch() != 2 {
		t.Errorf("second epoch is %d", second.Epoch())
	}
	if first.Err() != nil {
		t.Errorf("a released term ended because of %v", first.Err())
	}
	// FENCE: nothing of the first term is written any more.
	if _, err := st.Commit(t.Context(), first.Fence(), store.Op{Kind: store.Put, Key: "x"}); !errors.Is(err, store.ErrFenced) {
		t.Errorf("a write of the first term: %v", err)
	}
	sees(t, a, "b")
	// And back, in the same process.
	again := campaign(t, a)
	release(t, second)
	third := receive(t, again)
	if third.Epoch() != 3 {
		t.Errorf("third epoch is %d", third.Epoch())
	}
	release(t, third)
	sees(t, b, "")
}

func TestConsulCrashOfTheLeader(t *testing.T) {
	t.Parallel()
	s, st := consultest.Start(t, consultest.Options{}), memstore.New()
	a, b := elect(t, s, "a", st, time.Second), elect(t, s, "b", st, time.Second)
	first := win(t, a)
	next := campaign(t, b)
	a.Close() // as by kill -9: the lock stays until Consul ends the session
	over(t, first)
	second := receive(t, next)
	if second.Epoch() <= first.Epoch() {
		t.Errorf("epochs %d and %d", first.Epoch(), second.Epoch())
	}
	release(t, second)
}

// Whoever ends the session, or takes the lock away, ends the term at once.
func TestConsulTermEndsWithItsSession(t *testing.T) {
	t.Parallel()
	s := consultest.Start(t, consultest.Options{})
	client := s.Client(t)
	for name, end := range map[string]func(term *lead.Term){
		"session destroyed": func(term *lead.Term) {
			if _, err := client.Session().Destroy(term.Fence().Session, nil); err != nil {
				t.Fatal(err)
			}
		},
		"key deleted": func(*lead.Term) {
			if _, err := client.KV().Delete(lockKey, nil); err != nil {
				t.Fatal(err)
			}
		},
		"lock released by another hand": func(term *lead.Term) {
			if ok, _, err := client.KV().Release(&consul.KVPair{Key: lockKey, Session: term.Fence().Session}, nil); err != nil || !ok {
				t.Fatal(ok, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			st := memstore.New()
			a := elect(t, s, "a", st, 0)
			for range 2 { // it leads again afterwards
				term := win(t, a)
				end(term)
				over(t, term)
				if term.Err() == nil {
					t.Error("the term ended for no reason")
				}
				release(t, term)
			}
		})
	}
}

// A leader that cannot reach Consul for a TTL ends its term by itself, before Consul gives the lock away.
func TestConsulUnreachable(t *testing.T) {
	t.Parallel()
	s, st := consultest.Start(t, consultest.Options{}), memstore.New()
	a := elect(t, s, "a", st, time.Second)
	first := win(t, a)
	s.Freeze()
	over(t, first)
	s.Thaw()
	release(t, first)
	second := win(t, a)
	if second.Epoch() <= first.Epoch() {
		t.Errorf("epochs %d and %d", first.Epoch(), second.Epoch())
	}
	s.Kill()
	s.Start()
	if second.Err() != nil { // a restart may take longer than the session
		release(t, second)
		second = win(t, a)
	}
	release(t, second)
}

func TestConsulGivesUp(t *testing.T) {
	t.Parallel()
	s, st := consultest.Start(t, consultest.Options{}), memstore.New()
	a, b := elect(t, s, "a", st, 0), elect(t, s, "b", st, 0)
	first := win(t, a)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := b.Acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Acquire: %v", err)
	}
	release(t, first)
	sees(t, b, "") // it does not want to lead any more
	second := win(t, b)
	release(t, second)
	b.Close()
	sessions, _, err := s.Client(t).Session().List(nil)
	if err != nil || len(sessions) != 0 {
		t.Errorf("sessions left: %v %v", sessions, err)
	}
}

// Raise works where the lock is the process's own, and a leader that was replaced raises nothing.
func TestConsulRaise(t *testing.T) {
	t.Parallel()
	s, st := consultest.Start(t, consultest.Options{}), memstore.New()
	a := elect(t, s, "a", st, 0)
	first := win(t, a)
	if err := first.Raise(t.Context(), 40); err != nil {
		t.Fatal(err)
	}
	over(t, first)
	release(t, first)
	second := win(t, a)
	if second.Epoch() <= 40 {
		t.Errorf("epoch %d after a host had seen 40", second.Epoch())
	}
	release(t, second)
}

// The rules that deployments/README.md gives to the token are enough.
func TestConsulAccessControl(t *testing.T) {
	t.Parallel()
	s, st := consultest.Start(t, consultest.Options{ACL: true}), memstore.New()
	admin := s.Client(t)
	policy, _, err := admin.ACL().PolicyCreate(&consul.ACLPolicy{Name: "cutover", Rules: `
		key_prefix "cutover/test/" { policy = "write" }
		session_prefix "" { policy = "write" }
		node_prefix "" { policy = "read" }`}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := admin.ACL().TokenCreate(&consul.ACLToken{Policies: []*consul.ACLLink{{ID: policy.ID}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	config := consul.DefaultConfig()
	config.Address, config.Token = s.URL, token.SecretID
	client, err := consul.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(config.Transport.CloseIdleConnections)
	c, err := lead.NewConsul(lead.ConsulOptions{
		Client: client, Key: lockKey, Self: lead.Leader{Name: "a", URL: "http://127.0.0.1:1"}, Store: st,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	term := win(t, c)
	sees(t, c, "a")
	release(t, term)
	sees(t, c, "")
}
