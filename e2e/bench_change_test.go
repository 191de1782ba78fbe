package e2e

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

const (
	changesMeasured = 40
	weightsMeasured = 20
	reloadsMeasured = 8
)

// benchChanges measures one change of one App on 4 Hosts of one kind: of its 4 upstreams one is replaced by another whose
// task runs already. The time is from the proposal to the durable Commit record: Prepare (the new upstream registered and
// green in each proxy's own checks, every 50 ms), the mark, Activate (new routable, old drained, the set read back, one
// request through each proxy), every Host Verified and fresh, the record written.
//
// What runs: the lbagents and proxies that `cutover dev` started, as processes of their own; the coordinator (conductor,
// registry, bbolt store with its fsyncs) in the benchmark's process, in place of the orchestrator, which is killed first.
// So neither Mesos, nor the start of a task, nor the prober is in the figure: bench "deploy" has those.
//
// nginx without Lua reloads for each change of what serves or drains.
//
// The bar is for rise 1, as in the bar of a Deploy; rise 2, the default of a Spec, is one check interval more and is printed
// beside it, and so is a change of weights alone, which waits for no check.
//
// A change ends, for the figure, at Commit; the next begins when every Host reported the old upstream drained.
func benchChanges(b *testing.B, t *table, kind string, bar time.Duration) {
	c := newBenchCluster(b, kind+"=4")
	c.leaveHosts()
	lead := c.lead()
	tasks := runSamples(b, 5)
	b.ReportMetric(0, "ns/op") // of no meaning here
	rises, changes := []uint32{1, 2}, changesMeasured
	if kind == "nginx-reload" {
		rises, changes = rises[:1], reloadsMeasured // each waits, for its drain, until the old workers have left
	}
	for _, rise := range rises {
		name := fmt.Sprintf("shop-%d", rise)
		s := &lbagentv1.Section{App: name, Spec: 1, Routes: []*lbagentv1.Route{{Host: "*", Path: "/" + name}}, Drain: durationpb.New(5 * time.Second)}
		for i := range 4 {
			s.Upstreams = append(s.Upstreams, benchUpstream(fmt.Sprintf("%s-first-%d", name, i), tasks[i], 50*time.Millisecond, rise))
		}
		lead.change(s)
		free := tasks[4]
		var took []time.Duration
		phases := map[txn.Phase][]time.Duration{}
		for i := range changes {
			next := proto.CloneOf(s)
			leaving := next.Upstreams[0].Address
			// A task's incarnation has a name of its own. The one that left frees its address: it is drained everywhere.
			next.Upstreams = append(next.Upstreams[1:], benchUpstream(fmt.Sprintf("%s-%d", name, i), free, 50*time.Millisecond, rise))
			spent := lead.change(next)
			took = append(took, spent.whole)
			for p, d := range spent.phases {
				phases[p] = append(phases[p], d)
			}
			s, free = next, leaving
		}
		if rise > 1 {
			bar = 0
		} else {
			b.ReportMetric(ms(median(took)), "change-ms")
		}
		t.times(fmt.Sprintf("change: %s, 4 hosts, 1 in 1 out, checks 50 ms, rise %d", kind, rise), bar, pollingChange, took)
		t.note("change: %s, rise %d: p50 in ms: preparing %.0f, activating %.0f, deciding %.0f", kind, rise,
			ms(median(phases[txn.Preparing])), ms(median(phases[txn.Activating])), ms(median(phases[txn.Deciding])))
		if rise == 1 && kind != "nginx-reload" {
			var weights []time.Duration
			for i := range weightsMeasured {
				s = proto.CloneOf(s)
				s.Upstreams[0].Weight = uint32(50 + i)
				weights = append(weights, lead.change(s).whole)
			}
			t.times(fmt.Sprintf("change: %s, 4 hosts, weights only", kind), 0, pollingChange, weights)
		}
	}
}

func benchUpstream(name, address string, interval time.Duration, rise uint32) *lbagentv1.Upstream {
	return &lbagentv1.Upstream{Name: name, Address: address, Weight: 100, TaskId: name, Health: &lbagentv1.Health{
		Kind: lbagentv1.HealthKind_HEALTH_KIND_HTTP, Path: "/healthz", Interval: durationpb.New(interval), Timeout: durationpb.New(time.Second), Rise: rise, Fall: 3,
	}}
}
