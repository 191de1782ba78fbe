package txn

import (
	"slices"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// Undecided says that neither the Commit record nor an abort exists yet.
func (s State) Undecided() bool {
	switch s.Phase {
	case Waiting, Preparing, Activating, Deciding:
		return true
	default:
		return false
	}
}

// Unfinished says whether the Host was told of the transaction and still owes its last answer. False for a Host that
// does not take part.
func (s State) Unfinished(host string) bool {
	return slices.ContainsFunc(s.Hosts, func(h Host) bool { return h.Name == host && h.SentPrepare && !h.Done })
}

// Holds says whether the transaction can still put an upstream into traffic on some Host, or bring it back: then its task
// is not killed (NO-ORPHAN-KILL). target and base are the Sections of the change that may name it, dead are the names
// removed since the proposal.
func (s State) Holds(name string, target, base *lbagentv1.Section, dead map[string]bool) bool {
	in := func(s *lbagentv1.Section) bool {
		return slices.ContainsFunc(s.GetUpstreams(), func(u *lbagentv1.Upstream) bool { return u.GetName() == name })
	}
	switch {
	case s.Undecided():
		return !dead[name] && (in(target) || in(base))
	case s.Phase == Committed:
		return false // what it committed is in the Section, what it retired in its drain
	default:
		owed := slices.ContainsFunc(s.Hosts, func(h Host) bool { return h.owes() })
		return owed && in(target)
	}
}
