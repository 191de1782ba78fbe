package lbagent

import (
	"context"
	"errors"
	"os"
	"time"

	"connectrpc.com/connect"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
	"github.com/cutover/cutover/proto/gen/cutover/lbagent/v1/lbagentv1connect"
)

// service is the Connect face of an Agent: it checks and translates messages, and waits for the machine's answer.
type service struct{ a *Agent }

var _ lbagentv1connect.HostServiceHandler = service{}

// callLimit bounds the wait for any answer; the machine's own deadlines are shorter.
const callLimit = participant.MaxDeadline + time.Minute

// call gives a message to the machine and waits for its answer. A caller that goes away ends the wait and nothing else.
func (s service) call(ctx context.Context, method string, msg func(participant.Token) participant.Event) (participant.Answer, error) {
	token, answer, ok := s.a.calls.open(begins(method))
	if !ok {
		return participant.Answer{}, connect.NewError(connect.CodeResourceExhausted, errors.New("too many calls are under way on this host"))
	}
	defer s.a.calls.drop(token)
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if !s.a.send(ctx, input{event: msg(token)}) {
		return participant.Answer{}, connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
	}
	select {
	case ans, ok := <-answer:
		if !ok {
			return participant.Answer{}, connect.NewError(connect.CodeUnavailable, errors.New("this lbagent is stopping"))
		}
		s.count(method, ans.Refusal)
		return ans, nil
	case <-ctx.Done():
		return participant.Answer{}, connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
	}
}

// begins says whether a call begins something that takes its time. The others end or watch what was begun.
func begins(method string) bool {
	switch method {
	case "Prepare", "Activate", "Amend", "Sync", "Collect":
		return true
	}
	return false
}

// count counts an answer; a message that is only a part of another has no method.
func (s service) count(method string, no *participant.Refusal) {
	label := "ok"
	if no != nil {
		label = no.Reason.String()
	}
	if method != "" {
		s.a.m.messages.WithLabelValues(method, label).Inc()
	}
}

func badArgument(errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	return nil
}

func (s service) refusal(r *participant.Refusal) *lbagentv1.Refusal {
	return refusalTo(r, s.a.state.Load().Durable.Epoch)
}

// Prepare implements HostService.
func (s service) Prepare(ctx context.Context, req *connect.Request[lbagentv1.PrepareRequest]) (*connect.Response[lbagentv1.PrepareResponse], error) {
	m := req.Msg
	fence, err1 := fenceOf(m.GetFence())
	origin, err2 := originOf(m.GetOrigin())
	deadline, err3 := durationOf("the deadline", m.GetDeadline(), participant.MaxDeadline)
	if err := badArgument(err1, err2, err3, txnOf(m.GetTxnId(), m.GetOrder())); err != nil {
		return nil, err
	}
	if n := len(m.GetChanges()); n == 0 || n > participant.MaxChanges {
		return nil, badArgument(invalidf("a transaction names 1 to %d Sections, not %d", participant.MaxChanges, n))
	}
	ev := participant.Prepare{Fence: fence, TxnID: m.GetTxnId(), Order: m.GetOrder(), Origin: origin, Deadline: deadline}
	for _, c := range m.GetChanges() {
		change := participant.Change{App: c.GetApp(), Base: versionOf(c.GetBase())}
		if err := badArgument(appsOf([]string{c.GetApp()})); err != nil {
			return nil, err
		}
		if c.GetTarget() != nil {
			target, err := sectionOf(c.GetTarget())
			if err == nil && target.App != c.GetApp() {
				err = invalidf("the change of %s has a target of %s", c.GetApp(), target.App)
			}
			if err != nil {
				return nil, badArgument(err)
			}
			change.Target = &target
		}
		ev.Changes = append(ev.Changes, change)
	}
	msg := func(t participant.Token) participant.Event { ev.To = t; return ev }
	method := "Prepare"
	s.a.contract.waitFirst(ctx)
	veto := s.a.contract.veto()
	if veto != nil {
		method = ""
		// Through the fence, and no further: a base configuration that is known to be bad vetoes Prepare.
		msg = func(t participant.Token) participant.Event { return participant.Hello{To: t, Fence: fence} }
	}
	ans, err := s.call(ctx, method, msg)
	if err == nil && ans.Refusal == nil && veto != nil {
		ans.Refusal = vetoRefusal(veto)
		s.count("Prepare", ans.Refusal)
	}
	if err != nil {
		return nil, err
	}
	if ans.Refusal != nil {
		return connect.NewResponse(&lbagentv1.PrepareResponse{Answer: &lbagentv1.PrepareResponse_Refusal{Refusal: s.refusal(ans.Refusal)}}), nil
	}
	afterAnswer(ctx, "answered-ready")
	return connect.NewResponse(&lbagentv1.PrepareResponse{Answer: &lbagentv1.PrepareResponse_Ready{
		Ready: &lbagentv1.Ready{Evidence: evidenceTo(ans.Evidence)}}}), nil
}

// Activate implements HostService.
func (s service) Activate(ctx context.Context, req *connect.Request[lbagentv1.ActivateRequest]) (*connect.Response[lbagentv1.ActivateResponse], error) {
	m := req.Msg
	fence, err1 := fenceOf(m.GetFence())
	deadline, err2 := durationOf("the deadline", m.GetDeadline(), participant.MaxDeadline)
	if err := badArgument(err1, err2, txnOf(m.GetTxnId(), m.GetOrder())); err != nil {
		return nil, err
	}
	ans, err := s.call(ctx, "Activate", func(t participant.Token) participant.Event {
		return participant.Activate{To: t, Fence: fence, TxnID: m.GetTxnId(), Order: m.GetOrder(), Deadline: deadline}
	})
	if err != nil {
		return nil, err
	}
	if ans.Refusal != nil {
		return connect.NewResponse(&lbagentv1.ActivateResponse{Answer: &lbagentv1.ActivateResponse_Refusal{Refusal: s.refusal(ans.Refusal)},
			FailedEvidence: evidenceTo(ans.Evidence)}), nil
	}
	afterAnswer(ctx, "answered-verified")
	return connect.NewResponse(&lbagentv1.ActivateResponse{Answer: &lbagentv1.ActivateResponse_Verified{
		Verified: &lbagentv1.Verified{Evidence: evidenceTo(ans.Evidence)}}}), nil
}

// Verify implements HostService.
func (s service) Verify(ctx context.Context, req *connect.Request[lbagentv1.VerifyRequest]) (*connect.Response[lbagentv1.VerifyResponse], error) {
	m := req.Msg
	fence, err := fenceOf(m.GetFence())
	if err == nil && len(m.GetTxnIds()) > participant.MaxSections {
		err = invalidf("%d transactions: at most %d", len(m.GetTxnIds()), participant.MaxSections)
	}
	for _, id := range m.GetTxnIds() {
		if err == nil {
			err = txnOf(id, 1)
		}
	}
	if err := badArgument(err); err != nil {
		return nil, err
	}
	ans, err := s.call(ctx, "Verify", func(t participant.Token) participant.Event {
		return participant.Verify{To: t, Fence: fence, TxnIDs: m.GetTxnIds()}
	})
	if err != nil {
		return nil, err
	}
	out := &lbagentv1.VerifyResponse{}
	if ans.Refusal != nil { // of the whole message: every transaction gets it
		for _, id := range m.GetTxnIds() {
			ans.Verifies = append(ans.Verifies, participant.VerifyAnswer{TxnID: id, Refusal: ans.Refusal})
		}
	}
	for _, v := range ans.Verifies {
		one := &lbagentv1.VerifyResponse_Answer{TxnId: v.TxnID}
		if v.Refusal != nil {
			one.Answer = &lbagentv1.VerifyResponse_Answer_Refusal{Refusal: s.refusal(v.Refusal)}
		} else {
			one.Answer = &lbagentv1.VerifyResponse_Answer_Verified{Verified: &lbagentv1.Verified{Evidence: evidenceTo(v.Evidence)}}
		}
		out.Answers = append(out.Answers, one)
	}
	return connect.NewResponse(out), nil
}

// Commit implements HostService.
func (s service) Commit(ctx context.Context, req *connect.Request[lbagentv1.CommitRequest]) (*connect.Response[lbagentv1.CommitResponse], error) {
	m := req.Msg
	fence, err := fenceOf(m.GetFence())
	if err := badArgument(err, txnOf(m.GetTxnId(), m.GetOrder())); err != nil {
		return nil, err
	}
	ans, err := s.call(ctx, "Commit", func(t participant.Token) participant.Event {
		return participant.Commit{To: t, Fence: fence, TxnID: m.GetTxnId(), Order: m.GetOrder()}
	})
	if err != nil {
		return nil, err
	}
	if ans.Refusal != nil {
		return connect.NewResponse(&lbagentv1.CommitResponse{Answer: &lbagentv1.CommitResponse_Refusal{Refusal: s.refusal(ans.Refusal)}}), nil
	}
	afterAnswer(ctx, "answered-committed")
	return connect.NewResponse(&lbagentv1.CommitResponse{Answer: &lbagentv1.CommitResponse_Committed{
		Committed: &lbagentv1.Committed{Evidence: evidenceTo(ans.Evidence)}}}), nil
}

// Abort implements HostService.
func (s service) Abort(ctx context.Context, req *connect.Request[lbagentv1.AbortRequest]) (*connect.Response[lbagentv1.AbortResponse], error) {
	m := req.Msg
	fence, err1 := fenceOf(m.GetFence())
	origin, err2 := originOf(m.GetOrigin())
	if err := badArgument(err1, err2, txnOf(m.GetTxnId(), m.GetOrder()), appsOf(m.GetApps())); err != nil {
		return nil, err
	}
	ev := participant.Abort{Fence: fence, TxnID: m.GetTxnId(), Order: m.GetOrder(), Apps: m.GetApps(), Origin: origin}
	for _, r := range m.GetReplacements() {
		sec, err := sectionOf(r)
		if err != nil {
			return nil, badArgument(err)
		}
		ev.Replacements = append(ev.Replacements, sec)
	}
	ans, err := s.call(ctx, "Abort", func(t participant.Token) participant.Event { ev.To = t; return ev })
	if err != nil {
		return nil, err
	}
	if ans.Refusal != nil {
		return connect.NewResponse(&lbagentv1.AbortResponse{Answer: &lbagentv1.AbortResponse_Refusal{Refusal: s.refusal(ans.Refusal)}}), nil
	}
	afterAnswer(ctx, "answered-aborted")
	return connect.NewResponse(&lbagentv1.AbortResponse{Answer: &lbagentv1.AbortResponse_Aborted{
		Aborted: &lbagentv1.Aborted{Evidence: evidenceTo(ans.Evidence), NeverActivated: ans.NeverActivated}}}), nil
}

// Amend implements HostService.
func (s service) Amend(ctx context.Context, req *connect.Request[lbagentv1.AmendRequest]) (*connect.Response[lbagentv1.AmendResponse], error) {
	m := req.Msg
	fence, err1 := fenceOf(m.GetFence())
	origin, err2 := originOf(m.GetOrigin())
	deadline, err3 := durationOf("the deadline", m.GetDeadline(), participant.MaxDeadline)
	insert, err4 := upstreamsOf(m.GetApp(), m.GetInsert())
	if err := badArgument(err1, err2, err3, err4, appsOf([]string{m.GetApp()}), namesOf(m.GetRemove()), namesOf(m.GetRetire())); err != nil {
		return nil, err
	}
	if m.GetOrder() == 0 {
		return nil, badArgument(invalidf("the Amendment of %s has no order number", m.GetApp()))
	}
	ans, err := s.call(ctx, "Amend", func(t participant.Token) participant.Event {
		return participant.Amend{To: t, Fence: fence, App: m.GetApp(), Order: m.GetOrder(), Base: versionOf(m.GetBase()),
			Remove: m.GetRemove(), Insert: insert, Retire: m.GetRetire(), Origin: origin, Deadline: deadline}
	})
	if err != nil {
		return nil, err
	}
	if ans.Refusal != nil || len(ans.Evidence) == 0 {
		return connect.NewResponse(&lbagentv1.AmendResponse{Answer: &lbagentv1.AmendResponse_Refusal{Refusal: s.refusal(ans.Refusal)}}), nil
	}
	afterAnswer(ctx, "answered-amended")
	return connect.NewResponse(&lbagentv1.AmendResponse{Answer: &lbagentv1.AmendResponse_Amended{
		Amended: &lbagentv1.Amended{Evidence: oneEvidenceTo(&ans.Evidence[0])}}}), nil
}

// Sync implements HostService.
func (s service) Sync(ctx context.Context, req *connect.Request[lbagentv1.SyncRequest]) (*connect.Response[lbagentv1.SyncResponse], error) {
	m := req.Msg
	fence, err1 := fenceOf(m.GetFence())
	origin, err2 := originOf(m.GetOrigin())
	if err := badArgument(err1, err2); err != nil {
		return nil, err
	}
	if len(m.GetSections()) > participant.MaxSections {
		return nil, badArgument(invalidf("%d Sections: at most %d", len(m.GetSections()), participant.MaxSections))
	}
	ev := participant.Sync{Fence: fence, Order: m.GetOrder(), Origin: origin}
	seen := map[string]bool{}
	for _, c := range m.GetSections() {
		sec, err := sectionOf(c.GetSection())
		if err == nil && seen[sec.App] {
			err = invalidf("%s is named twice", sec.App)
		}
		if err != nil {
			return nil, badArgument(err)
		}
		seen[sec.App] = true
		ev.Sections = append(ev.Sections, participant.Committed{Section: sec, Version: versionOf(c.GetVersion()), Removed: c.GetRemoved()})
	}
	ans, err := s.call(ctx, "Sync", func(t participant.Token) participant.Event { ev.To = t; return ev })
	if err != nil {
		return nil, err
	}
	if ans.Refusal != nil {
		return connect.NewResponse(&lbagentv1.SyncResponse{Answer: &lbagentv1.SyncResponse_Refusal{Refusal: s.refusal(ans.Refusal)}}), nil
	}
	afterAnswer(ctx, "answered-synced")
	return connect.NewResponse(&lbagentv1.SyncResponse{Answer: &lbagentv1.SyncResponse_Synced{
		Synced: &lbagentv1.Synced{Evidence: evidenceTo(ans.Evidence), Deleted: ans.Deleted, Open: ans.Open}}}), nil
}

// Show implements HostService. It reads the proxy once, for this call.
func (s service) Show(ctx context.Context, req *connect.Request[lbagentv1.ShowRequest]) (*connect.Response[lbagentv1.ShowResponse], error) {
	if err := badArgument(appsOf(req.Msg.GetApps())); err != nil {
		return nil, err
	}
	if req.Msg.GetDrift() {
		return connect.NewResponse(s.a.showDrift(ctx)), nil
	}
	readErr := s.a.readNow(ctx, req.Msg.GetApps())
	st := s.a.state.Load()
	apps := req.Msg.GetApps()
	if len(apps) == 0 {
		apps = st.Apps()
	}
	out := &lbagentv1.ShowResponse{Host: s.a.hostState(st)}
	for _, app := range apps {
		ev := st.Evidence(app)
		show := &lbagentv1.SectionShow{App: app, Running: oneEvidenceTo(&ev)}
		sec := st.Durable.Sections[app]
		if sec != nil {
			show.Committed = committedTo(sec)
		}
		show.Agrees, show.Difference = agreement(st, app, &ev, sec != nil, readErr)
		out.Sections = append(out.Sections, show)
	}
	return connect.NewResponse(out), nil
}

// agreement compares what runs and what is on disk with what the journal says they should be.
func agreement(st *participant.State, app string, ev *participant.Evidence, known bool, readErr error) (bool, string) {
	want := st.Want(app)
	_, files := st.Files(app)
	have := settled(app, want, ev)
	switch {
	case readErr != nil:
		return false, "the proxy could not be read: " + readErr.Error()
	case have.Digest != driver.Digest(want) && !known:
		return false, "the proxy holds " + app + ", which this host's journal does not know"
	case have.Digest != driver.Digest(want):
		return false, participant.Difference(want, have)
	case known && !files:
		return false, "the published files are not those of the journal yet"
	}
	return true, ""
}

// settled is what was read without the upstreams that have drained and only wait to be taken out of the proxy: they get
// no request and hold no session, so they are no difference between what is and what should be.
func settled(app string, want driver.Section, ev *participant.Evidence) driver.SectionReading {
	wanted := map[string]bool{}
	for _, u := range want.Upstreams {
		wanted[u.Name] = true
	}
	var rows []driver.Row
	for _, r := range ev.Rows {
		if r.Registered && (wanted[r.Name] || !r.Drained) {
			rows = append(rows, driver.Row{Name: r.Name, Address: r.Address, Weight: r.Weight, Mode: r.Mode})
		}
	}
	return driver.NewSectionReading(app, ev.Routes, rows)
}

// readNow makes a reading for a caller and lets the machine see it. One that is passed over, since the proxy was replaced
// meanwhile, is made again: what the caller gets to see is what runs (RUNNING = JOURNAL).
func (a *Agent) readNow(ctx context.Context, apps []string) error {
	if err := a.contract.unchecked(); err != nil {
		return err
	}
	c, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	for {
		started := time.Now()
		r, err := a.opts.Driver.Read(c, apps...)
		if err != nil {
			return err
		}
		done := make(chan struct{})
		ev := participant.Reading{Started: started, All: len(apps) == 0, Apps: apps, Reading: r}
		if !a.deliver(c, r.Process, started, input{event: ev, done: done}) {
			if err := c.Err(); err != nil {
				return err
			}
			continue
		}
		select {
		case <-done:
			return nil
		case <-a.ending:
			return errors.New("this lbagent is stopping")
		case <-c.Done():
			return c.Err()
		}
	}
}

// hostState describes the Host as a whole.
func (a *Agent) hostState(st *participant.State) *lbagentv1.HostState {
	info, err := a.contract.get()
	out := &lbagentv1.HostState{
		Name: a.opts.Name, Group: a.opts.Group, Proxy: info.Proxy, MaxEpoch: st.Durable.Epoch, View: st.Durable.View,
		ReloadPerChange: info.ReloadPerChange, Process: processTo(st.Process), AgentPid: int64(os.Getpid()),
		Limits: info.Limits, AgentVersion: a.opts.Version, Drifts: shortDrifts(st.DriftsOf(""), maxHostDiff), Traffic: a.traffic(st),
		Tombstones: uint32(max(st.Tombstones, 0)),
	}
	if err != nil {
		out.Problems = append(out.Problems, text(err.Error()))
	}
	for _, p := range st.Problems() {
		out.Problems = append(out.Problems, text(p))
	}
	return out
}
