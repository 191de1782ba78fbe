package conductor

import (
	"errors"
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// settling is the telling of a decision to a Host that asks for it by its report.
type settling struct {
	flying bool
	at     time.Time // not before
}

// settlePause is between two tellings, so that a report that was on its way does not cause another one.
const settlePause = time.Second

// settleInDoubt tells the Host the decision of every transaction that it reports open and that is decided, or that
// nobody here knows: then the record says it (found = Commit, absent = Abort). One that is undecided here is the
// machine's; so is one to which the Host owes its last answer.
func (c *Conductor) settleInDoubt(h *host) {
	open := map[string]*lbagentv1.OpenTxn{}
	for _, s := range h.reports.Sections {
		if t := s.GetOpen(); t != nil {
			open[t.GetTxnId()] = t
		}
	}
	for id, s := range h.inDoubt {
		if open[id] == nil && !s.flying {
			delete(h.inDoubt, id)
		}
	}
	if !h.up {
		return
	}
	for _, id := range sortedKeys(open) {
		if o := c.txns[id]; o != nil && (o.state.Undecided() || o.state.Unfinished(h.name)) {
			continue
		}
		s := h.inDoubt[id]
		if s == nil {
			s = &settling{}
			h.inDoubt[id] = s
			if c.txns[id] != nil || c.past.has(id) {
				s.at = time.Now().Add(settlePause) // its last answer has probably overtaken this report
			}
		}
		if !s.flying && !time.Now().Before(s.at) {
			c.settle(h, s, open[id])
		}
	}
}

// settle reads the decision and tells it.
func (c *Conductor) settle(h *host, s *settling, open *lbagentv1.OpenTxn) {
	s.flying = true
	id := open.GetTxnId()
	finish := func() {
		s.flying = false
		s.at = time.Now().Add(settlePause)
	}
	c.work.Go(func() {
		_, err := c.opts.Store.Get(c.ctx, prefixDecision+id)
		c.post(func() {
			commit := err == nil
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				c.log.Warn("the decision of a transaction in doubt cannot be read", "txn", id, "error", err)
				finish()
				return
			}
			if o := c.txns[id]; o != nil && o.state.Undecided() {
				finish() // begun meanwhile under the same id
				return
			}
			call, timeout := c.commitCall(h, id, open.GetOrder()), c.opts.CallTimeout
			if !commit {
				call = c.abortCall(h, id, open.GetOrder(), open.GetApps(),
					&lbagentv1.Origin{Actor: "cutover", Reason: "no decision to commit exists"})
			}
			c.log.Info("host is in doubt: telling the decision", "host", h.name, "txn", id, "commit", commit)
			c.spawn(h, "decision", timeout, call, func(r reply) {
				finish()
				switch {
				case r.err != nil:
					c.log.Warn("a decision was not acknowledged", "host", h.name, "txn", id, "error", registry.Plain(r.err))
				case r.refusal != nil:
					c.log.Warn("a decision was refused", "host", h.name, "txn", id, "reason", txn.RefusalWord(r.refusal.GetReason()), "message", r.refusal.GetMessage())
				default:
					c.noteEvidence(h, r.evidence, map[string]bool{})
				}
				c.refresh(h)
			})
		})
	})
}
