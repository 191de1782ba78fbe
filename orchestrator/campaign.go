package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cutover/cutover/orchestrator/lead"
	"github.com/cutover/cutover/orchestrator/store"
)

// Pauses before this orchestrator wants to lead again after a term that failed: the others get their chance.
const (
	campaignPauseMin = time.Second
	campaignPauseMax = 15 * time.Second
	// goodTerm is how long a term has to last to be none that failed at once.
	goodTerm = time.Minute
)

// campaign leads whenever this orchestrator is elected, until ctx ends. A term that is over is torn down, and its lock given
// back, before the next one; one that does not end takes the process with it.
func (o *Orchestrator) campaign(ctx context.Context) {
	log := o.opts.Logger.With("part", "lead")
	for pause := campaignPauseMin; ctx.Err() == nil; {
		lt, err := o.shared.election.Acquire(ctx)
		began := time.Now()
		if err == nil {
			err = o.lead(ctx, lt)
		}
		var over *TermOver
		switch {
		case errors.As(err, &over):
			o.ended <- err
			return
		case ctx.Err() != nil:
			return
		}
		log.Warn("this orchestrator does not lead", "error", err)
		if time.Since(began) > goodTerm {
			pause = campaignPauseMin
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, campaignPauseMax)
	}
}

// lead begins a term, and returns when it is over (why) or ctx ends, with everything that belongs to it stopped and the lock
// given back last. Nothing is finished and nothing more is written: the next leader takes it up.
func (o *Orchestrator) lead(ctx context.Context, lt *lead.Term) (why error) {
	log := o.opts.Logger.With("part", "lead", "epoch", lt.Epoch())
	beginning, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan struct{})
	go func() { // a term that is lost while it begins does not go on
		defer close(watched)
		select {
		case <-lt.Done():
			cancel()
		case <-beginning.Done():
		}
	}()
	defer func() { cancel(); <-watched }()

	st, err := o.shared.openStores(beginning)
	if err != nil {
		return errors.Join(err, lt.Release())
	}
	t, err := beginTerm(beginning, o.opts, st, lt, o.metrics)
	if err != nil {
		o.raiseAbove(ctx, lt, err)
		if err = errors.Join(err, lt.Release()); errors.Is(err, errStillRuns) {
			return &TermOver{err}
		}
		return errors.Join(err, st.Close())
	}
	o.term.Store(t)
	log.Info("this orchestrator leads")
	select {
	case <-ctx.Done():
	case <-lt.Done():
		why = lt.Err()
	case <-t.framework.Done():
		why = fmt.Errorf("the Mesos framework has ended: %w", t.framework.Err())
	}
	o.term.Store(nil)
	o.raiseAbove(ctx, lt, why)
	started := time.Now()
	stopping, cancelStop := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout/2)
	defer cancelStop()
	if err := t.stop(stopping); err != nil {
		// What still runs can write nothing more: the session ends here, and every write names it.
		return &TermOver{errors.Join(why, err, lt.Release())}
	}
	if err := errors.Join(st.Close(), lt.Release()); err != nil {
		log.Warn("the term has not ended well", "error", err)
	}
	log.Info("this orchestrator has stopped leading", "took", time.Since(started), "reason", why)
	return why
}

// raiseAbove lets the next term begin above the epoch that a store has seen, if that is why this one ended: one of the two was
// restored from an older copy, or replaced. A leader that was replaced itself is refused here, as everywhere.
func (o *Orchestrator) raiseAbove(ctx context.Context, lt *lead.Term, why error) {
	var fenced *store.FencedError
	if !errors.As(why, &fenced) || fenced.Seen <= lt.Epoch() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), raiseTimeout)
	defer cancel()
	if err := lt.Raise(ctx, fenced.Seen); err != nil {
		o.opts.Logger.Info("another orchestrator has led since", "part", "lead", "epoch", lt.Epoch(), "seen", fenced.Seen, "error", err)
	}
}
