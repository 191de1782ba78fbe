package lbagent

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// What a message may name. All of it ends up near a proxy's configuration, so nothing passes that one could read as
// syntax.
var (
	appName      = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$`)
	upstreamName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,64}$`)
	txnName      = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._:-]{0,127}$`)
	routeHost    = regexp.MustCompile(`^(\*|[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)$`)
	routePath    = regexp.MustCompile(`^/[a-zA-Z0-9._~!&()*+,=:@%/-]*$`)
	healthPath   = regexp.MustCompile(`^/[a-zA-Z0-9._~!&()*+,=:@%/?-]*$`)
)

const (
	maxText = 4096 // actor, reason, deploy, task id
	maxPath = 1024
)

// invalid is a message that no Host would take; the server answers InvalidArgument.
type invalid struct{ what string }

func (e invalid) Error() string { return e.what }

func invalidf(format string, args ...any) error { return invalid{fmt.Sprintf(format, args...)} }

func fenceOf(f *lbagentv1.Fence) (participant.Fence, error) {
	if f == nil {
		return participant.Fence{}, invalidf("the message has no fence")
	}
	return participant.Fence{Cluster: f.GetCluster(), Group: f.GetGroup(), Epoch: f.GetEpoch(), View: f.GetView()}, nil
}

func txnOf(id string, order uint64) error {
	if !txnName.MatchString(id) {
		return invalidf("transaction id %q must match %s", id, txnName)
	}
	if order == 0 {
		return invalidf("transaction %s has no order number", id)
	}
	return nil
}

func originOf(o *lbagentv1.Origin) (participant.Origin, error) {
	out := participant.Origin{Actor: o.GetActor(), Reason: o.GetReason(), Deploy: o.GetDeploy()}
	if len(out.Actor)+len(out.Reason)+len(out.Deploy) > maxText {
		return out, invalidf("the origin is longer than %d bytes", maxText)
	}
	return out, nil
}

func versionOf(v *lbagentv1.Version) participant.Version {
	return participant.Version{Txn: v.GetTxn(), Amendments: v.GetAmendments()}
}

func durationOf(what string, d *durationpb.Duration, limit time.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, invalidf("%s: %v", what, err)
	}
	v := d.AsDuration()
	if v < 0 || v > limit {
		return 0, invalidf("%s is %s: it must be within 0s and %s", what, v, limit)
	}
	return v, nil
}

func sectionOf(s *lbagentv1.Section) (participant.Section, error) {
	var out participant.Section
	if !appName.MatchString(s.GetApp()) {
		return out, invalidf("App %q must match %s", s.GetApp(), appName)
	}
	if len(s.GetRoutes()) > participant.MaxRoutes || len(s.GetUpstreams()) > participant.MaxUpstreams {
		return out, invalidf("%s has %d routes and %d upstreams: at most %d and %d", s.GetApp(), len(s.GetRoutes()), len(s.GetUpstreams()),
			participant.MaxRoutes, participant.MaxUpstreams)
	}
	drain, err := durationOf("the drain of "+s.GetApp(), s.GetDrain(), 24*time.Hour)
	if err != nil {
		return out, err
	}
	out = participant.Section{App: s.GetApp(), Spec: s.GetSpec(), Drain: drain}
	seen := map[string]bool{}
	for _, r := range s.GetRoutes() {
		if !routeHost.MatchString(r.GetHost()) || !routePath.MatchString(r.GetPath()) || len(r.GetPath()) > maxPath {
			return out, invalidf("%s: route %q %q must match %s and %s", s.GetApp(), r.GetHost(), r.GetPath(), routeHost, routePath)
		}
		if key := r.GetHost() + r.GetPath(); seen[key] {
			return out, invalidf("%s: route %s is named twice", s.GetApp(), key)
		} else {
			seen[key] = true
		}
		out.Routes = append(out.Routes, driver.Route{Host: r.GetHost(), Path: r.GetPath(), Strip: r.GetStrip()})
	}
	out.Upstreams, err = upstreamsOf(s.GetApp(), s.GetUpstreams())
	return out, err
}

func upstreamsOf(app string, ups []*lbagentv1.Upstream) ([]participant.Upstream, error) {
	if len(ups) > participant.MaxUpstreams {
		return nil, invalidf("%s: %d upstreams: at most %d", app, len(ups), participant.MaxUpstreams)
	}
	seen := map[string]bool{}
	var out []participant.Upstream
	for _, u := range ups {
		if !upstreamName.MatchString(u.GetName()) {
			return nil, invalidf("%s: upstream %q must match %s", app, u.GetName(), upstreamName)
		}
		if seen[u.GetName()] {
			return nil, invalidf("%s: upstream %s is named twice", app, u.GetName())
		}
		seen[u.GetName()] = true
		addr, err := netip.ParseAddrPort(u.GetAddress())
		if err != nil || addr.Port() == 0 || addr.Addr().Zone() != "" {
			return nil, invalidf("%s: upstream %s is at %q: it must be ip:port", app, u.GetName(), u.GetAddress())
		}
		weight := int(u.GetWeight())
		if weight == 0 {
			weight = 1
		}
		if weight > 256 {
			return nil, invalidf("%s: upstream %s has weight %d: it must be within 1 and 256", app, u.GetName(), weight)
		}
		if len(u.GetTaskId()) > maxText {
			return nil, invalidf("%s: the task id of upstream %s is too long", app, u.GetName())
		}
		health, err := healthOf(u.GetHealth())
		if err != nil {
			return nil, invalidf("%s: upstream %s: %v", app, u.GetName(), err)
		}
		out = append(out, participant.Upstream{Name: u.GetName(), Address: addr, Weight: weight, TaskID: u.GetTaskId(), Health: health})
	}
	return out, nil
}

func healthOf(h *lbagentv1.Health) (driver.Health, error) {
	const limit = 10 * time.Minute
	out := driver.Health{Rise: max(int(h.GetRise()), 1), Fall: max(int(h.GetFall()), 1)}
	switch h.GetKind() {
	case lbagentv1.HealthKind_HEALTH_KIND_UNSPECIFIED, lbagentv1.HealthKind_HEALTH_KIND_NONE:
		out.Kind = driver.HealthNone
	case lbagentv1.HealthKind_HEALTH_KIND_TCP:
		out.Kind = driver.HealthTCP
	case lbagentv1.HealthKind_HEALTH_KIND_HTTP:
		out.Kind, out.Path = driver.HealthHTTP, h.GetPath()
		if !healthPath.MatchString(out.Path) || len(out.Path) > maxPath {
			return out, invalidf("health path %q must match %s", out.Path, healthPath)
		}
	default:
		return out, invalidf("health kind %d is not known", h.GetKind())
	}
	if out.Rise > 1000 || out.Fall > 1000 {
		return out, invalidf("rise and fall must be at most 1000")
	}
	var err error
	if out.Interval, err = durationOf("the health interval", h.GetInterval(), limit); err != nil {
		return out, err
	}
	if out.Timeout, err = durationOf("the health timeout", h.GetTimeout(), limit); err != nil {
		return out, err
	}
	if out.Interval == 0 {
		out.Interval = time.Second
	}
	if out.Timeout == 0 {
		out.Timeout = time.Second
	}
	out.Interval = max(out.Interval, 10*time.Millisecond)
	return out, nil
}

func appsOf(apps []string) error {
	if len(apps) > participant.MaxSections {
		return invalidf("%d Apps: at most %d", len(apps), participant.MaxSections)
	}
	for _, app := range apps {
		if !appName.MatchString(app) {
			return invalidf("App %q must match %s", app, appName)
		}
	}
	return nil
}

func namesOf(names []string) error {
	if len(names) > participant.MaxUpstreams {
		return invalidf("%d upstreams: at most %d", len(names), participant.MaxUpstreams)
	}
	for _, n := range names {
		if !upstreamName.MatchString(n) {
			return invalidf("upstream %q must match %s", n, upstreamName)
		}
	}
	return nil
}

// The other way: what the Host says.

func refusalTo(r *participant.Refusal, maxEpoch uint64) *lbagentv1.Refusal {
	if r == nil {
		return nil
	}
	return &lbagentv1.Refusal{
		Reason: lbagentv1.RefusalReason(r.Reason), Message: text(r.Message), App: r.App, Upstream: r.Upstream,
		Output: text(r.Output), MaxEpoch: max(r.MaxEpoch, maxEpoch),
	}
}

// text makes what a proxy printed fit into a proto string.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func evidenceTo(es []participant.Evidence) []*lbagentv1.Evidence {
	out := make([]*lbagentv1.Evidence, 0, len(es))
	for i := range es {
		out = append(out, oneEvidenceTo(&es[i]))
	}
	return out
}

func oneEvidenceTo(e *participant.Evidence) *lbagentv1.Evidence {
	out := &lbagentv1.Evidence{
		App: e.App, Process: processTo(e.Process), Version: versionTo(e.Version), Order: e.Order, Digest: e.Digest,
		Routes: routesTo(e.Routes),
	}
	if !e.ReadAt.IsZero() {
		out.ReadAt = timestamppb.New(e.ReadAt)
	}
	for i := range e.Rows {
		r := &e.Rows[i]
		out.Upstreams = append(out.Upstreams, &lbagentv1.UpstreamStatus{
			Name: r.Name, Address: r.Address.String(), Weight: uint32(r.Weight), Mode: modeTo(r.Mode), Registered: r.Registered,
			Healthy: r.Healthy, Status: text(r.Status), Sessions: uint32(max(r.Sessions, 0)), Drained: r.Drained, Forced: r.Forced,
			TaskId: r.TaskID,
		})
	}
	return out
}

func modeTo(m driver.Mode) lbagentv1.UpstreamMode {
	switch m {
	case driver.Warm:
		return lbagentv1.UpstreamMode_UPSTREAM_MODE_WARM
	case driver.Serving:
		return lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING
	case driver.Draining:
		return lbagentv1.UpstreamMode_UPSTREAM_MODE_DRAINING
	}
	return lbagentv1.UpstreamMode_UPSTREAM_MODE_UNSPECIFIED
}

func processTo(p driver.Process) *lbagentv1.Process {
	if p == (driver.Process{}) {
		return nil
	}
	return &lbagentv1.Process{MasterPid: int64(p.MasterPID), WorkerPid: int64(p.WorkerPID), StartedAt: timestamppb.New(p.StartedAt), Version: p.Version}
}

func versionTo(v participant.Version) *lbagentv1.Version {
	return &lbagentv1.Version{Txn: v.Txn, Amendments: v.Amendments}
}

func routesTo(rs []driver.Route) []*lbagentv1.Route {
	out := make([]*lbagentv1.Route, 0, len(rs))
	for _, r := range rs {
		out = append(out, &lbagentv1.Route{Host: r.Host, Path: r.Path, Strip: r.Strip})
	}
	return out
}

func sectionTo(s participant.Section) *lbagentv1.Section {
	out := &lbagentv1.Section{App: s.App, Spec: s.Spec, Routes: routesTo(s.Routes), Drain: durationpb.New(s.Drain)}
	for _, u := range s.Upstreams {
		out.Upstreams = append(out.Upstreams, &lbagentv1.Upstream{Name: u.Name, Address: u.Address.String(), Weight: uint32(u.Weight),
			TaskId: u.TaskID, Health: healthTo(u.Health)})
	}
	return out
}

func healthTo(h driver.Health) *lbagentv1.Health {
	var kind lbagentv1.HealthKind
	switch h.Kind {
	case driver.HealthNone:
		kind = lbagentv1.HealthKind_HEALTH_KIND_NONE
	case driver.HealthTCP:
		kind = lbagentv1.HealthKind_HEALTH_KIND_TCP
	case driver.HealthHTTP:
		kind = lbagentv1.HealthKind_HEALTH_KIND_HTTP
	}
	return &lbagentv1.Health{Kind: kind, Path: h.Path, Interval: durationpb.New(h.Interval), Timeout: durationpb.New(h.Timeout),
		Rise: uint32(h.Rise), Fall: uint32(h.Fall)}
}

func committedTo(s *participant.SectionState) *lbagentv1.CommittedSection {
	out := &lbagentv1.CommittedSection{Section: sectionTo(s.Committed), Version: versionTo(s.Version), Removed: s.Removed}
	if s.Removed {
		out.Section = &lbagentv1.Section{App: s.App}
	}
	return out
}

func reportTo(r participant.SectionReport, maxEpoch uint64) *lbagentv1.SectionReport {
	out := &lbagentv1.SectionReport{App: r.App, Version: versionTo(r.Version), Removed: r.Removed, Evidence: oneEvidenceTo(&r.Evidence)}
	out.Drifts = shortDrifts(r.Drifts, maxSectionDiff)
	if o := r.Open; o != nil {
		out.Open = &lbagentv1.OpenTxn{TxnId: o.TxnID, Order: o.Order, Phase: lbagentv1.TxnPhase(o.Phase), Fallback: o.Fallback,
			Refusal: refusalTo(o.Refusal, maxEpoch), Apps: o.Apps}
	}
	return out
}
