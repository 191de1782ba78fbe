package e2e

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"connectrpc.com/connect"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// twice makes a call two times at once; both must be answered yes.
func (s *script) twice(what string, call func(ctx context.Context) (*lbagentv1.Refusal, error)) {
	s.t.Helper()
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.t.Context(), generous)
			defer cancel()
			if refusal, err := call(ctx); err != nil || refusal != nil {
				s.t.Errorf("%s: %s, sent twice: %v %v", s.host.Name, what, refusal, err)
			}
		})
	}
	wg.Wait()
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// late makes a call that comes after its transaction has ended; it must be refused, and move nothing.
func (s *script) late(before dump, what string, call func(ctx context.Context) (*lbagentv1.Refusal, error)) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), generous)
	defer cancel()
	if refusal, err := call(ctx); err != nil || refusal == nil {
		s.t.Fatalf("FENCE: %s: %s is not refused: %v", s.host.Name, what, err)
	}
	s.equal(before, what)
}

// A network that delivers messages twice, and long after: each call is answered the same again, and what belongs to a transaction
// that has ended moves nothing.
func TestDuplicatesAndLateMessages(t *testing.T) {
	seed, _ := seedOf(t, "RESTORE_SEED")
	c := newCluster(t, "haproxy=1,nginx=1,nginx-reload=1")
	c.kill9()
	addresses := upstreams(t, 24)
	for i, h := range c.info.Hosts {
		t.Run(h.Driver, func(t *testing.T) {
			t.Parallel()
			s := newScript(t, c, h, rand.New(rand.NewPCG(seed, uint64(i))), addresses)
			for range 3 {
				prepare := func(x scripted) func(context.Context) (*lbagentv1.Refusal, error) {
					return func(ctx context.Context) (*lbagentv1.Refusal, error) { return s.prepare(ctx, x) }
				}
				activate := func(x scripted) func(context.Context) (*lbagentv1.Refusal, error) {
					return func(ctx context.Context) (*lbagentv1.Refusal, error) { return s.activate(ctx, x) }
				}
				commit := func(x scripted) func(context.Context) (*lbagentv1.Refusal, error) {
					return func(ctx context.Context) (*lbagentv1.Refusal, error) {
						resp, err := s.client.Commit(ctx, connect.NewRequest(&lbagentv1.CommitRequest{Fence: s.fence, TxnId: x.id, Order: x.order}))
						if err != nil {
							return nil, err
						}
						return resp.Msg.GetRefusal(), nil
					}
				}
				x := s.begin()
				s.twice("prepare", prepare(x))
				s.twice("activate", activate(x))
				s.twice("commit", commit(x))
				s.took(x)
				before := s.settledDump("after a commit")
				s.late(before, "Prepare of a committed transaction", prepare(x))
				s.twice("commit", commit(x)) // of what is committed: the same answer again
				s.equal(before, "a late Commit")

				y := s.begin()
				s.twice("prepare", prepare(y))
				s.twice("activate", activate(y))
				s.abort(y, "sent once")
				s.abort(y, "sent again")
				s.equal(before, "an Abort")
				s.late(before, "Prepare of an aborted transaction", prepare(y))
				s.late(before, "Activate of an aborted transaction", activate(y))
				s.late(before, "Commit of an aborted transaction", commit(y))
			}
		})
	}
}
