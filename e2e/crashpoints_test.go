package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/loadgen"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// buildCrashing builds, once, the binary whose processes die at the moment that a file names.
var buildCrashing = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(filepath.Dir(cutoverBin), "cutover-crashing")
	out, err := exec.Command("go", "build", "-tags", "crashpoints", "-o", bin, "../cmd/cutover").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build with crash points: %w\n%s", err, out)
	}
	return bin, nil
})

// seedOf is the seed of a test that draws: from the environment, or a new one. It is printed, so that a failure can be had
// again.
func seedOf(t *testing.T, env string) (uint64, *rand.Rand) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(env); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("%s=%q is not a number", env, s)
		}
	}
	t.Logf("%s=%d", env, seed)
	return seed, rand.New(rand.NewPCG(seed, 0))
}

// armed is a moment at which a process is to die or to stand still: a file in its working directory.
type armed struct{ file, label string }

func arm(t *testing.T, dir, label string) armed {
	t.Helper()
	a := armed{filepath.Join(dir, "crash-at"), label}
	if label == "" {
		return a
	}
	// At once: the process reads it at any moment.
	tmp := a.file + ".new"
	if err := os.WriteFile(tmp, []byte(label), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, a.file); err != nil {
		t.Fatal(err)
	}
	return a
}

// reached reports whether the process has come there.
func (a armed) reached() bool {
	_, err := os.Stat(a.file)
	return errors.Is(err, fs.ErrNotExist)
}

// disarm takes the moment back, and reports whether it had come.
func (a armed) disarm() bool { return os.Remove(a.file) != nil }

// crashDrill is a cluster with a Host of each driver, all of whose processes but the proxies are killed at exact moments
// while requests go through it.
type crashDrill struct {
	*cluster
	hosts   []string // haproxy, nginx with Lua, nginx with reloads
	version int
	serving string         // what must be served now
	loads   []*loadgen.Run // as hosts
}

func (d *crashDrill) spec(version string) specFile {
	s := shop(version, "--ill-file", filepath.Join(d.dir, "ill-")+"$PORT0")
	s.Instances, s.Interval = 2, 100*time.Millisecond
	return s
}

func newCrashDrill(t *testing.T) *crashDrill {
	t.Helper()
	d := newCrashDrillOf(t, "haproxy=1,nginx=1,nginx-reload=1")
	t.Cleanup(d.keepRunning())
	return d
}

func newCrashDrillOf(t *testing.T, lb string, flags ...string) *crashDrill {
	t.Helper()
	bin, err := buildCrashing()
	if err != nil {
		t.Fatal(err)
	}
	return newCrashDrillOn(newClusterOf(t, bin, lb, flags...))
}

// newCrashDrillOn deploys the first version and starts the load. The cluster runs the binary of buildCrashing.
func newCrashDrillOn(c *cluster) *crashDrill {
	c.t.Helper()
	d := &crashDrill{cluster: c, serving: "v0"}
	d.deploy(d.spec(d.serving)).must(c.t, 0)
	for _, h := range d.info.Hosts {
		d.hosts = append(d.hosts, h.Name)
		o := loadgen.Options{URLs: []string{h.FrontendURL}, Path: "/shop/buy", SlowPath: "/shop/slow?ms=700", Close: 2, KeepAlive: 2, Slow: 1, Think: 10 * time.Millisecond}
		if h.Driver == "nginx-reload" {
			o.KeepAlive, o.Slow = 0, 0 // a reload of this nginx resets idle connections: its stated limit
		}
		d.loads = append(d.loads, d.loadWith(o))
	}
	return d
}

// lost fails the test if a request was lost since the start.
func (d *crashDrill) lost(what string) {
	d.t.Helper()
	for _, l := range d.loads {
		if res := l.Result(); res.Failed != 0 {
			d.t.Fatalf("%s: %v\n%v", what, res, res.Failures)
		}
	}
}

// poll waits for something that only a command can tell, and leaves the processors to those who do it.
func (d *crashDrill) poll(limit time.Duration, what string, ok func() bool) {
	d.t.Helper()
	d.within(limit, what, func() bool {
		if ok() {
			return true
		}
		<-time.After(100 * time.Millisecond)
		return false
	})
}

// begin starts the next deploy, whatever dies meanwhile.
func (d *crashDrill) begin() (id, version string) {
	d.t.Helper()
	d.version++
	version = fmt.Sprintf("v%d", d.version)
	res := d.cli("deploy", "-f", d.cluster.spec(d.spec(version)), "-o", "json", "--detach", "--idempotency-key", "crash-"+version)
	if res.must(d.t, 0).View.DeployID == "" {
		d.t.Fatalf("no deploy id: %v", res)
	}
	return res.View.DeployID, version
}

// rest waits until nothing moves: no transaction is open, the Hosts agree with their journals and serve what they should, and
// only tasks of the committed Spec live.
func (d *crashDrill) rest(what string) {
	d.t.Helper()
	d.poll(generous, what+": every Host agrees, and only the committed tasks live", func() bool {
		for _, h := range d.hosts {
			show, ok := d.look(h)
			if !ok || len(show.Sections) != 1 {
				return false
			}
			s := show.Sections[0]
			if !s.Agrees || s.Open != "" || len(s.Running) != 2 {
				return false
			}
		}
		return len(d.aliveBySpec("shop")) == 1
	})
	for _, url := range d.frontends() {
		if code, body, err := get(url + "/shop/x"); err != nil || code != 200 || !strings.HasPrefix(body, d.serving+" ") {
			d.t.Fatalf("%s: %s answers %d %q %v, want version %s", what, url, code, body, err, d.serving)
		}
	}
	d.lost(what)
}

// moments are where the processes die: the orchestrator's, and one for each Host's lbagent.
type moments struct {
	orchestrator string
	agents       map[string]string
}

func (m moments) String() string {
	parts := []string{"orchestrator " + orDash(m.orchestrator)}
	for _, h := range slices.Sorted(maps.Keys(m.agents)) {
		parts = append(parts, strings.TrimPrefix(h, "lb-")+" "+orDash(m.agents[h]))
	}
	return strings.Join(parts, ", ")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// arm arms all; the returned function takes back what was not reached, and says what was, as "orchestrator LABEL" and
// "HOST LABEL".
func (d *crashDrill) arm(m moments) (disarm func() map[string]bool) {
	d.t.Helper()
	all := map[string]armed{}
	if m.orchestrator != "" {
		all["orchestrator "+m.orchestrator] = arm(d.t, d.dir, m.orchestrator)
	}
	for h, label := range m.agents {
		if label != "" {
			all[h+" "+label] = arm(d.t, filepath.Join(d.dir, "hosts", h), label)
		}
	}
	return func() map[string]bool {
		reached := map[string]bool{}
		for name, a := range all {
			if a.disarm() {
				reached[name] = true
			}
		}
		return reached
	}
}

// commits: nothing but the crashes stands in the way of a deploy. It succeeds or is rolled back, is never stuck, and all
// Hosts agree with how it ended.
func (d *crashDrill) commits(m moments) map[string]bool {
	d.t.Helper()
	began := time.Now()
	before := d.still()
	disarm := d.arm(m)
	id, version := d.begin()
	res := d.cli("watch", id, "-o", "json", "--wait-for", "drained", "--timeout", "5m")
	what := fmt.Sprintf("commit %s: %s", version, m)
	switch {
	case res.Code == 0:
		d.serving = version
		d.evident(res.View)
	case res.Code == 3 && !m.afterDecision():
	default:
		d.t.Fatalf("%s: %v", what, res)
	}
	d.rest(what)
	if res.Code != 0 {
		d.asBefore(before, what)
	}
	reached := disarm()
	d.t.Logf("%s: exit %d %s; %s", what, res.Code, res.View.Reason, took(reached, began))
	return reached
}

func took(reached map[string]bool, began time.Time) string {
	return fmt.Sprintf("%d moments came, %s", len(reached), time.Since(began).Round(100*time.Millisecond))
}

// afterDecision: all that dies dies when the decision is durable, so the deploy succeeds.
func (m moments) afterDecision() bool {
	for _, label := range append(slices.Collect(maps.Values(m.agents)), m.orchestrator) {
		if label != "" && !slices.Contains(decidedLabels, label) {
			return false
		}
	}
	return true
}

// evident: success is proved by every Host (ALL-OR-OLD).
func (c *cluster) evident(v deploy.View) {
	c.t.Helper()
	if v.CommittedAt == nil || len(v.Hosts) != len(c.info.Hosts) {
		c.t.Errorf("deploy %s succeeded at %v by %d Hosts of %d", v.DeployID, v.CommittedAt, len(v.Hosts), len(c.info.Hosts))
	}
	for _, h := range v.Hosts {
		if h.Vote != deploy.VoteVerified || h.Evidence == nil || len(h.Evidence.Upstreams) == 0 || h.Evidence.ProxyPID == 0 || h.Evidence.Digest == "" {
			c.t.Errorf("deploy %s succeeded, and %s proves nothing: %+v", v.DeployID, h.Name, h)
			continue
		}
		for _, u := range h.Evidence.Upstreams {
			if !u.Registered || !u.Healthy {
				c.t.Errorf("deploy %s succeeded, and on %s this is so: %+v", v.DeployID, h.Name, u)
			}
		}
	}
}

// aborts: one Host's lbagent stands still when it is to activate, and then the deploy is aborted by a person. Everything is
// as before, byte for byte.
func (d *crashDrill) aborts(m moments, holder string) map[string]bool {
	d.t.Helper()
	began := time.Now()
	before := d.still()
	m.agents = maps.Clone(m.agents)
	delete(m.agents, holder)
	pid := d.host(holder).AgentPID
	disarm := d.arm(m)
	hold := arm(d.t, filepath.Join(d.dir, "hosts", holder), "before-activating stop")
	id, version := d.begin()
	what := fmt.Sprintf("abort %s held by %s: %s", version, holder, m)
	over := func(v deploy.View) bool { return v.State != deploy.Running || v.Step == "restoring" }
	d.poll(generous, what+": all others are Verified, or it is over", func() bool {
		v := d.view(id)
		return over(v) || hold.reached() && all(v, deploy.VoteVerified, holder)
	})
	abort := d.cli("abort", id, "--detach")
	if hold.disarm() {
		awaitStopped(pid)
	}
	_ = syscall.Kill(pid, syscall.SIGCONT)
	res := d.cli("watch", id, "-o", "json", "--timeout", "5m")
	if res.Code != 6 && res.Code != 3 {
		d.t.Fatalf("%s: %v\nabort: %v", what, res, abort)
	}
	d.rest(what)
	d.asBefore(before, what)
	reached := disarm()
	d.t.Logf("%s: exit %d %s; %s", what, res.Code, res.View.Reason, took(reached, began))
	return reached
}

// amends: a task falls ill and is replaced, by Amendments.
func (d *crashDrill) amends(m moments) map[string]bool {
	d.t.Helper()
	began := time.Now()
	var ill deploy.UpstreamView
	for _, u := range d.show(d.hosts[0]).Sections[0].Running {
		ill = u
	}
	_, port, err := splitAddress(ill.Address)
	if err != nil {
		d.t.Fatal(err)
	}
	disarm := d.arm(m)
	file := filepath.Join(d.dir, "ill-"+port)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		d.t.Fatal(err)
	}
	what := fmt.Sprintf("amend, %s is ill: %s", ill.Name, m)
	d.poll(2*time.Minute, what+": it is replaced on every Host", func() bool {
		for _, h := range d.hosts {
			res := d.cli("lb", "show", h, "-o", "json")
			if res.Code != 0 || strings.Contains(res.Stdout, strconv.Quote(ill.Name)) {
				return false
			}
		}
		return true
	})
	d.rest(what)
	if err := os.Remove(file); err != nil { // the port is given out again
		d.t.Fatal(err)
	}
	reached := disarm()
	d.t.Logf("%s; %s", what, took(reached, began))
	return reached
}

// syncs: a Host loses its disk, and gets the whole committed state.
func (d *crashDrill) syncs(m moments, host string) map[string]bool {
	d.t.Helper()
	began := time.Now()
	back := d.takeAway(host)
	journal := filepath.Join(d.dir, "hosts", host, "agent")
	if err := os.RemoveAll(journal); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Mkdir(journal, 0o700); err != nil {
		d.t.Fatal(err)
	}
	disarm := d.arm(m)
	back()
	what := fmt.Sprintf("sync of %s: %s", host, m)
	d.rest(what)
	reached := disarm()
	d.t.Logf("%s; %s", what, took(reached, began))
	return reached
}
