package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	appsWeighed = 20
	// What is weighed is looked at for a while: a garbage-collected heap breathes.
	looks     = 20
	lookEvery = 500 * time.Millisecond
)

// benchMemory weighs the processes of a cluster (2 HAProxy, 2 nginx with Lua) with 20 Apps of 4 instances, each deployed
// twice: every lbagent, and the process of `cutover dev`, which is the orchestrator with the local Mesos. VmRSS, the largest
// of 20 looks in 10 s. The supervisors of tasks and Hosts are processes of their own, and are listed apart.
func benchMemory(b *testing.B, t *table) {
	c := newBenchCluster(b, "haproxy=2,nginx=2")
	api := c.client()
	for _, version := range []string{"v1", "v2"} {
		var g errgroup.Group
		g.SetLimit(2)
		for i := range appsWeighed {
			s := shop(version)
			s.Name = fmt.Sprintf("app-%d", i)
			s.Path = "/" + s.Name
			s.Interval = 500 * time.Millisecond
			g.Go(func() error {
				_, _, err := c.deploy(api, s)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	var dev []float64
	agents := make([][]float64, len(c.info.Hosts))
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for range looks {
		dev = append(dev, weigh(b, c.info.PID).resident)
		for i := range agents {
			agents[i] = append(agents[i], weigh(b, c.agentPID(i)).resident)
		}
		<-tick.C
	}
	b.ReportMetric(0, "ns/op") // of no meaning here
	b.ReportMetric(quantile(dev, 1), "dev-MiB")
	t.memory("memory: orchestrator + local Mesos with 20 Apps, VmRSS", 256, dev)
	var peaks []string
	for i, h := range c.info.Hosts {
		name := strings.TrimPrefix(h.Name, "lb-")
		t.memory(fmt.Sprintf("memory: lbagent of %s with 20 Apps, VmRSS", name), 64, agents[i])
		peaks = append(peaks, fmt.Sprintf("%s %.0f", name, weigh(b, c.agentPID(i)).peak))
	}
	w := weigh(b, c.info.PID)
	t.note("memory: with 20 Apps, the most since the start in MiB: lbagents %s; orchestrator + local Mesos %.0f, of which %.0f now are not pages of files",
		strings.Join(peaks, ", "), w.peak, w.own)
	for _, role := range []string{"task-supervisor", "supervise"} {
		if sizes := residentOf(b, role); len(sizes) > 0 {
			var sum float64
			for _, s := range sizes {
				sum += s
			}
			t.note("memory: apart from that %d processes `cutover %s`, VmRSS %.0f MiB each (p50), %.0f MiB in all, shared pages counted each time", len(sizes), role, quantile(sizes, 0.5), sum)
		}
	}
}

// agentPID is the current lbagent of the i-th Host.
func (c *benchCluster) agentPID(i int) int {
	c.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, "hosts", c.info.Hosts[i].Name, "run", "lbagent.json"))
	var id struct {
		PID int `json:"pid"`
	}
	if err == nil {
		err = json.Unmarshal(data, &id)
	}
	if err != nil || id.PID <= 1 {
		c.Fatalf("the lbagent of %s: pid %d, %v", c.info.Hosts[i].Name, id.PID, err)
	}
	return id.PID
}

// residentOf weighs the processes that run the given hidden command of the binary under test.
func residentOf(b testing.TB, role string) []float64 {
	b.Helper()
	var sizes []float64
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		data, err := os.ReadFile(p)
		argv := bytes.Split(data, []byte{0})
		if err != nil || len(argv) < 2 || string(argv[0]) != cutoverBin || string(argv[1]) != role {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		sizes = append(sizes, weigh(b, pid).resident)
	}
	return sizes
}
