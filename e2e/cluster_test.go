package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// generous bounds a wait for something that normally takes a fraction of it: the machine may be busy.
const generous = 120 * time.Second

type devInfo struct {
	APIURL string `json:"api_url"`
	Token  string `json:"token"`
	PID    int    `json:"pid"`
	Hosts  []devHost
	// Orchestrators are there if the cluster has several.
	Orchestrators []devOrchestrator
}

type devOrchestrator struct {
	Name          string `json:"name"`
	APIURL        string `json:"api_url"`
	PID           int    `json:"pid"`
	SupervisorPID int    `json:"supervisor_pid"`
}

type devHost struct {
	Name, Proxy, Driver, Group string
	FrontendURL                string `json:"frontend_url"`
	AgentURL                   string `json:"agent_url"`
	ReadyURL                   string `json:"ready_url"`
	SupervisorPID              int    `json:"supervisor_pid"`
	AgentPID                   int    `json:"agent_pid"`
	ProxyPID                   int    `json:"proxy_pid"`
}

// address is the Host's own loopback address: it connects and probes from there.
func (h devHost) address() string {
	u, err := url.Parse(h.FrontendURL)
	if err != nil {
		panic(err)
	}
	return u.Hostname()
}

// cluster is one `cutover dev`.
type cluster struct {
	t    *testing.T
	bin  string
	dir  string
	args []string
	mu   sync.Mutex
	dev  *exec.Cmd
	out  *syncBuffer
	done chan struct{}
	info devInfo
	// pace is how long the slowest deploy that succeeded took: how busy the machine is.
	pace time.Duration
	// kept: somebody starts the orchestrator again when it ends, so a command that cannot reach it is repeated.
	kept bool
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// newCluster starts a cluster of its own and stops it with the test.
func newCluster(t *testing.T, lb string) *cluster {
	t.Helper()
	return newClusterWith(t, lb)
}

func newClusterWith(t *testing.T, lb string, flags ...string) *cluster {
	t.Helper()
	return newClusterOf(t, cutoverBin, lb, flags...)
}

// newClusterOf runs another build of the binary.
func newClusterOf(t *testing.T, bin, lb string, flags ...string) *cluster {
	t.Helper()
	// A short path: unix sockets below it may have about 100 bytes.
	dir, err := os.MkdirTemp("", "cut-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &cluster{t: t, bin: bin, dir: dir, args: append([]string{"--api", "127.0.0.1:0", "--lb", lb, "--agents", "2"}, flags...)}
	t.Cleanup(func() {
		c.shutdown()
		if t.Failed() && os.Getenv("E2E_QUIET") == "" {
			c.dumpLogs()
		}
	})
	c.start()
	return c
}

// start runs `cutover dev` and waits until it is ready.
func (c *cluster) start() {
	c.t.Helper()
	c.out = &syncBuffer{}
	c.dev = exec.Command(c.bin, append([]string{"dev", "--data-dir", c.dir}, c.args...)...)
	c.dev.Stdout, c.dev.Stderr = c.out, c.out
	c.dev.Dir, c.dev.SysProcAttr = c.dir, &syscall.SysProcAttr{Setsid: true}
	if err := c.dev.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(c.dev, c.done)
	c.eventually("cutover dev is ready", func() bool {
		select {
		case <-c.done:
			c.t.Fatalf("cutover dev ended:\n%s", c.out)
		default:
		}
		return strings.Contains(c.out.String(), "ready")
	})
	c.refresh()
}

// refresh reads dev.json again: pids change.
func (c *cluster) refresh() devInfo {
	c.t.Helper()
	info, err := readInfo(c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.info = info
	c.mu.Unlock()
	return info
}

func readInfo(dir string) (info devInfo, err error) {
	data, err := os.ReadFile(filepath.Join(dir, "dev.json"))
	if err != nil {
		return info, err
	}
	return info, json.Unmarshal(data, &info)
}

// host returns the current state of the named Host, or of the n-th of a kind ("haproxy-1").
func (c *cluster) host(name string) devHost {
	c.t.Helper()
	for _, h := range c.refresh().Hosts {
		if h.Name == name {
			return h
		}
	}
	c.t.Fatalf("no Host %s", name)
	return devHost{}
}

// kill9 kills the orchestrator process as the machine's owner might.
func (c *cluster) kill9() {
	c.t.Helper()
	_ = c.dev.Process.Kill()
	<-c.done
}

func (c *cluster) shutdown() {
	// Processes that a drill stopped have to run to be able to stop.
	if data, err := os.ReadFile(filepath.Join(c.dir, "dev.json")); err == nil {
		var info devInfo
		if json.Unmarshal(data, &info) == nil {
			for _, h := range info.Hosts {
				for _, pid := range []int{h.SupervisorPID, h.AgentPID, h.ProxyPID} {
					if pid > 1 {
						_ = syscall.Kill(-pid, syscall.SIGCONT)
						_ = syscall.Kill(pid, syscall.SIGCONT)
					}
				}
			}
		}
	}
	for _, o := range c.info.Orchestrators {
		for _, pid := range []int{o.SupervisorPID, o.PID} {
			if pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
		}
	}
	select {
	case <-c.done: // it was killed: only a start knows how to stop what still runs
		c.dev = exec.Command(c.bin, append([]string{"dev", "--data-dir", c.dir}, c.args...)...)
		c.out = &syncBuffer{}
		c.dev.Stdout, c.dev.Stderr = c.out, c.out
		c.done = make(chan struct{})
		if err := c.dev.Start(); err != nil {
			c.t.Error(err)
			return
		}
		go func() {
			_ = c.dev.Wait()
			close(c.done)
		}()
		deadline := time.Now().Add(generous)
		for !strings.Contains(c.out.String(), "ready") && time.Now().Before(deadline) {
			<-time.After(10 * time.Millisecond)
		}
	default:
	}
	_ = c.dev.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(generous):
		c.t.Error("cutover dev did not stop")
		_ = c.dev.Process.Kill()
		<-c.done
	}
	if left := c.leftovers(); len(left) > 0 {
		c.t.Errorf("processes left behind:\n%s", strings.Join(left, "\n"))
	}
}

// leftovers lists processes whose command line names this cluster's directory.
func (c *cluster) leftovers() []string {
	var left []string
	deadline := time.Now().Add(generous)
	for {
		left = nil
		procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range procs {
			data, err := os.ReadFile(p)
			if err == nil && strings.Contains(string(data), c.dir) {
				left = append(left, p+": "+strings.ReplaceAll(string(data), "\x00", " "))
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (c *cluster) dumpLogs() {
	c.t.Logf("cutover dev:\n%s", tail(c.out.String(), 6000))
	logs, _ := filepath.Glob(filepath.Join(c.dir, "hosts", "*", "log", "*.log"))
	more, _ := filepath.Glob(filepath.Join(c.dir, "orchestrators", "*", "log", "orch*.log"))
	for _, l := range append(logs, more...) {
		data, _ := os.ReadFile(l)
		c.t.Logf("%s:\n%s", strings.TrimPrefix(l, c.dir), tail(string(data), 2500))
	}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

// eventually waits for something that has no event to wait on from outside.
func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	c.within(generous, what, ok)
}

func (c *cluster) within(d time.Duration, what string, ok func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(d)
	for !ok() {
		if time.Now().After(deadline) {
			c.t.Fatalf("not within %s: %s", d, what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// result is one run of the command line.
type result struct {
	Code           int
	Stdout, Stderr string
	View           deploy.View // the last JSON object on stdout, if there is one
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.Code, tail(r.Stdout, 3000), tail(r.Stderr, 3000))
}

// run is a command line that is running.
type run struct {
	c    *cluster
	cmd  *exec.Cmd
	out  *syncBuffer
	err  *syncBuffer
	done chan struct{}
}

// background starts the command line.
func (c *cluster) background(args ...string) *run {
	c.t.Helper()
	r := &run{c: c, out: &syncBuffer{}, err: &syncBuffer{}, done: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	c.t.Cleanup(cancel)
	r.cmd = exec.CommandContext(ctx, cutoverBin, args...)
	r.cmd.Env = append(os.Environ(), "CUTOVER_DATA_DIR="+c.dir)
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.err
	if err := r.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait()
		close(r.done)
	}()
	return r
}

func (r *run) wait() result {
	<-r.done
	res := result{Code: r.cmd.ProcessState.ExitCode(), Stdout: r.out.String(), Stderr: r.err.String()}
	lines := strings.Split(strings.TrimSpace(res.Stdout), "\n")
	_ = json.Unmarshal([]byte(lines[len(lines)-1]), &res.View)
	return res
}

// cli runs the command line to its end.
func (c *cluster) cli(args ...string) result {
	c.t.Helper()
	res := c.background(args...).wait()
	for deadline := time.Now().Add(generous); c.kept && res.Code == deploy.ExitUnreachable && time.Now().Before(deadline); {
		<-time.After(50 * time.Millisecond)
		res = c.background(args...).wait()
	}
	return res
}

// must fails the test unless the run ended with the code.
func (r result) must(t *testing.T, code int) result {
	t.Helper()
	if r.Code != code {
		t.Fatalf("want exit %d, got %v", code, r)
	}
	return r
}

// spec writes a Spec to a file and returns its name.
func (c *cluster) spec(s specFile) string {
	c.t.Helper()
	f, err := os.CreateTemp(c.t.TempDir(), "spec-*.yaml")
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(s.yaml()); err != nil {
		c.t.Fatal(err)
	}
	return f.Name()
}

// deploy deploys and waits, with JSON output.
func (c *cluster) deploy(s specFile, flags ...string) result {
	c.t.Helper()
	began := time.Now()
	res := c.cli(append([]string{"deploy", "-f", c.spec(s), "-o", "json"}, flags...)...)
	if res.Code == 0 && len(flags) == 0 {
		c.pace = max(c.pace, time.Since(began))
	}
	return res
}

// missed is the deadline of a deploy that cannot succeed, so that a drill has to wait for it: as given, and longer on a busy
// machine, since all that has to come before must come before.
func (c *cluster) missed(d time.Duration) time.Duration { return max(d, 8*c.pace) }

// detach starts a deploy and returns its id.
func (c *cluster) detach(s specFile, flags ...string) string {
	c.t.Helper()
	res := c.cli(append([]string{"deploy", "-f", c.spec(s), "-o", "json", "--detach"}, flags...)...).must(c.t, 0)
	if res.View.DeployID == "" {
		c.t.Fatalf("no deploy id: %v", res)
	}
	return res.View.DeployID
}

// watch waits for the end of a deploy.
func (c *cluster) watch(id string, flags ...string) result {
	c.t.Helper()
	return c.cli(append([]string{"watch", id, "-o", "json"}, flags...)...)
}

// view returns a deploy as it stands.
func (c *cluster) view(id string) deploy.View {
	c.t.Helper()
	return c.cli("status", id, "-o", "json").must(c.t, 0).View
}

// hold waits until the deploy satisfies ok.
func (c *cluster) hold(id, what string, ok func(deploy.View) bool) deploy.View {
	c.t.Helper()
	var v deploy.View
	c.eventually(what, func() bool {
		v = c.view(id)
		return ok(v)
	})
	return v
}

func vote(v deploy.View, host string) deploy.Vote {
	for _, h := range v.Hosts {
		if h.Name == host {
			return h.Vote
		}
	}
	return ""
}

// signal sends a signal to a process, or to a process group (negative).
func (c *cluster) signal(pid int, sig syscall.Signal) {
	c.t.Helper()
	if pid >= -1 && pid <= 1 {
		c.t.Fatalf("pid %d", pid)
	}
	if sig == syscall.SIGCONT && pid > 0 {
		awaitStopped(pid)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		c.t.Fatalf("signal %v to %d: %v", sig, pid, err)
	}
}

// awaitStopped waits until the process stands still, or is gone. One that comes to an armed moment says so before it stops: a
// SIGCONT in between would be lost, and it would stand still for ever.
func awaitStopped(pid int) {
	for deadline := time.Now().Add(generous); time.Now().Before(deadline); <-time.After(time.Millisecond) {
		if s, err := procfs.ReadStat(pid); err != nil || s.State == 'T' || s.Ended() {
			return
		}
	}
}

// freezeProxy stops a Host's whole proxy; the returned function lets it go on.
func (c *cluster) freezeProxy(host string) func() {
	c.t.Helper()
	h := c.host(host)
	c.signal(-h.ProxyPID, syscall.SIGSTOP)
	return func() { c.signal(-h.ProxyPID, syscall.SIGCONT) }
}

// freezeAgent stops a Host's lbagent; the returned function lets it go on.
func (c *cluster) freezeAgent(host string) func() {
	c.t.Helper()
	h := c.host(host)
	c.signal(h.AgentPID, syscall.SIGSTOP)
	return func() { c.signal(h.AgentPID, syscall.SIGCONT) }
}

// takeAway stops the supervisor of a Host and kills its lbagent, which is dead when takeAway returns: nobody starts it again
// until the returned function lets the supervisor go on.
func (c *cluster) takeAway(host string) func() {
	c.t.Helper()
	h := c.host(host)
	c.signal(h.SupervisorPID, syscall.SIGSTOP)
	c.signal(h.AgentPID, syscall.SIGKILL)
	c.eventually("the lbagent of "+host+" is dead", func() bool {
		_, err := procfs.ReadStat(h.AgentPID)
		return errors.Is(err, procfs.ErrEnded) || errors.Is(err, fs.ErrNotExist)
	})
	return func() { c.signal(h.SupervisorPID, syscall.SIGCONT) }
}

// lbShow is what `lb show -o json` prints for one Host.
type lbShow struct {
	Host struct {
		Name string `json:"name"`
	} `json:"host"`
	Sections []struct {
		App        string                `json:"app"`
		Agrees     bool                  `json:"agrees"`
		Difference string                `json:"difference"`
		Open       string                `json:"open"`
		Version    string                `json:"version"`
		Digest     string                `json:"digest"`
		Routes     []string              `json:"routes"`
		Committed  []deploy.UpstreamView `json:"committed"`
		Running    []deploy.UpstreamView `json:"running"`
	} `json:"sections"`
}

// show asks until the Host answers: for a moment after a process was started again, nobody reaches it.
func (c *cluster) show(host string) (out lbShow) {
	c.t.Helper()
	c.eventually("lb show "+host, func() (ok bool) {
		out, ok = c.look(host)
		return ok
	})
	return out
}

// look is show of a Host that may not be reached.
func (c *cluster) look(host string) (lbShow, bool) {
	c.t.Helper()
	res := c.cli("lb", "show", host, "-o", "json")
	if res.Code != 0 {
		return lbShow{}, false
	}
	var out struct {
		Hosts []lbShow `json:"hosts"`
	}
	if err := json.Unmarshal([]byte(res.Stdout), &out); err != nil || len(out.Hosts) != 1 || out.Hosts[0].Host.Name != host {
		c.t.Fatalf("lb show %s: %v\n%s", host, err, res.Stdout)
	}
	return out.Hosts[0], true
}

// still is the state of the Hosts when each of them agrees with its journal: for a moment after a change, a Host may not have
// read its proxy yet.
func (c *cluster) still() map[string]string {
	c.t.Helper()
	var state map[string]string
	c.eventually("every Host agrees", func() bool {
		state = c.stateOfHosts()
		for _, s := range state {
			if strings.Contains(s, "] false\n") {
				return false
			}
		}
		return true
	})
	return state
}

// stateOfHosts digests, for each Host, what its proxy runs and what is in the published tree on its disk.
func (c *cluster) stateOfHosts() map[string]string {
	c.t.Helper()
	state := map[string]string{}
	for _, h := range c.refresh().Hosts {
		var parts []string
		for _, s := range c.show(h.Name).Sections {
			parts = append(parts, fmt.Sprintf("%s %s %v %v", s.App, s.Digest, s.Routes, s.Agrees))
		}
		sort.Strings(parts)
		state[h.Name] = strings.Join(parts, "\n") + "\n" + c.treeDigest(h.Name)
	}
	return state
}

// asBefore: every Host runs what it ran before, and has the same tree on disk. An upstream that was only warm and is out of
// the way already may still be registered for a moment, so this waits; it does not wait for anything that takes requests.
func (c *cluster) asBefore(before map[string]string, what string) {
	c.t.Helper()
	var after map[string]string
	for deadline := time.Now().Add(generous); ; <-time.After(20 * time.Millisecond) {
		if after = c.stateOfHosts(); maps.Equal(before, after) {
			return
		}
		if time.Now().After(deadline) {
			c.t.Errorf("%s, and the Hosts are not as before:\n%v\n%v", what, before, after)
			return
		}
	}
}

// treeDigest digests every file of a Host that its proxy would load.
func (c *cluster) treeDigest(host string) string {
	c.t.Helper()
	sum := sha256.New()
	files := 0
	for _, part := range []string{"current", "apps"} {
		root, err := filepath.EvalSymlinks(filepath.Join(c.dir, "hosts", host, "proxy", part))
		if errors.Is(err, fs.ErrNotExist) && part == "apps" {
			continue // only nginx with Lua has its Sections there
		}
		if err != nil {
			c.t.Fatal(err)
		}
		err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			files++
			rel, _ := filepath.Rel(root, path)
			fmt.Fprintf(sum, "%s %d\n", rel, len(data))
			_, _ = sum.Write(data)
			return err
		})
		if err != nil {
			c.t.Fatal(err)
		}
	}
	if files == 0 {
		c.t.Fatalf("%s has no published file", host)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// frontends are the entry points of all Hosts, but of those that are out.
func (c *cluster) frontends(out ...string) []string {
	var urls []string
	for _, h := range c.refresh().Hosts {
		if !slices.Contains(out, h.Name) {
			urls = append(urls, h.FrontendURL)
		}
	}
	return urls
}
