package txn

import (
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// Proposal is a transaction that someone asks for: one two-phase change of named Sections in one or more Groups.
// With no Sections at all (an App that names no Group) it commits on the asker's word alone, through the same record.
type Proposal struct {
	ID     string // unique, chosen by the asker; also the name of the decision
	Deploy string
	App    string
	// Changes are what to do, by Group. Bases are filled in by the coordinator when the locks are granted.
	Changes  []GroupChange
	Deadline time.Time // of Prepare to Commit; after it the transaction is aborted
	// Rollback is granted its locks before everything that waits (ROLLBACK-IS-FREE).
	Rollback bool
	Actor    string
	Reason   string
	// Record is kept in the Commit record as it is: what the asker must know to go on after a restart.
	Record []byte
}

// GroupChange is the change of one Section of one Group. A nil Target removes the Section.
type GroupChange struct {
	Group  string
	App    string
	Target *lbagentv1.Section
}

// Phase is where a transaction is.
type Phase uint8

// The phases. Committed and RolledBack are ends; Stuck becomes RolledBack when the missing answer comes.
const (
	Waiting        Phase = iota + 1 // for locks
	Preparing                       // Prepare sent
	Activating                      // the mark is durable, Activate sent
	Deciding                        // all Verified and fresh, the Commit record is being written
	Committed                       // the record exists
	Restoring                       // aborted; waiting for Aborted from every Host that was sent Activate
	RolledBack                      // every such Host answered with its digest
	StuckRestoring                  // the restore deadline passed without an answer
)

// HostVote is how one Host stands in a transaction.
type HostVote struct {
	Host     string
	Group    string
	Proxy    string
	Vote     string // none, ready, verified, failed, aborted
	Reason   string
	Refusal  *lbagentv1.Refusal
	Evidence []*lbagentv1.Evidence
	// SentActivate: the Host counts as having been told to activate.
	SentActivate bool
	// Unproven: it was missing, as its Group's policy permits. Excluded: it is proven out of traffic.
	Unproven, Excluded bool
}

// Cause says why a transaction was aborted: a closed vocabulary that users see.
type Cause string

// The causes.
const (
	CauseNone          Cause = ""
	CauseHostRefused   Cause = "host-refused"   // NO or FAILED from a Host
	CauseHostLapsed    Cause = "host-lapsed"    // Verified before, and no longer
	CauseHostMissing   Cause = "host-missing"   // a Host of the view is not connected or did not answer in time
	CauseNoHosts       Cause = "no-hosts"       // a Group without Hosts
	CauseUnknownGroup  Cause = "unknown-group"  // no such Group
	CauseDeadline      Cause = "deadline"       // the deadline passed
	CauseAsked         Cause = "asked"          // abort, rollback or a newer Deploy asked for it
	CauseBaseMismatch  Cause = "base-mismatch"  // the committed Section moved on
	CauseRouteConflict Cause = "route-conflict" // another App owns the route
	CauseLeaderLost    Cause = "leader-restart" // the term of the leader ended while it was undecided
	CauseTaskDied      Cause = "task-died"      // a new upstream's task died before Commit
	CauseHostFallback  Cause = "host-fell-back" // a Host serves the old ones again
	CauseStore         Cause = "store-refused"  // the orchestrator could not record a step
)

// Status is a transaction as its asker sees it; sent at every change.
type Status struct {
	ID     string
	Deploy string
	Order  uint64 // order number; the Deploy's generation
	Phase  Phase
	Cause  Cause
	// Reason is the cause for people: which host, which upstream, what it said, what to do next.
	Reason      string
	Hosts       []HostVote
	CommittedAt time.Time
	// Next is the one command to run next when Phase is StuckRestoring; Stuck are the Hosts that are waited for then.
	Next  string
	Stuck []StuckHost
	At    time.Time
}

// Drained says how far the Hosts have released what a committed transaction or an Amendment replaced.
type Drained struct {
	Txn     string
	App     string
	Group   string
	Done    bool // every Host of the view reported it, or is proven out of traffic
	Forced  bool // at least one Host cut sessions at the drain deadline
	Waiting []string
	// Released are the upstream names that no Host routes or holds sessions for any longer: only their tasks may be
	// killed (NO-ORPHAN-KILL).
	Released []string
}

// Amendment changes one committed Section without a vote (docs/protocol.md, Amendments).
type Amendment struct {
	ID    string // unique, chosen by the asker
	Group string
	App   string
	// Remove are names of terminally dead tasks: they leave every Host at once, an open transaction's target included.
	Remove []string
	// Insert are verified replacements, and Retire the names that drain once every insert is verified on that Host.
	// Both wait while a transaction is open on the Section.
	Insert []*lbagentv1.Upstream
	Retire []string
	// Spec is the one that Insert replaces tasks of: should another one be committed when the Section is free, the insertion is
	// refused, so that no upstream of an old Spec comes in behind a Commit. 0: not looked at.
	Spec uint64
	// Undo is the transaction that is being undone and whose undo holds nothing that can serve: then Insert does not wait
	// for it. Hosts that still owe Aborted get the inserts with Abort, switch to them when all are green, and only then
	// answer (NEVER-ZERO); the others get them as always. Such an insertion is never taken back: what it replaces is dead.
	Undo     string
	Actor    string
	Reason   string
	Deadline time.Time // of Insert; a Remove is repeated until every Host has it
}

// Amended is the outcome of an Amendment.
type Amended struct {
	ID, Group, App string
	// Done: every Host of the view has it, apart from Hosts that are away: those get it by Sync when they are back, and
	// what retired is not released before. Otherwise Reason says why an insert was given up on (which Host, which
	// upstream); it is then taken back on all Hosts. Told again, with the same Done, whenever Released grows.
	Done     bool
	Reason   string
	Released []string
}

// HostInfo is one Host as `cutover lb hosts` shows it.
type HostInfo struct {
	Name      string
	Group     string
	AgentURL  string
	Connected bool
	// Problem: why it cannot take changes now, or empty.
	Problem  string
	LastSeen time.Time
	State    *lbagentv1.HostState // nil if never seen
	SentAt   time.Time            // of State, by the Host's clock
	Sections []*lbagentv1.SectionReport
	// Membership is where the Host stands in its Group.
	Membership Membership
}

// Listener gets what happens to transactions. Calls come one at a time, in order, from one goroutine, and must not
// block: the engine only queues them.
type Listener interface {
	TxnChanged(Status)
	TxnDrained(Drained)
	Amended(Amended)
	// HostsChanged: a Host connected, left, or changed its problems.
	HostsChanged()
}
