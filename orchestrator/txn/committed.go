package txn

import (
	"fmt"
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// CommittedApp is what the decision log holds of one App: enough to know whether another record of it is current.
type CommittedApp struct {
	App string
	// Txn is the App's newest Commit, Order its number. Txn is "" if the log does not hold it any more.
	Txn   string
	Order uint64
	// Sections are the committed ones by Group, with their Amendments. A removed Section is not among them. They belong to
	// the coordinator: not to be changed.
	Sections map[string]*lbagentv1.Section
}

// Outdated says why the insertion must not come into the committed Section any more, or "". What was asked for before a Commit
// may get its turn behind it, and nothing of the Spec before serves then (ALL-OR-OLD: one Spec, the committed one).
func (a Amendment) Outdated(now *lbagentv1.CommittedSection) string {
	switch is := now.GetSection().GetSpec(); {
	case now == nil, now.GetRemoved():
		return "the app has no committed section in the group"
	case a.Spec != 0 && is != a.Spec:
		return fmt.Sprintf("the app is at spec %d by now, and this replaces tasks of spec %d", is, a.Spec)
	default:
		return ""
	}
}

// Decision is one Commit record as its asker needs it to find out what it was about.
type Decision struct {
	ID, Deploy, App string
	Order           uint64
	CommittedAt     time.Time
	Actor, Reason   string
	Record          []byte // what the Proposal brought
}
