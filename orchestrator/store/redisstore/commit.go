package redisstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutover/cutover/orchestrator/store"
)

// refusedFor is how long, in seconds, a Commit that was given up is kept from happening: longer than anything on its way
// to Redis can live.
const refusedFor = 86400

var kinds = map[store.OpKind]string{
	store.Put: "put", store.Create: "create", store.Replace: "replace", store.Delete: "delete", store.Check: "check",
}

// Commit implements store.Store. A ctx that ends while the write is on its way is not heard: the outcome is known soon,
// and an unknown one would end the caller's term.
func (s *Store) Commit(ctx context.Context, fence store.Fence, ops ...store.Op) (store.Revision, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("nothing was written: %w", err)
	}
	if err := s.begin(); err != nil {
		return 0, err
	}
	defer s.done.Done()
	args := []any{store.FormatVersion, fence.Epoch, "", s.opts.History, s.opts.HistoryBytes}
	for _, op := range ops {
		expect := op.Expect
		if op.Kind == store.Create {
			expect = 0
		}
		args = append(args, kinds[op.Kind], op.Key, op.Value, uint64(expect))
	}
	// Close waits for the outcome, so it cuts the attempts short but never a call.
	life, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.WriteTimeout)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	for try := 0; ; try++ {
		rev, again, err := s.try(life, args)
		if !again {
			return rev, err
		}
		if life.Err() != nil {
			return 0, fmt.Errorf("redis at %s: nothing was written: %w", s.config.Addr, err)
		}
		pause(life, try)
	}
}

// try sends the Commit once and finds out what became of it. again: nothing was written, and the next try may do better.
func (s *Store) try(life context.Context, args []any) (rev store.Revision, again bool, err error) {
	nonce, since := rand.Text(), s.newest().revision
	args[2] = nonce
	reply, err := s.run(context.WithoutCancel(life), commitScript, nonce, args...)
	if err != nil {
		switch classify(err) {
		case final:
			return 0, false, s.nothing(err)
		case passing:
			return 0, true, err
		default:
			return s.settle(life, nonce, since, err)
		}
	}
	switch text(reply, 0) {
	case "ok":
		rev = store.Revision(number(reply, 1)) // #nosec G115: not negative
		s.saw(mark{rev, nonce})
		return rev, false, nil
	case "fenced":
		epoch, _ := args[1].(uint64)
		return 0, false, &store.FencedError{Epoch: epoch, Seen: uint64(number(reply, 1))} // #nosec G115: not negative
	case "conflict":
		return 0, false, &store.ConflictError{Key: text(reply, 1), Actual: store.Revision(number(reply, 2))} // #nosec G115: not negative
	case "format":
		return 0, false, fmt.Errorf("nothing was written: the state in Redis has format %d, and this program knows formats up to %d", number(reply, 1), store.FormatVersion)
	}
	return 0, false, fmt.Errorf("redis at %s: an answer that cannot be read: %v: %w", s.config.Addr, reply, store.ErrUnknown)
}

// settle finds out whether a Commit happened whose answer was lost because of why.
func (s *Store) settle(life context.Context, nonce string, since store.Revision, why error) (rev store.Revision, again bool, err error) {
	for try := 0; ; try++ {
		reply, err := s.run(context.WithoutCancel(life), settleScript, nonce, nonce, uint64(since), refusedFor)
		switch {
		case err == nil && text(reply, 0) == "written":
			rev = store.Revision(number(reply, 1)) // #nosec G115: not negative
			s.saw(mark{rev, nonce})
			return rev, false, nil
		case err == nil && text(reply, 0) == "never":
			return 0, true, why
		case err == nil:
			return 0, false, fmt.Errorf("redis at %s: the changes since revision %d are not kept any more: %w: %w", s.config.Addr, since, why, store.ErrUnknown)
		case errors.Is(err, store.ErrWentBack):
			return 0, false, err
		case life.Err() != nil:
			return 0, false, fmt.Errorf("redis at %s gave no answer in %v: %w: %w", s.config.Addr, s.opts.WriteTimeout, why, store.ErrUnknown)
		}
		pause(life, try)
	}
}

// nothing says that an error of Redis itself means that nothing was written.
func (s *Store) nothing(err error) error {
	if errors.Is(err, store.ErrWentBack) {
		return err
	}
	return fmt.Errorf("redis at %s: nothing was written: %w", s.config.Addr, err)
}

// class is what an error says about the Commit.
type class uint8

const (
	final   class = iota + 1 // nothing was written, and trying again does not help
	passing                  // nothing was written, and trying again may help
	unknown
)

// passingReplies are what Redis answers while it starts, fails over, or has too few replicas.
var passingReplies = []string{"LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "TRYAGAIN", "CLUSTERDOWN", "BUSY", "MISCONF", "OOM"}

func classify(err error) class {
	var reply redis.Error
	var op *net.OpError
	switch {
	case errors.Is(err, store.ErrWentBack):
		return final
	case errors.As(err, &op) && op.Op == "dial", errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return passing
	case errors.As(err, &reply):
		// Redis answered. The script writes first what can be refused, so nothing is written.
		for _, p := range passingReplies {
			if strings.HasPrefix(reply.Error(), p) {
				return passing
			}
		}
		return final
	}
	return unknown
}

// pause waits before the next try, longer each time, or until ctx ends.
func pause(ctx context.Context, try int) {
	longest := min(250*time.Millisecond, time.Millisecond<<min(try, 8))
	timer := time.NewTimer(longest/2 + mathrand.N(longest/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
