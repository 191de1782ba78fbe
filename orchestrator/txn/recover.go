package txn

import (
	"slices"
	"time"
)

// Found is what the store holds of a transaction that an earlier leader left open.
type Found struct {
	// Decided: the Commit record exists, with its time.
	Decided     bool
	CommittedAt time.Time
	// Marked: the `activating` mark exists, so every Host counts as sent.
	Marked bool
	// Aborted: the earlier leader had saved its abort; Cause, Reason, and whether it had sent Activate to anybody.
	Aborted  bool
	Cause    Cause
	Reason   string
	Activate bool
	// Unproven are Hosts that the Commit record lists so.
	Unproven []string
}

// Recover returns the transaction as a new leader takes it up: found = Commit, absent = Abort for good. No vote of an
// older epoch counts. The effects are those of the first Step after it, which the caller makes with a Tick.
func (r Rules) Recover(s State, f Found, now time.Time) State {
	s.At = now
	for i := range s.Hosts {
		h := &s.Hosts[i]
		h.Vote, h.Done, h.Call, h.FreshAt = VoteNone, false, CallNone, time.Time{}
		h.SentPrepare = true
		h.SentActivate = f.Decided || f.Marked
		if f.Aborted {
			h.SentActivate = f.Activate
		}
		if f.Decided {
			h.Vote = VoteVerified // The record lists it.
			if slices.Contains(f.Unproven, h.Name) {
				h.Vote, h.Unproven = VoteNone, true
			}
		}
	}
	if f.Decided {
		s.Phase, s.CommittedAt = Committed, f.CommittedAt
		return s
	}
	s.Cause, s.Reason = CauseLeaderLost, LeaderLost
	if f.Aborted {
		s.Cause, s.Reason = f.Cause, f.Reason
	}
	s.Phase, s.RestoreBy = Restoring, now.Add(r.Restore)
	return s
}

// LeaderLost is why a transaction is undone that the leader of before left undecided. The next leader cannot know which of both
// it was.
const LeaderLost = "leadership ended before the decision: the orchestrator that led was restarted, or lost its lock in Consul (its log says which); deploy again once one leads (cutover version)"
