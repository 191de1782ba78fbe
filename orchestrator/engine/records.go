package engine

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/scheduler"
	"github.com/cutover/cutover/orchestrator/spec"
)

// Keys of the store that belong to the engine.
const (
	prefixApp    = "app/"
	prefixSpec   = "spec/"
	prefixDeploy = "deploy/"
	prefixEvent  = "event/"
	prefixTask   = "task/"
	prefixAmend  = "upkeep/"
	prefixIdem   = "idem/"
	prefixStep   = "lockstep/"
	keyFramework = "framework/id"
)

func keySpec(app string, rev uint64) string { return fmt.Sprintf("%s%s/%012d", prefixSpec, app, rev) }
func keyEvent(deploy string, seq uint64) string {
	return fmt.Sprintf("%s%s/%09d", prefixEvent, deploy, seq)
}

// Bounds of what is kept.
const (
	keepDeploys = 50   // per App, with their events
	keepEnded   = 40   // ended tasks per App, for tasks and logs
	keepKeys    = 2000 // idempotency keys
	keepHistory = 50   // committed revisions per App
	maxEvents   = 1000 // per Deploy; step and end events always fit
)

// appRecord is an App. Stored at app/<name>.
type appRecord struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"`
	LastSpec uint64 `json:"last_spec"` // highest revision given out
	// Committed is the revision that every Host proved; 0 if there is none, or the App is stopped.
	Committed uint64   `json:"committed"`
	Stopped   bool     `json:"stopped,omitempty"`
	History   []uint64 `json:"history,omitempty"` // committed revisions, oldest first; 0 is a stop
	// Open is the Deploy that is not decided and put back yet; Waiting is a rollback behind it.
	Open    string `json:"open,omitempty"`
	Waiting string `json:"waiting,omitempty"`
	// CommittedBy is the Deploy that made the committed state.
	CommittedBy string `json:"committed_by,omitempty"`
	// CommittedTxn is that Deploy's transaction. A record of an older release does not have it.
	CommittedTxn string                    `json:"committed_txn,omitempty"`
	Deploys      []string                  `json:"deploys,omitempty"` // oldest first
	Backoff      map[int]scheduler.Backoff `json:"backoff,omitempty"`
	UpdatedAt    time.Time                 `json:"updated_at"`

	wake time.Time // when the scheduler wants to look again
}

// role is which set a task belongs to.
type role string

const (
	roleCandidate   role = "candidate"   // of an open Deploy
	roleCommitted   role = "committed"   // what the App consists of
	roleReplacement role = "replacement" // started by the scheduler, not inserted yet
	roleRetiring    role = "retiring"    // to be killed when no Host may know it any longer
)

// taskRecord is one task. Stored at task/<id>.
type taskRecord struct {
	Placement
	App      string    `json:"app"`
	Spec     uint64    `json:"spec"`
	Template string    `json:"template"`
	Instance int       `json:"instance"`
	Deploy   string    `json:"deploy,omitempty"` // that made it; empty for a replacement
	Upstream string    `json:"upstream"`
	Role     role      `json:"role"`
	State    TaskState `json:"state"`
	Message  string    `json:"message,omitempty"`

	CreatedAt time.Time `json:"created_at"`
	RunningAt time.Time `json:"running_at,omitzero"`
	EndedAt   time.Time `json:"ended_at,omitzero"`

	// Holds are the Groups whose Hosts may know the upstream (NO-ORPHAN-KILL).
	Holds map[string]bool `json:"holds,omitempty"`
	// PortHeld: a Host may still know the address, although nothing can route there. The task may be killed, but its
	// ports may not be given out.
	PortHeld bool `json:"port_held,omitempty"`
	// RetiredBy is the Deploy that replaced it.
	RetiredBy   string `json:"retired_by,omitempty"`
	KillOrdered bool   `json:"kill_ordered,omitempty"`
	// Removed: it is dead and its removal was ordered.
	Removed bool   `json:"removed,omitempty"`
	Moving  string `json:"moving,omitempty"` // Amendment that names it

	// Not stored: the prober starts anew after a restart.
	health   scheduler.Health
	why      string    // the prober's last error, or why it is not placed
	changed  time.Time // when liveness or health last changed
	unplaced bool
}

func (t *taskRecord) ended() bool { return !t.EndedAt.IsZero() }

func (t *taskRecord) liveness() scheduler.Liveness {
	switch {
	case t.ended():
		return scheduler.Dead
	case t.State.Away():
		return scheduler.Away
	}
	return scheduler.Live
}

// deployRecord is a Deploy with its numbering. Stored at deploy/<id>.
type deployRecord struct {
	deploy.Deploy
	Seq uint64 `json:"seq"` // last event

	notes    int       // events of types other than step and end
	deferred bool      // its transaction waits for an insertion to finish
	undoing  bool      // the coordinator says that Hosts which were sent Activate still owe Aborted
	asked    time.Time // when the framework was last asked why tasks are not placed
}

// amendRecord is an Amendment under way, for one or more Groups. Stored at upkeep/<id>.
type amendRecord struct {
	ID      string          `json:"id"`
	App     string          `json:"app"`
	Pending map[string]bool `json:"pending"` // Groups without an answer
	Done    map[string]bool `json:"done,omitempty"`
	Remove  []string        `json:"remove,omitempty"` // task ids
	Insert  []string        `json:"insert,omitempty"`
	Retire  []string        `json:"retire,omitempty"`
	// Undo is the transaction whose undo the inserts are for.
	Undo string `json:"undo,omitempty"`
	// Parked: it is told to the coordinator when the App's open Deploy has ended without Commit. Nothing waits for it.
	Parked bool      `json:"parked,omitempty"`
	Failed string    `json:"failed,omitempty"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// idemRecord remembers what an idempotency key was used for. Stored at idem/<hash of the key>.
type idemRecord struct {
	Digest string    `json:"digest"`
	Deploy string    `json:"deploy"`
	At     time.Time `json:"at"`
}

// commitNote is kept in the Commit record: what a decision was about, readable without the engine's other records.
type commitNote struct {
	Deploy string      `json:"deploy"`
	Kind   deploy.Kind `json:"kind"`
	App    string      `json:"app"`
	Spec   uint64      `json:"spec"`
	// LastSpec is the highest revision that the App had given out: none is given out twice.
	LastSpec uint64          `json:"last_spec,omitempty"`
	Source   json.RawMessage `json:"spec_source,omitempty"`
	Tasks    []commitTask    `json:"tasks,omitempty"`
}

type commitTask struct {
	ID       string `json:"id"`
	Upstream string `json:"upstream"`
	Agent    string `json:"agent"`
	Host     string `json:"host"`
	Ports    []int  `json:"ports,omitempty"`
}

// specs holds the revisions in memory.
type specs map[string]map[uint64]spec.Spec

func (s specs) get(app string, rev uint64) (spec.Spec, bool) {
	v, ok := s[app][rev]
	return v, ok
}

func (s specs) put(app string, rev uint64, v spec.Spec) {
	if s[app] == nil {
		s[app] = map[uint64]spec.Spec{}
	}
	s[app][rev] = v
}
