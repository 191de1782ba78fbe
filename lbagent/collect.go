package lbagent

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// Collect implements HostService.
func (s service) Collect(ctx context.Context, req *connect.Request[lbagentv1.CollectRequest]) (*connect.Response[lbagentv1.CollectResponse], error) {
	fence, err1 := fenceOf(req.Msg.GetFence())
	origin, err2 := originOf(req.Msg.GetOrigin())
	if err := badArgument(err1, err2); err != nil {
		return nil, err
	}
	ans, err := s.call(ctx, "Collect", func(t participant.Token) participant.Event {
		return participant.Collect{To: t, Fence: fence, Origin: origin}
	})
	if err != nil {
		return nil, err
	}
	out := &lbagentv1.CollectResponse{Answer: &lbagentv1.CollectResponse_Collected_{Collected: &lbagentv1.CollectResponse_Collected{}}}
	if ans.Refusal != nil {
		out.Answer = &lbagentv1.CollectResponse_Refusal{Refusal: s.refusal(ans.Refusal)}
	}
	return connect.NewResponse(out), nil
}

// reload carries out a Collect.
func (a *Agent) reload(ctx context.Context) error {
	c, ok := a.opts.Driver.(driver.Collector)
	if !ok {
		return errors.New("this proxy remembers nothing that a reload would free")
	}
	begin := time.Now()
	err := c.Reload(ctx)
	a.m.work.WithLabelValues("collect").Observe(time.Since(begin).Seconds())
	if err != nil {
		a.m.workErrors.WithLabelValues("collect").Inc()
	}
	return err
}
