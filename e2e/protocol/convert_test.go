package protocol

import (
	"net/netip"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// The two sides meet in proto; these are the parts of its messages that the machines look at.

func sectionProto(app string, names ...string) *lbagentv1.Section {
	s := &lbagentv1.Section{App: app, Spec: upSpecs[upIndex(names[0])], Routes: []*lbagentv1.Route{{Host: "*", Path: "/" + app}}, Drain: durationpb.New(drainTime)}
	for _, n := range names {
		s.Upstreams = append(s.Upstreams, &lbagentv1.Upstream{Name: n, Address: upstream(n).Address.String(), Weight: 100})
	}
	return s
}

func sectionOf(s *lbagentv1.Section) participant.Section {
	out := section(s.GetApp())
	out.Spec = s.GetSpec()
	for _, u := range s.GetUpstreams() {
		up := upstream(u.GetName())
		up.Address = netip.MustParseAddrPort(u.GetAddress())
		out.Upstreams = append(out.Upstreams, up)
	}
	return out
}

func versionOf(v *lbagentv1.Version) participant.Version {
	return participant.Version{Txn: v.GetTxn(), Amendments: v.GetAmendments()}
}

func versionTo(v participant.Version) *lbagentv1.Version {
	return &lbagentv1.Version{Txn: v.Txn, Amendments: v.Amendments}
}

func refusalOf(r *participant.Refusal) *lbagentv1.Refusal {
	if r == nil {
		return nil
	}
	return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason(r.Reason), Message: r.Message, App: r.App, Upstream: r.Upstream, MaxEpoch: r.MaxEpoch}
}

func evidenceOf(es []participant.Evidence) []*lbagentv1.Evidence {
	out := make([]*lbagentv1.Evidence, 0, len(es))
	for i := range es {
		e := &es[i]
		one := &lbagentv1.Evidence{App: e.App, Version: versionTo(e.Version), Order: e.Order, Digest: e.Digest}
		if e.Process != (driver.Process{}) {
			one.Process = &lbagentv1.Process{MasterPid: int64(e.Process.MasterPID), WorkerPid: int64(e.Process.WorkerPID)}
		}
		if !e.ReadAt.IsZero() {
			one.ReadAt = timestamppb.New(e.ReadAt)
		}
		for j := range e.Rows {
			r := &e.Rows[j]
			mode := lbagentv1.UpstreamMode_UPSTREAM_MODE_UNSPECIFIED
			switch r.Mode {
			case driver.Warm:
				mode = lbagentv1.UpstreamMode_UPSTREAM_MODE_WARM
			case driver.Serving:
				mode = lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING
			case driver.Draining:
				mode = lbagentv1.UpstreamMode_UPSTREAM_MODE_DRAINING
			}
			one.Upstreams = append(one.Upstreams, &lbagentv1.UpstreamStatus{Name: r.Name, Address: r.Address.String(), Mode: mode,
				Registered: r.Registered, Healthy: r.Healthy, Status: r.Status, Drained: r.Drained, Forced: r.Forced})
		}
		out = append(out, one)
	}
	return out
}

func reportOf(r participant.SectionReport) *lbagentv1.SectionReport {
	out := &lbagentv1.SectionReport{App: r.App, Version: versionTo(r.Version), Removed: r.Removed,
		Evidence: evidenceOf([]participant.Evidence{r.Evidence})[0]}
	if o := r.Open; o != nil {
		out.Open = &lbagentv1.OpenTxn{TxnId: o.TxnID, Order: o.Order, Phase: lbagentv1.TxnPhase(o.Phase), Fallback: o.Fallback,
			Refusal: refusalOf(o.Refusal), Apps: o.Apps}
	}
	return out
}
