package txn

import lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

// Behind says why a connected Host cannot prepare transaction id on the App yet, or "": another transaction is open
// there, or it does not hold the committed Section (nil: the Group has none) that the bases name.
func Behind(h HostReports, app, id string, committed *lbagentv1.CommittedSection) string {
	report := h.Sections[app]
	if open := report.GetOpen(); open != nil && open.GetTxnId() != id {
		return "transaction " + open.GetTxnId() + " is still open there"
	}
	if report.GetVersion().GetTxn() > committed.GetVersion().GetTxn() {
		return "it holds a version of " + app + " that this orchestrator's store does not know: the store was lost or is an older copy"
	}
	if report.GetVersion().GetTxn() != committed.GetVersion().GetTxn() {
		return "it does not hold the committed version yet"
	}
	if committed == nil {
		return Disagreement(h, app, nil)
	}
	return ""
}

// SyncOrder is the order number of a Sync: everything at or below it that is not open on the Host has passed there. So it
// is last, the newest number given out, unless a transaction is undecided, whose Prepare may still be on its way: then it
// is below all of those. False: the Host may have passed that number, and would refuse; the Sync waits until they are
// decided.
func SyncOrder(last uint64, undecided []uint64, passed uint64) (uint64, bool) {
	order := last
	for _, n := range undecided {
		order = min(order, n-1)
	}
	return order, order == last || passed <= order
}
