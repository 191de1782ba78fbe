package engine

import (
	"context"
	"errors"
	"time"

	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// TaskSpec is a task to launch.
type TaskSpec struct {
	ID, App string
	// Group names the tasks that are spread over agents together.
	Group                  string
	Command                string
	Env                    map[string]string
	CPUs, MemoryMB, DiskMB float64
	Ports                  int
	Artifacts              []Artifact
	KillGrace              time.Duration
	Constraints            []Constraint
	// Labels are shown by Mesos.
	Labels map[string]string
}

// Artifact is fetched into the sandbox.
type Artifact struct {
	URI, SHA256         string
	Extract, Executable bool
}

// Constraint restricts or prefers agents.
type Constraint struct{ Attribute, Operator, Value string }

// Placement is where a task was launched: what must be durable before the launch is sent.
type Placement struct {
	TaskID     string
	AgentID    string
	Hostname   string
	Host       string // IP at which the task's ports are
	AgentURL   string
	Attributes map[string]string
	Ports      []uint16
}

// TaskRef is a task that was launched before, as the framework needs it to find it again.
type TaskRef struct {
	Placement
	App, Group string
	State      TaskState
	// Kill: it was ordered killed.
	Kill bool
}

// TaskState is a task's state in Mesos' words, in lower case and without the prefix: "running".
type TaskState string

// The states. Queued and Launching are before Mesos knows of the task.
const (
	Queued         TaskState = "queued"
	Launching      TaskState = "launching"
	Staging        TaskState = "staging"
	Starting       TaskState = "starting"
	Running        TaskState = "running"
	Killing        TaskState = "killing"
	Finished       TaskState = "finished"
	Failed         TaskState = "failed"
	Killed         TaskState = "killed"
	Errored        TaskState = "error"
	Dropped        TaskState = "dropped"
	Gone           TaskState = "gone"
	Lost           TaskState = "lost"
	Unreachable    TaskState = "unreachable"
	GoneByOperator TaskState = "gone_by_operator"
	UnknownState   TaskState = "unknown"
)

// Terminal reports whether the task has ended for good.
func (s TaskState) Terminal() bool {
	switch s {
	case Finished, Failed, Killed, Errored, Dropped, Gone:
		return true
	default:
		return false
	}
}

// Away reports whether it is not known at the moment whether the task runs.
func (s TaskState) Away() bool {
	switch s {
	case Lost, Unreachable, GoneByOperator, UnknownState:
		return true
	default:
		return false
	}
}

// TaskUpdate is one status update.
type TaskUpdate struct {
	TaskID, AgentID string
	Host            string
	Ports           []uint16
	State           TaskState
	Reason, Message string
}

// PendingTask is a task that no agent took yet, and why.
type PendingTask struct{ TaskID, Why string }

// ErrInvalidTask is wrapped by a TaskRunner's Launch for a task that it can never run.
var ErrInvalidTask = errors.New("invalid task")

// TaskRunner is what the engine asks of the framework. Launch and Kill queue and return soon; calling them again for the
// same task is harmless.
type TaskRunner interface {
	// Launch takes all tasks or, with an error, none; they are offered again later, unless it wraps ErrInvalidTask.
	Launch(ctx context.Context, tasks []TaskSpec) error
	// Kill also ends a task that is not placed yet; HandleLost or HandleUpdate tells its end.
	Kill(ctx context.Context, task string) error
	Pending() []PendingTask
}

// LogReader reads a task's sandbox.
type LogReader interface {
	// ReadOutput reads up to limit bytes of a file from offset; offset -1 means the last limit bytes. It returns the offset
	// of the first byte; one below the offset asked for is the end of a file that has become shorter (rotated).
	ReadOutput(ctx context.Context, task TaskRef, file string, offset int64, limit int) (data []byte, at int64, err error)
}

// ProbeTarget is a task to probe.
type ProbeTarget struct {
	Task, Address            string
	HTTPPath                 string // empty: a TCP connect
	Interval, Timeout, Grace time.Duration
	Rise, Fall               int
	// Settled: nobody waits for the verdict; after a restart those that somebody waits for go first.
	Settled bool
}

// Prober probes tasks until they are removed, and tells changes by Engine.HandleProbe.
type Prober interface {
	Add(ProbeTarget) error
	Remove(task string)
	// LastError is what the last probe said, or "".
	LastError(task string) string
}

// ProbeVerdict is a change that the prober saw.
type ProbeVerdict uint8

// The verdicts.
const (
	ProbeHealthy ProbeVerdict = iota + 1
	ProbeUnhealthy
	ProbeOverdue // no success within the grace
)

// ProbeEvent is one change of one task.
type ProbeEvent struct {
	Task    string
	Verdict ProbeVerdict
	Why     string
}

// Coordinator is what the engine asks of the two-phase coordinator.
type Coordinator interface {
	// Begin takes one proposal, or several that commit together or not at all (lock-step).
	Begin(ctx context.Context, proposals ...txn.Proposal) error
	// Abort gives a transaction up in any phase; one that is committed stays so, and its Status says it.
	Abort(ctx context.Context, id string, cause txn.Cause, reason string) error
	// Outcome is false for a transaction that was never begun.
	Outcome(ctx context.Context, id string) (txn.Status, bool, error)
	Amend(ctx context.Context, a txn.Amendment) error
	// Committed is what the decision log holds of every App, and Decision one of its records; false: there is none. The
	// engine's own records are rebuilt from them when they are behind.
	Committed(ctx context.Context) ([]txn.CommittedApp, error)
	Decision(ctx context.Context, id string) (txn.Decision, bool, error)
	// Released returns those of the upstream names that no Host routes, holds sessions for or has registered, and that
	// nothing under way may bring back.
	Released(ctx context.Context, names []string) ([]string, error)
	Hosts() []txn.HostInfo
	// Sources are the catalogs that announce Hosts.
	Sources() []txn.SourceInfo
	// Groups are the declared Groups, with or without Hosts.
	Groups() []string
	// ShowHost reads a Host's committed and running state, now.
	ShowHost(ctx context.Context, name string) (*lbagentv1.ShowResponse, error)
	// HostDrift reads a Host's differences, now.
	HostDrift(ctx context.Context, name string) (*lbagentv1.ShowResponse, error)
	// ChangeMember changes who is a member of a Group; it waits for the Group's undecided transactions. An error that is the
	// asker's is a *txn.MemberRefusal.
	ChangeMember(ctx context.Context, ask txn.MemberAsk) (txn.HostInfo, error)
	// Resolve lets a Host try again at once what it has not answered, and says what is left.
	Resolve(ctx context.Context, host string) (txn.Resolution, error)
	// MemberHistory lists the newest changes of membership, newest first.
	MemberHistory(ctx context.Context, limit int) ([]txn.MemberChange, error)
}

// Ports are the engine's neighbours.
type Ports struct {
	Runner      TaskRunner
	Logs        LogReader
	Prober      Prober
	Coordinator Coordinator
}
