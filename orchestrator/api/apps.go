package api

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// AppPath is the path of one App.
type AppPath struct {
	App string `path:"app" maxLength:"63" doc:"name of the App"`
}

type appOutput struct{ Body deploy.AppView }

type appListOutput struct{ Body wire.AppList }

type scaleInput struct {
	Keyed
	AppPath
	Body wire.ScaleBody
}

type rollbackInput struct {
	Keyed
	AppPath
	Body *wire.RollbackBody
}

type reasonInput struct {
	Keyed
	AppPath
	Body *wire.ReasonBody
}

func (h *Handler) registerApps(api huma.API) {
	const tag = "Apps"
	huma.Register(api, get(api, "/v1/apps", "listApps", tag, "List Apps", "By name, stopped ones too."),
		func(ctx context.Context, _ *struct{}) (*appListOutput, error) {
			list, err := h.service(ctx).Apps(ctx)
			if err != nil {
				return nil, h.failure(ctx, "listing Apps", err)
			}
			out := &appListOutput{Body: wire.AppList{Apps: make([]deploy.AppView, len(list))}}
			for i := range list {
				out.Body.Apps[i] = wire.CompleteApp(list[i])
			}
			return out, nil
		})

	huma.Register(api, get(api, "/v1/apps/{app}", "getApp", tag, "Show an App", "With its tasks."),
		func(ctx context.Context, in *AppPath) (*appOutput, error) {
			a, err := h.service(ctx).App(ctx, in.App)
			if err != nil {
				return nil, h.failure(ctx, "reading the App", err)
			}
			return &appOutput{Body: wire.CompleteApp(a)}, nil
		})

	huma.Register(api, starts(post(api, "/v1/apps/{app}/scale", "scaleApp", tag, "Change the number of instances",
		"A Deploy that keeps the tasks that run.")),
		func(ctx context.Context, in *scaleInput) (*started, error) {
			v, err := h.service(ctx).Scale(ctx, in.App, in.Body.Instances, in.meta(ctx, in.Body.Reason))
			if err != nil {
				return nil, h.failure(ctx, "scaling the App", err)
			}
			return newStarted(v), nil
		})

	huma.Register(api, starts(post(api, "/v1/apps/{app}/stop", "stopApp", tag, "Stop an App",
		"A Deploy that removes its routes from every Host, and then its tasks.")),
		func(ctx context.Context, in *reasonInput) (*started, error) {
			v, err := h.service(ctx).StopApp(ctx, in.App, in.meta(ctx, reasonOf(in.Body)))
			if err != nil {
				return nil, h.failure(ctx, "stopping the App", err)
			}
			return newStarted(v), nil
		})

	huma.Register(api, starts(post(api, "/v1/apps/{app}/rollback", "rollbackApp", tag, "Go back to an earlier Spec",
		"While a Deploy is open this is its abort. Never refused by a lock or a queue.")),
		func(ctx context.Context, in *rollbackInput) (*started, error) {
			var body wire.RollbackBody
			if in.Body != nil {
				body = *in.Body
			}
			v, err := h.service(ctx).Rollback(ctx, in.App, body.To, in.meta(ctx, body.Reason))
			if err != nil {
				return nil, h.failure(ctx, "rolling back the App", err)
			}
			return newStarted(v), nil
		})

	huma.Register(api, starts(post(api, "/v1/apps/{app}/abort", "abortApp", tag, "Abort the open Deploy of an App", "See abortDeploy.")),
		func(ctx context.Context, in *reasonInput) (*started, error) {
			v, err := h.service(ctx).Abort(ctx, in.App, in.meta(ctx, reasonOf(in.Body)))
			if err != nil {
				return nil, h.failure(ctx, "aborting the Deploy", err)
			}
			return newStarted(v), nil
		})
}
