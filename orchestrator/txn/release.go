package txn

import (
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// HostReports is what one Host has said of its Sections in this term.
type HostReports struct {
	// Known: a complete report came, so an App that is not in Sections is not on the Host.
	Known    bool
	Sections map[string]*lbagentv1.SectionReport
}

// ReleasedOn says whether the Host has released the upstream: it stands at min or above, which is the committed version
// without that name, and its running proxy does not hold the name any longer or holds it Drained. forced: sessions were
// cut. Only what the Host said counts (NO-ORPHAN-KILL); a Host that has said nothing yet has released nothing.
func ReleasedOn(h HostReports, app, name string, min *lbagentv1.Version) (released, forced bool) {
	if !h.Known {
		return false, false
	}
	report := h.Sections[app]
	if report == nil {
		return true, false
	}
	if CompareVersions(report.GetVersion(), min) < 0 {
		return false, false
	}
	e := report.GetEvidence()
	if e == nil {
		return report.GetRemoved(), false
	}
	if CompareVersions(e.GetVersion(), min) < 0 || !HasRead(e) {
		return false, false
	}
	for _, row := range e.GetUpstreams() {
		if row.GetName() == name {
			return row.GetDrained() && row.GetMode() == lbagentv1.UpstreamMode_UPSTREAM_MODE_DRAINING, row.GetForced()
		}
	}
	return true, false
}

// holdsNothing: the Host was told of the App and never committed it, and its proxy was read since and has nothing of it. So a
// first transaction that was undone does not have to be swept away before the next one.
func holdsNothing(r *lbagentv1.SectionReport) bool {
	e := r.GetEvidence()
	return r.GetVersion().GetTxn() == 0 && HasRead(e) && len(e.GetUpstreams()) == 0 && len(e.GetRoutes()) == 0
}

// HasRead says whether the evidence comes from a reading of the running proxy. An agent that has just started reports its
// journal before it has read anything: that no row is listed then says nothing.
func HasRead(e *lbagentv1.Evidence) bool { return e.GetProcess().GetWorkerPid() != 0 }

// Disagreement says in words how the Host's report of an App differs from the committed Section, or "". Only reports
// without an open transaction are compared: until then the transaction has the say.
func Disagreement(h HostReports, app string, committed *lbagentv1.CommittedSection) string {
	report := h.Sections[app]
	if report.GetOpen() != nil {
		return ""
	}
	switch {
	case committed == nil && report == nil:
		return ""
	case committed == nil:
		if report.GetRemoved() || holdsNothing(report) {
			return "" // A tombstone of something that nobody knows any longer harms nobody.
		}
		return "it holds a Section that the group does not"
	case report == nil:
		if committed.GetRemoved() {
			return "it does not know of the removal"
		}
		return "it lacks the Section"
	case report.GetVersion().GetTxn() != committed.GetVersion().GetTxn():
		return "it holds another version"
	case report.GetRemoved() != committed.GetRemoved():
		return "it holds another version"
	case CompareVersions(report.GetVersion(), committed.GetVersion()) < 0:
		return "it lacks an amendment"
	}
	if len(report.GetDrifts()) > 0 {
		// Somebody else changed what runs there, and the Host says so: it repairs that by itself, or leaves it alone because
		// the Group's policy says so. A Sync would tell it what it knows.
		return ""
	}
	e := report.GetEvidence()
	if !HasRead(e) || committed.GetRemoved() || CompareVersions(e.GetVersion(), committed.GetVersion()) < 0 {
		return ""
	}
	want := names(committed.GetSection())
	for _, row := range e.GetUpstreams() {
		if row.GetMode() == lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING && !want[row.GetName()] {
			return "it routes to " + row.GetName() + ", which is not committed"
		}
		delete(want, row.GetName())
	}
	for name := range want {
		return "it lacks " + name
	}
	return ""
}
