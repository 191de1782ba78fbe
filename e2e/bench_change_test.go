package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/boltstore"
	"github.com/cutover/cutover/orchestrator/txn"
	"github.com/cutover/cutover/orchestrator/txn/conductor"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// benchEpoch is above the epoch of any orchestrator that led the Hosts before.
const benchEpoch = 1 << 20

const (
	changesMeasured = 40
	weightsMeasured = 20
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
// The bar is for rise 1, as in the bar of a Deploy; rise 2, the default of a Spec, is one check interval more and is printed
// beside it, and so is a change of weights alone, which waits for no check.
//
// A change ends, for the figure, at Commit; the next begins when every Host reported the old upstream drained.
func benchChanges(b *testing.B, t *table, kind string) {
	c := newBenchCluster(b, kind+"=4")
	c.leaveHosts()
	lead := c.lead()
	tasks := runSamples(b, 5)
	b.ReportMetric(0, "ns/op") // of no meaning here
	for _, rise := range []uint32{1, 2} {
		name := fmt.Sprintf("shop-%d", rise)
		s := &lbagentv1.Section{App: name, Spec: 1, Routes: []*lbagentv1.Route{{Host: "*", Path: "/" + name}}, Drain: durationpb.New(5 * time.Second)}
		for i := range 4 {
			s.Upstreams = append(s.Upstreams, benchUpstream(fmt.Sprintf("%s-first-%d", name, i), tasks[i], 50*time.Millisecond, rise))
		}
		lead.change(s)
		free := tasks[4]
		var took []time.Duration
		phases := map[txn.Phase][]time.Duration{}
		for i := range changesMeasured {
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
		var bar time.Duration
		if rise == 1 {
			bar = 300 * time.Millisecond
			b.ReportMetric(ms(median(took)), "change-ms")
		}
		t.times(fmt.Sprintf("change: %s, 4 hosts, 1 in 1 out, checks 50 ms, rise %d", kind, rise), bar, pollingChange, took)
		t.note("change: %s, rise %d: p50 in ms: preparing %.0f, activating %.0f, deciding %.0f", kind, rise,
			ms(median(phases[txn.Preparing])), ms(median(phases[txn.Activating])), ms(median(phases[txn.Deciding])))
		if rise == 1 {
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

// leader coordinates the Hosts of a cluster from the benchmark's process.
type leader struct {
	testing.TB
	*conductor.Conductor
	proposals int
	committed map[string]*lbagentv1.Section

	mu      sync.Mutex
	status  map[string][]txn.Status
	drained map[string]bool
	told    chan struct{} // closed and replaced at every report
}

// lead takes the Hosts over, as a new leader does. The orchestrator must be gone.
func (c *benchCluster) lead() *leader {
	c.Helper()
	st, err := boltstore.Open(filepath.Join(c.TempDir(), "state.db"), boltstore.Options{})
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = st.Close() })
	var hosts []registry.Host
	for _, h := range c.info.Hosts {
		hosts = append(hosts, registry.Host{Name: h.Name, Group: h.Group, AgentURL: h.AgentURL, TLS: c.tls()})
	}
	fence, log := store.Fence{Epoch: benchEpoch}, slog.New(slog.DiscardHandler)
	reg, err := registry.New(c.Context(), registry.Options{Cluster: "dev", Hosts: hosts, Store: st, Fence: fence, Logger: log})
	if err != nil {
		c.Fatal(err)
	}
	l := &leader{TB: c.TB, committed: map[string]*lbagentv1.Section{}, status: map[string][]txn.Status{}, drained: map[string]bool{}, told: make(chan struct{})}
	l.Conductor, err = conductor.New(conductor.Options{
		Registry: reg, Store: st, Fence: fence, Listener: l, Logger: log,
		Fatal: func(err error) { c.Errorf("the term ended: %v", err) },
	})
	if err != nil {
		c.Fatal(err)
	}
	if err := l.Start(c.Context()); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(l.Stop)
	c.await("every Host is connected", func() bool {
		for _, h := range l.Hosts() {
			if !h.Connected || h.Problem != "" {
				return false
			}
		}
		return true
	})
	return l
}

// spent is where the time of a change went.
type spent struct {
	whole  time.Duration
	phases map[txn.Phase]time.Duration
}

// change commits the Section and waits until what it replaced is drained.
func (l *leader) change(target *lbagentv1.Section) spent {
	l.Helper()
	l.proposals++
	id := fmt.Sprintf("bench-%d", l.proposals)
	ctx, cancel := context.WithTimeout(l.Context(), generous)
	defer cancel()
	start := time.Now()
	err := l.Begin(ctx, txn.Proposal{
		ID: id, App: target.App, Changes: []txn.GroupChange{{Group: "public", App: target.App, Target: proto.CloneOf(target)}},
		Deadline: start.Add(generous), Actor: "bench", Reason: "benchmark",
	})
	if err != nil {
		l.Fatal(err)
	}
	var end txn.Status
	l.until(ctx, id+" to end", func() bool {
		for _, s := range l.status[id] {
			switch s.Phase {
			case txn.Committed, txn.RolledBack, txn.StuckRestoring:
				end = s
				return true
			}
		}
		return false
	})
	out := spent{whole: time.Since(start), phases: map[txn.Phase]time.Duration{}}
	if end.Phase != txn.Committed {
		l.Fatalf("%s ended %v: %s", id, end.Phase, end.Reason)
	}
	l.verified(end, target)
	l.committed[target.App] = target
	l.until(ctx, id+" to drain", func() bool { return l.drained[id] })

	l.mu.Lock()
	defer l.mu.Unlock()
	story := l.status[id]
	for i := 0; i+1 < len(story) && story[i].Phase != txn.Committed; i++ {
		out.phases[story[i].Phase] += story[i+1].At.Sub(story[i].At)
	}
	delete(l.status, id)
	return out
}

// verified requires what makes a Commit worth measuring: from each Host evidence that every upstream of the target serves,
// and that the new ones are healthy. A kept one may have a check in flight just then, and so be not proved healthy.
func (l *leader) verified(s txn.Status, target *lbagentv1.Section) {
	l.Helper()
	if len(s.Hosts) != len(l.Hosts()) {
		l.Fatalf("%d Hosts voted", len(s.Hosts))
	}
	kept := map[string]bool{}
	for _, u := range l.committed[target.App].GetUpstreams() {
		kept[u.Name] = true
	}
	for _, h := range s.Hosts {
		ev := txn.EvidenceOf(h.Evidence, target.App)
		serving := map[string]*lbagentv1.UpstreamStatus{}
		for _, u := range ev.GetUpstreams() {
			if u.GetRegistered() && u.GetMode() == lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING {
				serving[u.GetName()] = u
			}
		}
		for _, u := range target.Upstreams {
			if row := serving[u.Name]; h.Vote != "verified" || row == nil || !kept[u.Name] && !row.GetHealthy() {
				l.Fatalf("%s voted %s, and %s does not serve: %v", h.Host, h.Vote, u.Name, ev)
			}
		}
	}
}

func (l *leader) until(ctx context.Context, what string, ok func() bool) {
	l.Helper()
	for {
		l.mu.Lock()
		yes, told := ok(), l.told
		l.mu.Unlock()
		if yes {
			return
		}
		select {
		case <-told:
		case <-ctx.Done():
			l.Fatalf("waited in vain for %s", what)
		}
	}
}

func (l *leader) note(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.told)
	l.told = make(chan struct{})
}

// TxnChanged implements txn.Listener.
func (l *leader) TxnChanged(s txn.Status) {
	l.note(func() { l.status[s.ID] = append(l.status[s.ID], s) })
}

// TxnDrained implements txn.Listener.
func (l *leader) TxnDrained(d txn.Drained) {
	l.note(func() { l.drained[d.Txn] = l.drained[d.Txn] || d.Done })
}

// Amended implements txn.Listener.
func (l *leader) Amended(txn.Amended) {}

// HostsChanged implements txn.Listener.
func (l *leader) HostsChanged() {}

var _ txn.Listener = (*leader)(nil)
