package deploy

import (
	"maps"
	"slices"
	"time"
)

// Kind is what asked for a Deploy.
type Kind string

// The kinds.
const (
	KindDeploy   Kind = "deploy"
	KindScale    Kind = "scale"
	KindStop     Kind = "stop"
	KindRollback Kind = "rollback"
)

// StepName is where a Deploy is.
type StepName string

// The steps. Before Commit: pending to restore-stuck; after it: draining to done.
const (
	StepPending      StepName = "pending"       // recorded, nothing done
	StepWaiting      StepName = "waiting"       // a rollback behind the Deploy that it replaces
	StepWaitStuck    StepName = "wait-stuck"    // that Deploy cannot be undone yet
	StepLaunching    StepName = "launching"     // not all new tasks run
	StepChecking     StepName = "checking"      // all run, not all are healthy
	StepGathering    StepName = "gathering"     // all healthy; the other Apps of the lock-step are not
	StepPreparing    StepName = "preparing"     // Hosts stage, validate and warm; no client sees anything
	StepActivating   StepName = "activating"    // Hosts switch and verify
	StepCommitting   StepName = "committing"    // all verified; the Commit record is being written
	StepRetrying     StepName = "retrying"      // undone for a passing cause; the same tasks try again
	StepRestoring    StepName = "restoring"     // aborted; waiting for the proof of every Host that was sent Activate
	StepRestoreStuck StepName = "restore-stuck" // that proof is overdue
	StepExplaining   StepName = "explaining"    // failed; the culprit's last output is read before it is killed
	StepDraining     StepName = "draining"      // committed; old upstreams finish
	StepDrainStuck   StepName = "drain-stuck"   // a Host's Drained is overdue
	StepKilling      StepName = "killing"       // released; old tasks are being killed
	StepDone         StepName = "done"
)

// Policy is how long things may take, from the Spec and the orchestrator's options.
type Policy struct {
	Deadline  time.Duration `json:"deadline"` // start to Commit
	Drain     time.Duration `json:"drain"`
	KillGrace time.Duration `json:"kill_grace"`
	// Check names the health check for people.
	Check string `json:"check"`
	// Groups of base and target; without any, Commit needs no Host.
	Groups []string `json:"groups,omitempty"`
}

// Bounds of a Deploy that no Spec changes.
const (
	// MaxFailures of the same instance end the Deploy at once: a task that exits at once must not wait for the deadline.
	MaxFailures = 2
	// MaxRetries of a transaction that was aborted for a passing cause.
	MaxRetries = 5
	// OutputTimeout bounds the reading of the culprit's last output.
	OutputTimeout = 2 * time.Second
	// AbortSlack is how long past the deadline the coordinator may take to abort by itself.
	AbortSlack = 5 * time.Second
	// RestoreSlack is after how long a restore is overdue even if the coordinator did not say so.
	RestoreSlack = 90 * time.Second
	// GatherSlack is how much later than the others the one that only waits gives up: they know why.
	GatherSlack = time.Second
	// UndecidedTimeout is after how long an unknown decision is stuck (EVERY-STATE-ENDS).
	UndecidedTimeout = 10 * time.Minute
	// DrainSlack is added to the drain time before a missing Drained is stuck.
	DrainSlack = 60 * time.Second
	// KillSlack is added to the kill grace before the Deploy stops to wait for old tasks. The killing goes on.
	KillSlack = 60 * time.Second
	// firstBackoff before a retry; it doubles with each.
	firstBackoff = 100 * time.Millisecond
	// leastTime that must be left before the deadline to start anything.
	leastTime = 500 * time.Millisecond
)

// MemberState is how far one task of the target is.
type MemberState string

// The states.
const (
	MemberLaunching MemberState = "launching"
	MemberRunning   MemberState = "running"
	MemberHealthy   MemberState = "healthy"
	MemberEnded     MemberState = "ended"
)

// Member is one task of the target: new, or kept from the committed set.
type Member struct {
	Task     string      `json:"task"`
	Instance int         `json:"instance"`
	Attempt  int         `json:"attempt"`
	Kept     bool        `json:"kept,omitempty"`
	State    MemberState `json:"state"`
	// Why it is not healthy, not placed, or ended.
	Why string `json:"why,omitempty"`
}

// Ask is an abort that was asked for.
type Ask struct {
	Actor   string `json:"actor"`
	Reason  string `json:"reason"`
	Outcome State  `json:"outcome"` // Aborted or Superseded
}

// Verdict is how a Deploy will end once everything is put back.
type Verdict struct {
	Outcome State  `json:"outcome"`
	Code    Code   `json:"code"`
	Reason  string `json:"reason"`
	Culprit string `json:"culprit,omitempty"` // task whose output explains it
	Output  string `json:"output,omitempty"`
	// Asked: the output was asked for. Answered: it came, or there is none.
	Asked    bool   `json:"asked,omitempty"`
	Answered bool   `json:"answered,omitempty"`
	Next     string `json:"next,omitempty"`
}

// Deploy is the machine's whole state. It is stored as it is; fields are added, never renamed. Values are never changed in
// place: Step returns a copy.
type Deploy struct {
	ID       string   `json:"id"`
	App      string   `json:"app"`
	Kind     Kind     `json:"kind"`
	Spec     uint64   `json:"spec"`
	FromSpec uint64   `json:"from_spec"`
	Version  string   `json:"version,omitempty"`
	Actor    string   `json:"actor"`
	Why      string   `json:"why,omitempty"`
	Policy   Policy   `json:"policy"`
	Behind   string   `json:"behind,omitempty"`   // Deploy that must end first
	Lockstep string   `json:"lockstep,omitempty"` // id shared with the Deploys that commit with this one or not at all
	Step     StepName `json:"step"`
	State    State    `json:"state"`
	Code     Code     `json:"code"`
	Reason   string   `json:"reason"`
	Next     string   `json:"next,omitempty"`

	StartedAt   time.Time `json:"started_at"`
	Deadline    time.Time `json:"deadline"`
	StepAt      time.Time `json:"step_at"`
	HealthyAt   time.Time `json:"healthy_at,omitzero"`
	CommittedAt time.Time `json:"committed_at,omitzero"`
	FinishedAt  time.Time `json:"finished_at,omitzero"`

	// Wanted is the number of tasks of the target.
	Wanted   int         `json:"wanted"`
	Members  []Member    `json:"members,omitempty"`
	Failures map[int]int `json:"failures,omitempty"` // by instance
	Attempts int         `json:"attempts"`           // incarnations launched so far; makes task ids unique

	Txn string `json:"txn,omitempty"`
	// Leaving: the Deploy has asked for the transaction's abort by itself.
	Leaving    bool                 `json:"leaving,omitempty"`
	Txns       int                  `json:"txns"`
	Retries    int                  `json:"retries"`
	Generation uint64               `json:"generation"`
	Hosts      []HostView           `json:"hosts,omitempty"`
	Stuck      []StuckView          `json:"stuck,omitempty"`  // while the undo is stuck
	Drains     map[string]DrainView `json:"drains,omitempty"` // by Group
	OldGone    bool                 `json:"old_gone,omitempty"`
	Ask        *Ask                 `json:"ask,omitempty"`
	Verdict    *Verdict             `json:"verdict,omitempty"`
	Steps      []StepRecord         `json:"steps"`
}

// Open reports whether the Deploy is before its end or its Commit: another one of the App is refused meanwhile.
func (d Deploy) Open() bool {
	switch d.Step {
	case StepDraining, StepDrainStuck, StepKilling, StepDone:
		return false
	default:
		return true
	}
}

// InTxn reports whether a transaction may know the Deploy's tasks: they must not be killed then.
func (d Deploy) InTxn() bool {
	switch d.Step {
	case StepPreparing, StepActivating, StepCommitting, StepRestoring, StepRestoreStuck:
		return true
	default:
		return false
	}
}

// Tasks are the ids of the target's tasks, kept ones included.
func (d Deploy) Tasks() []string {
	out := make([]string, 0, len(d.Members))
	for _, m := range d.Members {
		out = append(out, m.Task)
	}
	return out
}

// clone copies what Step changes in place.
func (d Deploy) clone() Deploy {
	d.Members = slices.Clone(d.Members)
	d.Steps = slices.Clone(d.Steps)
	d.Failures = maps.Clone(d.Failures)
	d.Drains = maps.Clone(d.Drains)
	if d.Verdict != nil {
		v := *d.Verdict
		d.Verdict = &v
	}
	return d
}

// TxnPhase is where the Deploy's transaction is, in the coordinator's words.
type TxnPhase string

// The phases.
const (
	TxnWaiting    TxnPhase = "waiting"
	TxnPreparing  TxnPhase = "preparing"
	TxnActivating TxnPhase = "activating"
	TxnDeciding   TxnPhase = "deciding"
	TxnCommitted  TxnPhase = "committed"
	TxnRestoring  TxnPhase = "restoring"
	TxnRolledBack TxnPhase = "rolled-back"
	TxnStuck      TxnPhase = "stuck"
)

// Input is something that happened to a Deploy.
type Input interface{ isInput() }

// The inputs.
type (
	// Start begins a pending Deploy.
	Start struct{}
	// Cleared: the Deploy in the way of a waiting rollback has ended.
	Cleared struct{}
	// Gathered: every Deploy of the lock-step is in gathering.
	Gathered struct{}
	// PeerEnded: another Deploy of the lock-step has ended without Commit.
	PeerEnded struct {
		App, Reason string
		Outcome     State
	}
	// TaskRunning: the task's process runs.
	TaskRunning struct{ Task string }
	// TaskHealthy: the prober says so.
	TaskHealthy struct{ Task string }
	// TaskUnhealthy: a probe fails, with its error. The task may still become healthy.
	TaskUnhealthy struct{ Task, Why string }
	// TaskOverdue: not healthy within its grace.
	TaskOverdue struct{ Task, Why string }
	// TaskEnded: terminal.
	TaskEnded struct{ Task, Why string }
	// TaskLost: its agent is not reachable. It may come back; a new task takes its place meanwhile.
	TaskLost struct{ Task, Why string }
	// TaskUnplaced says why no agent took the task yet.
	TaskUnplaced struct{ Task, Why string }
	// TxnChanged is a report of the coordinator.
	TxnChanged struct {
		ID    string
		Phase TxnPhase
		// Cause in the coordinator's words, and for people.
		Cause, Reason string
		// Passing: the cause may be gone when the same tasks try again.
		Passing     bool
		Order       uint64
		Hosts       []HostView
		CommittedAt time.Time
		Next        string
		Stuck       []StuckView
	}
	// TxnUnknown: after a restart, the coordinator has never heard of the transaction. Nothing was sent to anyone.
	TxnUnknown struct{ ID string }
	// TxnDrained: how far one Group has released what the transaction replaced.
	TxnDrained struct {
		ID, Group    string
		Done, Forced bool
		Waiting      []string
	}
	// OldTasksGone: all tasks that this Deploy replaced have ended.
	OldTasksGone struct{}
	// AbortAsked is never refused before Commit.
	AbortAsked struct{ Ask }
	// OutputRead answers FetchOutput; the text is empty if there was none.
	OutputRead struct{ Task, Text string }
	// Tick: time passed. Wake says when one is due.
	Tick struct{}
)

func (Start) isInput()         {}
func (Cleared) isInput()       {}
func (Gathered) isInput()      {}
func (PeerEnded) isInput()     {}
func (TaskRunning) isInput()   {}
func (TaskHealthy) isInput()   {}
func (TaskUnhealthy) isInput() {}
func (TaskOverdue) isInput()   {}
func (TaskEnded) isInput()     {}
func (TaskLost) isInput()      {}
func (TaskUnplaced) isInput()  {}
func (TxnChanged) isInput()    {}
func (TxnUnknown) isInput()    {}
func (TxnDrained) isInput()    {}
func (OldTasksGone) isInput()  {}
func (AbortAsked) isInput()    {}
func (OutputRead) isInput()    {}
func (Tick) isInput()          {}

// Effect is what the owner must do after the Deploy is stored. Doing one again is harmless.
type Effect interface{ isEffect() }

// The effects.
type (
	// LaunchTasks asks the framework for new tasks.
	LaunchTasks struct{ Members []Member }
	// KillTasks gives new tasks up. No undecided transaction names them.
	KillTasks struct {
		Tasks []string
		Why   string
	}
	// BeginTxn starts the two-phase change to the target.
	BeginTxn struct{ ID string }
	// AbortTxn gives the transaction up. A Commit that was faster wins.
	AbortTxn struct{ ID, Cause, Reason string }
	// FetchOutput reads the last lines of a task; OutputRead answers it within OutputTimeout.
	FetchOutput struct{ Task string }
	// Adopt makes the target the App's committed set; what is replaced drains, and is killed when it is released.
	Adopt struct{}
	// Emit tells something that happened; the owner numbers and stores it.
	Emit struct{ Event Event }
	// End: the outcome is known. It comes once, and once more when a stuck Deploy resolves itself.
	End struct{}
)

func (LaunchTasks) isEffect() {}
func (KillTasks) isEffect()   {}
func (BeginTxn) isEffect()    {}
func (AbortTxn) isEffect()    {}
func (FetchOutput) isEffect() {}
func (Adopt) isEffect()       {}
func (Emit) isEffect()        {}
func (End) isEffect()         {}
