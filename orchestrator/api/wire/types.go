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
	Drift        int        `json:"drift" doc:"differences between what is committed, on disk and running that stand"`
	OpenTxns     []string   `json:"open_txns"`
	Problems     []string   `json:"problems"`
	Limits       []string   `json:"limits"`
	Membership   Membership `json:"membership"`
	Traffic      *Traffic   `json:"traffic,omitempty"`
}

// HostShow is what `cutover lb show` prints: committed and running, side by side, for each App.
type HostShow struct {
	Host     Host          `json:"host"`
	Sections []SectionShow `json:"sections"`
}

// HostDrift is what `cutover lb drift` prints: what differs on one Host.
type HostDrift struct {
	Host        Host    `json:"host"`
	Policy      string  `json:"policy" doc:"repair or report: what the Host does about it"`
	Differences []Drift `json:"differences"`
	LeftOut     int     `json:"left_out" doc:"differences that are not listed"`
	Repaired    []Drift `json:"repaired" doc:"the last that were put right, oldest first"`
}

// Drift is one difference between what is committed, on disk and running that nobody ordered through Cutover.
type Drift struct {
	App        string     `json:"app,omitempty" doc:"empty: of what all Apps share, or of nobody"`
	Cause      string     `json:"cause" doc:"the likely cause: edited-file, foreign-command, restarted-proxy, changed-base, unknown-section or refused"`
	Since      time.Time  `json:"since" doc:"when the Host saw it first"`
	Place      string     `json:"place" doc:"the file, or the part of the running proxy"`
	Summary    string     `json:"summary"`
	Diff       string     `json:"diff" doc:"lines with - for what should be and + for what is"`
	Left       bool       `json:"left" doc:"the policy leaves it alone"`
	Manual     bool       `json:"manual" doc:"only the owner of the proxy can put it right"`
	RepairedAt *time.Time `json:"repaired_at,omitempty"`
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
	ReadAt     *time.Time            `json:"read_at,omitempty" doc:"when the proxy was read; absent: never since its agent started"`
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
	Instances int    `json:"instances" minimum:"0" maximum:"1000" doc:"how many are wanted; 0 empties the App's routes"`
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
	// Sources are the catalogs that announce Hosts; the hosts file is none.
	Sources []Source `json:"sources" doc:"the catalogs that announce Hosts"`
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
	// LeaderHeardAgo is how long ago Consul said who leads, in seconds; a follower's.
	LeaderHeardAgo *float64 `json:"leader_heard_seconds_ago,omitempty" doc:"at a follower: how long ago Consul said who leads; above 15 it is not known now, and leader is who led then"`
}

// Roles of an orchestrator. The only one is always the leader.
const (
	RoleLeader   = "leader"
	RoleFollower = "follower"
)

// LeaderStale is from when on it is not known who leads: Consul says it every 10 s at least while it answers.
const LeaderStale = 15 * time.Second

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
