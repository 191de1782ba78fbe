package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// started answers a POST that made, found or ended a Deploy.
type started struct {
	Status   int
	Location string `header:"Location" doc:"of the Deploy"`
	Body     deploy.View
}

// newStarted says 202 while the Deploy goes on, and 200 when it is at its end already (unchanged, or a repeated request).
func newStarted(v deploy.View) *started {
	status := http.StatusAccepted
	if v.State != deploy.Running {
		status = http.StatusOK
	}
	return &started{Status: status, Location: "/v1/deploys/" + v.DeployID, Body: wire.Complete(v)}
}

// starts describes the two good answers of an operation that starts or ends a Deploy.
func starts(op huma.Operation) huma.Operation {
	op.DefaultStatus = http.StatusAccepted
	op.Responses["202"] = &huma.Response{Description: "The Deploy goes on"}
	op.Responses["200"] = &huma.Response{Description: "The Deploy is at its end already",
		Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Ref: "#/components/schemas/Deploy"}}}}
	return op
}

// specBody describes the two ways to send a Spec.
func specBody(api huma.API, op huma.Operation) huma.Operation {
	op.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{
		"application/yaml": {Schema: &huma.Schema{Type: huma.TypeString, Description: "the App spec by itself"}},
	}}
	return op
}

type submitInput struct {
	Keyed
	Body wire.SubmitBody
}

type validateInput struct {
	Keyed
	Body wire.ValidateBody
}

type validated struct{ Body wire.Validated }

// DeployPath is the path of one Deploy.
type DeployPath struct {
	ID string `path:"id" maxLength:"128" doc:"deploy id"`
}

type deployOutput struct{ Body deploy.View }

type listDeploysInput struct {
	App   string `query:"app" maxLength:"63" doc:"only this App's"`
	Limit int    `query:"limit" minimum:"1" maximum:"500" default:"20"`
}

type deployListOutput struct{ Body wire.DeployList }

type abortInput struct {
	Keyed
	DeployPath
	Body *wire.ReasonBody
}

func (h *Handler) registerDeploys(api huma.API) {
	const tag = "Deploys"
	huma.Register(api, specBody(api, starts(post(api, "/v1/deploys", "submitDeploy", tag, "Start a Deploy",
		"Moves an App to the Spec in the body. The answer is durable. Several Specs, each in a YAML document of its own, are one lock-step: one Deploy for each, and all commit in one decision, or none; the answer is about the whole, with each Deploy in `apps`. A second Deploy of an App is refused while one is open; the same content as the committed Spec succeeds at once, reason `unchanged`."))),
		func(ctx context.Context, in *submitInput) (*started, error) {
			v, err := h.service(ctx).Submit(ctx, []byte(in.Body.Source), in.meta(ctx, in.Body.Reason))
			if err != nil {
				return nil, h.failure(ctx, "starting the Deploy", err)
			}
			return newStarted(v), nil
		})

	huma.Register(api, specBody(api, post(api, "/v1/validate", "validateSpec", tag, "Check a Spec",
		"Checks a Spec as starting a Deploy would, and starts nothing.")),
		func(ctx context.Context, in *validateInput) (*validated, error) {
			if err := h.service(ctx).Validate(ctx, []byte(in.Body.Source)); err != nil {
				return nil, h.failure(ctx, "checking the Spec", err)
			}
			return &validated{Body: wire.Validated{Valid: true}}, nil
		})

	huma.Register(api, get(api, "/v1/deploys", "listDeploys", tag, "List Deploys", "Newest first."),
		func(ctx context.Context, in *listDeploysInput) (*deployListOutput, error) {
			list, err := h.service(ctx).Deploys(ctx, in.App, in.Limit)
			if err != nil {
				return nil, h.failure(ctx, "listing Deploys", err)
			}
			out := &deployListOutput{Body: wire.DeployList{Deploys: make([]deploy.View, len(list))}}
			for i := range list {
				out.Body.Deploys[i] = wire.Complete(list[i])
			}
			return out, nil
		})

	huma.Register(api, get(api, "/v1/deploys/{id}", "getDeploy", tag, "Show a Deploy",
		"With the vote of every Host and the evidence that its running proxy gave."),
		func(ctx context.Context, in *DeployPath) (*deployOutput, error) {
			v, err := h.service(ctx).Deploy(ctx, in.ID)
			if err != nil {
				return nil, h.failure(ctx, "reading the Deploy", err)
			}
			return &deployOutput{Body: wire.Complete(v)}, nil
		})

	huma.Register(api, starts(post(api, "/v1/deploys/{id}/abort", "abortDeploy", tag, "Abort a Deploy",
		"Puts everything back. In the place of the id, the name of an App means its open Deploy. Never refused by a lock or a queue; after Commit there is nothing to abort, use rollback.")),
		func(ctx context.Context, in *abortInput) (*started, error) {
			v, err := h.service(ctx).Abort(ctx, in.ID, in.meta(ctx, reasonOf(in.Body)))
			if err != nil {
				return nil, h.failure(ctx, "aborting the Deploy", err)
			}
			return newStarted(v), nil
		})
}

func reasonOf(body *wire.ReasonBody) string {
	if body == nil {
		return ""
	}
	return body.Reason
}
