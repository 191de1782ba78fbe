package api

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cutover/cutover/orchestrator/api/wire"
)

type hostName struct {
	Name string `path:"name" maxLength:"255" doc:"name of the Host"`
}

type hostListOutput struct{ Body wire.HostList }

type hostDriftOutput struct{ Body wire.HostDrift }

type hostShowOutput struct{ Body wire.HostShow }

func (h *Handler) registerHosts(api huma.API) {
	const tag = "Hosts"
	huma.Register(api, get(api, "/v1/hosts", "listHosts", tag, "List load-balancer Hosts", "By name."),
		func(ctx context.Context, _ *struct{}) (*hostListOutput, error) {
			list, err := h.service(ctx).Hosts(ctx)
			if err != nil {
				return nil, h.failure(ctx, "listing Hosts", err)
			}
			out := &hostListOutput{Body: wire.HostList{Hosts: make([]wire.Host, len(list))}}
			for i := range list {
				out.Body.Hosts[i] = wire.CompleteHost(list[i])
			}
			return out, nil
		})

	huma.Register(api, get(api, "/v1/hosts/{name}", "showHost", tag, "Show a Host",
		"What is committed and what its proxy runs, read now, side by side."),
		func(ctx context.Context, in *hostName) (*hostShowOutput, error) {
			show, err := h.service(ctx).ShowHost(ctx, in.Name)
			if err != nil {
				return nil, h.failure(ctx, "reading the Host", err)
			}
			return &hostShowOutput{Body: wire.CompleteShow(show)}, nil
		})

	huma.Register(api, get(api, "/v1/hosts/{name}/drift", "showHostDrift", tag, "Show what differs on a Host",
		"Every difference between what is committed, on disk and running that nobody ordered through Cutover, looked for now, with its likely cause."),
		func(ctx context.Context, in *hostName) (*hostDriftOutput, error) {
			drift, err := h.opts.Service.HostDrift(ctx, in.Name)
			if err != nil {
				return nil, h.failure(ctx, "comparing the Host", err)
			}
			return &hostDriftOutput{Body: wire.CompleteDrift(drift)}, nil
		})
}
