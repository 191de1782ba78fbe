package txn

import (
	"slices"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// BaseMoved says whether the committed Section is not the one any more that a transaction builds on: then it must not be
// decided. Amendments do not count, they apply to base and target alike.
func BaseMoved(base, now *lbagentv1.CommittedSection) bool {
	return base.GetVersion().GetTxn() != now.GetVersion().GetTxn()
}

// CommittedAfter is the Section that a change commits: its target (nil: removed) without what died meanwhile. A removed
// Section leaves its order number behind.
func CommittedAfter(app string, target *lbagentv1.Section, order uint64, dead map[string]bool) *lbagentv1.CommittedSection {
	out := &lbagentv1.CommittedSection{Version: &lbagentv1.Version{Txn: order}}
	if target == nil {
		out.Removed = true
		out.Section = &lbagentv1.Section{App: app}
	} else {
		out.Section = Without(target, dead)
	}
	return out
}

// RetiredNames are the upstreams of now that next does not have, apart from the dead, sorted.
func RetiredNames(now, next *lbagentv1.CommittedSection, dead map[string]bool) []string {
	keep := names(next.GetSection())
	var out []string
	for _, u := range now.GetSection().GetUpstreams() {
		if !keep[u.GetName()] && !dead[u.GetName()] {
			out = append(out, u.GetName())
		}
	}
	slices.Sort(out)
	return out
}
