package txn

import (
	"math/bits"
	"slices"
	"time"
)

// This file is the merging of transactions that need a reload: several units run as one transaction on the wire, are voted on
// and decided together, and are told apart again when that one is undone. Who joins is said by LockTable.

// Unit is one proposal, or several that belong together (lock-step), inside a merged transaction. ALL-OR-OLD and UNDO hold
// for each unit: it commits with the merged transaction or ends when that one is undone on every Host.
type Unit struct {
	ID string
	// Apps are those that it changes.
	Apps     []string
	Deadline time.Time
	// Left: it is to be aborted, whatever becomes of the others.
	Left bool
}

// Undone is why a merged transaction is rolled back.
type Undone struct {
	Cause Cause
	// Blamed are the Apps that the refusals of Hosts name.
	Blamed []string
	// Expired: the time that the merged transaction had is over, which says nothing about any unit.
	Expired bool
	// Stuck: it was StuckRestoring before. Nothing is tried again after that.
	Stuck bool
}

// Undone says why the transaction, which is rolled back, was undone. wasStuck: it was StuckRestoring before.
func (s State) Undone(wasStuck bool, now time.Time) Undone {
	return Undone{Cause: s.Cause, Stuck: wasStuck, Blamed: s.Blamed(),
		Expired: !now.Before(s.Deadline) && (s.Cause == CauseDeadline || s.Cause == CauseHostMissing)}
}

// Blamed are the Apps that the refusals of Hosts name, sorted.
func (s State) Blamed() []string {
	var out []string
	for _, h := range s.Hosts {
		if app := h.Refusal.GetApp(); h.Vote == VoteFailed && app != "" {
			out = append(out, app)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Regroup says how the units of a merged transaction that was undone go on: those that are out end with it, the batches are
// tried again, in order, each as one transaction. A unit is out only if it left, if its own deadline passed, if the cause lies
// with no unit, or if it was alone: so none fails for the fault of another, and the guilty one is found in at most
// 1+log2(n) rounds. Those whose App a Host blamed are tried apart from the others, after them.
func Regroup(units []Unit, why Undone, now time.Time) (out []string, batches [][]string) {
	var rest []Unit
	for _, u := range units {
		if u.Left || !now.Before(u.Deadline) {
			out = append(out, u.ID)
		} else {
			rest = append(rest, u)
		}
	}
	ids := func(units []Unit) []string {
		var out []string
		for _, u := range units {
			out = append(out, u.ID)
		}
		return out
	}
	switch {
	case len(rest) == 0:
		return out, nil
	case why.Stuck, !why.Expired && nobodysFault(why.Cause):
		return append(out, ids(rest)...), nil
	case len(out) > 0:
		return out, [][]string{ids(rest)} // that was the reason; if not, the next round tells
	case len(rest) == 1:
		return ids(rest), nil
	}
	blamed := func(u Unit) bool {
		return slices.ContainsFunc(u.Apps, func(app string) bool { return slices.Contains(why.Blamed, app) })
	}
	var first, second []Unit
	for _, u := range rest {
		if blamed(u) {
			second = append(second, u)
		} else {
			first = append(first, u)
		}
	}
	if len(first) == 0 || len(second) == 0 {
		first, second = rest[:(len(rest)+1)/2], rest[(len(rest)+1)/2:]
	}
	return nil, [][]string{ids(first), ids(second)}
}

// nobodysFault: trying the units apart would fail for each.
func nobodysFault(c Cause) bool {
	switch c {
	case CauseHostMissing, CauseLeaderLost, CauseNoHosts, CauseUnknownGroup:
		return true
	default:
		return false
	}
}

// leastRound is what one round of a merged transaction gets if it can: a reload, and the checks of what is new.
const leastRound = 5 * time.Second

// RoundDeadline is when a merged transaction of n units gives up: early enough that the rounds which may have to follow can
// take as long, before the first of the units' own deadlines. One unit has all the time there is.
func RoundDeadline(n int, deadline, now time.Time) time.Time {
	if n < 2 {
		return deadline
	}
	rounds := bits.Len(uint(n-1)) + 2 // #nosec G115: n is 2 or more
	share := max(deadline.Sub(now)/time.Duration(rounds), leastRound)
	if at := now.Add(share); at.Before(deadline) {
		return at
	}
	return deadline
}
