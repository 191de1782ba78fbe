package e2e

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"connectrpc.com/connect"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// twice makes a call two times at once; both must be answered yes.
func (s *script) twice(what string, call func(ctx context.Context) (*lbagentv1.Refusal, error)) {
	s.t.Helper()
	if refusal := s.atOnce(what, call); refusal != nil {
		s.t.Fatalf("%s: %s, sent twice: %v", s.host.Name, what, refusal)
	}
}

// atOnce makes a call two times at once, and returns what refused it.
func (s *script) atOnce(what string, call func(ctx context.Context) (*lbagentv1.Refusal, error)) *lbagentv1.Refusal {
	s.t.Helper()
	var refusals [2]*lbagentv1.Refusal
	var errs [2]error
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.t.Context(), generous)
			defer cancel()
			refusals[i], errs[i] = call(ctx)
		})
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		s.t.Fatalf("%s: %s, sent twice: %v", s.host.Name, what, err)
	}
	return cmp.Or(refusals[0], refusals[1])
}

// verified is a transaction whose Prepare and Activate were each sent twice. On a busy machine a proxy may be too slow for its
// vote: then the transaction is aborted, as a deploy would be, and another one takes its place.
func (s *script) verified() scripted {
	s.t.Helper()
	for {
		x := s.begin()
		s.twice("prepare", func(ctx context.Context) (*lbagentv1.Refusal, error) { return s.prepare(ctx, x) })
		refusal := s.atOnce("activate", func(ctx context.Context) (*lbagentv1.Refusal, error) { return s.activate(ctx, x) })
		if refusal == nil {
			return x
		}
		s.t.Logf("%s: %s is not verified: %v", s.host.Name, x.id, refusal)
		s.abort(x, "refused")
		if s.did["refused"]++; s.did["refused"] > 3 {
			s.t.Fatalf("%s refuses one transaction after the other", s.host.Name)
		}
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
				x := s.verified()
				s.twice("commit", commit(x))
				s.took(x)
				before := s.settledDump("after a commit")
				s.late(before, "Prepare of a committed transaction", prepare(x))
				s.twice("commit", commit(x)) // of what is committed: the same answer again
				s.equal(before, "a late Commit")

				y := s.verified()
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
