package api

import (
	"context"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
)

// Meta says who asks, why, and under which idempotency key.
type Meta struct {
	Actor          string
	Reason         string
	IdempotencyKey string // empty: none
	// BodyDigest is the SHA-256 of the request's method, path and body: the same key with another digest is refused.
	BodyDigest string
}

// HostAsk is a request about a Host's membership.
type HostAsk struct {
	Verb txn.MemberVerb
	Host string
	// Group and AgentURL are for the admission of a Host that no source announces.
	Group, AgentURL string
	// Sure is the asker's word that the Host gets no traffic.
	Sure bool
}

// Service is what the API asks of the orchestrator. Every error that is the asker's is a *deploy.Refusal.
type Service interface {
	// Submit starts a Deploy of the Spec in source (YAML or JSON). The returned View is durable.
	Submit(ctx context.Context, source []byte, meta Meta) (deploy.View, error)
	// Validate checks a Spec as Submit would, and starts nothing.
	Validate(ctx context.Context, source []byte) error
	Scale(ctx context.Context, app string, instances int, meta Meta) (deploy.View, error)
	StopApp(ctx context.Context, app string, meta Meta) (deploy.View, error)
	// Rollback goes to the Spec committed before the current one, or to the given one. While a Deploy is open it is its abort.
	Rollback(ctx context.Context, app string, to uint64, meta Meta) (deploy.View, error)
	// Abort takes a deploy id or the name of an App with an open Deploy.
	Abort(ctx context.Context, ref string, meta Meta) (deploy.View, error)

	Deploy(ctx context.Context, id string) (deploy.View, error)
	// Deploys lists newest first, of one App or of all (""), at most limit.
	Deploys(ctx context.Context, app string, limit int) ([]deploy.View, error)
	// Events returns the Deploy's events after the given sequence number, then live ones. The channel is closed after the
	// event of type "end", when ctx ends, or when the reader is too slow (it then asks again from its last number).
	Events(ctx context.Context, id string, after uint64) (<-chan deploy.Event, error)

	Apps(ctx context.Context) ([]deploy.AppView, error)
	App(ctx context.Context, name string) (deploy.AppView, error)
	Tasks(ctx context.Context, app string) ([]deploy.TaskView, error)
	// Logs reads up to limit bytes of a task's sandbox file ("stdout", "stderr") from offset; offset -1 means the last limit bytes.
	Logs(ctx context.Context, task, file string, offset int64, limit int) (LogChunk, error)

	// Hosts lists the Hosts that are known, and what announces them.
	Hosts(ctx context.Context) (wire.HostList, error)
	// ShowHost reads the committed and the running state of one Host, now.
	ShowHost(ctx context.Context, name string) (HostShow, error)
	// HostDrift reads every difference on one Host between what is committed, on disk and running, now.
	HostDrift(ctx context.Context, name string) (HostDrift, error)
	// ChangeHost changes who is a member of a Group, and whether a member is to be out of traffic. It waits for the undecided
	// transactions of the Group.
	ChangeHost(ctx context.Context, ask HostAsk, meta Meta) (Host, error)
	// Resolve lets a Host, or the Hosts that a Deploy or an App waits for, try again at once, and says what is left.
	Resolve(ctx context.Context, ref string, meta Meta) (Resolution, error)
	// HostHistory lists the newest changes of membership, newest first.
	HostHistory(ctx context.Context, limit int) ([]HostChange, error)
	// Ready says why the orchestrator cannot take Deploys now, or nil.
	Ready(ctx context.Context) error
}

// What the Service answers with, as it travels. They live in package wire, so that clients need no server.
type (
	// LogChunk is a piece of a task's log.
	LogChunk = wire.LogChunk
	// Host is one load-balancer Host.
	Host = wire.Host
	// HostShow is what `cutover lb show` prints: committed and running, side by side, for each App.
	HostShow = wire.HostShow
	// HostDrift is what `cutover lb drift` prints: what differs on one Host.
	HostDrift = wire.HostDrift
	// Drift is one difference.
	Drift = wire.Drift
	// Resolution is what became of a request to settle what is stuck.
	Resolution = wire.Resolution
	// HostChange is one change of a Host's membership.
	HostChange = wire.HostChange
	// SectionShow is one App's Section on one Host.
	SectionShow = wire.SectionShow
)
