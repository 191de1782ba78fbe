package mesosframework

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// streamError says what an ERROR event means. All are fatal: to subscribe again
// without leading again would let two schedulers throw each other out.
func streamError(message string) error {
	switch {
	case strings.Contains(message, "Framework failed over"):
		return fatal(ErrFailedOver, "%s", message)
	case strings.Contains(message, "Framework has been removed"):
		return fatal(ErrFrameworkRemoved, "%s", message)
	}
	return fatal(ErrRefused, "%s", message)
}

// Launch queues tasks for placement: all of them, or none with an error. They
// are placed as offers come; Pending tells which still wait and why. Maps and
// slices in the specs belong to the Framework from then on.
func (f *Framework) Launch(ctx context.Context, specs []TaskSpec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for i := range specs {
		if err := specs[i].Validate(); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.running(); err != nil {
		return err
	}
	if err := f.core.launch(slices.Clone(specs), time.Now()); err != nil {
		return err
	}
	f.dispatch()
	return nil
}

// running reports ErrStopped or the fatal error. f.mu must be held.
func (f *Framework) running() error {
	switch {
	case f.err != nil:
		return f.err
	case !f.started || f.ctx.Err() != nil:
		return ErrStopped
	}
	return nil
}

// Kill kills a task: KILL is repeated until it has ended, over reconnections
// too (after a restart of the process, if TaskRef.Kill says so). A task that
// still waits for an offer is taken out of the queue and told by HandleLost
// with LossNotLaunched. The caller must have made sure that no proxy routes to it.
func (f *Framework) Kill(ctx context.Context, taskID string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.running(); err != nil {
		return err
	}
	if err := f.core.killTask(taskID, time.Now()); err != nil {
		return fmt.Errorf("kill %s: %w", taskID, err)
	}
	f.dispatch()
	return nil
}

// Cancel takes a task that still waits for an offer out of the queue, silently.
// It reports false if the task does not wait (any more).
func (f *Framework) Cancel(taskID string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	ok := f.core.cancel(taskID, time.Now())
	f.dispatch()
	return ok
}

// Adopt makes the framework know tasks of which HandleSubscribed did not tell,
// without waiting for the next subscription.
func (f *Framework) Adopt(refs ...TaskRef) {
	f.decide(func(c *core, now time.Time) {
		for _, r := range refs {
			c.adopt(r, now)
			if t := c.tasks[r.TaskID]; t != nil && t.killing {
				c.kill(t, now)
			}
		}
	})
}

// Forget drops a task that its owner considers ended although Mesos never said
// so (TASK_UNKNOWN for too long, say): it is no longer killed or asked about,
// and its ports are free as far as the framework knows.
func (f *Framework) Forget(taskID string) {
	f.decide(func(c *core, _ time.Time) {
		if t := c.tasks[taskID]; t != nil {
			c.forget(t)
		}
	})
}

// Reconcile asks Mesos for the truth about some tasks now, or about all of them
// if none is named. The answers come as updates; unanswered questions are
// repeated. While disconnected it does nothing: each subscription reconciles all.
func (f *Framework) Reconcile(taskIDs ...string) {
	f.decide(func(c *core, now time.Time) {
		if !c.subscribed {
			return
		}
		if len(taskIDs) == 0 {
			c.startRound(nil, now)
			return
		}
		c.ask(slices.Sorted(slices.Values(taskIDs)), now)
	})
}

// Pending tells which tasks wait for an offer, in order of arrival, and why.
func (f *Framework) Pending() []PendingTask {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.core.pendingTasks()
}

// Tasks returns the tasks that are launched and not durably ended, in order of
// their ids.
func (f *Framework) Tasks() []TaskRef {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]TaskRef, 0, len(f.core.tasks))
	for _, t := range f.core.tasks {
		r := t.ref
		r.State, r.Kill = t.state, t.killing
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b TaskRef) int { return strings.Compare(a.TaskID, b.TaskID) })
	return out
}

// State returns a snapshot.
func (f *Framework) State() State {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state
	if !s.Connected {
		s.Master = ""
	}
	s.FrameworkID, s.Suppressed, s.Stats = f.core.frameworkID, f.core.suppressed, f.core.stats
	s.Pending, s.Tasks, s.Unreconciled, s.Agents = len(f.core.pending), len(f.core.tasks), len(f.core.round.waiting), len(f.core.agents)
	return s
}
