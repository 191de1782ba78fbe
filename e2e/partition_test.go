package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/netfault"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// behind moves a Host's lbagent to another port and puts a faulty network where it was: the orchestrator reaches it through that
// only. It lasts until `cutover dev` is started again.
func (c *cluster) behind(host string) *netfault.Proxy {
	c.t.Helper()
	h := c.host(host)
	file := filepath.Join(c.dir, "hosts", host, "lbagent.json")
	data, err := os.ReadFile(file)
	if err != nil {
		c.t.Fatal(err)
	}
	var conf map[string]any
	if err := json.Unmarshal(data, &conf); err != nil {
		c.t.Fatal(err)
	}
	was, _ := conf["listen"].(string)
	ip, port, err := net.SplitHostPort(was)
	if err != nil {
		c.t.Fatalf("%s: listen %q: %v", file, was, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		c.t.Fatal(err)
	}
	now := net.JoinHostPort(ip, strconv.Itoa(n+10)) // the readiness endpoint is next to it
	conf["listen"] = now
	if data, err = json.Marshal(conf); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.signal(h.AgentPID, syscall.SIGKILL)
	var p *netfault.Proxy
	c.eventually("the lbagent's port is free", func() bool {
		p, err = netfault.Listen(context.Background(), was, now)
		return err == nil
	})
	c.t.Cleanup(func() { _ = p.Close() })
	c.eventually(host+" is reached again", func() bool { return c.cli("lb", "show", host, "-o", "json").Code == 0 })
	return p
}

// moment is where in a deploy the network fails: a process stands still there until it has.
type moment struct {
	name  string
	label string
	agent bool // the victim's lbagent comes there, else the orchestrator
	// code is how the deploy has to end while the network stays broken.
	code func(netfault.Mode) []int
	// drains: the deploy succeeds at once, and no deadline is waited for; nothing of the old is killed before the network has healed.
	drains bool
}

var partitionMoments = []moment{
	{name: "during Prepare", label: "before-warm", agent: true, code: func(m netfault.Mode) []int {
		if m == netfault.Deaf {
			return []int{0, 3, 4} // its Ready arrives, Activate does not
		}
		return []int{3}
	}},
	{name: "between Activate and Verified", label: "before-verified", agent: true, code: func(m netfault.Mode) []int {
		if m == netfault.Deaf {
			return []int{0, 4} // its Verified arrives, so it may be committed
		}
		return []int{4}
	}},
	{name: "after Verified, before the record", label: "before-write-decision", code: func(netfault.Mode) []int { return []int{0} }, drains: true},
	{name: "after Commit, before Drained", label: "after-write-decision", code: func(netfault.Mode) []int { return []int{0} }, drains: true},
}

// The network between the orchestrator and one Host fails at every step of a deploy: it is cut, it is silent, or silent in one
// direction. No success is false, nothing is killed that the Host may still route to, and when the network heals everything
// converges by itself. The Host is in traffic all the time, and no request is lost.
func TestPartitions(t *testing.T) {
	for i, m := range partitionMoments {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			d := newCrashDrillOf(t, "haproxy=1,nginx=1", "--restore-deadline", "3s")
			host := d.hosts[i%2]
			net := d.behind(host)
			for _, mode := range []netfault.Mode{netfault.Cut, netfault.Silent, netfault.Mute, netfault.Deaf} {
				d.partition(m, host, net, mode)
			}
		})
	}
}

func (d *crashDrill) partition(m moment, host string, network *netfault.Proxy, mode netfault.Mode) {
	d.t.Helper()
	began := time.Now()
	before := d.still()
	dir, pid := d.dir, d.orchestratorPID()
	if m.agent {
		dir, pid = filepath.Join(d.dir, "hosts", host), d.host(host).AgentPID
	}
	hold := arm(d.t, dir, m.label+" stop")
	d.version++
	version := fmt.Sprintf("v%d", d.version)
	s := d.spec(version)
	if !m.drains {
		s.Deadline = d.missed(8 * time.Second)
	}
	what := fmt.Sprintf("%s: %s %s, deploy %s", m.name, host, mode, version)
	id := d.cli("deploy", "-f", d.cluster.spec(s), "-o", "json", "--detach").must(d.t, 0).View.DeployID
	d.eventually(what+": the moment has come", hold.reached)
	network.Set(mode)
	d.signal(pid, syscall.SIGCONT)
	res := d.cli("watch", id, "-o", "json", "--timeout", "5m")
	expected := false
	for _, code := range m.code(mode) {
		expected = expected || res.Code == code
	}
	if !expected {
		d.t.Fatalf("%s: want exit %v, got %v", what, m.code(mode), res)
	}
	if res.Code == 0 {
		d.evident(res.View)
	}
	if res.Code == deploy.ExitStuck || m.drains && mode != netfault.Mute {
		// Mute: the Host has heard of the decision and drains, and only its word does not arrive.
		// No event says that something will never happen: it is looked for longer than a drain takes here.
		for range 6 {
			if alive := d.aliveBySpec("shop"); len(alive) != 2 {
				d.t.Fatalf("NO-ORPHAN-KILL: %s: %s has not answered, and only tasks of one version live: %v", what, host, alive)
			}
			<-time.After(200 * time.Millisecond)
		}
	}
	network.Set(netfault.Pass)
	end := res.View
	d.poll(generous, what+": it ends by itself after the network has healed", func() bool {
		end = d.view(id)
		return end.State == deploy.Succeeded || end.State == deploy.RolledBack
	})
	if (end.State == deploy.Succeeded) != (res.Code == 0) {
		d.t.Fatalf("%s: exit %d, and then %s", what, res.Code, end.State)
	}
	if res.Code == 0 {
		d.serving = version
	}
	d.rest(what)
	if res.Code != 0 {
		d.asBefore(before, what)
	}
	d.t.Logf("%s: exit %d, then %s; %s", what, res.Code, end.State, time.Since(began).Round(100*time.Millisecond))
}

// A slow network changes nothing but the time that it takes.
func TestASlowNetwork(t *testing.T) {
	t.Parallel()
	d := newCrashDrillOf(t, "haproxy=1,nginx=1")
	for _, h := range d.hosts {
		d.behind(h).Delay(150 * time.Millisecond)
	}
	id, version := d.begin()
	res := d.cli("watch", id, "-o", "json", "--wait-for", "drained", "--timeout", "5m").must(t, 0)
	d.evident(res.View)
	d.serving = version
	d.rest("a slow network")
}
