package engine

import (
	"context"
	"fmt"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/store"
)

// Frozen reads the stored state once, and returns an Engine that answers from it: Deploy, Deploys, App, Apps and Tasks, for
// an orchestrator that does not lead. It never changes, has no loop and nothing to stop; it refuses everything else. What
// is not stored is unknown to it: the health of tasks, and the Hosts.
func Frozen(ctx context.Context, st store.Store) (*Engine, error) {
	e, err := New(Options{Store: st})
	if err != nil {
		return nil, err
	}
	e.cancel()
	if e.s, err = load(ctx, st, e.log); err != nil {
		return nil, fmt.Errorf("engine: loading the state: %w", err)
	}
	e.batch, e.frozen = newBatch(e.now()), true
	return e, nil
}

// errFrozen refuses what only a leader does.
func errFrozen() error {
	return refused(deploy.RefusedUnavailable, "this orchestrator does not lead")
}
