package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// benchSustained lets changes of many Apps follow each other without a pause on one Group of HAProxy Hosts, and counts those
// that were verified on all of them. Each puts one upstream in and takes another out, with checks every 50 ms; an App's next
// change begins when every Host has released what the last one took out.
//
// It runs for BENCH_SECONDS (30), or BENCH_MINUTES; the bar is for 4 Hosts and 10 minutes. Server rows and memory are taken
// after a third of the time and at the end: they have to stay flat. All Hosts, their tasks and the coordinator share one
// machine; what a change costs each Host in CPU tells what a machine of its own could take.
func benchSustained(b *testing.B, t *table, hosts int, bar float64) {
	apps := envInt("BENCH_APPS", 12)
	name := fmt.Sprintf("sustained: %d HAProxy hosts, %d Apps", hosts, apps)
	length := time.Duration(envInt("BENCH_SECONDS", 60*envInt("BENCH_MINUTES", 0))) * time.Second
	if length == 0 {
		length = 30 * time.Second
	}
	c := newBenchCluster(b, fmt.Sprintf("haproxy=%d", hosts))
	c.leaveHosts()
	l := c.lead()
	tasks := runSamples(b, 3)
	b.ReportMetric(0, "ns/op") // of no meaning here
	sections := make([]*lbagentv1.Section, apps)
	for i := range sections {
		name := fmt.Sprintf("app-%d", i)
		s := &lbagentv1.Section{App: name, Spec: 1, Routes: []*lbagentv1.Route{{Host: "*", Path: "/" + name}}, Drain: durationpb.New(5 * time.Second)}
		for j := range 2 {
			s.Upstreams = append(s.Upstreams, benchUpstream(fmt.Sprintf("%s-first-%d", name, j), tasks[j], 50*time.Millisecond, 1))
		}
		l.change(s)
		sections[i] = s
	}
	idleAgents, idleProxies := c.atRest()
	stop := profiled(b)
	lbagents, proxies := c.cpu()
	start := time.Now()
	var changes atomic.Int64
	var mu sync.Mutex
	var took []time.Duration
	phases := map[txn.Phase][]time.Duration{}
	var cycle []time.Duration
	var work sync.WaitGroup
	for i, s := range sections {
		work.Go(func() {
			free := tasks[2]
			for n := 0; time.Since(start) < length; n++ {
				leaving := s.Upstreams[0].Address
				next := oneInOneOut(s, fmt.Sprintf("app-%d-%d", i, n), free, 50*time.Millisecond)
				begin := time.Now()
				spent, err := l.try(next)
				if err != nil {
					b.Error(err)
					return
				}
				s, free = next, leaving
				changes.Add(1)
				mu.Lock()
				took = append(took, spent.whole)
				cycle = append(cycle, time.Since(begin))
				for p, d := range spent.phases {
					phases[p] = append(phases[p], d)
				}
				mu.Unlock()
			}
		})
	}
	<-time.After(length / 3)
	rows, agents := c.serverRows(), c.agentSizes()
	work.Wait()
	elapsed := time.Since(start)
	stop()
	rowsAfter, agentsAfter := c.serverRows(), c.agentSizes()
	lbagentsAfter, proxiesAfter := c.cpu()
	perChange := func(used time.Duration) float64 { return ms(used) / float64(changes.Load()) / float64(hosts) }
	rate := float64(changes.Load()) / elapsed.Seconds()
	b.ReportMetric(rate, "changes/s")
	t.add(figure{name: fmt.Sprintf("%s, %s", name, length), bar: bar, unit: "/s", values: []float64{rate}, least: true, polling: "3-4 /s"})
	t.times(name+", one change meanwhile", 0, pollingChange, took)
	t.note("%s: p50 in ms: preparing %.0f, activating %.0f, deciding %.0f, until the next change could begin %.0f", name,
		ms(median(phases[txn.Preparing])), ms(median(phases[txn.Activating])), ms(median(phases[txn.Deciding])), ms(median(cycle)))
	lbagentsUsed, proxiesUsed := lbagentsAfter-lbagents, proxiesAfter-proxies
	t.note("%s: ms of a processor per change and Host: lbagent %.1f, haproxy %.1f; without what they use at rest %.1f and %.1f", name,
		perChange(lbagentsUsed), perChange(proxiesUsed),
		perChange(lbagentsUsed-scaled(idleAgents, elapsed)), perChange(proxiesUsed-scaled(idleProxies, elapsed)))
	t.note("%s: ms of a processor per second and Host at rest, with %d upstreams checked every 50 ms: lbagent %.0f, haproxy %.0f", name, 2*apps,
		ms(scaled(idleAgents, time.Second))/float64(hosts), ms(scaled(idleProxies, time.Second))/float64(hosts))
	t.note("%s: server rows of a host after a third of the time %v, at the end %v; VmRSS of the lbagents in MiB %v, %v", name, rows, rowsAfter, agents, agentsAfter)
}

// restFor is how long the Hosts are watched at rest.
const restFor = 5 * time.Second

// atRest is what the Hosts' lbagents and proxies use in restFor while nothing changes: the proxies' checks, mostly.
func (c *benchCluster) atRest() (lbagents, proxies time.Duration) {
	c.Helper()
	a, p := c.cpu()
	<-time.After(restFor)
	a2, p2 := c.cpu()
	return a2 - a, p2 - p
}

// scaled is the share of what was used in restFor that falls to d.
func scaled(used, d time.Duration) time.Duration {
	return time.Duration(float64(used) * float64(d) / float64(restFor))
}

// cpu is what the Hosts' lbagents and proxies have used so far, all together.
func (c *benchCluster) cpu() (lbagents, proxies time.Duration) {
	c.Helper()
	pids, err := procfs.Processes()
	if err != nil {
		c.Fatal(err)
	}
	for _, pid := range pids {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !strings.Contains(string(line), c.dir) {
			continue
		}
		s, err := procfs.ReadStat(pid)
		switch args := strings.Split(string(line), "\x00"); {
		case err != nil:
		case filepath.Base(args[0]) == "haproxy":
			proxies += s.User + s.System
		case len(args) > 1 && args[1] == "lbagent":
			lbagents += s.User + s.System
		}
	}
	return lbagents, proxies
}

// serverRows counts the servers that each Host's HAProxy holds, tombstones included.
func (c *benchCluster) serverRows() []int {
	c.Helper()
	var out []int
	for _, h := range c.info.Hosts {
		conn, err := net.Dial("unix", filepath.Join(c.dir, "hosts", h.Name, "run", "haproxy.sock"))
		if err == nil {
			_, err = io.WriteString(conn, "show servers state\n")
		}
		if err != nil {
			c.Fatal(err)
		}
		text, err := io.ReadAll(conn)
		if err != nil {
			c.Fatal(err)
		}
		_ = conn.Close()
		out = append(out, strings.Count(string(text), " cutover_"))
	}
	return out
}

func (c *benchCluster) agentSizes() []int {
	c.Helper()
	var out []int
	for i := range c.info.Hosts {
		out = append(out, int(weigh(c, c.agentPID(i)).resident))
	}
	return out
}

// benchGrowth measures one runtime change, from the proposal to the Commit record, on a Host with 10 Apps and on one with
// 1,000, in turn: what else the machine does meanwhile slows both. The bar is for the ratio of the medians. Each Host is a
// Group's only one, with its own coordinator and store. The Apps have 4 upstreams, checked every 5 s.
//
// Then the lbagent with 1,000 Apps is killed: the time until it runs again (its supervisor starts it), is connected, and has
// read every App back from the proxy as it is committed.
func benchGrowth(b *testing.B, t *table) {
	c := newBenchCluster(b, "haproxy=2")
	c.leaveHosts()
	tasks := runSamples(b, 2)
	b.ReportMetric(0, "ns/op") // of no meaning here
	sizes := []int{10, envInt("BENCH_APPS", 1000)}
	var leaders []*leader
	for i, apps := range sizes {
		leaders = append(leaders, newLeader(b, c.declared()[i:i+1], fillerSections(apps, 4, func(int, int) string { return tasks[0] })))
	}
	took := make([][]time.Duration, len(sizes))
	free := []string{tasks[1], tasks[1]}
	for round := range preparesFirst + growthChanges {
		for i, l := range leaders {
			s := l.committed["app-0"]
			leaving := s.Upstreams[0].Address
			spent := l.change(oneInOneOut(s, fmt.Sprintf("next-%d", round), free[i], 50*time.Millisecond))
			free[i] = leaving
			if round >= preparesFirst {
				took[i] = append(took[i], spent.whole)
			}
		}
	}
	for i, apps := range sizes {
		t.times(fmt.Sprintf("growth: one change, 1 haproxy host with %d Apps", apps), 0, pollingNone, took[i])
	}
	ratio := float64(median(took[1])) / float64(median(took[0]))
	t.add(figure{name: "growth: one change, at the more Apps / at the fewer", bar: 2, unit: "x", values: []float64{ratio}, polling: pollingNone})

	var back []time.Duration
	for range 5 {
		back = append(back, c.killAgent(1, leaders[1], sizes[1]))
	}
	t.times(fmt.Sprintf("recovery: lbagent (haproxy, %d Apps) killed, to all Apps verified", sizes[1]), 2*time.Second, pollingNone, back)
}

const growthChanges = 40

// killAgent returns how long it took until every App was read anew.
func (c *benchCluster) killAgent(i int, l *leader, apps int) time.Duration {
	c.Helper()
	p, err := os.FindProcess(c.agentPID(i))
	if err != nil {
		c.Fatal(err)
	}
	start := time.Now()
	if err := p.Kill(); err != nil {
		c.Fatal(err)
	}
	l.await("every App is read anew", func() bool {
		h := l.Hosts()[0]
		if !h.Connected || len(h.Sections) < apps {
			return false
		}
		for _, s := range h.Sections {
			if !s.GetEvidence().GetReadAt().AsTime().After(start) {
				return false
			}
		}
		return true
	})
	return time.Since(start)
}
