package txn

import (
	"fmt"
	"slices"
	"strings"
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// Rules are the times that the machine goes by, and the words of the house for people.
type Rules struct {
	// Fresh is how old a Verified may be at the decision, counted from when the request that it answers was sent.
	Fresh time.Duration
	// HostWait is how long a Host may be away, or behind, before the transaction gives up on it.
	HostWait time.Duration
	// ProxyWait is how long a Host's proxy may be down before a transaction that waits to be prepared there is given up: a
	// supervisor brings it back within seconds, and nothing of the transaction is on that Host yet.
	ProxyWait time.Duration
	// Restore is how long Hosts may take to answer Aborted before the transaction is StuckRestoring.
	Restore time.Duration
	// Tidy is how long a Host that was sent Prepare only is waited for after an abort. It routes nothing new, so it cannot
	// hold up a rollback; but "rolled back" should be true of its warm upstreams too when somebody looks.
	Tidy time.Duration
	// RetryMin and RetryMax bound the pause before a call that was not answered, or answered NO{busy}, is sent again.
	RetryMin, RetryMax time.Duration
	// StartCommand is the command that starts the lbagent of a Host again.
	StartCommand func(host string) string
	// RestartCommand is the command that restarts one that hangs.
	RestartCommand func(host string) string
}

// DefaultRules are those of production.
func DefaultRules() Rules {
	return Rules{
		Fresh:     2 * time.Second,
		HostWait:  5 * time.Second,
		ProxyWait: 15 * time.Second,
		Restore:   60 * time.Second,
		Tidy:      2 * time.Second,
		RetryMin:  20 * time.Millisecond,
		RetryMax:  time.Second,
		StartCommand: func(host string) string {
			return "systemctl start cutover-lbagent  # on " + host
		},
		RestartCommand: func(host string) string {
			return "systemctl restart cutover-lbagent  # on " + host
		},
	}
}

// Call is a message to a Host that waits for an answer.
type Call uint8

// The calls.
const (
	CallNone Call = iota
	CallPrepare
	CallActivate
	CallVerify
	CallCommit
	CallAbort
)

// String returns the word of the protocol.
func (c Call) String() string {
	return [...]string{"none", "prepare", "activate", "verify", "commit", "abort"}[c]
}

// Vote is the last word of a Host.
type Vote uint8

// The votes.
const (
	VoteNone Vote = iota
	VoteReady
	VoteVerified
	VoteFailed
	VoteAborted
)

// String returns the word that users see.
func (v Vote) String() string {
	return [...]string{"none", "ready", "verified", "failed", "aborted"}[v]
}

// Host is how one Host of the pinned views stands.
type Host struct {
	Name  string
	Group string
	Proxy string

	Vote Vote
	// SentPrepare and SentActivate: the call was handed out for sending at least once; it counts from then on, whether
	// it arrived or not.
	SentPrepare, SentActivate bool
	// Done: Commit acknowledged, or Aborted answered, or there is nothing to tell.
	Done bool
	// Unproven: it was missing, and the policy of its Group permits that: nothing is waited for, and its votes do not count
	// any more. What it may have been told it may have done: it still owes Aborted, and it holds up every kill.
	Unproven bool
	// Excluded: an audited proof says that it gets no traffic. That stands for an Aborted or Drained that is missing; the
	// Host is told all the same, for as long as it is known.
	Excluded bool

	// Connected: the Watch stream stands. CaughtUp: the Host holds the committed state that the bases name and has no
	// older transaction left to finish; asked only before the first Prepare. Behind says why not.
	Connected bool
	CaughtUp  bool
	Behind    string
	// Trouble says why it is not Connected, as far as that is known.
	Trouble Trouble
	// AwaySince is set while the Host is needed and not Connected, or not CaughtUp before its Prepare.
	AwaySince time.Time

	// DownSince is when the Host first answered Prepare that its proxy is down.
	DownSince time.Time

	// Call is outstanding; Attempt numbers the sendings. RetryAt holds back the next one after Tries without success.
	Call    Call
	Attempt uint32
	Tries   uint32
	RetryAt time.Time

	// FreshAt is when the request was sent that the newest Verified answers; zero if that one does not count any longer.
	// Answers to requests sent before NotBefore do not count.
	FreshAt   time.Time
	NotBefore time.Time
	// PID and ReadAt (the Host's clock) are of the newest Verified.
	PID    int64
	ReadAt time.Time
	// SeenPID is the proxy process that the newest report named, SeenAt when (the Host's clock).
	SeenPID int64
	SeenAt  time.Time

	Reason   string
	Refusal  *lbagentv1.Refusal
	Evidence []*lbagentv1.Evidence
	// Unrestored is why it has not answered Aborted, when it said so itself.
	Unrestored *lbagentv1.Refusal
}

// owes: nothing stands for the Aborted that the Host has not answered (UNDO).
func (h *Host) owes() bool { return h.SentActivate && !h.Done && !h.Excluded }

// State is one transaction. It is a value: Step returns a new one and leaves its argument alone.
type State struct {
	ID, Deploy string
	Order      uint64
	Phase      Phase
	Deadline   time.Time
	Hosts      []Host // sorted by name
	// Policies of the Groups; a Group without one needs all its Hosts. Shared, read only.
	Policies map[string]Policy

	Cause  Cause
	Reason string
	// Doubt is why a transaction whose decision is to be written would be aborted by now. It counts until the write is tried: then
	// only the record does. Zero: nothing was heard.
	Doubt Doubt
	// Marking: the `activating` mark is being written. Marked: it is durable.
	Marking, Marked bool
	// RestoreBy is when Restoring becomes StuckRestoring.
	RestoreBy time.Time
	// TidyBy is when Hosts that were sent Prepare only are waited for no longer; zero once it has passed.
	TidyBy      time.Time
	CommittedAt time.Time
	// Finished: nothing is left to tell anybody; the records of the transaction may go.
	Finished bool
	// At is when the state last changed as users see it.
	At time.Time
}

// Doubt is what came between the last vote and the write of the decision.
type Doubt struct {
	Cause  Cause
	Reason string
}

// NewState returns a transaction that waits for its locks. Hosts need Name, Group, Proxy, Connected and CaughtUp.
func NewState(id, deploy string, deadline time.Time, hosts []Host, now time.Time) State {
	hosts = slices.Clone(hosts)
	slices.SortFunc(hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	return State{ID: id, Deploy: deploy, Phase: Waiting, Deadline: deadline, Hosts: hosts, At: now}
}

// Repinned is a transaction that still waits for its locks, with the Hosts of the Views as they are now.
func (s State) Repinned(hosts []Host) State {
	if s.Phase == Waiting {
		s.Hosts = slices.SortedFunc(slices.Values(hosts), func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	}
	return s
}

// Event is what can happen to a transaction.
type Event interface{ event() }

type (
	// Granted: the locks are held, and the transaction is durable under this order number.
	Granted struct{ Order uint64 }
	// HostLink: the Watch stream of a Host stands, or fell. A new one stands for an agent that may have restarted.
	HostLink struct {
		Host      string
		Connected bool
	}
	// HostTrouble: see Host.Trouble. Why is it for people.
	HostTrouble struct {
		Host    string
		Trouble Trouble
		Why     string
	}
	// HostRetry: somebody wants the Host to be told again at once what it has not answered.
	HostRetry struct{ Host string }
	// HostCaughtUp: see Host.CaughtUp.
	HostCaughtUp struct {
		Host   string
		OK     bool
		Behind string
	}
	// Answer is what a Host answered to a call. Refusal nil means yes.
	Answer struct {
		Host     string
		Call     Call
		SentAt   time.Time // when the request was sent
		Refusal  *lbagentv1.Refusal
		Evidence []*lbagentv1.Evidence
	}
	// NoAnswer: the call of this attempt failed in transport, or its time ran out.
	NoAnswer struct {
		Host    string
		Call    Call
		Attempt uint32
		Err     string
	}
	// Reported: the Host's report shows this transaction open in this phase.
	Reported struct {
		Host     string
		Phase    lbagentv1.TxnPhase
		Fallback bool
		Refusal  *lbagentv1.Refusal
		Evidence []*lbagentv1.Evidence
	}
	// ProcessSeen: the Host's report names its proxy process, or NoProcess. At is the Host's clock.
	ProcessSeen struct {
		Host string
		PID  int64
		At   time.Time
	}
	// MarkWritten: the `activating` mark is durable.
	MarkWritten struct{}
	// DecisionWritten: the Commit record exists.
	DecisionWritten struct{ At time.Time }
	// WriteRefused: the store certainly did not write the mark or the record.
	WriteRefused struct {
		Cause  Cause
		Reason string
	}
	// AbortAsked: somebody, or a check outside of the machine, wants the transaction aborted.
	AbortAsked struct {
		Cause  Cause
		Reason string
	}
	// HostExcluded: see Host.Excluded. Gone: it was removed for good, so nobody is left to be told.
	HostExcluded struct {
		Host string
		Gone bool
	}
	// Replaced: Abort carries something new, upstreams that replace the dead ones of the undo.
	Replaced struct{}
	// Tick: time passed.
	Tick struct{}
)

func (Granted) event()         {}
func (HostLink) event()        {}
func (HostCaughtUp) event()    {}
func (Answer) event()          {}
func (NoAnswer) event()        {}
func (Reported) event()        {}
func (ProcessSeen) event()     {}
func (MarkWritten) event()     {}
func (DecisionWritten) event() {}
func (WriteRefused) event()    {}
func (AbortAsked) event()      {}
func (HostTrouble) event()     {}
func (HostRetry) event()       {}
func (HostExcluded) event()    {}
func (Replaced) event()        {}
func (Tick) event()            {}

// NoProcess is the PID of a Host whose proxy does not run: what an earlier process reported does not count.
const NoProcess = -1

// Effect is what the conductor has to do, in order.
type Effect interface{ effect() }

type (
	// Send the call to the Host; it replaces the Host's outstanding call.
	Send struct {
		Host    string
		Call    Call
		Attempt uint32
	}
	// WriteMark makes the `activating` mark durable; MarkWritten or WriteRefused follows.
	WriteMark struct{}
	// WriteDecision writes the Commit record once; DecisionWritten or WriteRefused follows, or the term ends.
	WriteDecision struct{}
	// SaveAbort keeps the cause for the next leader; nothing waits for it (presumed abort).
	SaveAbort struct{}
	// Changed: the Status is another one.
	Changed struct{}
	// Unlock: the Sections are free for the next transaction.
	Unlock struct{}
	// Finish: nobody is left to be told; the records may go.
	Finish struct{}
)

func (Send) effect()          {}
func (WriteMark) effect()     {}
func (WriteDecision) effect() {}
func (SaveAbort) effect()     {}
func (Changed) effect()       {}
func (Unlock) effect()        {}
func (Finish) effect()        {}

// Step is the machine. It never blocks, fails or looks at a clock. Events that do not fit the phase change nothing:
// messages may come late, twice and in any order.
func (r Rules) Step(s State, ev Event, now time.Time) (State, []Effect) {
	s.Hosts = slices.Clone(s.Hosts)
	st := step{rules: r, State: s, now: now}
	st.apply(ev)
	st.advance()
	if st.changed {
		st.At = now
		st.effects = append(st.effects, Changed{})
	}
	return st.State, st.effects
}

// NextWake returns when the machine needs a Tick, or zero if only an event can change anything.
func (r Rules) NextWake(s State) time.Time {
	var wake time.Time
	earliest := func(t time.Time) {
		if !t.IsZero() && (wake.IsZero() || t.Before(wake)) {
			wake = t
		}
	}
	switch s.Phase {
	case Waiting, Preparing, Activating:
		earliest(s.Deadline)
		for _, h := range s.Hosts {
			if s.Phase != Waiting && !h.AwaySince.IsZero() {
				earliest(h.AwaySince.Add(r.HostWait))
			}
		}
	case Restoring:
		earliest(s.RestoreBy)
		earliest(s.TidyBy)
	default: // only an event moves it on
	}
	if !s.Finished {
		for _, h := range s.Hosts {
			if h.Call == CallNone && !h.Done {
				earliest(h.RetryAt)
			}
		}
	}
	return wake
}

// Key is a canonical text of all that decides what the machine does next, with times relative to now: equal keys mean
// equal futures. For exhaustive searches.
func (s State) Key(now time.Time) string {
	var b strings.Builder
	rel := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.Sub(now).String()
	}
	fmt.Fprintf(&b, "%d %d %q %t%t %s %s %s %t", s.Order, s.Phase, s.Cause, s.Marking, s.Marked, rel(s.Deadline), rel(s.RestoreBy), rel(s.TidyBy), s.Finished)
	for _, h := range s.Hosts {
		fmt.Fprintf(&b, "|%s %d %t%t%t%t%t%t%t %s %s %d %d %s %s %s %d %s %d %s", h.Name, h.Vote, h.SentPrepare, h.SentActivate, h.Done,
			h.Unproven, h.Excluded, h.Connected, h.CaughtUp, rel(h.AwaySince), rel(h.DownSince), h.Call, h.Tries, rel(h.RetryAt), rel(h.FreshAt), rel(h.NotBefore), h.PID, rel(h.ReadAt),
			h.SeenPID, rel(h.SeenAt))
	}
	return b.String()
}

// Status is the transaction as its asker sees it.
func (r Rules) Status(s State) Status {
	out := Status{
		ID: s.ID, Deploy: s.Deploy, Order: s.Order, Phase: s.Phase, Cause: s.Cause, Reason: s.Reason,
		CommittedAt: s.CommittedAt, At: s.At,
	}
	if s.Phase == StuckRestoring {
		out.Stuck = r.stuckHosts(s)
		out.Reason = r.stuckReason(s, out.Stuck)
		if len(out.Stuck) > 0 {
			out.Next = out.Stuck[0].Next
		}
	}
	for _, h := range s.Hosts {
		out.Hosts = append(out.Hosts, HostVote{
			Host: h.Name, Group: h.Group, Proxy: h.Proxy, Vote: h.Vote.String(), Reason: h.Reason,
			Refusal: h.Refusal, Evidence: h.Evidence, SentActivate: h.SentActivate, Unproven: h.Unproven, Excluded: h.Excluded,
		})
	}
	return out
}

// stuckReason names the Hosts that owe an answer, keeps the cause of the abort, and says what to do.
func (r Rules) stuckReason(s State, stuck []StuckHost) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s; not restored within %v:", s.Reason, r.Restore)
	for _, h := range stuck {
		fmt.Fprintf(&b, " host %s: %s; %s;", h.Host, h.What, h.Fix)
	}
	b.WriteString(" both the old and the new upstreams stay alive until then")
	return b.String()
}
