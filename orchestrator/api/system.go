package api

import (
	"context"
	"errors"
	"runtime"

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

	huma.Register(api, open(get(api, pathReady, "ready", tag, "Does it take Deploys?", "503 says why not.")),
		func(ctx context.Context, _ *struct{}) (*healthOutput, error) {
			if err := h.opts.Service.Ready(ctx); err != nil {
				var refusal *deploy.Refusal
				if errors.As(err, &refusal) {
					return nil, wire.FromRefusal(refusal)
				}
				// Why it is not ready is for everyone who asks, unlike the text of an internal error.
				return nil, wire.NewProblem(deploy.RefusedUnavailable, 0, err.Error())
			}
			return &healthOutput{Body: wire.Health{Status: "ok"}}, nil
		})

	huma.Register(api, get(api, "/v1/version", "version", tag, "What answers", ""),
		func(context.Context, *struct{}) (*versionOutput, error) {
			return &versionOutput{Body: wire.Version{Version: h.opts.Version, API: "v1", Go: runtime.Version()}}, nil
		})
}
