package hosttest

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// handler answers the calls of one Host, as one process of its agent.
type handler struct {
	h       *Host
	process *http.Server
}

// errKilled ends calls that outlive the process: a dead agent does nothing any more.
var errKilled = errors.New("the agent was killed")

// enter waits while the Host is frozen, notes the call, and checks bend and fence. It returns with h.mu held.
func (s *handler) enter(ctx context.Context, call, id string, fence *lbagentv1.Fence) (*lbagentv1.Refusal, error) {
	h := s.h
	h.mu.Lock()
	for {
		thawed := h.thawed
		select {
		case <-thawed:
		default:
			h.mu.Unlock()
			select {
			case <-thawed:
			case <-ctx.Done():
				h.mu.Lock()
				return nil, ctx.Err()
			}
			h.mu.Lock()
			continue
		}
		break
	}
	if h.server != s.process {
		return nil, errKilled
	}
	h.calls[call]++
	h.log = append(h.log, call+" "+id)
	if h.slow[call] {
		h.mu.Unlock()
		<-ctx.Done()
		h.mu.Lock()
		return nil, ctx.Err()
	}
	if fence.GetEpoch() < h.epoch {
		return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_STALE_EPOCH, MaxEpoch: h.epoch}, nil
	}
	h.epoch = fence.GetEpoch()
	if bend := h.bend[call]; bend != nil {
		return bend(h.calls[call]), nil
	}
	return nil, nil
}

func refuse(reason lbagentv1.RefusalReason, message string) *lbagentv1.Refusal {
	return &lbagentv1.Refusal{Reason: reason, Message: message}
}

func (s *handler) SetTraffic(ctx context.Context, r *connect.Request[lbagentv1.SetTrafficRequest]) (*connect.Response[lbagentv1.SetTrafficResponse], error) {
	no, err := s.enter(ctx, "traffic", r.Msg.GetOrder().String(), r.Msg.GetFence())
	defer s.h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if no != nil {
		return connect.NewResponse(&lbagentv1.SetTrafficResponse{Answer: &lbagentv1.SetTrafficResponse_Refusal{Refusal: no}}), nil
	}
	s.h.order = r.Msg.GetOrder()
	s.h.touch()
	return connect.NewResponse(&lbagentv1.SetTrafficResponse{Answer: &lbagentv1.SetTrafficResponse_Traffic{Traffic: s.h.traffic()}}), nil
}

func (s *handler) Collect(ctx context.Context, r *connect.Request[lbagentv1.CollectRequest]) (*connect.Response[lbagentv1.CollectResponse], error) {
	no, err := s.enter(ctx, "collect", "", r.Msg.GetFence())
	defer s.h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if no != nil {
		return connect.NewResponse(&lbagentv1.CollectResponse{Answer: &lbagentv1.CollectResponse_Refusal{Refusal: no}}), nil
	}
	s.h.tombstones = 0
	s.h.touch()
	return connect.NewResponse(&lbagentv1.CollectResponse{Answer: &lbagentv1.CollectResponse_Collected_{Collected: &lbagentv1.CollectResponse_Collected{}}}), nil
}

func (s *handler) Prepare(ctx context.Context, r *connect.Request[lbagentv1.PrepareRequest]) (*connect.Response[lbagentv1.PrepareResponse], error) {
	no, err := s.enter(ctx, "prepare", r.Msg.GetTxnId(), r.Msg.GetFence())
	defer s.h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if no == nil {
		no = s.h.blame("prepare", r.Msg.GetChanges())
	}
	if no == nil {
		no = s.prepare(r.Msg)
	}
	if no != nil {
		return connect.NewResponse(&lbagentv1.PrepareResponse{Answer: &lbagentv1.PrepareResponse_Refusal{Refusal: no}}), nil
	}
	ready := &lbagentv1.Ready{}
	for _, ch := range r.Msg.GetChanges() {
		ready.Evidence = append(ready.Evidence, s.h.evidence(ch.GetApp()))
	}
	return connect.NewResponse(&lbagentv1.PrepareResponse{Answer: &lbagentv1.PrepareResponse_Ready{Ready: ready}}), nil
}

func (s *handler) prepare(m *lbagentv1.PrepareRequest) *lbagentv1.Refusal {
	h := s.h
	if _, ok := h.outcomes[m.GetTxnId()]; ok {
		return refuse(lbagentv1.RefusalReason_REFUSAL_REASON_ABORTED, "it is over here")
	}
	if h.open[m.GetTxnId()] != nil {
		return nil
	}
	for _, ch := range m.GetChanges() {
		sec := h.section(ch.GetApp())
		switch o, _ := h.openOn(ch.GetApp()); {
		case o != nil:
			return refuse(lbagentv1.RefusalReason_REFUSAL_REASON_BUSY, o.id+" is open")
		case m.GetOrder() <= sec.passed:
			return refuse(lbagentv1.RefusalReason_REFUSAL_REASON_STALE_ORDER, "passed")
		case ch.GetBase().GetTxn() != sec.committed.GetVersion().GetTxn():
			return refuse(lbagentv1.RefusalReason_REFUSAL_REASON_BASE_MISMATCH, "another base")
		}
	}
	h.open[m.GetTxnId()] = &openTxn{id: m.GetTxnId(), order: m.GetOrder(), phase: lbagentv1.TxnPhase_TXN_PHASE_READY, changes: m.GetChanges()}
	h.touch()
	return nil
}

func (s *handler) Activate(ctx context.Context, r *connect.Request[lbagentv1.ActivateRequest]) (*connect.Response[lbagentv1.ActivateResponse], error) {
	no, err := s.enter(ctx, "activate", r.Msg.GetTxnId(), r.Msg.GetFence())
	defer s.h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	o := s.h.open[r.Msg.GetTxnId()]
	if no == nil && o == nil {
		no = refuse(lbagentv1.RefusalReason_REFUSAL_REASON_ABORTED, "not open")
	}
	if no == nil {
		no = s.h.blame("activate", o.changes)
	}
	if no != nil {
		return connect.NewResponse(&lbagentv1.ActivateResponse{Answer: &lbagentv1.ActivateResponse_Refusal{Refusal: no}}), nil
	}
	o.phase = lbagentv1.TxnPhase_TXN_PHASE_VERIFIED
	s.h.touch()
	return connect.NewResponse(&lbagentv1.ActivateResponse{Answer: &lbagentv1.ActivateResponse_Verified{Verified: s.verified(o)}}), nil
}

func (s *handler) verified(o *openTxn) *lbagentv1.Verified {
	v := &lbagentv1.Verified{}
	for _, app := range o.apps() {
		v.Evidence = append(v.Evidence, s.h.evidence(app))
	}
	return v
}

func (s *handler) Verify(ctx context.Context, r *connect.Request[lbagentv1.VerifyRequest]) (*connect.Response[lbagentv1.VerifyResponse], error) {
	no, err := s.enter(ctx, "verify", "", r.Msg.GetFence())
	defer s.h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	resp := &lbagentv1.VerifyResponse{}
	for _, id := range r.Msg.GetTxnIds() {
		a := &lbagentv1.VerifyResponse_Answer{TxnId: id}
		o := s.h.open[id]
		switch {
		case no != nil:
			a.Answer = &lbagentv1.VerifyResponse_Answer_Refusal{Refusal: no}
		case o == nil || o.phase != lbagentv1.TxnPhase_TXN_PHASE_VERIFIED:
			a.Answer = &lbagentv1.VerifyResponse_Answer_Refusal{Refusal: refuse(lbagentv1.RefusalReason_REFUSAL_REASON_WRONG_STATE, "not verified")}
		default:
			a.Answer = &lbagentv1.VerifyResponse_Answer_Verified{Verified: s.verified(o)}
		}
		resp.Answers = append(resp.Answers, a)
	}
	return connect.NewResponse(resp), nil
}

func (s *handler) Commit(ctx context.Context, r *connect.Request[lbagentv1.CommitRequest]) (*connect.Response[lbagentv1.CommitResponse], error) {
	no, err := s.enter(ctx, "commit", r.Msg.GetTxnId(), r.Msg.GetFence())
	defer s.h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c := &lbagentv1.Committed{}
	o := s.h.open[r.Msg.GetTxnId()]
	switch {
	case no != nil:
	case o != nil && o.phase >= lbagentv1.TxnPhase_TXN_PHASE_VERIFIED:
		apps := o.apps()
		s.h.close(o.id, o, true)
		for _, app := range apps {
			c.Evidence = append(c.Evidence, s.h.evidence(app))
		}
	case s.h.outcomes[r.Msg.GetTxnId()]:
	default:
		no = refuse(lbagentv1.RefusalReason_REFUSAL_REASON_WRONG_STATE, "not verified: sync this host")
	}
	if no != nil {
		return connect.NewResponse(&lbagentv1.CommitResponse{Answer: &lbagentv1.CommitResponse_Refusal{Refusal: no}}), nil
	}
	return connect.NewResponse(&lbagentv1.CommitResponse{Answer: &lbagentv1.CommitResponse_Committed{Committed: c}}), nil
}

func (s *handler) Abort(ctx context.Context, r *connect.Request[lbagentv1.AbortRequest]) (*connect.Response[lbagentv1.AbortResponse], error) {
	no, err := s.enter(ctx, "abort", r.Msg.GetTxnId(), r.Msg.GetFence())
	defer s.h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	a := &lbagentv1.Aborted{}
	id := r.Msg.GetTxnId()
	o := s.h.open[id]
	switch {
	case no != nil:
	case o != nil:
		s.h.replaceDead(o, r.Msg.GetReplacements())
		if app := s.h.nothingToRestore(o); app != "" {
			no = refuse(lbagentv1.RefusalReason_REFUSAL_REASON_RESTORE_FAILED, "no upstream of the old Section of "+app+" can serve and the new ones do: abort with replacements")
			break
		}
		s.h.close(id, o, false)
	case s.h.outcomes[id]:
		no = refuse(lbagentv1.RefusalReason_REFUSAL_REASON_WRONG_STATE, "it is committed here")
	default:
		a.NeverActivated = true
		s.h.outcomes[id] = false
		for _, app := range r.Msg.GetApps() {
			sec := s.h.section(app)
			sec.passed = max(sec.passed, r.Msg.GetOrder())
		}
	}
	if no != nil {
		return connect.NewResponse(&lbagentv1.AbortResponse{Answer: &lbagentv1.AbortResponse_Refusal{Refusal: no}}), nil
	}
	for _, app := range r.Msg.GetApps() {
		a.Evidence = append(a.Evidence, s.h.evidence(app))
	}
	return connect.NewResponse(&lbagentv1.AbortResponse{Answer: &lbagentv1.AbortResponse_Aborted{Aborted: a}}), nil
}

func (s *handler) Amend(ctx context.Context, r *connect.Request[lbagentv1.AmendRequest]) (*connect.Response[lbagentv1.AmendResponse], error) {
	m := r.Msg
	no, err := s.enter(ctx, "amend", m.GetApp(), m.GetFence())
	defer s.h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	sec := s.h.section(m.GetApp())
	o, ch := s.h.openOn(m.GetApp())
	gone := func(names []string) func(*lbagentv1.Upstream) bool {
		return func(u *lbagentv1.Upstream) bool { return slices.Contains(names, u.GetName()) }
	}
	switch {
	case no != nil:
	case m.GetOrder() <= sec.passed:
		no = refuse(lbagentv1.RefusalReason_REFUSAL_REASON_STALE_ORDER, "passed")
	case o != nil && len(m.GetInsert()) > 0:
		no = refuse(lbagentv1.RefusalReason_REFUSAL_REASON_BUSY, o.id+" is open")
	default:
		c := proto.CloneOf(sec.committed)
		c.Section.Upstreams = slices.DeleteFunc(c.GetSection().GetUpstreams(), gone(m.GetRemove()))
		sec.draining = slices.DeleteFunc(sec.draining, gone(m.GetRemove()))
		if o != nil && ch.GetTarget() != nil {
			ch.Target = proto.CloneOf(ch.GetTarget())
			ch.Target.Upstreams = slices.DeleteFunc(ch.GetTarget().GetUpstreams(), gone(m.GetRemove()))
		}
		c.Section.Upstreams = append(c.Section.Upstreams, m.GetInsert()...)
		for _, u := range c.GetSection().GetUpstreams() {
			if slices.Contains(m.GetRetire(), u.GetName()) {
				sec.draining = append(sec.draining, u)
			}
		}
		c.Section.Upstreams = slices.DeleteFunc(c.GetSection().GetUpstreams(), gone(m.GetRetire()))
		c.Version.Amendments++
		sec.committed = c
		if o == nil {
			sec.passed = max(sec.passed, m.GetOrder())
		}
		s.h.touch()
	}
	if no != nil {
		return connect.NewResponse(&lbagentv1.AmendResponse{Answer: &lbagentv1.AmendResponse_Refusal{Refusal: no}}), nil
	}
	return connect.NewResponse(&lbagentv1.AmendResponse{Answer: &lbagentv1.AmendResponse_Amended{Amended: &lbagentv1.Amended{Evidence: s.h.evidence(m.GetApp())}}}), nil
}

func (s *handler) Sync(ctx context.Context, r *connect.Request[lbagentv1.SyncRequest]) (*connect.Response[lbagentv1.SyncResponse], error) {
	m := r.Msg
	no, err := s.enter(ctx, "sync", "", m.GetFence())
	defer s.h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	h := s.h
	for app, sec := range h.sections {
		if o, _ := h.openOn(app); no == nil && o == nil && sec.passed > m.GetOrder() {
			no = refuse(lbagentv1.RefusalReason_REFUSAL_REASON_STALE_ORDER, app+" passed it")
		}
	}
	if no != nil {
		return connect.NewResponse(&lbagentv1.SyncResponse{Answer: &lbagentv1.SyncResponse_Refusal{Refusal: no}}), nil
	}
	done := &lbagentv1.Synced{}
	named := map[string]bool{}
	for _, c := range m.GetSections() {
		app := c.GetSection().GetApp()
		named[app] = true
		if o, _ := h.openOn(app); o != nil {
			done.Open = append(done.Open, app)
			continue
		}
		sec := h.section(app)
		h.replace(sec, c.GetSection())
		sec.committed.Version, sec.committed.Removed = proto.CloneOf(c.GetVersion()), c.GetRemoved()
		done.Evidence = append(done.Evidence, h.evidence(app))
	}
	for app := range h.sections {
		if o, _ := h.openOn(app); o == nil && !named[app] {
			delete(h.sections, app)
			done.Deleted = append(done.Deleted, app)
		}
	}
	h.touch()
	return connect.NewResponse(&lbagentv1.SyncResponse{Answer: &lbagentv1.SyncResponse_Synced{Synced: done}}), nil
}

func (s *handler) Show(ctx context.Context, _ *connect.Request[lbagentv1.ShowRequest]) (*connect.Response[lbagentv1.ShowResponse], error) {
	_, err := s.enter(ctx, "show", "", nil) // reading needs no fence
	defer s.h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	resp := &lbagentv1.ShowResponse{Host: s.h.report().GetHost()}
	for app, sec := range s.h.sections {
		resp.Sections = append(resp.Sections, &lbagentv1.SectionShow{App: app, Committed: proto.CloneOf(sec.committed), Running: s.h.evidence(app), Agrees: true})
	}
	return connect.NewResponse(resp), nil
}

// heartbeat of the Watch stream; shorter than a real agent's, so that tests can shorten the watchdog too.
const heartbeat = 50 * time.Millisecond

func (s *handler) Watch(ctx context.Context, r *connect.Request[lbagentv1.WatchRequest], stream *connect.ServerStream[lbagentv1.WatchResponse]) error {
	no, err := s.enter(ctx, "watch", "", r.Msg.GetFence())
	s.h.mu.Unlock()
	if err != nil {
		return err
	}
	if no != nil {
		refused := connect.NewError(connect.CodeFailedPrecondition, errors.New("stale epoch"))
		if d, err := connect.NewErrorDetail(no); err == nil {
			refused.AddDetail(d)
		}
		return refused
	}
	for {
		s.h.mu.Lock()
		msg, changed, thawed := s.h.report(), s.h.changed, s.h.thawed
		s.h.mu.Unlock()
		select {
		case <-thawed:
		case <-ctx.Done():
			return nil
		}
		if err := stream.Send(msg); err != nil {
			return err
		}
		timer := time.NewTimer(heartbeat)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the caller left, which ends a Watch without fault
		}
	}
}
