package participant

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Version of a Section: the order number of the last committed transaction, and the Amendments since.
type Version struct {
	Txn        uint64 `json:"txn"`
	Amendments uint64 `json:"amendments,omitempty"`
}

// Fence is checked first, once, for every message (invariant FENCE).
type Fence struct {
	Cluster string
	Group   string
	Epoch   uint64
	View    uint64
}

// Origin says who changes what and why. It is journaled before the effect (NO-SILENT-CHANGE).
type Origin struct {
	Actor  string `json:"actor,omitempty"`
	Reason string `json:"reason,omitempty"`
	Deploy string `json:"deploy,omitempty"`
}

// Upstream is one task's address as a Section names it. Name is unique per task incarnation.
type Upstream struct {
	Name    string         `json:"name"`
	Address netip.AddrPort `json:"address"`
	Weight  int            `json:"weight"`
	TaskID  string         `json:"task_id,omitempty"`
	Health  driver.Health  `json:"health"`
}

// Section is one App's part of the Group, as it is committed or aimed at.
type Section struct {
	App       string         `json:"app"`
	Spec      uint64         `json:"spec,omitempty"`
	Routes    []driver.Route `json:"routes,omitempty"`
	Upstreams []Upstream     `json:"upstreams,omitempty"`
	// Drain is how long a replaced upstream may finish its sessions, counted from Commit.
	Drain time.Duration `json:"drain,omitempty"`
}

// Reason is why a Host refuses. The numbers are those of RefusalReason in host.proto.
type Reason uint8

// The reasons; host.proto says what each means.
const (
	StaleEpoch Reason = iota + 1
	StaleOrder
	WrongGroup
	Busy
	BaseMismatch
	InvalidConfig
	UpstreamNotGreen
	ProxyMismatch
	SetDiffers
	RequestFailed
	AbortedHere
	DeadlinePassed
	JournalBroken
	ProxyDown
	RestoreFailed
	WrongState
)

var reasonNames = [...]string{
	StaleEpoch: "stale-epoch", StaleOrder: "stale-order", WrongGroup: "wrong-group", Busy: "busy",
	BaseMismatch: "base-mismatch", InvalidConfig: "invalid-config", UpstreamNotGreen: "upstream-not-green",
	ProxyMismatch: "proxy-mismatch", SetDiffers: "set-differs", RequestFailed: "request-failed", AbortedHere: "aborted",
	DeadlinePassed: "deadline", JournalBroken: "journal", ProxyDown: "proxy-down", RestoreFailed: "restore-failed",
	WrongState: "wrong-state",
}

// String returns the word used in logs and metrics.
func (r Reason) String() string {
	if int(r) < len(reasonNames) && reasonNames[r] != "" {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Refusal is a typed no. A Refusal is never changed once it is made.
type Refusal struct {
	Reason   Reason `json:"reason"`
	Message  string `json:"message,omitempty"`
	App      string `json:"app,omitempty"`
	Upstream string `json:"upstream,omitempty"`
	// Output is what the proxy's checker printed, at most driver.MaxOutput bytes.
	Output string `json:"output,omitempty"`
	// MaxEpoch is the highest epoch that the Host has seen.
	MaxEpoch uint64 `json:"max_epoch,omitempty"`
}

// Error makes a Refusal usable as an error.
func (r *Refusal) Error() string { return fmt.Sprintf("%s: %s", r.Reason, r.Message) }

func refuse(reason Reason, app, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, App: app, Message: fmt.Sprintf(format, args...)}
}

// Phase is where an open transaction stands on this Host. The numbers are those of TxnPhase in host.proto.
type Phase uint8

// The phases; host.proto says what each means.
const (
	Preparing Phase = iota + 1
	Ready
	Activating
	Verified
	Lapsed
	Failed
	Restoring
	RestoreFailedPhase
)

var phaseNames = [...]string{
	Preparing: "PREPARING", Ready: "READY", Activating: "ACTIVATING", Verified: "VERIFIED", Lapsed: "LAPSED",
	Failed: "FAILED", Restoring: "RESTORING", RestoreFailedPhase: "RESTORE_FAILED",
}

// String returns the word of the protocol.
func (p Phase) String() string {
	if int(p) < len(phaseNames) && phaseNames[p] != "" {
		return phaseNames[p]
	}
	return fmt.Sprintf("phase(%d)", uint8(p))
}

// inDoubt: the Host has voted Verified and may not undo by itself.
func (p Phase) inDoubt() bool { return p == Verified || p == Lapsed }

// restoring: the decision to undo is journaled.
func (p Phase) restoring() bool { return p == Restoring || p == RestoreFailedPhase }

// UpstreamStatus is one row of Evidence.
type UpstreamStatus struct {
	Name       string
	Address    netip.AddrPort
	Weight     int
	Mode       driver.Mode
	Registered bool
	Healthy    bool
	// Status is what the proxy said, in its own words.
	Status   string
	Sessions int
	// Drained: committed away, not routed and without a session in any worker; Forced if the Host cut the rest.
	Drained bool
	Forced  bool
	TaskID  string
}

// Evidence is what the running proxy reported for one Section.
type Evidence struct {
	App     string
	Process driver.Process
	ReadAt  time.Time // zero: the Section has not been read since the agent started
	Version Version
	Order   uint64 // of the open transaction; 0 if there is none
	Digest  string
	Routes  []driver.Route
	Rows    []UpstreamStatus
}
