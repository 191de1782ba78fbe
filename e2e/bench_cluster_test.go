package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/dev/supervisor"
	"github.com/cutover/cutover/internal/pki"
)

// benchCluster is one `cutover dev`, for benchmarks.
type benchCluster struct {
	testing.TB
	dir  string
	dev  *exec.Cmd
	out  *syncBuffer
	done chan struct{}
	info devInfo
}

// newBenchCluster starts a cluster and stops it with the benchmark.
func newBenchCluster(b testing.TB, lb string) *benchCluster {
	b.Helper()
	dir, err := os.MkdirTemp("", "cut-") // short: unix sockets live below it
	if err != nil {
		b.Fatal(err)
	}
	c := &benchCluster{TB: b, dir: dir, out: &syncBuffer{}, done: make(chan struct{})}
	b.Cleanup(c.stop)
	c.dev = exec.Command(cutoverBin, "dev", "--data-dir", dir, "--api", "127.0.0.1:0", "--lb", lb, "--agents", "2")
	c.dev.Stdout, c.dev.Stderr = c.out, c.out
	c.dev.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.dev.Start(); err != nil {
		b.Fatal(err)
	}
	go func() {
		_ = c.dev.Wait()
		close(c.done)
	}()
	c.await("cutover dev is ready", func() bool {
		select {
		case <-c.done:
			b.Fatalf("cutover dev ended:\n%s", c.out)
		default:
		}
		return strings.Contains(c.out.String(), "ready")
	})
	data, err := os.ReadFile(filepath.Join(dir, "dev.json"))
	if err == nil {
		err = json.Unmarshal(data, &c.info)
	}
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// leaveHosts kills the orchestrator and the local Mesos. The Hosts (supervisor, lbagent, proxy) serve on and wait for
// whoever leads next: the benchmark.
func (c *benchCluster) leaveHosts() {
	_ = c.dev.Process.Kill()
	<-c.done
}

func (c *benchCluster) stop() {
	if c.dev != nil && c.dev.Process != nil {
		_ = c.dev.Process.Signal(syscall.SIGTERM)
		select {
		case <-c.done:
		case <-time.After(generous):
			c.Error("cutover dev did not stop")
			_ = c.dev.Process.Kill()
			<-c.done
		}
	}
	// After leaveHosts nobody else stops the Hosts.
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	for _, h := range c.info.Hosts {
		if err := supervisor.Terminate(ctx, filepath.Join(c.dir, "hosts", h.Name)); err != nil {
			c.Error(err)
		}
	}
	if c.Failed() {
		c.Logf("cutover dev:\n%s", tail(c.out.String(), 6000))
		logs, _ := filepath.Glob(filepath.Join(c.dir, "hosts", "*", "log", "*.log"))
		for _, l := range logs {
			data, _ := os.ReadFile(l)
			c.Logf("%s:\n%s", strings.TrimPrefix(l, c.dir), tail(string(data), 2500))
		}
	}
	_ = os.RemoveAll(c.dir)
}

// await waits for something that has no event to wait on from outside.
func (c *benchCluster) await(what string, ok func() bool) {
	c.Helper()
	deadline := time.Now().Add(generous)
	for !ok() {
		if time.Now().After(deadline) {
			c.Fatalf("not within %s: %s", generous, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// tls is the orchestrator's side of the connections to the lbagents.
func (c *benchCluster) tls() *tls.Config {
	c.Helper()
	conf, err := pki.Config(filepath.Join(c.dir, "pki", "orchestrator"), "dev", "lbagent")
	if err != nil {
		c.Fatal(err)
	}
	return conf
}

// freeAddresses picks loopback addresses that nobody listens on.
func freeAddresses(b testing.TB, n int) []string {
	b.Helper()
	var out []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close() // only after all are picked: no address twice
		out = append(out, ln.Addr().String())
	}
	return out
}

// sampleTask is a sample App that runs outside of any cluster, as a task would.
type sampleTask struct {
	address string
	cmd     *exec.Cmd
}

// startSample starts the sample as a task's command is started, through a shell. It does not wait for it.
func startSample(b testing.TB, address string) *sampleTask {
	b.Helper()
	t := &sampleTask{address: address, cmd: exec.Command("sh", "-c", fmt.Sprintf("exec %s --addr %s --version bench", sampleBin, address))}
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := t.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return t
}

func (t *sampleTask) stop() {
	_ = syscall.Kill(-t.cmd.Process.Pid, syscall.SIGKILL)
	_ = t.cmd.Wait()
}

// awaitHealthy asks the task's health path once a millisecond until it answers 200.
func (t *sampleTask) awaitHealthy(ctx context.Context) error {
	transport := &http.Transport{DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: time.Second}
	for {
		resp, err := client.Get("http://" + t.address + "/healthz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the sample at %s is not healthy: %w", t.address, err)
		case <-time.After(time.Millisecond):
		}
	}
}

// runSamples starts n samples, waits until all are healthy, and stops them with the benchmark.
func runSamples(b testing.TB, n int) []string {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), generous)
	defer cancel()
	addresses := freeAddresses(b, n)
	for _, a := range addresses {
		t := startSample(b, a)
		b.Cleanup(t.stop)
		if err := t.awaitHealthy(ctx); err != nil {
			b.Fatal(err)
		}
	}
	return addresses
}

// weight is what a process weighs, in MiB.
type weight struct {
	resident float64 // VmRSS
	own      float64 // of it, what is not pages of files: RssAnon
	peak     float64 // the largest VmRSS since its start: VmHWM
}

func weigh(b testing.TB, pid int) weight {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	var w weight
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(string(fields[1]), 64)
		switch string(fields[0]) {
		case "VmRSS:":
			w.resident = kib / 1024
		case "RssAnon:":
			w.own = kib / 1024
		case "VmHWM:":
			w.peak = kib / 1024
		}
	}
	if w.resident == 0 {
		b.Fatalf("process %d weighs nothing: it has ended", pid)
	}
	return w
}
