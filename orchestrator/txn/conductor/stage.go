package conductor

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
)

// stage is one message to all Hosts.
type stage struct {
	order   uint64
	version *lbagentv1.Version // the committed version that holds it; nil until durable
	failed  bool               // never to be sent, or not any more
	hosts   map[string]*stageHost
}

type stageHost struct {
	done, flying bool
	cancel       context.CancelFunc
	tries        int
	at           time.Time
}

func newStage(hosts []string) *stage {
	s := &stage{hosts: map[string]*stageHost{}}
	for _, h := range hosts {
		s.hosts[h] = &stageHost{}
	}
	return s
}

// ready: durable and numbered, so it may be sent.
func (s *stage) ready() bool { return s != nil && s.version != nil && s.order != 0 && !s.failed }

// over: nobody has to be told any more.
func (s *stage) over() bool {
	if s == nil || s.failed {
		return true
	}
	if !s.ready() {
		return false
	}
	for _, h := range s.hosts {
		if !h.done {
			return false
		}
	}
	return true
}

func (s *stage) stop() {
	if s == nil {
		return
	}
	s.failed = true
	for _, h := range s.hosts {
		if h.cancel != nil {
			h.cancel()
			h.cancel, h.flying = nil, false
		}
	}
}

func (a *amendment) stages() []*stage {
	var out []*stage
	for _, s := range []*stage{a.remove, a.insert} {
		if s != nil {
			out = append(out, s)
		}
	}
	return out
}

// amendmentWake is when advanceAmendment has something to do, if nothing happens before.
func (c *Conductor) amendmentWake(a *amendment) time.Time {
	var at time.Time
	for _, s := range a.stages() {
		if !s.ready() {
			continue
		}
		for name, h := range s.hosts {
			if c.comesWithAbort(a, s, name) {
				continue
			}
			if !h.done && !h.flying {
				at = sooner(at, h.at)
			}
			if host := c.hosts[name]; host != nil && !h.done && s == a.insert && !host.up && s.anyDone() {
				at = sooner(at, host.downAt.Add(c.rules.HostWait))
			}
		}
	}
	if a.insert != nil && !a.insert.over() && c.carrier(a) == nil {
		at = sooner(at, a.a.Deadline)
	}
	return at
}

// leaveAway ends an insertion without the Hosts that are away, once all others have verified it: one dead Host must not
// keep the others from getting their replacements (NEVER-ZERO). It gets the committed state by Sync when it is back,
// and until then it holds what retired: no task of those is killed (NO-ORPHAN-KILL).
func (c *Conductor) leaveAway(a *amendment, now time.Time) {
	s := a.insert
	if !s.ready() || !s.anyDone() || c.carrier(a) != nil {
		return // without the replacements a Host could never answer the Abort that carries them
	}
	var away []*stageHost
	for name, h := range s.hosts {
		host := c.hosts[name]
		switch {
		case h.done:
		case host.up || now.Sub(host.downAt) < c.rules.HostWait:
			return
		default:
			away = append(away, h)
		}
	}
	for _, h := range away {
		if h.cancel != nil {
			h.cancel()
		}
		h.cancel, h.flying, h.done = nil, false, true
	}
}

// comesWithAbort: the Host gets the insertion with the Abort that it still owes an answer to.
func (c *Conductor) comesWithAbort(a *amendment, s *stage, name string) bool {
	o := c.carrier(a)
	return s == a.insert && o != nil && o.state.Unfinished(name)
}

// done ends the stage on one Host.
func (s *stage) done(name string) {
	h := s.hosts[name]
	if h == nil {
		return
	}
	if h.cancel != nil {
		h.cancel()
	}
	h.cancel, h.flying, h.done = nil, false, true
}

func (s *stage) anyDone() bool {
	for _, h := range s.hosts {
		if h.done {
			return true
		}
	}
	return false
}

// sooner returns the earlier of two times, of which zero means never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// hostIsBack: a Host that came back is asked at once.
func (a *amendment) hostIsBack(name string) {
	for _, s := range a.stages() {
		h := s.hosts[name]
		if h == nil || h.done {
			continue
		}
		if h.cancel != nil {
			h.cancel()
		}
		h.cancel, h.flying, h.tries, h.at = nil, false, 0, time.Time{}
	}
}

// inMotion: the Host is about to get there by the Amendment, so Sync must not. A removal that the Host has refused is
// left to Sync; an insertion never is, since only the Host's answer to it says that it is verified there.
func (a *amendment) inMotion(name string) bool {
	if s := a.remove; s != nil && s.version != nil && !s.failed {
		if h := s.hosts[name]; h != nil && !h.done && (h.flying || h.tries == 0) {
			return true
		}
	}
	return a.inserting(name)
}

// inserting: the committed Section holds an insertion that is not verified on the Host.
func (a *amendment) inserting(name string) bool {
	s := a.insert
	return s != nil && !s.failed && a.record.Applied && s.hosts[name] != nil && !s.hosts[name].done
}

// syncedPast: the Host installed the Section at this version.
func (a *amendment) syncedPast(name string, v *lbagentv1.Version) {
	for _, s := range a.stages() {
		h := s.hosts[name]
		if h == nil || h.done || !s.ready() || txn.CompareVersions(v, s.version) < 0 {
			continue
		}
		if h.cancel != nil {
			h.cancel()
		}
		h.cancel, h.flying, h.done = nil, false, true
	}
}

// advanceAmendment sends what is to be sent, gives up what is late, and tells the end.
func (c *Conductor) advanceAmendment(a *amendment) {
	if a.ending || a.over || c.amends[a.a.ID] != a {
		return
	}
	now := time.Now()
	c.leaveAway(a, now)
	if a.insert != nil && !a.insert.over() && !now.Before(a.a.Deadline) && c.carrier(a) == nil {
		c.giveUp(a, "the deadline passed: "+a.waiting())
		return
	}
	for _, s := range a.stages() {
		if !s.ready() {
			continue
		}
		for _, name := range a.hosts {
			h := s.hosts[name]
			if !h.done && !h.flying && !now.Before(h.at) && !c.comesWithAbort(a, s, name) {
				c.sendStage(a, s, name)
			}
		}
	}
	if a.remove.over() && a.insert.over() && (a.insert == nil || !a.insert.failed || !a.locked) {
		c.concludeAmendment(a)
	}
}

// waiting names the Hosts that have not answered the insertion.
func (a *amendment) waiting() string {
	if !a.insert.ready() {
		return "a transaction held the section"
	}
	var names []string
	for _, name := range a.hosts {
		if !a.insert.hosts[name].done {
			names = append(names, name)
		}
	}
	return "no answer from " + strings.Join(names, ", ")
}

// sendStage tells one Host.
func (c *Conductor) sendStage(a *amendment, s *stage, name string) {
	h, sh := c.hosts[name], s.hosts[name]
	req := &lbagentv1.AmendRequest{
		Fence: c.reg.FenceOf(h.group), App: a.a.App, Order: s.order, Base: s.version,
		Origin: &lbagentv1.Origin{Actor: a.a.Actor, Reason: a.a.Reason},
	}
	timeout := c.opts.CallTimeout
	if s == a.insert {
		left := max(time.Until(a.a.Deadline), 0)
		req.Insert, req.Retire, req.Deadline = a.a.Insert, a.a.Retire, durationpb.New(left)
		timeout = left + deadlineSlack
	} else {
		req.Remove = a.a.Remove
	}
	order := s.order
	call := func(ctx context.Context) reply {
		resp, err := h.link.Client().Amend(ctx, connect.NewRequest(req))
		if err != nil {
			return reply{err: err}
		}
		r := reply{refusal: resp.Msg.GetRefusal()}
		if e := resp.Msg.GetAmended().GetEvidence(); e != nil {
			r.evidence = []*lbagentv1.Evidence{e}
		}
		return orEmpty(r, resp.Msg.GetAmended() != nil)
	}
	sh.flying = true
	sh.cancel = c.spawn(h, "amend", timeout, call, func(r reply) {
		if c.amends[a.a.ID] != a || s.failed {
			return
		}
		sh.flying, sh.cancel = false, nil
		c.stageAnswered(a, s, h, order, r)
		c.advanceAmendment(a)
		c.refresh(h)
	})
}

// stageAnswered takes the answer of one Host. A removal is repeated until it is yes; an insertion is given up on a no
// that will not change by itself.
func (c *Conductor) stageAnswered(a *amendment, s *stage, h *host, order uint64, r reply) {
	sh := s.hosts[h.name]
	reason := r.refusal.GetReason()
	switch {
	case r.err == nil && r.refusal == nil:
		sh.done = true
		if o := c.openOn(a.key(), h.name); !o {
			c.noteEvidence(h, r.evidence, map[string]bool{})
		}
		return
	case reason == lbagentv1.RefusalReason_REFUSAL_REASON_STALE_ORDER:
		if order == s.order && s.order != 0 {
			s.order = 0
			c.numberStage(a, s, s.version)
		}
	case s == a.insert && r.refusal != nil && !passing(reason):
		c.giveUp(a, fmt.Sprintf("host %s refused: %s", h.name, refusalText(r.refusal)))
		return
	}
	c.noteHigherEpoch(h, r.refusal)
	if r.err != nil {
		c.log.Debug("an amendment was not answered", "host", h.name, "amendment", a.a.ID, "error", registry.Plain(r.err))
	}
	sh.tries++
	sh.at = time.Now().Add(min(50*time.Millisecond<<min(sh.tries, 6), 2*time.Second))
}

// passing reasons change by themselves, or when the Host was synced.
func passing(r lbagentv1.RefusalReason) bool {
	switch r {
	case lbagentv1.RefusalReason_REFUSAL_REASON_BUSY, lbagentv1.RefusalReason_REFUSAL_REASON_BASE_MISMATCH,
		lbagentv1.RefusalReason_REFUSAL_REASON_PROXY_DOWN:
		return true
	default:
		return false
	}
}

func refusalText(r *lbagentv1.Refusal) string {
	out := txn.RefusalWord(r.GetReason())
	for _, s := range []string{r.GetUpstream(), r.GetMessage()} {
		if s != "" {
			out += ": " + s
		}
	}
	return out
}

// openOn: a transaction is open on the Section on that Host, so an answer there says nothing about the report.
func (c *Conductor) openOn(key txn.SectionKey, host string) bool {
	for _, o := range c.txns {
		if o.changeOf(key) != nil && o.state.Unfinished(host) {
			return true
		}
	}
	return false
}
