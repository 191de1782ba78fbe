package deploy

import "time"

// State is how a Deploy stands, as everyone outside sees it.
type State string

// The states. Only Running and Stuck may change again.
const (
	Running    State = "running"
	Succeeded  State = "succeeded"
	RolledBack State = "rolled_back"
	Stuck      State = "stuck"
	Aborted    State = "aborted"
	Superseded State = "superseded"
)

// Vote is a Host's answer in the final report of a Deploy.
type Vote string

// The votes.
const (
	VoteNone     Vote = "none"
	VoteReady    Vote = "ready"
	VoteVerified Vote = "verified"
	VoteFailed   Vote = "failed"
	VoteAborted  Vote = "aborted"
)

// View is a Deploy as the API, the CLI and scripts see it: a stable contract. Fields are added, never renamed or removed.
type View struct {
	DeployID    string     `json:"deploy_id" doc:"id of this Deploy, sortable by time"`
	App         string     `json:"app"`
	Kind        string     `json:"kind" doc:"what asked for it" enum:"deploy,scale,stop,rollback"`
	Spec        uint64     `json:"spec" doc:"revision that the Deploy moves to; 0 for a stop"`
	FromSpec    uint64     `json:"from_spec" doc:"committed revision when it started; 0 if none"`
	Version     string     `json:"version,omitempty" doc:"free label of the Spec"`
	State       State      `json:"state" enum:"running,succeeded,rolled_back,stuck,aborted,superseded,paused"`
	Step        string     `json:"step" doc:"what it does now"`
	Reason      string     `json:"reason" doc:"why it is where it is, for people"`
	ReasonCode  string     `json:"reason_code" doc:"closed vocabulary, for scripts"`
	NextCommand string     `json:"next_command,omitempty" doc:"the one command to run next, if there is one"`
	Actor       string     `json:"actor"`
	StartedAt   time.Time  `json:"started_at"`
	CommittedAt *time.Time `json:"committed_at"`
	FinishedAt  *time.Time `json:"finished_at"`
	// HealthyAt is when the last new task was first healthy: what the App itself needed ends here.
	HealthyAt  *time.Time `json:"healthy_at,omitempty"`
	Deadline   time.Time  `json:"deadline"`
	Generation uint64     `json:"generation" doc:"order number of the last transaction"`
	Txn        string     `json:"txn,omitempty" doc:"id of the last transaction"`
	Lockstep   string     `json:"lockstep,omitempty" doc:"id of the lock-step that this Deploy belongs to: all of it commit, or none"`
	Tasks      []TaskView `json:"tasks"`
	Hosts      []HostView `json:"hosts"`
	Drain      *DrainView `json:"drain,omitempty"`
	// Stuck are the Hosts that keep a stuck Deploy from being undone.
	Stuck []StuckView  `json:"stuck,omitempty" doc:"what could not be restored, on which Host, what serves there now, and what resolves it"`
	Steps []StepRecord `json:"steps" doc:"every step so far with its time"`
	// Apps are the Deploys of a lock-step, in the view of the whole; it has the id of the lock-step.
	Apps []View `json:"apps,omitempty" doc:"of a lock-step: the Deploy of each App"`
}

// StepRecord is one step that a Deploy entered.
type StepRecord struct {
	Step string    `json:"step"`
	At   time.Time `json:"at"`
}

// TaskView is one task of a Deploy or an App.
type TaskView struct {
	ID        string     `json:"id"`
	App       string     `json:"app"`
	Spec      uint64     `json:"spec"`
	Instance  int        `json:"instance"`
	State     string     `json:"state" doc:"queued, launching, staging, starting, running, killing, lost, finished, failed, killed"`
	Health    string     `json:"health" enum:"unknown,healthy,unhealthy"`
	Role      string     `json:"role" doc:"new, kept, old, replacement" `
	Agent     string     `json:"agent,omitempty"`
	Address   string     `json:"address,omitempty" doc:"ip:port of the routed port"`
	Upstream  string     `json:"upstream,omitempty" doc:"name that the proxies know it by"`
	Message   string     `json:"message,omitempty" doc:"why it ended or is not healthy"`
	StartedAt *time.Time `json:"started_at,omitempty"`
	Kept      bool       `json:"kept,omitempty"`
}

// HostView is one Host's part in a Deploy.
type HostView struct {
	Name     string        `json:"name"`
	Group    string        `json:"group"`
	Proxy    string        `json:"proxy"`
	Vote     Vote          `json:"vote" enum:"none,ready,verified,failed,aborted"`
	Reason   string        `json:"reason,omitempty"`
	Output   string        `json:"output,omitempty" doc:"what the proxy's checker printed"`
	Evidence *EvidenceView `json:"evidence,omitempty"`
	Drained  bool          `json:"drained,omitempty"`
	// Standing: the Host has not proved it, and is not needed for that.
	Standing Standing `json:"standing,omitempty" enum:"unproven,excluded" doc:"unproven: missing, as the Group's policy permits, and no old task is killed before it is back; excluded: proven out of traffic"`
}

// Standing says why a Host's proof is not needed.
type Standing string

// The standings; empty is a Host whose proof is needed.
const (
	StandingUnproven Standing = "unproven"
	StandingExcluded Standing = "excluded"
)

// StuckView is one Host that keeps a Deploy from being undone.
type StuckView struct {
	Host  string `json:"host"`
	Group string `json:"group"`
	Cause string `json:"cause" enum:"away,silent,restore-failed,refused"`
	What  string `json:"what" doc:"what could not be restored, and why"`
	Fix   string `json:"fix" doc:"what to do about it"`
	Next  string `json:"next_command" doc:"the command that resolves it"`
	// Serves is what the Host's proxy reported last.
	Serves []ServesView `json:"serves,omitempty"`
}

// ServesView is what a Host's proxy serves of an App.
type ServesView struct {
	App       string         `json:"app"`
	ReadAt    time.Time      `json:"read_at" doc:"when the proxy was read, by the Host's clock"`
	ProxyPID  int64          `json:"proxy_pid"`
	Digest    string         `json:"digest"`
	Upstreams []UpstreamView `json:"upstreams"`
	Omitted   int            `json:"omitted,omitempty" doc:"how many upstreams are not listed after a restart of the orchestrator, since they were too many to keep here"`
}

// EvidenceView is what a Host's running proxy reported; Upstreams lists the target's, new and kept.
type EvidenceView struct {
	Generation uint64         `json:"generation"`
	Digest     string         `json:"digest"`
	ProxyPID   int64          `json:"proxy_pid"`
	ReadAt     time.Time      `json:"read_at"`
	Upstreams  []UpstreamView `json:"upstreams"`
	// Others are the upstreams that are not of the target: draining ones.
	Others []UpstreamView `json:"others,omitempty"`
	// Omitted: a Deploy's own record is bounded; the Commit record has every row.
	Omitted int `json:"omitted,omitempty" doc:"how many upstreams are not listed after a restart of the orchestrator, since they were too many to keep here; the Commit record has all"`
}

// UpstreamView is one upstream as a proxy reported it.
type UpstreamView struct {
	Name       string `json:"name"`
	Address    string `json:"address"`
	Registered bool   `json:"registered"`
	Healthy    bool   `json:"healthy"`
	Status     string `json:"status"`
	Mode       string `json:"mode"`
	Weight     uint32 `json:"weight"`
	Sessions   uint32 `json:"sessions"`
}

// DrainView is how far the old upstreams are.
type DrainView struct {
	Done     bool      `json:"done"`
	Forced   bool      `json:"forced"`
	Deadline time.Time `json:"deadline"`
	Waiting  []string  `json:"waiting,omitempty" doc:"hosts that have not reported drained"`
}

// AppView is an App as `cutover apps` and `cutover status APP` show it.
type AppView struct {
	Name       string     `json:"name"`
	Kind       string     `json:"kind"`
	State      string     `json:"state" enum:"new,running,stopped"`
	Spec       uint64     `json:"spec" doc:"committed revision; 0 if none"`
	Version    string     `json:"version,omitempty"`
	Instances  int        `json:"instances"`
	Healthy    int        `json:"healthy"`
	OpenDeploy string     `json:"open_deploy,omitempty"`
	LastDeploy string     `json:"last_deploy,omitempty"`
	Routes     []string   `json:"routes"`
	Tasks      []TaskView `json:"tasks,omitempty"`
	UpdatedAt  time.Time  `json:"updated_at"`
	Problems   []string   `json:"problems,omitempty"`
}

// Event is one line of a Deploy's story, and one server-sent event. Seq counts from 1 per Deploy without a gap.
type Event struct {
	Seq    uint64    `json:"seq"`
	At     time.Time `json:"at"`
	Deploy string    `json:"deploy"`
	App    string    `json:"app"`
	// Type: step, task, host, note, end.
	Type string `json:"type" enum:"step,task,host,note,end"`
	Step string `json:"step,omitempty"`
	Host string `json:"host,omitempty"`
	Task string `json:"task,omitempty"`
	Code string `json:"code,omitempty"`
	Msg  string `json:"msg"`
	// Deploy's whole state, in events of type step, host and end.
	View *View `json:"view,omitempty"`
}
