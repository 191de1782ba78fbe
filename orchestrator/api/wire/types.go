package wire

import (
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// LogChunk is a piece of a task's log.
type LogChunk struct {
	Data   string `json:"data"`
	Offset int64  `json:"offset" doc:"of the first byte of data"`
	Next   int64  `json:"next" doc:"offset to ask from next"`
}

// Host is one load-balancer Host.
type Host struct {
	Name         string     `json:"name"`
	Group        string     `json:"group"`
	Proxy        string     `json:"proxy" doc:"haproxy, nginx-lua or nginx-reload"`
	ProxyVersion string     `json:"proxy_version"`
	ProxyPID     int64      `json:"proxy_pid"`
	AgentURL     string     `json:"agent_url"`
	Connected    bool       `json:"connected"`
	LastSeen     *time.Time `json:"last_seen,omitempty"`
	Sections     int        `json:"sections"`
	OpenTxns     []string   `json:"open_txns"`
	Problems     []string   `json:"problems"`
	Limits       []string   `json:"limits"`
}

// HostShow is what `cutover lb show` prints: committed and running, side by side, for each App.
type HostShow struct {
	Host     Host          `json:"host"`
	Sections []SectionShow `json:"sections"`
}

// SectionShow is one App's Section on one Host.
type SectionShow struct {
	App        string                `json:"app"`
	Spec       uint64                `json:"spec"`
	Version    string                `json:"version" doc:"order number of the last transaction, and Amendments since"`
	Agrees     bool                  `json:"agrees"`
	Difference string                `json:"difference,omitempty"`
	Open       string                `json:"open,omitempty" doc:"phase of the transaction that is open here"`
	Routes     []string              `json:"routes"`
	Committed  []deploy.UpstreamView `json:"committed"`
	Running    []deploy.UpstreamView `json:"running"`
	Digest     string                `json:"digest" doc:"of the set as read"`
}

// MaxBodyBytes is the most that the API reads of one request's body.
const MaxBodyBytes = 2 << 20

// MaxReasonBytes bounds the reason that someone gives for a request; it travels into every Host's journal.
const MaxReasonBytes = 1000

// MaxIdempotencyKeyBytes bounds an idempotency key.
const MaxIdempotencyKeyBytes = 255

// SubmitBody asks for a Deploy.
type SubmitBody struct {
	Source string `json:"source" minLength:"1" doc:"the App spec, as YAML or JSON text"`
	Reason string `json:"reason,omitempty" maxLength:"1000" doc:"why, kept in the audit record"`
}

// ValidateBody asks whether a Spec would be accepted.
type ValidateBody struct {
	Source string `json:"source" minLength:"1" doc:"the App spec, as YAML or JSON text"`
}

// ScaleBody asks for another number of instances.
type ScaleBody struct {
	Instances int    `json:"instances" minimum:"0" maximum:"10000" doc:"how many are wanted; 0 empties the App's routes"`
	Reason    string `json:"reason,omitempty" maxLength:"1000" doc:"why, kept in the audit record"`
}

// RollbackBody asks to go back.
type RollbackBody struct {
	To     uint64 `json:"to,omitempty" doc:"Spec to go to; 0 or absent: the one committed before the current one"`
	Reason string `json:"reason,omitempty" maxLength:"1000" doc:"why, kept in the audit record"`
}

// ReasonBody is the body of a request that needs nothing but a reason.
type ReasonBody struct {
	Reason string `json:"reason,omitempty" maxLength:"1000" doc:"why, kept in the audit record"`
}

// Validated answers that a Spec would be accepted.
type Validated struct {
	Valid bool `json:"valid"`
}

// DeployList lists Deploys, newest first.
type DeployList struct {
	Deploys []deploy.View `json:"deploys"`
}

// AppList lists Apps by name.
type AppList struct {
	Apps []deploy.AppView `json:"apps"`
}

// TaskList lists tasks.
type TaskList struct {
	Tasks []deploy.TaskView `json:"tasks"`
}

// HostList lists Hosts by name.
type HostList struct {
	Hosts []Host `json:"hosts"`
}

// Version says what answers.
type Version struct {
	Version string `json:"version" doc:"of the orchestrator"`
	API     string `json:"api" doc:"version of this API" example:"v1"`
	Go      string `json:"go" doc:"toolchain that built it"`
	// Name is the orchestrator's that answers, where there are several.
	Name   string  `json:"name,omitempty" doc:"of the orchestrator that answers, where there are several"`
	Role   string  `json:"role" enum:"leader,follower" doc:"what it is now; a follower forwards to the leader"`
	Leader *Leader `json:"leader,omitempty" doc:"which one leads, where there are several; absent: none, as far as is known"`
}

// Roles of an orchestrator. The only one is always the leader.
const (
	RoleLeader   = "leader"
	RoleFollower = "follower"
)

// Leader names the orchestrator that leads.
type Leader struct {
	Name string `json:"name"`
	URL  string `json:"url" doc:"where it answers"`
}

// Health answers /healthz and /readyz.
type Health struct {
	Status string  `json:"status" example:"ok"`
	Role   string  `json:"role,omitempty" enum:"leader,follower" doc:"at /readyz"`
	Leader *Leader `json:"leader,omitempty" doc:"at /readyz, where there are several orchestrators: which one leads"`
}
