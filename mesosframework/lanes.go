package mesosframework

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/avast/retry-go/v4"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"
)

// laneJob is an update or a loss on its way to the Listener.
type laneJob struct {
	update *updateEffect
	loss   *Loss
	// from is the session of an update: its acknowledgement belongs there.
	from *session
}

// lane returns the lane of a task: what concerns one task stays in order.
func (f *Framework) lane(taskID string) chan laneJob {
	h := fnv.New32a()
	_, _ = h.Write([]byte(taskID))
	return f.lanes[h.Sum32()%uint32(len(f.lanes))]
}

// runLane hands jobs to the Listener and acknowledges what it took.
func (f *Framework) runLane(jobs <-chan laneJob) {
	for {
		select {
		case <-f.ctx.Done():
			return
		case j := <-jobs:
			switch {
			case j.loss != nil:
				f.handleLoss(*j.loss)
			case j.from.ctx.Err() == nil:
				f.handleUpdate(j)
			}
			// An update of a subscription that has ended comes again: with a
			// uuid by itself, without one by reconciliation.
		}
	}
}

// listen calls the Listener, a few times if it fails.
func (f *Framework) listen(ctx context.Context, attempts uint, call func(context.Context) error) error {
	return retry.Do(func() error {
		ctx, cancel := context.WithTimeout(ctx, f.opts.StoreTimeout)
		defer cancel()
		return call(ctx)
	}, retry.Context(ctx), retry.Attempts(attempts), retry.Delay(100*time.Millisecond), retry.MaxDelay(5*time.Second), retry.LastErrorOnly(true),
		retry.OnRetry(func(n uint, err error) {
			f.log.Warn("what Mesos said cannot be recorded yet; it is tried again", "attempt", n+1, "error", err)
		}))
}

func (f *Framework) handleLoss(l Loss) {
	// Nothing repeats a loss but this: go on until it is taken.
	err := f.listen(f.ctx, 0, func(ctx context.Context) error {
		err := f.opts.Listener.HandleLost(ctx, l)
		if err != nil {
			f.log.Error("a lost task cannot be recorded", "task", l.Task.TaskID, "reason", string(l.Reason), "error", err)
		}
		return err
	})
	if err == nil {
		f.log.Warn("a task was given up", "task", l.Task.TaskID, "reason", string(l.Reason), "detail", l.Detail)
	}
}

func (f *Framework) handleUpdate(j laneJob) {
	u := j.update.update
	if !f.taken(u.TaskID, u.UUID) {
		if err := f.listen(j.from.ctx, 3, func(ctx context.Context) error { return f.opts.Listener.HandleUpdate(ctx, u) }); err != nil {
			if j.from.ctx.Err() == nil {
				f.log.Error("a status update cannot be recorded, so it is not acknowledged", "task", u.TaskID, "state", string(u.State), "error", err)
			}
			f.decide(func(c *core, now time.Time) { c.uncommitted(&u, now) })
			return
		}
		f.decide(func(c *core, now time.Time) { c.committed(&u, now) })
	}
	if len(j.update.uuid) > 0 {
		f.acknowledge(j)
	}
}

// acknowledge tells the agent that the update is durable. If it fails the
// update comes again, and is acknowledged without asking the Listener.
func (f *Framework) acknowledge(j laneJob) {
	s, u := j.from, &j.update.update
	call := calls.Acknowledge(u.AgentID, u.TaskID, j.update.uuid)
	id := s.f.frameworkIDProto()
	call.FrameworkID = &id
	err := retry.Do(func() error {
		ctx, cancel := context.WithTimeout(s.ctx, f.opts.CallTimeout)
		defer cancel()
		return post(ctx, f.ackClient, s.stream.base, s.stream.cred, s.stream.id, call)
	}, retry.Context(s.ctx), retry.Attempts(3), retry.Delay(50*time.Millisecond), retry.LastErrorOnly(true),
		retry.OnRetry(func(n uint, err error) {
			f.log.Warn("an acknowledgement is repeated", "task", u.TaskID, "attempt", n+1, "error", err)
		}),
		retry.RetryIf(func(err error) bool {
			var ce *callError
			return errors.As(err, &ce) && (ce.verdict == unsent || ce.verdict == ambiguous)
		}))
	if err == nil {
		f.decide(func(c *core, _ time.Time) { c.stats.Acknowledged++ })
		return
	}
	if s.ctx.Err() == nil {
		var ce *callError
		if errors.As(err, &ce) && (ce.verdict == unsent || ce.verdict == ambiguous) {
			f.log.Warn("an acknowledgement did not get through; its update will come again", "task", u.TaskID, "error", err)
			return
		}
		s.failed(fmt.Errorf("acknowledge task %s: %w", u.TaskID, err))
	}
}
