package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cutover/cutover/lbagent"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/simulated"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// benchScale measures one change (an upstream in, another out, checks every 50 ms) verified on 50 Hosts of one Group with
// 1,000 Apps of 20 upstreams: from the proposal to the durable Commit record.
//
// What runs: 50 lbagents as in production (participant, journal with its fsyncs, Connect over loopback) in the benchmark's
// process, each with a simulated proxy that answers as slowly as HAProxy; and one coordinator as in production. All of it
// shares this machine's processors, where 50 Hosts would have 50 machines'.
func benchScale(b *testing.B, t *table) {
	hosts, apps, upstreams := envInt("BENCH_HOSTS", 50), envInt("BENCH_APPS", 1000), 20
	l := newLeader(b, simulatedHosts(b, hosts), fillerSections(apps, upstreams, func(int, int) string { return "" }))
	b.ReportMetric(0, "ns/op") // of no meaning here
	var took []time.Duration
	phases := map[txn.Phase][]time.Duration{}
	var stop func()
	for i := range scaleWarm + scaleChanges {
		if i == scaleWarm {
			took, stop = nil, profiled(b)
			clear(phases)
		}
		s := oneInOneOut(l.committed[fmt.Sprintf("app-%d", i%apps)], fmt.Sprintf("next-%d", i), fmt.Sprintf("10.9.%d.%d:80", i/200, 1+i%200), 50*time.Millisecond)
		spent := l.change(s)
		took = append(took, spent.whole)
		for p, d := range spent.phases {
			phases[p] = append(phases[p], d)
		}
	}
	stop()
	b.ReportMetric(ms(median(took)), "change-ms")
	name := fmt.Sprintf("scale: %d simulated hosts, %d Apps x %d, 1 in 1 out, checks 50 ms", hosts, apps, upstreams)
	t.times(name, 200*time.Millisecond, pollingNone, took)
	t.add(figure{name: name + ", p99", bar: 500, unit: "ms", values: []float64{quantile(milliseconds(took), 0.99)}, polling: pollingNone})
	t.times(fmt.Sprintf("recovery: coordinator of %d hosts x %d Apps, start to a change committed", hosts, apps), 2*time.Second, pollingNone, l.restarts(apps))
	t.note("scale: p50 in ms: preparing %.0f, activating %.0f, deciding %.0f", ms(median(phases[txn.Preparing])),
		ms(median(phases[txn.Activating])), ms(median(phases[txn.Deciding])))
}

const (
	scaleChanges = 100
	scaleWarm    = 10 // not counted: the Hosts still come to rest
)

// restarts returns how long it took from the start of a coordinator on the store of the one before to the commit of a change
// that was proposed at once: the store read, every Host connected and heard.
func (l *leader) restarts(apps int) []time.Duration {
	l.Helper()
	var took []time.Duration
	for i := range 5 {
		l.Stop()
		start := time.Now()
		l.start()
		name := fmt.Sprintf("again-%d", i)
		began := time.Since(start)
		change := l.change(oneInOneOut(l.committed[fmt.Sprintf("app-%d", apps-1-i)], name, fmt.Sprintf("10.8.0.%d:80", 1+i), 50*time.Millisecond))
		took = append(took, began+change.whole)
	}
	return took
}

// simulatedHosts starts n lbagents of Group "public" on simulated proxies, and stops them with the benchmark.
func simulatedHosts(b testing.TB, n int) []registry.Host {
	b.Helper()
	return hostsOn(b, b.TempDir(), n, func() driver.Driver { return simulated.New(simulated.HAProxy()) })
}

// hostsOn is simulatedHosts with other proxies, and with what each Host knows in a folder of dir.
func hostsOn(b testing.TB, dir string, n int, proxy func() driver.Driver) []registry.Host {
	b.Helper()
	var out []registry.Host
	for i := range n {
		name := fmt.Sprintf("sim-%02d", i)
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			b.Fatal(err)
		}
		agent, err := lbagent.New(lbagent.Options{
			Name: name, Group: "public", Cluster: "dev", Dir: filepath.Join(dir, name), Listen: "127.0.0.1:0",
			Driver: proxy(), Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), generous)
			defer cancel()
			if err := agent.Stop(ctx); err != nil {
				b.Error(err)
			}
		})
		if err := agent.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		out = append(out, registry.Host{Name: name, Group: "public", AgentURL: "http://" + agent.Addr().String()})
	}
	return out
}

// fillerSections are Apps that are idle: their upstreams are checked every 5 s.
func fillerSections(apps, upstreams int, address func(app, upstream int) string) []*lbagentv1.Section {
	var out []*lbagentv1.Section
	for i := range apps {
		name := fmt.Sprintf("app-%d", i)
		s := &lbagentv1.Section{App: name, Spec: 1, Routes: []*lbagentv1.Route{{Host: "*", Path: "/" + name}}, Drain: durationpb.New(5 * time.Second)}
		for j := range upstreams {
			at := address(i, j)
			if at == "" {
				at = fmt.Sprintf("10.%d.%d.%d:80", 1+i/250, 1+i%250, 1+j)
			}
			s.Upstreams = append(s.Upstreams, benchUpstream(fmt.Sprintf("%s-%d", name, j), at, 5*time.Second, 1))
		}
		out = append(out, s)
	}
	return out
}

// oneInOneOut is the Section with its first upstream replaced by another.
func oneInOneOut(s *lbagentv1.Section, name, address string, interval time.Duration) *lbagentv1.Section {
	next := proto.CloneOf(s)
	next.Upstreams = append(next.Upstreams[1:], benchUpstream(name, address, interval, 1))
	return next
}

// envInt reads a size of a benchmark from the environment, for a look at a part.
func envInt(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return otherwise
}

// profiled writes a CPU profile of what comes until stop is called, if BENCH_PROFILE names a file.
func profiled(b testing.TB) (stop func()) {
	b.Helper()
	path := os.Getenv("BENCH_PROFILE")
	if path == "" {
		return func() {}
	}
	f, err := os.Create(path)
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		pprof.StopCPUProfile()
		if err := f.Close(); err != nil {
			b.Error(err)
		}
	}
}
