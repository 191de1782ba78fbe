package mesosframework

import (
	"fmt"
	"math"
	"path"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cutover/cutover/mesosframework/placement"
)

// TaskSpec is a task to launch. The id must never have been used before.
type TaskSpec struct {
	ID   string
	Name string // shown by Mesos; the App by default
	App  string
	// Group names the tasks that count together for constraints and spreading
	// (say, one revision of an App); the App by default.
	Group string
	// Command runs under sh -c in the sandbox. With Args it is instead the
	// program to run, without a shell.
	Command string
	Args    []string
	// Env is the task's environment. Names that Cutover sets (ReservedEnv) are
	// refused. In values and Args "${PORT0}", "${PORT}", "${HOST}", "${TASK_ID}"
	// and the like are replaced; a Command gets them from its shell.
	Env                    map[string]string
	CPUs, MemoryMB, DiskMB float64
	Ports                  int
	Artifacts              []Artifact
	// KillGrace is the time between SIGTERM and SIGKILL; 0 leaves it to the
	// agent (3 s). It is fixed at launch: agents ignore one given at the kill.
	KillGrace   time.Duration
	Constraints []placement.Constraint
	// ExcludeAgents lists agents (by id) that must not run this task.
	ExcludeAgents []string
	Labels        map[string]string
}

// Artifact is fetched into the sandbox before the task starts.
type Artifact struct {
	URI string
	// SHA256 is the file's digest in hex. If set, the task checks it before its
	// command runs, and an archive is unpacked only then; a mismatch ends the
	// task with exit status 67 and a line on its stderr.
	SHA256 string
	// Extract unpacks an archive (.tar, .tar.gz, .tgz, .tar.bz2, .tbz2, .tar.xz, .txz, .zip).
	Extract    bool
	Executable bool
	// OutputFile is the name in the sandbox; the last part of the URI by default.
	OutputFile string
}

// file is the artifact's path in the sandbox.
func (a Artifact) file() string {
	if a.OutputFile != "" {
		return a.OutputFile
	}
	uri := a.URI
	if strings.Contains(uri, "://") {
		uri, _, _ = strings.Cut(uri, "?")
	}
	return path.Base(uri)
}

// Limits of a TaskSpec: far above what is sensible, below what hurts a master.
const (
	maxIDLength   = 255
	maxText       = 64 << 10
	maxEntries    = 1000
	maxPorts      = 100
	maxKillGrace  = 24 * time.Hour
	maxArtifacts  = 100
	maxScalar     = 1e9
	reservedStart = "CUTOVER_"
)

var (
	envName   = regexp.MustCompile(`\A[A-Za-z_][A-Za-z0-9_]*\z`)
	portName  = regexp.MustCompile(`\APORT[0-9]*\z`)
	sha256hex = regexp.MustCompile(`\A[0-9a-fA-F]{64}\z`)
)

// ReservedEnv reports whether Cutover sets a variable of this name itself:
// PORT, PORT0 and so on, PORTS, HOST, TASK_ID and everything that starts with CUTOVER_.
func ReservedEnv(name string) bool {
	return portName.MatchString(name) || name == "PORTS" || name == "HOST" || name == "TASK_ID" || strings.HasPrefix(name, reservedStart)
}

// Validate says what Mesos or Cutover would refuse about the task.
func (s *TaskSpec) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("task %q: "+format, append([]any{s.ID}, args...)...)
	}
	if err := validID(s.ID); err != nil {
		return bad("%w", err)
	}
	if s.App == "" {
		return bad("app is empty")
	}
	for what, v := range map[string]string{"name": s.Name, "app": s.App, "group": s.Group, "command": s.Command} {
		if len(v) > maxText || !utf8.ValidString(v) || strings.ContainsRune(v, 0) {
			return bad("%s is longer than %d bytes or not text", what, maxText)
		}
	}
	if strings.TrimSpace(s.Command) == "" {
		return bad("command is empty")
	}
	for what, v := range map[string]float64{"cpus": s.CPUs, "memory": s.MemoryMB, "disk": s.DiskMB} {
		if math.IsNaN(v) || v < 0 || v > maxScalar {
			return bad("%s %v is out of range", what, v)
		}
	}
	if s.CPUs < 0.001 && s.MemoryMB < 0.001 {
		return bad("it needs some cpus or memory")
	}
	if s.Ports < 0 || s.Ports > maxPorts {
		return bad("%d ports, the limit is %d", s.Ports, maxPorts)
	}
	if s.KillGrace < 0 || s.KillGrace > maxKillGrace {
		return bad("kill grace %s is not between 0 and %s", s.KillGrace, maxKillGrace)
	}
	if len(s.Env) > maxEntries || len(s.Labels) > maxEntries || len(s.Args) > maxEntries || len(s.Artifacts) > maxArtifacts || len(s.Constraints) > maxArtifacts {
		return bad("too many environment variables, labels, arguments, artifacts or constraints")
	}
	for k, v := range s.Env {
		switch {
		case !envName.MatchString(k):
			return bad("environment variable %q is not a name", k)
		case ReservedEnv(k):
			return bad("environment variable %s is set by Cutover", k)
		case len(v) > maxText || strings.ContainsRune(v, 0) || !utf8.ValidString(v):
			return bad("environment variable %s is longer than %d bytes or not text", k, maxText)
		}
	}
	for _, a := range s.Args {
		if len(a) > maxText || strings.ContainsRune(a, 0) || !utf8.ValidString(a) {
			return bad("an argument is longer than %d bytes or not text", maxText)
		}
	}
	for _, c := range s.Constraints {
		if err := c.Validate(); err != nil {
			return bad("%w", err)
		}
	}
	for _, a := range s.Artifacts {
		if err := a.validate(); err != nil {
			return bad("%w", err)
		}
	}
	return nil
}

func (a Artifact) validate() error {
	bad := func(what string) error { return fmt.Errorf("artifact %q: %s", a.URI, what) }
	switch {
	case a.URI == "" || len(a.URI) > 8192 || strings.ContainsFunc(a.URI, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return bad("the URI is empty, too long or has control characters")
	case strings.ContainsAny(a.URI, `\'`):
		// The Mesos fetcher refuses these: it passes URIs to a shell.
		return bad("the URI has a backslash or a quote, which the Mesos fetcher refuses")
	case a.SHA256 != "" && !sha256hex.MatchString(a.SHA256):
		return bad("sha256 is not 64 hexadecimal digits")
	case a.OutputFile != "" && !insideSandbox(a.OutputFile):
		return bad(fmt.Sprintf("output file %q is not a path inside the sandbox", a.OutputFile))
	}
	if f := a.file(); f == "." || f == "/" || f == ".." {
		return bad("the URI has no file name; give an output file")
	}
	return nil
}

// insideSandbox reports whether p is a clean relative path that stays inside.
func insideSandbox(p string) bool {
	return p != "" && p == path.Clean(p) && !path.IsAbs(p) && p != "." && p != ".." && !strings.HasPrefix(p, "../") &&
		!strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' })
}

// validID applies the rules that a master has for ids.
func validID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("the id is empty")
	case len(id) > maxIDLength:
		return fmt.Errorf("the id has %d bytes, the limit is %d", len(id), maxIDLength)
	case id == "." || id == "..":
		return fmt.Errorf("the id is %q", id)
	case strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' || r == '\\' }):
		return fmt.Errorf("the id has a blank, a control character or a slash")
	}
	return nil
}

// TaskState is a task's state in the words of Mesos.
type TaskState string

// The states. The empty one means that nothing was heard yet.
const (
	Staging        TaskState = "TASK_STAGING"
	Starting       TaskState = "TASK_STARTING"
	Running        TaskState = "TASK_RUNNING"
	Killing        TaskState = "TASK_KILLING"
	Finished       TaskState = "TASK_FINISHED"
	Failed         TaskState = "TASK_FAILED"
	Killed         TaskState = "TASK_KILLED"
	Errored        TaskState = "TASK_ERROR"
	Dropped        TaskState = "TASK_DROPPED"
	Gone           TaskState = "TASK_GONE"
	Lost           TaskState = "TASK_LOST"
	Unreachable    TaskState = "TASK_UNREACHABLE"
	GoneByOperator TaskState = "TASK_GONE_BY_OPERATOR"
	Unknown        TaskState = "TASK_UNKNOWN"
)

// Terminal reports whether the task has ended for good. UNREACHABLE, LOST,
// GONE_BY_OPERATOR and UNKNOWN are not: the task may come back as RUNNING.
func (s TaskState) Terminal() bool {
	switch s {
	case Finished, Failed, Killed, Errored, Dropped, Gone:
		return true
	default:
		return false
	}
}

// Away reports whether Mesos does not know at the moment whether the task runs.
func (s TaskState) Away() bool {
	switch s {
	case Lost, Unreachable, GoneByOperator, Unknown:
		return true
	default:
		return false
	}
}

// rank orders the states of a living task; 0 for all others.
func (s TaskState) rank() int {
	switch s {
	case Staging:
		return 1
	case Starting:
		return 2
	case Running:
		return 3
	case Killing:
		return 4
	default:
		return 0
	}
}

// Source says who made an update: SOURCE_MASTER, SOURCE_AGENT or SOURCE_EXECUTOR.
type Source string

// Reason is Mesos' reason of an update, such as REASON_CONTAINER_LAUNCH_FAILED;
// empty for a plain exit.
type Reason string

// Reasons that matter to a caller.
const (
	ReasonReconciliation     Reason = "REASON_RECONCILIATION"
	ReasonInvalidOffers      Reason = "REASON_INVALID_OFFERS"
	ReasonTaskInvalid        Reason = "REASON_TASK_INVALID"
	ReasonAgentReregistered  Reason = "REASON_AGENT_REREGISTERED"
	ReasonAgentRemoved       Reason = "REASON_AGENT_REMOVED"
	ReasonAgentDraining      Reason = "REASON_AGENT_DRAINING"
	ReasonContainerLaunch    Reason = "REASON_CONTAINER_LAUNCH_FAILED"
	ReasonMemoryLimit        Reason = "REASON_CONTAINER_LIMITATION_MEMORY"
	ReasonExecutorTerminated Reason = "REASON_EXECUTOR_TERMINATED"
)

// Update is one status update of a task.
type Update struct {
	TaskID  string
	AgentID string // may be empty in an answer about a task that nobody knows
	// Host is the address at which the task is reached (the container's, if it
	// has one of its own; else the agent's) and Ports its ports: both empty if
	// the framework did not launch the task and was not told of it.
	Host  string
	Ports []uint16
	State TaskState
	// Reason and Message explain the state; both may be empty.
	Reason  Reason
	Message string
	Source  Source
	// Healthy is the result of a health check made by Mesos itself, if any.
	Healthy   *bool
	Timestamp time.Time
	// UUID is the update's identity in hex. It is empty for updates that the
	// master made up (reconciliation, lost agents): these are sent once.
	UUID string
	// Known is false for a task that the framework neither launched nor was told
	// of by Listener.HandleSubscribed.
	Known bool
}

// Launch is the record of a task that is about to be launched.
type Launch struct {
	TaskID, App, Group string
	AgentID, Hostname  string
	// Host is the agent's address, where the task's ports will be.
	Host string
	// AgentURL is where the agent serves the task's sandbox.
	AgentURL string
	// Attributes are the agent's, as constraints need them after a restart.
	Attributes map[string]string
	OfferIDs   []string
	Ports      []uint16
	At         time.Time
}

// TaskRef is a task that was launched before, as its owner remembers it. All
// but TaskID may be empty; without AgentID Mesos cannot tell an unreachable
// task from an unknown one, without Ports the port may be given out again.
type TaskRef struct {
	TaskID, App, Group string
	AgentID, Hostname  string
	Host, AgentURL     string
	Attributes         map[string]string
	Ports              []uint16
	// State is the last state that HandleUpdate took; empty if none yet.
	State TaskState
	// Kill says that the task was ordered killed: the framework goes on killing it.
	Kill bool
}

// Ref is the TaskRef of a launch.
func (l Launch) Ref() TaskRef {
	return TaskRef{
		TaskID: l.TaskID, App: l.App, Group: l.Group, AgentID: l.AgentID, Hostname: l.Hostname, Host: l.Host,
		AgentURL: l.AgentURL, Attributes: l.Attributes, Ports: l.Ports,
	}
}

// LossReason is why the framework gave a task up.
type LossReason string

// The loss reasons.
const (
	// LossRefused: the master refused the launch, several times.
	LossRefused LossReason = "launch refused"
	// LossNotLaunched: it was killed before any launch was sent.
	LossNotLaunched LossReason = "not launched"
	// LossLaunchTimeout: no status update and no answer to reconciliation. The
	// task is being killed, should it exist.
	LossLaunchTimeout LossReason = "launch timeout"
	// LossStagingTimeout: it stayed in TASK_STAGING. It is being killed.
	LossStagingTimeout LossReason = "staging timeout"
)

// Loss tells that a task will not run although Mesos said nothing terminal.
// After LossRefused and LossNotLaunched no update follows; after the others
// updates may, and the owner should count the task as ordered killed.
type Loss struct {
	Task   TaskRef
	Reason LossReason
	Detail string
}

// PendingTask is a task that waits for an offer, and why.
type PendingTask struct {
	TaskID, App string
	Since       time.Time
	// Passes counts the placement passes that did not place it.
	Passes int
	// Vetoes counts the agents of the last pass by reason.
	Vetoes map[placement.Reason]int
	// Examples are some of them in detail.
	Examples []placement.Veto
	// Detail says why it waits, in one line.
	Detail string
}
