package api

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/txn"
)

// HostPath is the path of one Host.
type HostPath struct {
	Name string `path:"name" maxLength:"255" doc:"name of the Host"`
}

type hostListOutput struct{ Body wire.HostList }

type hostDriftOutput struct{ Body wire.HostDrift }

type hostShowOutput struct{ Body wire.HostShow }

type hostOutput struct{ Body wire.Host }

type admitInput struct {
	Keyed
	HostPath
	Body wire.AdmitBody
}

type hostInput struct {
	Keyed
	HostPath
	Body wire.HostBody
}

type hostProofInput struct {
	Keyed
	HostPath
	Body wire.HostProofBody
}

type resolveInput struct {
	Keyed
	Ref  string `path:"ref" maxLength:"255" doc:"name of a Host, a deploy id, or the name of an App"`
	Body *wire.ReasonBody
}

type resolveOutput struct{ Body wire.Resolution }

type historyInput struct {
	Limit int `query:"limit" minimum:"1" maximum:"500" default:"50"`
}

type historyOutput struct{ Body wire.HostHistory }

func (h *Handler) registerHosts(api huma.API) {
	const tag = "Hosts"
	huma.Register(api, get(api, "/v1/hosts", "listHosts", tag, "List load-balancer Hosts", "By Group and name, with the catalogs that announce them."),
		func(ctx context.Context, _ *struct{}) (*hostListOutput, error) {
			list, err := h.service(ctx).Hosts(ctx)
			if err != nil {
				return nil, h.failure(ctx, "listing Hosts", err)
			}
			return &hostListOutput{Body: wire.CompleteHosts(list)}, nil
		})

	huma.Register(api, get(api, "/v1/hosts/{name}", "showHost", tag, "Show a Host",
		"What is committed and what its proxy runs, read now, side by side."),
		func(ctx context.Context, in *HostPath) (*hostShowOutput, error) {
			show, err := h.service(ctx).ShowHost(ctx, in.Name)
			if err != nil {
				return nil, h.failure(ctx, "reading the Host", err)
			}
			return &hostShowOutput{Body: wire.CompleteShow(show)}, nil
		})

	huma.Register(api, get(api, "/v1/hosts/{name}/drift", "showHostDrift", tag, "Show what differs on a Host",
		"Every difference between what is committed, on disk and running that nobody ordered through Cutover, looked for now, with its likely cause."),
		func(ctx context.Context, in *HostPath) (*hostDriftOutput, error) {
			drift, err := h.service(ctx).HostDrift(ctx, in.Name)
			if err != nil {
				return nil, h.failure(ctx, "comparing the Host", err)
			}
			return &hostDriftOutput{Body: wire.CompleteDrift(drift)}, nil
		})
	h.registerMembership(api, tag)
}

// registerMembership is who is a member of a Group, and what is stuck on a Host.
func (h *Handler) registerMembership(api huma.API, tag string) {
	change := func(ctx context.Context, ask HostAsk, meta Meta) (*hostOutput, error) {
		host, err := h.service(ctx).ChangeHost(ctx, ask, meta)
		if err != nil {
			return nil, h.failure(ctx, "changing the Host's membership", err)
		}
		return &hostOutput{Body: wire.CompleteHost(host)}, nil
	}
	huma.Register(api, post(api, "/v1/hosts/{name}/admit", "admitHost", tag, "Admit a Host",
		"It becomes a member of its Group's View when it holds the whole committed state, and only then turns ready."),
		func(ctx context.Context, in *admitInput) (*hostOutput, error) {
			return change(ctx, HostAsk{Verb: txn.Admit, Host: in.Name, Group: in.Body.Group, AgentURL: in.Body.AgentURL}, in.meta(ctx, in.Body.Reason))
		})
	huma.Register(api, post(api, "/v1/hosts/{name}/readmit", "readmitHost", tag, "Bring back a Host that is excluded or drained",
		"An excluded one is synced first; see admitHost."),
		func(ctx context.Context, in *hostInput) (*hostOutput, error) {
			return change(ctx, HostAsk{Verb: txn.Readmit, Host: in.Name}, in.meta(ctx, in.Body.Reason))
		})
	huma.Register(api, post(api, "/v1/hosts/{name}/drain", "drainHost", tag, "Take a Host out of traffic",
		"Turns its readiness endpoint red, and counts its client connections. It stays a member."),
		func(ctx context.Context, in *hostProofInput) (*hostOutput, error) {
			return change(ctx, HostAsk{Verb: txn.DrainHost, Host: in.Name, Sure: in.Body.Sure}, in.meta(ctx, in.Body.Reason))
		})
	huma.Register(api, post(api, "/v1/hosts/{name}/exclude", "excludeHost", tag, "Take a Host out of its Group's View",
		"Needs proof that it gets no traffic: its own report after drainHost, or the asker's word. Waits for the Group's undecided transactions."),
		func(ctx context.Context, in *hostProofInput) (*hostOutput, error) {
			return change(ctx, HostAsk{Verb: txn.Exclude, Host: in.Name, Sure: in.Body.Sure}, in.meta(ctx, in.Body.Reason))
		})
	huma.Register(api, post(api, "/v1/hosts/{name}/remove", "removeHost", tag, "Take a Host out for good",
		"Needs the proof that excludeHost needs, and releases what was kept for the Host."),
		func(ctx context.Context, in *hostProofInput) (*hostOutput, error) {
			return change(ctx, HostAsk{Verb: txn.Remove, Host: in.Name, Sure: in.Body.Sure}, in.meta(ctx, in.Body.Reason))
		})
	huma.Register(api, post(api, "/v1/resolve/{ref}", "resolve", tag, "Settle what is stuck, now",
		"Tells the Host again what it has not answered, syncs it, and says what is left. For a Deploy or an App: the Hosts that it waits for."),
		func(ctx context.Context, in *resolveInput) (*resolveOutput, error) {
			r, err := h.service(ctx).Resolve(ctx, in.Ref, in.meta(ctx, reasonOf(in.Body)))
			if err != nil {
				return nil, h.failure(ctx, "resolving", err)
			}
			return &resolveOutput{Body: wire.CompleteResolution(r)}, nil
		})
	huma.Register(api, get(api, "/v1/host-changes", "listHostChanges", tag, "List changes of membership", "Newest first: who, when, why, with what proof."),
		func(ctx context.Context, in *historyInput) (*historyOutput, error) {
			list, err := h.service(ctx).HostHistory(ctx, in.Limit)
			if err != nil {
				return nil, h.failure(ctx, "reading the changes of membership", err)
			}
			if list == nil {
				list = []HostChange{}
			}
			return &historyOutput{Body: wire.HostHistory{Changes: list}}, nil
		})
}
