package txn

import (
	"errors"
	"fmt"
	"slices"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// EvidenceOf returns the evidence of the App, or nil.
func EvidenceOf(evidence []*lbagentv1.Evidence, app string) *lbagentv1.Evidence {
	for _, e := range evidence {
		if e.GetApp() == app {
			return e
		}
	}
	return nil
}

// CheckVerified says what is missing in the evidence that a Host gave with Verified for one Section: the exact set of
// names, every new upstream green, at least one green in all, the proxy process named. base are the upstreams that were
// committed before, dead those removed since the proposal. The Host has judged all of this; a Verified whose own
// evidence says otherwise is not counted (ALL-OR-OLD).
func CheckVerified(app string, target, base *lbagentv1.Section, dead map[string]bool, evidence []*lbagentv1.Evidence) error {
	e := EvidenceOf(evidence, app)
	if e == nil {
		return fmt.Errorf("the evidence does not speak of %s", app)
	}
	if !HasRead(e) {
		return errors.New("the evidence does not name the proxy process")
	}
	rows := map[string]*lbagentv1.UpstreamStatus{}
	for _, row := range e.GetUpstreams() {
		rows[row.GetName()] = row
	}
	kept := names(base)
	green, wanted := 0, map[string]bool{}
	for _, u := range target.GetUpstreams() {
		if dead[u.GetName()] {
			continue
		}
		wanted[u.GetName()] = true
		row := rows[u.GetName()]
		switch {
		case row == nil || !row.GetRegistered():
			return fmt.Errorf("upstream %s is not registered", u.GetName())
		case row.GetMode() != lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING:
			return fmt.Errorf("upstream %s is not routable", u.GetName())
		case row.GetAddress() != u.GetAddress():
			return fmt.Errorf("upstream %s is at %s, not at %s", u.GetName(), row.GetAddress(), u.GetAddress())
		case row.GetHealthy():
			green++
		case !kept[u.GetName()]:
			return fmt.Errorf("new upstream %s is not healthy: %s", u.GetName(), row.GetStatus())
		}
	}
	if len(wanted) > 0 && green == 0 {
		return errors.New("no upstream of the target is healthy")
	}
	for _, row := range e.GetUpstreams() {
		if row.GetMode() == lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING && !wanted[row.GetName()] && !dead[row.GetName()] {
			return fmt.Errorf("upstream %s is routable and not in the target", row.GetName())
		}
	}
	return nil
}

// CheckAborted says whether the answer to Abort proves the restore: the digest of every Section as read back, unless
// the Host never activated.
func CheckAborted(apps []string, a *lbagentv1.Aborted) error {
	if a.GetNeverActivated() {
		return nil
	}
	for _, app := range apps {
		if !HasRead(EvidenceOf(a.GetEvidence(), app)) {
			return fmt.Errorf("the answer holds no digest of %s as read back", app)
		}
	}
	return nil
}

// CheckAnswer checks a yes of a Host against its own evidence, for all changes of its Group; app is the one that the evidence
// does not bear out.
func CheckAnswer(call Call, changes []Change, dead map[string]bool, evidence []*lbagentv1.Evidence, aborted *lbagentv1.Aborted) (app string, err error) {
	for _, ch := range changes {
		switch call {
		case CallActivate, CallVerify:
			err = CheckVerified(ch.Key.App, ch.Target, ch.Base.GetSection(), dead, evidence)
		case CallAbort:
			err = CheckAborted([]string{ch.Key.App}, aborted)
		default: // Ready is proved again at Activate, Committed by Drained
		}
		if err != nil {
			return ch.Key.App, err
		}
	}
	return "", nil
}

// names of the upstreams of a Section.
func names(s *lbagentv1.Section) map[string]bool {
	out := map[string]bool{}
	for _, u := range s.GetUpstreams() {
		out[u.GetName()] = true
	}
	return out
}

// Without returns a copy of the Section without the named upstreams; the argument is left alone. Nil stays nil.
func Without(s *lbagentv1.Section, gone map[string]bool) *lbagentv1.Section {
	if s == nil {
		return nil
	}
	return &lbagentv1.Section{
		App: s.GetApp(), Spec: s.GetSpec(), Routes: s.GetRoutes(), Drain: s.GetDrain(),
		Upstreams: slices.DeleteFunc(slices.Clone(s.GetUpstreams()), func(u *lbagentv1.Upstream) bool { return gone[u.GetName()] }),
	}
}

// CompareVersions orders Versions of one Section by time.
func CompareVersions(a, b *lbagentv1.Version) int {
	switch {
	case a.GetTxn() != b.GetTxn():
		if a.GetTxn() < b.GetTxn() {
			return -1
		}
		return 1
	case a.GetAmendments() < b.GetAmendments():
		return -1
	case a.GetAmendments() > b.GetAmendments():
		return 1
	}
	return 0
}
