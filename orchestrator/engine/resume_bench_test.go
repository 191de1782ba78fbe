package engine

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/boltstore"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// The size of the project's bar for a restart, and what an App of that size leaves behind.
const (
	benchApps      = 1000
	benchInstances = 20
	benchHistory   = 3 // Deploys of each App that are done
	benchHosts     = 4
	benchOpen      = 40 // Deploys that are not done, on Apps of their own
)

// BenchmarkResume is the engine's share of a restart: a store with 1,000 Apps and 20,000 tasks is opened, loaded, and every
// open Deploy is taken up. Its neighbours answer at once.
func BenchmarkResume(b *testing.B) {
	path := filepath.Join(b.TempDir(), "state.db")
	coord := &benchCoordinator{}
	seedStore(b, path, coord)
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	defer func() { b.ReportMetric(float64((cpuTime(b)-before).Milliseconds())/float64(b.N), "cpu-ms/op") }()
	for i := range b.N {
		st, err := boltstore.Open(path, boltstore.Options{})
		if err != nil {
			b.Fatal(err)
		}
		e, err := New(Options{Store: st, Fence: store.Fence{Epoch: uint64(i) + 2}, Fatal: func(err error) { b.Error(err) }})
		if err != nil {
			b.Fatal(err)
		}
		if err := e.Start(b.Context(), Ports{Runner: benchRunner{}, Logs: benchRunner{}, Prober: benchProber{}, Coordinator: coord}); err != nil {
			b.Fatal(err)
		}
		refs, err := e.Unended(b.Context())
		if err != nil || len(refs) != benchInstances*(benchApps+benchOpen) {
			b.Fatalf("%d tasks to reconcile, %v", len(refs), err)
		}
		e.Stop()
		if err := st.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// cpuTime is what this process has used: steadier than the clock on a machine that does something else meanwhile.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// seedStore writes what the engine of an earlier term left.
func seedStore(b *testing.B, path string, coord *benchCoordinator) {
	b.Helper()
	st, err := boltstore.Open(path, boltstore.Options{})
	if err != nil {
		b.Fatal(err)
	}
	var ops []store.Op
	for i := range benchApps {
		ops = append(ops, seedApp(b, fmt.Sprintf("app-%04d", i), coord)...)
	}
	for i := range benchOpen {
		ops = append(ops, seedOpen(b, fmt.Sprintf("open-%04d", i), coord)...)
	}
	for _, part := range chunks(ops, nil) {
		if _, err := st.Commit(b.Context(), store.Fence{Epoch: 1}, part...); err != nil {
			b.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		b.Fatal(err)
	}
}

func benchSpec(b *testing.B, app, version string) spec.Spec {
	b.Helper()
	sp, problems := spec.Parse([]byte(yamlSpec(app, benchInstances, "version: "+version)))
	if len(problems) > 0 {
		b.Fatal(problems)
	}
	return sp
}

// seedApp is an App at rest: its tasks run, some that were replaced are remembered, its last Deploys are done.
func seedApp(b *testing.B, name string, coord *benchCoordinator) (ops []store.Op) {
	b.Helper()
	a := &appRecord{Name: name, Kind: "service"}
	section := &lbagentv1.Section{App: name}
	for rev := uint64(1); rev <= benchHistory; rev++ {
		sp := benchSpec(b, name, fmt.Sprint("v", rev))
		d := seedDeploy(name, rev, deploy.StepDone, deploy.Succeeded)
		a.LastSpec, a.Committed, a.CommittedBy, a.CommittedTxn = rev, rev, d.ID, d.Txn
		a.History, a.Deploys = append(a.History, rev), append(a.Deploys, d.ID)
		ops = append(ops, store.Op{Kind: store.Put, Key: keySpec(name, rev), Value: sp.Canonical()}, putOrDelete(prefixDeploy+d.ID, d))
		for seq := uint64(1); seq <= d.Seq; seq++ {
			ops = append(ops, putOrDelete(keyEvent(d.ID, seq), &deploy.Event{Seq: seq, Deploy: d.ID, App: name, Type: "step", Msg: "as in any deploy"}))
		}
		for _, m := range d.Members {
			t := seedTask(sp, rev, m, d.ID)
			if rev < benchHistory {
				t.Role, t.RetiredBy, t.KillOrdered, t.State, t.EndedAt, t.Holds, t.PortHeld = roleRetiring, d.ID, true, Killed, time.Now(), nil, false
			} else {
				section.Upstreams = append(section.Upstreams, &lbagentv1.Upstream{Name: t.Upstream, TaskId: t.TaskID})
				coord.last = txn.CommittedApp{App: name, Txn: d.Txn, Order: d.Generation, Sections: map[string]*lbagentv1.Section{"public": section}}
			}
			ops = append(ops, putOrDelete(prefixTask+t.TaskID, t))
		}
	}
	coord.committed = append(coord.committed, coord.last)
	return append(ops, putOrDelete(prefixApp+name, a))
}

// seedOpen is an App with a Deploy in checking: all tasks run.
func seedOpen(b *testing.B, name string, coord *benchCoordinator) (ops []store.Op) {
	b.Helper()
	sp := benchSpec(b, name, "v1")
	d := seedDeploy(name, 1, deploy.StepChecking, deploy.Running)
	d.Hosts, d.Txn, d.CommittedAt, d.FinishedAt = nil, "", time.Time{}, time.Time{}
	a := &appRecord{Name: name, LastSpec: 1, Open: d.ID, Deploys: []string{d.ID}}
	for i := range d.Members {
		d.Members[i].State = deploy.MemberRunning
		t := seedTask(sp, 1, d.Members[i], d.ID)
		t.Role, t.Holds, t.PortHeld = roleCandidate, nil, false
		ops = append(ops, putOrDelete(prefixTask+t.TaskID, t))
	}
	return append(ops, store.Op{Kind: store.Put, Key: keySpec(name, 1), Value: sp.Canonical()}, putOrDelete(prefixDeploy+d.ID, d), putOrDelete(prefixApp+name, a))
}

func seedDeploy(app string, rev uint64, step deploy.StepName, state deploy.State) *deployRecord {
	id := fmt.Sprintf("01ka0000000000000000%s%02d", strings.ReplaceAll(app, "-", ""), rev)
	now := time.Now().UTC()
	d := &deployRecord{Seq: 12, Deploy: deploy.Deploy{
		ID: id, App: app, Kind: deploy.KindDeploy, Spec: rev, FromSpec: rev - 1, Version: fmt.Sprint("v", rev), Actor: "ci", Why: "a new version",
		Policy: deploy.Policy{Deadline: time.Hour, Drain: 5 * time.Second, KillGrace: 10 * time.Second, Check: "GET /healthz", Groups: []string{"public"}},
		Step:   step, State: state, Code: deploy.CodeCommitted, Reason: "every host of every group has proved it",
		StartedAt: now, Deadline: now.Add(time.Hour), StepAt: now, CommittedAt: now, FinishedAt: now,
		Wanted: benchInstances, Txn: id + ".1", Txns: 1, Generation: rev, OldGone: true,
		Drains: map[string]deploy.DrainView{"public": {Done: true}},
	}}
	for _, s := range []deploy.StepName{deploy.StepPending, deploy.StepLaunching, deploy.StepChecking, deploy.StepPreparing, deploy.StepActivating, deploy.StepCommitting, deploy.StepDraining, deploy.StepKilling, step} {
		d.Steps = append(d.Steps, deploy.StepRecord{Step: string(s), At: now})
	}
	for i := range benchInstances {
		d.Members = append(d.Members, deploy.Member{Task: deploy.TaskID(app, rev, i, "01ka00000000000000000000zz"), Instance: i, State: deploy.MemberHealthy})
	}
	for h := range benchHosts {
		ev := &deploy.EvidenceView{Generation: rev, ReadAt: now, Digest: strings.Repeat("ab", 32)}
		for _, m := range d.Members {
			ev.Upstreams = append(ev.Upstreams, deploy.UpstreamView{Name: deploy.UpstreamName(m.Task), Address: "10.0.0.1:31000", Registered: true, Healthy: true, Status: "UP"})
		}
		d.Hosts = append(d.Hosts, deploy.HostView{Name: fmt.Sprint("lb-", h), Group: "public", Proxy: "haproxy", Vote: deploy.VoteVerified, Evidence: ev, Drained: true})
	}
	return d
}

func seedTask(sp spec.Spec, rev uint64, m deploy.Member, by string) *taskRecord {
	now := time.Now().UTC()
	return &taskRecord{
		Placement: Placement{TaskID: m.Task, AgentID: "5f1c2b7e-S12", Hostname: "agent-12.example.net", Host: "10.0.0.12", AgentURL: "http://10.0.0.12:5051",
			Attributes: map[string]string{"rack": "r1", "zone": "z2"}, Ports: []uint16{uint16(31000 + m.Instance)}},
		App: sp.Name, Spec: rev, Template: sp.TemplateDigest(), Instance: m.Instance, Deploy: by, Upstream: deploy.UpstreamName(m.Task),
		Role: roleCommitted, State: Running, CreatedAt: now, RunningAt: now, Holds: map[string]bool{"public": true}, PortHeld: true,
	}
}

// benchCoordinator has nothing open, and knows what is committed.
type benchCoordinator struct {
	fakeCoordinator
	committed []txn.CommittedApp
	last      txn.CommittedApp
}

func (c *benchCoordinator) Committed(context.Context) ([]txn.CommittedApp, error) {
	return c.committed, nil
}

func (c *benchCoordinator) Outcome(context.Context, string) (txn.Status, bool, error) {
	return txn.Status{}, false, nil
}

func (c *benchCoordinator) Begin(context.Context, ...txn.Proposal) error { return nil }

func (c *benchCoordinator) Released(context.Context, []string) ([]string, error) { return nil, nil }

type benchRunner struct{}

func (benchRunner) Launch(context.Context, []TaskSpec) error { return nil }
func (benchRunner) Kill(context.Context, string) error       { return nil }
func (benchRunner) Pending() []PendingTask                   { return nil }
func (benchRunner) ReadOutput(context.Context, TaskRef, string, int64, int) ([]byte, int64, error) {
	return nil, 0, nil
}

type benchProber struct{}

func (benchProber) Add(ProbeTarget) error   { return nil }
func (benchProber) Remove(string)           {}
func (benchProber) LastError(string) string { return "" }
