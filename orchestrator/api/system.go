package api

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

type healthOutput struct{ Body wire.Health }

type versionOutput struct{ Body wire.Version }

func (h *Handler) registerSystem(api huma.API) {
	const tag = "System"
	huma.Register(api, open(get(api, pathHealthy, "healthy", tag, "Is the process alive?", "Answers as long as the process can.")),
		func(context.Context, *struct{}) (*healthOutput, error) {
			return &healthOutput{Body: wire.Health{Status: "ok"}}, nil
		})

	huma.Register(api, open(get(api, pathReady, "ready", tag, "Does it take Deploys?", "503 says why not. A follower takes them for the leader.")),
		func(ctx context.Context, _ *struct{}) (*healthOutput, error) {
			if err := h.ready(ctx); err != nil {
				var refusal *deploy.Refusal
				if errors.As(err, &refusal) {
					return nil, wire.FromRefusal(refusal)
				}
				// Why it is not ready is for everyone who asks, unlike the text of an internal error.
				return nil, wire.NewProblem(deploy.RefusedUnavailable, 0, err.Error())
			}
			s := standingOf(ctx)
			return &healthOutput{Body: wire.Health{Status: "ok", Role: role(s), Leader: s.Leader}}, nil
		})

	huma.Register(api, get(api, pathVersion, "version", tag, "What answers", ""),
		func(ctx context.Context, _ *struct{}) (*versionOutput, error) {
			s := standingOf(ctx)
			out := wire.Version{Version: h.opts.Version, API: "v1", Go: runtime.Version(), Name: s.Name, Role: role(s), Leader: s.Leader}
			if !s.Leads && !s.Heard.IsZero() {
				ago := time.Since(s.Heard).Seconds()
				out.LeaderHeardAgo = &ago
			}
			return &versionOutput{Body: out}, nil
		})
}

// ready says why no Deploy can be taken through this orchestrator now, or nil. A follower takes them as long as it knows a leader.
func (h *Handler) ready(ctx context.Context) error {
	switch s := standingOf(ctx); {
	case s.Leads:
		return s.Service.Ready(ctx)
	case s.Leader == nil || s.Leader.Name == s.Name:
		return &deploy.Refusal{Kind: deploy.RefusedUnavailable, Detail: s.Why, RetryAfter: retryAfter}
	}
	return nil
}

// role is what an orchestrator is at the moment.
func role(s Standing) string {
	if s.Leads {
		return wire.RoleLeader
	}
	return wire.RoleFollower
}
