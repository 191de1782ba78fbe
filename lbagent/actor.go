package lbagent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cutover/cutover/internal/crashpoint"
	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/lbagent/participant/journal"
)

// input is one event for the actor. done, if set, is closed once the event was stepped.
type input struct {
	event participant.Event
	done  chan struct{}
}

// send hands an event to the actor, waiting for room. It reports false if ctx ended first.
func (a *Agent) send(ctx context.Context, in input) bool {
	select {
	case a.inbox <- in:
		return true
	case <-ctx.Done():
		return false
	}
}

// running is a Work under way.
type running struct {
	seq    uint64
	cancel context.CancelFunc
}

// act is the actor: the only goroutine that steps the machine, writes the journal and begins Work.
func (a *Agent) act(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer func() {
		for _, w := range a.work {
			w.cancel()
		}
		a.calls.close()
	}()
	var reopenAt time.Time
	for {
		var ev participant.Event
		var done chan struct{}
		select {
		case <-ctx.Done():
			return
		case in := <-a.inbox:
			ev, done = in.event, in.done
		case a.snapshot = <-a.encoded: // it is installed with the next Records
			continue
		case <-timer.C:
			ev = participant.Tick{}
		}
		if d, ok := ev.(participant.WorkDone); ok {
			if w := a.work[d.App]; w != nil && w.seq == d.Seq {
				w.cancel()
				delete(a.work, d.App)
			}
		}
		a.step(ctx, ev)
		if done != nil {
			close(done)
		}
		s := a.state.Load()
		now := time.Now()
		wake := s.Wake(now)
		if s.Broken != nil {
			if reopenAt.IsZero() {
				reopenAt = now.Add(reopenPause)
			}
			if !now.Before(reopenAt) && len(a.work) == 0 {
				a.reopen()
				reopenAt = time.Time{}
			}
			wake = now.Add(reopenPause / 10)
		}
		if wake.IsZero() {
			wake = now.Add(time.Second) // a safety net, not a clock
		}
		timer.Reset(max(wake.Sub(now), 0))
		switch ev.(type) {
		case participant.Reading, participant.ReadFailed, participant.Surveyed, participant.ProcessSeen, participant.ProcessGone, participant.Tick:
			// The reader looks at its plan after its own events anyway; waking it for them would turn it into a busy loop.
		default:
			a.wakeReader()
		}
	}
}

// step runs one event through the machine and carries out what it says.
func (a *Agent) step(ctx context.Context, ev participant.Event) {
	next, effects := participant.Step(*a.state.Load(), ev, time.Now())
	if err := a.append(effects); err != nil {
		a.log.Error("the journal cannot be written: this host refuses everything until it can", "err", err)
		a.m.journalDown.Set(1)
		// Nothing of this Step is promised: its answers are taken back, its Work is not begun.
		for _, e := range effects {
			if r, ok := e.(participant.Reply); ok {
				a.calls.answer(r.To, participant.Answer{Refusal: &participant.Refusal{Reason: participant.JournalBroken, Message: err.Error()}})
			}
		}
		// Nor is it reported: what this Host says that it holds is what its journal holds.
		next, effects = participant.Step(*a.state.Load(), participant.JournalFailed{Err: err}, time.Now())
		for _, w := range a.work {
			w.cancel()
		}
	}
	a.state.Store(&next)
	var changed []string
	for _, e := range effects {
		switch e := e.(type) {
		case participant.Start:
			a.begin(ctx, e.Work)
		case participant.Cancel:
			if w := a.work[e.App]; w != nil && w.seq == e.Seq {
				w.cancel()
			}
		case participant.Reply:
			a.calls.answer(e.To, e.Answer)
		case participant.Report:
			changed = append(changed, e.App)
		case participant.Mend:
			a.mend(ctx)
		case participant.Noticed:
			a.tellDrift(e.Drift, false)
		case participant.Repaired:
			a.tellDrift(e.Drift, true)
		}
	}
	a.watch.changed(changed, next.Durable.Epoch)
	a.m.epoch.Set(float64(next.Durable.Epoch))
	a.m.open.Set(float64(len(next.Durable.Txns)))
}

// append makes the Records among the effects durable, in one write.
func (a *Agent) append(effects []participant.Effect) error {
	var records []participant.Record
	for _, e := range effects {
		if j, ok := e.(participant.Journal); ok {
			records = append(records, j.Record)
		}
	}
	if len(records) == 0 {
		return nil
	}
	crashAt("before-", records)
	begin := time.Now()
	if err := a.journal.Append(records...); err != nil {
		return err
	}
	a.m.appends.Observe(time.Since(begin).Seconds())
	for _, r := range records {
		a.log.Info("journaled", "kind", string(r.Kind), "txn", r.TxnID, "order", r.Order, "epoch", r.Epoch,
			"actor", r.Origin.Actor, "reason", r.Origin.Reason, "deploy", r.Origin.Deploy, "note", r.Note)
	}
	crashAt("after-", records)
	// The state before these Records plus the Records: what the machine holds is one Step ahead of a.state.
	after := func() participant.Durable {
		d := a.state.Load().Durable
		for _, r := range records {
			d = d.Apply(r)
		}
		return d
	}
	if a.journal.NeedsCompaction() {
		a.compact(a.journal.Snapshot(after()))
	}
	// The new file is written here, which no open transaction should have to wait for as long as that can be helped.
	if s := a.snapshot; s != nil && (s.Behind() > maxBehind || len(after().Txns) == 0) {
		a.snapshot = nil
		if err := a.journal.Install(s); err != nil {
			return err
		}
	}
	a.m.journalSize.Set(float64(a.journal.Size()))
	return nil
}

// compact encodes a Snapshot, which takes a while with a thousand Apps, beside the actor.
func (a *Agent) compact(s *journal.Snapshot) {
	a.spawn(func() {
		s.Encode()
		select {
		case a.encoded <- s:
		case <-a.stopping():
		}
	})
}

// crashAt names the moments before and after each kind of Record.
func crashAt(when string, records []participant.Record) {
	for _, r := range records {
		crashpoint.At(when + string(r.Kind))
	}
}

// reopen tries the journal again, and starts from what it says, as after a restart. REQUIRES: no Work is under way.
func (a *Agent) reopen() {
	if err := a.journal.Close(); err != nil {
		a.log.Warn("close the failed journal", "err", err)
	}
	if err := a.openJournal(); err != nil {
		a.log.Error("the journal cannot be opened again", "err", err, "next_try", reopenPause)
		return
	}
	a.m.journalDown.Set(0)
	a.log.Info("the journal is open again", "open_transactions", len(a.state.Load().Durable.Txns))
	s := a.state.Load()
	a.watch.changed(s.Apps(), s.Durable.Epoch)
}

// begin runs a Work in a goroutine of its own.
func (a *Agent) begin(ctx context.Context, w participant.Work) {
	wctx, cancel := context.WithTimeout(ctx, workTimeout)
	a.work[w.App] = &running{seq: w.Seq, cancel: cancel}
	a.spawn(func() {
		done := a.carryOut(wctx, w)
		cancel()
		a.send(ctx, input{event: done})
	})
}

// carryOut makes the driver calls of a Work, in order, up to the first error.
func (a *Agent) carryOut(ctx context.Context, w participant.Work) participant.WorkDone {
	done := participant.WorkDone{App: w.App, Seq: w.Seq}
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		done.Err = ctx.Err()
		return done
	}
	d := a.opts.Driver
	a.contract.begun(ctx)
	if err := a.contract.unchecked(); err != nil {
		done.Err = err
		return done
	}
	if w.Collect {
		done.Err = a.reload(ctx)
		return done
	}
	call := func(name string, f func() error) {
		if done.Err != nil {
			return
		}
		// "after-publish-activating": between an effect and what is journaled of it.
		moment := name
		if w.Phase != 0 {
			moment += "-" + strings.ToLower(w.Phase.String())
		}
		crashpoint.At("before-" + moment)
		begin := time.Now()
		err := f()
		crashpoint.At("after-" + moment)
		a.m.work.WithLabelValues(name).Observe(time.Since(begin).Seconds())
		if err != nil {
			a.m.workErrors.WithLabelValues(name).Inc()
			if !errors.Is(err, context.Canceled) {
				a.log.Warn("the driver failed", "call", name, "app", w.App, "phase", w.Phase.String(), "err", err)
			}
			done.Err = err
		}
	}
	files := func() error {
		digest, err := d.PublishedDigest(ctx, w.App)
		done.Published, done.PublishedKnown = digest, err == nil
		return err
	}
	if w.ReadPublished {
		call("published-digest", files)
	}
	if w.Stage != nil {
		call("stage", func() error { return d.Stage(ctx, *w.Stage) })
	}
	if w.Publish != nil {
		call("publish", func() error { return d.Publish(ctx, *w.Publish) })
		call("published-digest", files)
	}
	if w.Converge != nil {
		call("converge", func() error { return d.Converge(ctx, *w.Converge) })
	}
	for _, name := range w.Cut {
		call("cut", func() error { return d.Cut(ctx, w.App, name) })
	}
	if len(w.Requests) > 0 {
		call("request", func() error { return a.requests(ctx, w) })
	}
	return done
}

// requests sends the real requests, some at a time.
func (a *Agent) requests(ctx context.Context, w participant.Work) error {
	const atOnce = 8
	errs := make([]error, len(w.Requests))
	for batch := range slices.Chunk(indexes(len(w.Requests)), atOnce) {
		var wg sync.WaitGroup
		for _, i := range batch {
			wg.Go(func() {
				c, cancel := context.WithTimeout(ctx, readTimeout)
				defer cancel()
				r := w.Requests[i]
				errs[i] = a.opts.Driver.Request(c, w.App, r.Upstream, r.Host)
			})
		}
		wg.Wait()
	}
	return errors.Join(errs...)
}

func indexes(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// callers are the calls that wait for an Answer.
type callers struct {
	mu     sync.Mutex
	next   participant.Token
	wait   map[participant.Token]chan participant.Answer
	closed bool
}

// open makes a token and the channel of its one Answer. It fails when too many calls are under way, or at the end. begins: the
// call is one of those that begin something and wait for it, which leave room for the others.
func (c *callers) open(begins bool) (participant.Token, <-chan participant.Answer, bool) {
	limit := maxCalls
	if begins {
		limit -= keptCalls
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.wait) >= limit {
		return 0, nil, false
	}
	if c.wait == nil {
		c.wait = map[participant.Token]chan participant.Answer{}
	}
	c.next++
	ch := make(chan participant.Answer, 1)
	c.wait[c.next] = ch
	return c.next, ch, true
}

// answer hands an Answer to its caller; one that has gone away is passed over.
func (c *callers) answer(t participant.Token, ans participant.Answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.wait[t]; ch != nil {
		delete(c.wait, t)
		ch <- ans
	}
}

// drop forgets a caller.
func (c *callers) drop(t participant.Token) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.wait, t)
}

// close ends all waiting.
func (c *callers) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for t, ch := range c.wait {
		delete(c.wait, t)
		close(ch)
	}
}
