package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/cutover/cutover/orchestrator/store"
)

// RunHistories lets several clients at once commit and read on the same records, through one Store each or shared ones,
// while disturb does what it wants with the server (nil: nothing), and checks that there is an order of all operations,
// within the times at which they were under way, that explains every answer (linearizability). A Commit of unknown outcome
// may have happened at any time after it began, or never. It returns how many outcomes were unknown.
func RunHistories(t *testing.T, stores []store.Store, disturb func()) (unknown int) {
	t.Helper()
	const clients, rounds = 6, 60
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := &history{began: time.Now()}
	var wg sync.WaitGroup
	for client := range clients {
		c := &asker{id: client, store: stores[client%len(stores)], rng: rand.New(rand.NewPCG(seed, uint64(client))), h: h}
		wg.Go(func() {
			for range rounds {
				c.step(t)
			}
		})
	}
	if disturb != nil {
		disturb()
	}
	wg.Wait()
	end := h.now() + 1
	for i := range h.ops {
		if out := h.ops[i].Output.(answer); out.kind == lost {
			h.ops[i].Return = end
			unknown++
		}
	}
	switch porcupine.CheckOperationsTimeout(linear.ToModel(), h.ops, patience) {
	case porcupine.Illegal:
		t.Errorf("no order of the %d operations explains their answers (%d outcomes are unknown)", len(h.ops), unknown)
		for _, op := range h.ops {
			t.Logf("client %d, %8d to %8d us: %v -> %v", op.ClientId, op.Call/1000, op.Return/1000, op.Input, op.Output)
		}
	case porcupine.Unknown:
		t.Errorf("the %d operations were not judged within %v (%d outcomes are unknown)", len(h.ops), patience, unknown)
	default:
		t.Logf("%d operations, %d outcomes unknown", len(h.ops), unknown)
	}
	return unknown
}

// history is what was asked and answered, and when.
type history struct {
	began time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
}

func (h *history) now() int64 { return int64(time.Since(h.began)) }

func (h *history) add(client int, call int64, in question, out answer) {
	op := porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: h.now()}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
}

// question is a Commit, or a read of key when ops is nil.
type question struct {
	epoch uint64
	ops   []store.Op
	key   int
}

// answer is what came back.
type answer struct {
	kind     answerKind
	revision store.Revision // of the Commit, of the record that was read, or of the one that was in the way
	key      int            // that was in the way
	value    uint64
}

type answerKind uint8

const (
	written answerKind = iota + 1
	conflicting
	fenced
	lost // nobody knows
	read // revision 0: absent
)

const keysInPlay = 3

func keyOf(i int) string { return "k" + strconv.Itoa(i) }

func indexOf(key string) int { return int(key[1] - '0') }

// asker asks one question after the other.
type asker struct {
	id    int
	store store.Store
	rng   *rand.Rand
	h     *history
	seen  [keysInPlay]store.Revision
	epoch uint64
	count uint64
}

func (c *asker) step(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if c.rng.IntN(3) == 0 {
		key := c.rng.IntN(keysInPlay)
		call := c.h.now()
		rec, err := c.store.Get(ctx, keyOf(key))
		switch {
		case errors.Is(err, store.ErrNotFound):
			c.seen[key] = 0
		case err != nil:
			return // it says nothing
		default:
			c.seen[key] = rec.Revision
		}
		out := answer{kind: read, revision: rec.Revision}
		if err == nil {
			if out.value, err = strconv.ParseUint(string(rec.Value), 10, 64); err != nil {
				t.Errorf("a value that nobody wrote: %q", rec.Value)
			}
		}
		c.h.add(c.id, call, question{key: key}, out)
		return
	}
	if c.rng.IntN(20) == 0 {
		c.epoch++
	}
	in := question{epoch: c.epoch}
	for range 1 + c.rng.IntN(2) {
		key := c.rng.IntN(keysInPlay)
		c.count++
		op := store.Op{Kind: store.OpKind(1 + c.rng.IntN(5)), Key: keyOf(key)} // #nosec G115: 1 to 5
		switch op.Kind {
		case store.Replace, store.Check:
			op.Expect = c.seen[key]
		default:
		}
		if op.Kind <= store.Replace {
			op.Value = strconv.AppendUint(nil, uint64(c.id)*1_000_000+c.count, 10) // #nosec G115: small
		}
		in.ops = append(in.ops, op)
	}
	call := c.h.now()
	rev, err := c.store.Commit(ctx, store.Fence{Epoch: in.epoch}, in.ops...)
	var conflict *store.ConflictError
	switch {
	case err == nil:
		for _, op := range in.ops {
			if op.Kind <= store.Replace {
				c.seen[indexOf(op.Key)] = rev
			}
		}
		c.h.add(c.id, call, in, answer{kind: written, revision: rev})
	case errors.As(err, &conflict):
		c.seen[indexOf(conflict.Key)] = conflict.Actual
		c.h.add(c.id, call, in, answer{kind: conflicting, revision: conflict.Actual, key: indexOf(conflict.Key)})
	case errors.Is(err, store.ErrFenced):
		c.epoch++
		c.h.add(c.id, call, in, answer{kind: fenced})
	case errors.Is(err, store.ErrUnknown):
		c.h.add(c.id, call, in, answer{kind: lost})
	case errors.Is(err, store.ErrWentBack):
		t.Errorf("the store says that it went back: %v", err)
	default:
		// It promises that nothing was written: then no order needs it.
	}
}

// world is the state of the model. It is compared with ==.
type world struct {
	revision store.Revision
	epoch    uint64
	records  [keysInPlay]held
}

type held struct {
	value    uint64
	revision store.Revision // 0: absent
}

// commit returns the world after the Commit, and the answer.
func (w world) commit(in question) (world, answer) {
	if in.epoch < w.epoch {
		return w, answer{kind: fenced}
	}
	if err := store.Conflict(in.ops, func(key string) store.Revision { return w.records[indexOf(key)].revision }); err != nil {
		var conflict *store.ConflictError
		errors.As(err, &conflict)
		return w, answer{kind: conflicting, revision: conflict.Actual, key: indexOf(conflict.Key)}
	}
	w.epoch = in.epoch
	w.revision++
	for _, op := range store.LastWrites(in.ops) {
		r := held{}
		if op.Kind != store.Delete {
			r.value, _ = strconv.ParseUint(string(op.Value), 10, 64)
			r.revision = w.revision
		}
		w.records[indexOf(op.Key)] = r
	}
	return w, answer{kind: written, revision: w.revision}
}

var linear = porcupine.NondeterministicModel{
	Init: func() []any { return []any{world{}} },
	Step: func(state, input, output any) []any {
		w, in, out := state.(world), input.(question), output.(answer)
		if out.kind == read {
			if w.records[in.key] == (held{out.value, out.revision}) {
				return []any{w}
			}
			return nil
		}
		next, want := w.commit(in)
		switch {
		case out.kind == lost && want.kind == written:
			return []any{w, next}
		case out.kind == lost:
			return []any{w}
		case out == want:
			return []any{next}
		}
		return nil
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		return fmt.Sprint(input, " -> ", output)
	},
}
