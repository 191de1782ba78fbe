package deploy

// Code is why a Deploy is where it is: a closed vocabulary for scripts. The causes of an aborted transaction appear under
// their own names.
type Code string

// The codes.
const (
	CodeRunning      Code = "in-progress"
	CodeCommitted    Code = "committed"         // every Host proved it
	CodeUnchanged    Code = "unchanged"         // the committed Spec has this content already
	CodeTaskExits    Code = "task-exits"        // the same instance ended again and again
	CodeTaskSick     Code = "task-unhealthy"    // not healthy within its grace
	CodeNotPlaced    Code = "task-not-placed"   // no agent took it before the deadline
	CodeNotInTime    Code = "tasks-not-in-time" // not all healthy before the deadline
	CodeAborted      Code = "aborted"           // asked for
	CodeSuperseded   Code = "superseded"        // a rollback took its place
	CodeInTheWay     Code = "deploy-in-the-way" // a rollback waits for a Deploy that cannot be undone yet
	CodeDrainStuck   Code = "drain-stuck"       // committed, but a Host has not reported drained
	CodeUndecided    Code = "undecided"         // the decision is not known for too long
	CodeHostRefused  Code = "host-refused"
	CodeHostLapsed   Code = "host-lapsed"
	CodeHostMissing  Code = "host-missing"
	CodeNoHosts      Code = "no-hosts"
	CodeUnknownGroup Code = "unknown-group"
	CodeDeadline     Code = "deadline"
	CodeBaseMismatch Code = "base-mismatch"
	CodeRoute        Code = "route-conflict"
	CodeLeader       Code = "leader-restart"
	CodeTaskDied     Code = "task-died"
	CodeHostFellBack Code = "host-fell-back"
	CodeStore        Code = "store-refused"
	CodeLockstep     Code = "lock-step"          // another App of the same lock-step failed
	CodeTxn          Code = "transaction-failed" // a cause that this version does not know
)

// causes maps what the coordinator says to the vocabulary. The words are the same on purpose.
var causes = map[string]Code{
	"host-refused": CodeHostRefused, "host-lapsed": CodeHostLapsed, "host-missing": CodeHostMissing,
	"no-hosts": CodeNoHosts, "unknown-group": CodeUnknownGroup, "deadline": CodeDeadline, "asked": CodeAborted,
	"base-mismatch": CodeBaseMismatch, "route-conflict": CodeRoute, "leader-restart": CodeLeader,
	"task-died": CodeTaskDied, "host-fell-back": CodeHostFellBack, "store-refused": CodeStore,
}

// CodeOf is the code of a transaction's cause.
func CodeOf(cause string) Code {
	if c, ok := causes[cause]; ok {
		return c
	}
	return CodeTxn
}
