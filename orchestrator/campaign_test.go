package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/cutover/cutover/orchestrator/lead"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
)

// A term that a store has refused since it has seen a higher epoch raises the next one above that; one that ended for another
// reason raises nothing.
func TestRaiseAbove(t *testing.T) {
	const seen = 40
	for _, tt := range []struct {
		name string
		why  error
		want uint64
	}{
		{"refused by a store that has seen more", fmt.Errorf("begin: %w", &store.FencedError{Epoch: 1, Seen: seen}), seen + 2},
		{"refused by a store that has seen this term", &store.FencedError{Epoch: 1, Seen: 1}, 2},
		{"ended by something else", errors.New("the session is lost"), 2},
		{"ended in good order", nil, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, s := t.TempDir(), memstore.New()
			term := acquireTerm(t, dir, s)
			ended, cancel := context.WithCancel(t.Context())
			cancel() // it is also done when this orchestrator is being stopped
			o := &Orchestrator{opts: Options{Logger: slog.New(slog.DiscardHandler)}}
			o.raiseAbove(ended, term, tt.why)
			if err := term.Release(); err != nil {
				t.Fatal(err)
			}
			next := acquireTerm(t, dir, s)
			if next.Epoch() != tt.want {
				t.Errorf("the next term is %d, want %d", next.Epoch(), tt.want)
			}
			if err := next.Release(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func acquireTerm(t *testing.T, dir string, s store.Store) *lead.Term {
	t.Helper()
	term, err := lead.Acquire(t.Context(), dir, s)
	if err != nil {
		t.Fatal(err)
	}
	return term
}
