package conductor

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/internal/crashpoint"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
)

// deadlineSlack is how much longer a call may take than the time it grants, so that the Host's own "deadline" arrives.
const deadlineSlack = time.Second

// reply is what became of a call; exactly one of the three is set in a good one.
type reply struct {
	sentAt   time.Time
	err      error
	refusal  *lbagentv1.Refusal
	evidence []*lbagentv1.Evidence
	// aborted and synced carry what only those answers have.
	aborted *lbagentv1.Aborted
	synced  *lbagentv1.Synced
}

// spawn runs a call to the Host in one of its slots and hands the reply to the owner. cancel gives it up: then no reply
// comes. what names the call in crash points.
func (c *Conductor) spawn(h *host, what string, timeout time.Duration, call func(context.Context) reply, then func(reply)) (cancel context.CancelFunc) {
	ctx, stop := context.WithTimeout(c.ctx, timeout)
	given := false // owned by the owner
	slots := h.slots
	if what == txn.CallPrepare.String() || what == "amend" {
		slots = h.warming
	}
	c.work.Go(func() {
		defer stop()
		r := reply{sentAt: time.Now()}
		select {
		case slots <- struct{}{}:
			sent := time.Now() // Before the request leaves: freshness is counted from here.
			crashpoint.At("before-send-" + what)
			r = call(ctx)
			crashpoint.At("after-send-" + what)
			r.sentAt = sent
			<-slots
		case <-ctx.Done():
			r.err = fmt.Errorf("%d calls to the host are waiting: %w", callsPerHost, ctx.Err())
		}
		c.post(func() {
			if !given {
				then(r)
			}
		})
	})
	return func() { given = true; stop() }
}

func (c *Conductor) origin(o *transaction) *lbagentv1.Origin {
	return &lbagentv1.Origin{Actor: o.record.Actor, Reason: o.record.Reason, Deploy: o.record.Deploy}
}

// send carries out one call of the machine.
func (c *Conductor) send(o *transaction, e txn.Send) {
	h := c.hosts[e.Host]
	if cancel := o.calls[e.Host]; cancel != nil {
		cancel() // replaced: its answer would be about an earlier step
	}
	delete(o.calls, e.Host)
	c.unqueueVerify(h, o.id())
	if e.Call == txn.CallVerify {
		c.queueVerify(h, o, e)
		return
	}
	call, timeout := c.request(o, h, e.Call)
	o.calls[e.Host] = c.spawn(h, e.Call.String(), timeout, call, func(r reply) {
		if c.txns[o.id()] == o {
			delete(o.calls, e.Host)
			c.answered(o, h, e, r)
		}
	})
}

// request builds the message now, in the owner, and returns how to send it.
func (c *Conductor) request(o *transaction, h *host, call txn.Call) (func(context.Context) reply, time.Duration) {
	fence := c.reg.FenceOf(h.group)
	fence.View = o.views[h.group].Number
	left := max(time.Until(o.state.Deadline), 0)
	client := h.link.Client()
	switch call {
	case txn.CallPrepare:
		req := &lbagentv1.PrepareRequest{Fence: fence, TxnId: o.id(), Order: o.state.Order, Changes: o.targets(h.group),
			Origin: c.origin(o), Deadline: durationpb.New(left)}
		return func(ctx context.Context) reply {
			resp, err := client.Prepare(ctx, connect.NewRequest(req))
			if err != nil {
				return reply{err: err}
			}
			return orEmpty(reply{refusal: resp.Msg.GetRefusal(), evidence: resp.Msg.GetReady().GetEvidence()}, resp.Msg.GetReady() != nil)
		}, left + deadlineSlack
	case txn.CallActivate:
		req := &lbagentv1.ActivateRequest{Fence: fence, TxnId: o.id(), Order: o.state.Order, Deadline: durationpb.New(left)}
		return func(ctx context.Context) reply {
			resp, err := client.Activate(ctx, connect.NewRequest(req))
			if err != nil {
				return reply{err: err}
			}
			evidence := resp.Msg.GetVerified().GetEvidence()
			if resp.Msg.GetRefusal() != nil {
				evidence = resp.Msg.GetFailedEvidence()
			}
			return orEmpty(reply{refusal: resp.Msg.GetRefusal(), evidence: evidence}, resp.Msg.GetVerified() != nil)
		}, left + deadlineSlack
	case txn.CallCommit:
		return c.commitCall(h, o.id(), o.state.Order), c.opts.CallTimeout
	default:
		return c.abortCall(h, o.id(), o.state.Order, o.apps(h.group), c.origin(o), c.replacements(o, h.group)...), c.opts.CallTimeout
	}
}

func (c *Conductor) commitCall(h *host, id string, order uint64) func(context.Context) reply {
	req := &lbagentv1.CommitRequest{Fence: c.reg.FenceOf(h.group), TxnId: id, Order: order}
	return func(ctx context.Context) reply {
		resp, err := h.link.Client().Commit(ctx, connect.NewRequest(req))
		if err != nil {
			return reply{err: err}
		}
		return orEmpty(reply{refusal: resp.Msg.GetRefusal(), evidence: resp.Msg.GetCommitted().GetEvidence()}, resp.Msg.GetCommitted() != nil)
	}
}

func (c *Conductor) abortCall(h *host, id string, order uint64, apps []string, origin *lbagentv1.Origin, replacements ...*lbagentv1.Section) func(context.Context) reply {
	req := &lbagentv1.AbortRequest{Fence: c.reg.FenceOf(h.group), TxnId: id, Order: order, Apps: apps, Origin: origin, Replacements: replacements}
	return func(ctx context.Context) reply {
		resp, err := h.link.Client().Abort(ctx, connect.NewRequest(req))
		if err != nil {
			return reply{err: err}
		}
		a := resp.Msg.GetAborted()
		return orEmpty(reply{refusal: resp.Msg.GetRefusal(), evidence: a.GetEvidence(), aborted: a}, a != nil)
	}
}

// orEmpty turns an answer that says neither yes nor no into an error.
func orEmpty(r reply, yes bool) reply {
	if !yes && r.refusal == nil {
		r.err = fmt.Errorf("the answer is empty: run the same version of cutover on both sides")
	}
	return r
}

func (o *transaction) apps(group string) []string {
	var out []string
	for _, ch := range o.changes {
		if ch.key.Group == group {
			out = append(out, ch.key.App)
		}
	}
	return out
}

// targets are the changes as a Host of the Group gets them: without the dead.
func (o *transaction) targets(group string) []*lbagentv1.Change {
	var out []*lbagentv1.Change
	for _, ch := range o.changes {
		if ch.key.Group == group {
			out = append(out, &lbagentv1.Change{App: ch.key.App, Base: ch.base.GetVersion(), Target: txn.Without(ch.target, o.dead)})
		}
	}
	return out
}

// answered gives the reply to the machine.
func (c *Conductor) answered(o *transaction, h *host, e txn.Send, r reply) {
	if r.err != nil {
		c.step(o, txn.NoAnswer{Host: h.name, Call: e.Call, Attempt: e.Attempt, Err: registry.Plain(r.err)})
		return
	}
	if r.refusal == nil {
		r.refusal = c.examine(o, h, e.Call, r)
	}
	c.noteHigherEpoch(h, r.refusal)
	a := txn.Answer{Host: h.name, Call: e.Call, SentAt: r.sentAt, Refusal: r.refusal, Evidence: r.evidence}
	if r.refusal == nil && (e.Call == txn.CallCommit || e.Call == txn.CallAbort) {
		c.noteEvidence(h, r.evidence, o.removals(h.group, e.Call))
	}
	if r.refusal == nil && e.Call == txn.CallAbort {
		c.cameWith(o, h, r.evidence)
	}
	c.step(o, a)
	c.advanceCarried(o)
	c.refresh(h)
}

// examine checks a yes against its own evidence, and makes it a no if that does not bear it out.
func (c *Conductor) examine(o *transaction, h *host, call txn.Call, r reply) *lbagentv1.Refusal {
	changes := slices.DeleteFunc(o.planned(), func(ch txn.Change) bool { return ch.Key.Group != h.group })
	app, err := txn.CheckAnswer(call, changes, o.dead, r.evidence, r.aborted)
	if err == nil {
		return nil
	}
	c.log.Warn("the evidence does not bear out the answer", "txn", o.id(), "host", h.name, "call", call.String(), "app", app, "error", err)
	return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_SET_DIFFERS, App: app,
		Message: "the evidence does not bear out the answer: " + err.Error()}
}

// planned are the changes as package txn judges them.
func (o *transaction) planned() []txn.Change {
	var out []txn.Change
	for _, ch := range o.changes {
		out = append(out, txn.Change{Key: ch.key, Target: ch.target, Base: ch.base})
	}
	return out
}

// removals are the Apps that are gone in the Group after this answer.
func (o *transaction) removals(group string, call txn.Call) map[string]bool {
	out := map[string]bool{}
	for _, ch := range o.changes {
		if ch.key.Group != group {
			continue
		}
		if call == txn.CallCommit {
			out[ch.key.App] = ch.target == nil
		} else {
			out[ch.key.App] = ch.base.GetRemoved()
		}
	}
	return out
}

// verifyQueue collects what is to be verified on one Host: one call at a time, for all transactions that ask by then.
type verifyQueue struct {
	sending bool
	waiting []verifyAsk
	flying  []verifyAsk
}

type verifyAsk struct {
	o *transaction
	e txn.Send
}

func (c *Conductor) queueVerify(h *host, o *transaction, e txn.Send) {
	h.verify.waiting = append(h.verify.waiting, verifyAsk{o, e})
	c.sendVerify(h)
}

// unqueueVerify drops what the transaction asked: its answer is not wanted any more.
func (c *Conductor) unqueueVerify(h *host, id string) {
	gone := func(a verifyAsk) bool { return a.o.id() == id }
	h.verify.waiting = slices.DeleteFunc(h.verify.waiting, gone)
	h.verify.flying = slices.DeleteFunc(h.verify.flying, gone)
}

func (c *Conductor) sendVerify(h *host) {
	q := &h.verify
	if q.sending || len(q.waiting) == 0 {
		return
	}
	q.sending, q.flying, q.waiting = true, q.waiting, nil
	req := &lbagentv1.VerifyRequest{Fence: c.reg.FenceOf(h.group)}
	for _, a := range q.flying {
		req.TxnIds = append(req.TxnIds, a.o.id())
	}
	var answers []*lbagentv1.VerifyResponse_Answer
	call := func(ctx context.Context) reply {
		resp, err := h.link.Client().Verify(ctx, connect.NewRequest(req))
		if err != nil {
			return reply{err: err}
		}
		answers = resp.Msg.GetAnswers()
		return reply{}
	}
	c.spawn(h, txn.CallVerify.String(), c.opts.VerifyTimeout, call, func(r reply) {
		asks := q.flying
		q.sending, q.flying = false, nil
		for _, a := range asks {
			if c.txns[a.o.id()] != a.o {
				continue
			}
			one := reply{sentAt: r.sentAt, err: r.err}
			if one.err == nil {
				at := slices.IndexFunc(answers, func(x *lbagentv1.VerifyResponse_Answer) bool { return x.GetTxnId() == a.o.id() })
				if at < 0 {
					one = orEmpty(one, false)
				} else {
					one.refusal, one.evidence = answers[at].GetRefusal(), answers[at].GetVerified().GetEvidence()
					one = orEmpty(one, answers[at].GetVerified() != nil)
				}
			}
			c.answered(a.o, h, a.e, one)
		}
		c.sendVerify(h)
	})
}

// noteHigherEpoch draws the consequence of a Host that follows a later leader: nothing of this term counts there.
func (c *Conductor) noteHigherEpoch(h *host, r *lbagentv1.Refusal) {
	if r.GetReason() == lbagentv1.RefusalReason_REFUSAL_REASON_STALE_EPOCH {
		c.HostAhead(c.ctx, h.name, r.GetMaxEpoch())
	}
}

// HostAhead implements registry.Handler.
func (c *Conductor) HostAhead(_ context.Context, host string, seen uint64) {
	if seen <= c.opts.Fence.Epoch {
		return
	}
	c.ahead.Do(func() {
		c.log.Error("a host has seen a higher epoch than this leader's: another orchestrator leads it, or the state of this one is an old copy",
			"host", host, "epoch", c.opts.Fence.Epoch, "seen", seen)
		if c.opts.HigherEpoch != nil {
			c.work.Go(func() { c.opts.HigherEpoch(host, seen) })
		}
	})
}
