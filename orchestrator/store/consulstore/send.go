package consulstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/orchestrator/store"
)

// errStale: another write replaced the head, and this one did not happen.
var errStale = errors.New("the head moved on")

// send carries out the plan: nil if it happened, errStale or another error if it did not, store.ErrUnknown if nobody
// can know. The same transaction is sent again until there is an answer: whichever copy comes first replaces the head that
// both compare, so there is never a second one.
func (s *Store) send(ctx context.Context, p plan) error {
	var lost error // why the answer to an earlier copy is missing
	for try := 0; ; try++ {
		index, v, err := s.txn(ctx, p)
		switch v {
		case happened:
			s.learned(p, index)
			return nil
		case refused:
			if lost == nil {
				return err
			}
			// The earlier copy may have been what this one ran into.
			return s.resolve(ctx, p, err)
		case unsent:
		case unknown:
			lost = err
		}
		if ctx.Err() != nil {
			if lost != nil {
				return fmt.Errorf("consul gave no answer in %v: %w: %w", s.opts.WriteTimeout, lost, store.ErrUnknown)
			}
			return fmt.Errorf("nothing was written: consul cannot be reached: %w", err)
		}
		pause(ctx, try)
	}
}

// learned takes over what the plan made true.
func (s *Store) learned(p plan, index uint64) {
	if index == 0 || len(s.known.revs)+len(p.revs) > maxKnown {
		s.known = snapshot{}
		return
	}
	s.known.head, s.known.index = p.next, index
	for key, rev := range p.revs {
		s.known.revs[key] = rev
	}
}

// resolve finds out whether an earlier copy of the plan happened, after a later one was refused with why.
func (s *Store) resolve(ctx context.Context, p plan, why error) error {
	for try := 0; ; try++ {
		pairs, err := s.readAll(ctx, []string{s.headKey(), s.slotKey(p.next.Seq)})
		if err == nil {
			return s.judge(p, pairs, why)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("consul does not say how the write ended: %w: %w", err, store.ErrUnknown)
		}
		pause(ctx, try)
	}
}

func (s *Store) judge(p plan, pairs []*api.KVPair, why error) error {
	h, err := s.decodeHead(pairs[0].Value)
	if err != nil {
		return fmt.Errorf("%w: %w", err, store.ErrUnknown)
	}
	s.known = snapshot{}
	switch {
	case h.Nonce == p.next.Nonce:
		return nil
	case pairs[0].ModifyIndex == p.base:
		// It has not happened, but the copy may still be on its way, and the head is where it wants it.
		return fmt.Errorf("%w: %w", why, store.ErrUnknown)
	}
	var at slot
	if pairs[1].ModifyIndex == 0 {
		return fmt.Errorf("the change log of Consul has lost write %d: %w", p.next.Seq, store.ErrUnknown)
	}
	_, text, err := unseal(pairs[1].Value)
	if err == nil {
		err = json.Unmarshal(text, &at)
	}
	switch {
	case err != nil:
		return fmt.Errorf("the change log of Consul: %w: %w", err, store.ErrUnknown)
	case at.Seq != p.next.Seq:
		return fmt.Errorf("the change log of Consul has moved past write %d: %w", p.next.Seq, store.ErrUnknown)
	case at.Nonce == p.next.Nonce:
		return nil
	}
	return why // another writer took the place: the copies can never happen
}

// verdict is what one call tells about the transaction.
type verdict uint8

const (
	happened verdict = iota + 1
	refused          // it did not happen, and this copy never will
	unsent           // this copy never left
	unknown
)

// txn sends the transaction once. index is that of the new head, if Consul told.
func (s *Store) txn(ctx context.Context, p plan) (index uint64, v verdict, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	defer cancel()
	var resp api.TxnResponse
	_, err = s.client.Raw().Write("/v1/txn", p.ops, &resp, (&api.WriteOptions{}).WithContext(ctx))
	if err == nil {
		for _, r := range resp.Results {
			if r.KV != nil && r.KV.Key == s.headKey() {
				index = r.KV.ModifyIndex
			}
		}
		return index, happened, nil
	}
	var status api.StatusError
	var op *net.OpError
	switch {
	case errors.As(err, &status):
		v, err = s.statusVerdict(p, status)
	case errors.As(err, &op) && op.Op == "dial":
		v = unsent
	default:
		v = unknown
	}
	return 0, v, err
}

// statusVerdict reads an answer that is not a success.
func (s *Store) statusVerdict(p plan, status api.StatusError) (verdict, error) {
	switch status.Code {
	case http.StatusConflict:
		var resp api.TxnResponse
		if err := json.Unmarshal([]byte(status.Body), &resp); err != nil || len(resp.Errors) == 0 {
			return unknown, fmt.Errorf("consul: an answer that cannot be read: %s", status.Body)
		}
		for _, e := range resp.Errors {
			if e.OpIndex >= len(p.ops) || strings.HasPrefix(e.What, "Permission denied") {
				continue // what access control refuses is no answer about the state
			}
			switch p.ops[e.OpIndex].KV.Verb {
			case api.KVCheckSession:
				return refused, fmt.Errorf("the session of this leader does not hold the lock any more (%s): %w", e.What, store.ErrFenced)
			case api.KVCAS:
				return refused, errStale
			default:
			}
		}
		return refused, fmt.Errorf("nothing was written: consul: %s", what(resp.Errors))
	case http.StatusTooManyRequests:
		return unsent, status // its limits refuse before anything is done
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusRequestEntityTooLarge:
		return refused, fmt.Errorf("nothing was written: consul: %w", status)
	}
	return unknown, status
}

func what(errs api.TxnErrors) string {
	var out []string
	for _, e := range errs {
		out = append(out, e.What)
	}
	return strings.Join(out, "; ")
}

// pause waits before the next try, longer each time, or until ctx ends.
func pause(ctx context.Context, try int) {
	longest := min(backoff, time.Millisecond<<min(try, 8))
	timer := time.NewTimer(longest/2 + rand.N(longest/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
