package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// buildCrashing builds, once, the binary whose lbagents die at the moment that a file names.
var buildCrashing = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(filepath.Dir(cutoverBin), "cutover-crashing")
	out, err := exec.Command("go", "build", "-tags", "crashpoints", "-o", bin, "../cmd/cutover").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build with crash points: %w\n%s", err, out)
	}
	return bin, nil
})

// crashDrill is one Host whose lbagent is killed at exact moments.
type crashDrill struct {
	*cluster
	victim  string
	stuck   string // its proxy stands still where the decision must not come too early
	held    string // its agent stands still until all are Ready
	version int
}

// arm lets the victim's lbagent die when it comes to the label, once.
func (d *crashDrill) arm(label string) (died func() bool) {
	d.t.Helper()
	file := filepath.Join(d.dir, "hosts", d.victim, "crash-at")
	if err := os.WriteFile(file, []byte(label), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return func() bool {
		_, err := os.Stat(file)
		return errors.Is(err, fs.ErrNotExist)
	}
}

func (d *crashDrill) next() (s specFile, now, after string) {
	now, after = fmt.Sprintf("v%d", d.version), fmt.Sprintf("v%d", d.version+1)
	s = shop(after)
	s.Instances, s.Deadline, s.Drain = 2, 20*time.Second, 4*time.Second
	return s, now, after
}

// settled: nothing is open on any Host, each agrees with its journal, and all serve the same version.
func (d *crashDrill) settled(version string) {
	d.t.Helper()
	for _, h := range d.info.Hosts {
		d.agrees(h.Name)
	}
	d.serves(version, "/shop")
}

// commits: nothing but the crash stands in the way. The deploy may succeed or be rolled back, never get stuck, and all
// Hosts agree with how it ended.
func (d *crashDrill) commits(label string) {
	s, now, after := d.next()
	died := d.arm(label)
	res := d.deploy(s)
	// Success is the record; the victim may hear of it after the CLI.
	d.eventually(label+" is reached", died)
	switch {
	case res.Code == 0:
		d.version++
		d.settled(after)
	case res.Code == 3 && label != "after-committed":
		d.settled(now)
	default:
		d.t.Fatalf("%s: %v", label, res)
	}
	d.t.Logf("%-18s committing: exit %d %s", label, res.Code, res.View.Reason)
}

// aborts: another Host cannot follow, so the decision is Abort whatever the victim does.
func (d *crashDrill) aborts(label string) {
	s, now, _ := d.next()
	before := d.stateOfHosts()
	died := d.arm(label)
	release, thaw := d.freezeAgent(d.held), func() {}
	id := d.detach(s)
	switch label {
	case "before-staged", "after-staged", "answered-ready":
		d.eventually(label+" is reached", died)
	default:
		d.hold(id, "the others are Ready", func(v deploy.View) bool { return all(v, deploy.VoteReady, d.held) })
		thaw = d.freezeProxy(d.stuck)
		release()
		release = func() {}
		if label == "before-aborted" {
			d.hold(id, "all but "+d.stuck+" are Verified", func(v deploy.View) bool { return all(v, deploy.VoteVerified, d.stuck) })
		} else {
			d.eventually(label+" is reached", died)
		}
	}
	if res := d.cli("abort", id, "--detach"); res.Code != 0 && d.view(id).State == deploy.Running {
		d.t.Fatalf("%s: abort: %v", label, res)
	}
	release()
	thaw()
	res := d.watch(id)
	if !died() {
		d.t.Fatalf("%s: the lbagent of %s never came there: %v", label, d.victim, res)
	}
	if res.Code != 6 && res.Code != 3 {
		d.t.Fatalf("%s: %v", label, res)
	}
	d.settled(now)
	d.asBefore(before, label)
	d.t.Logf("%-18s aborting: exit %d %s", label, res.Code, res.View.Reason)
}

// Drill 5 at every step of the protocol: the lbagent dies between a journal entry and its effect, or between an effect
// and its answer, under load, with either decision. No request is lost, no deploy is stuck, and every Host agrees with
// the decision.
func TestCrashPoints(t *testing.T) {
	bin, err := buildCrashing()
	if err != nil {
		t.Fatal(err)
	}
	for _, hosts := range [][3]string{
		{"lb-haproxy-1", "lb-haproxy-2", "lb-nginx-1"},
		{"lb-nginx-1", "lb-haproxy-1", "lb-haproxy-2"},
	} {
		t.Run(hosts[0], func(t *testing.T) {
			t.Parallel()
			d := &crashDrill{cluster: newClusterOf(t, bin, "haproxy=2,nginx=1"), victim: hosts[0], stuck: hosts[1], held: hosts[2]}
			s, _, _ := d.next()
			d.deploy(s).must(t, 0)
			d.version++
			load := d.load("/shop")
			for _, label := range []string{"before-staged", "after-staged", "answered-ready", "before-activating", "after-activating",
				"after-publish-activating", "before-verified", "answered-verified", "after-committed"} {
				d.commits(label)
			}
			if res := load.Stop(); res.Failed != 0 {
				t.Errorf("%v\n%v", res, res.Failures)
			}
			s, _, _ = d.next()
			d.deploy(s, "--wait-for", "drained").must(t, 0)
			d.version++
			for _, label := range []string{"before-staged", "after-staged", "answered-ready", "before-activating", "after-activating",
				"after-publish-activating", "before-verified", "answered-verified", "before-aborted"} {
				d.aborts(label)
			}
			s, _, _ = d.next()
			d.deploy(s).must(t, 0)
		})
	}
}
