package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// Drill 20: the leader is killed at each step of a deploy. Another orchestrator takes over, and the deploy ends by itself:
// the command line, which asks a follower, reports the end.
func TestDrill20TheLeaderIsKilled(t *testing.T) {
	t.Parallel()
	c := newLedCluster(t, "2", "haproxy=2,nginx=1")
	c.deploy(shop("v1")).must(t, 0)
	load := c.load("/shop")
	now := "v1"
	for i, step := range []struct {
		name string
		// at brings a deploy to the step and returns its id and what lets it go on.
		at   func(version string) (string, func())
		code []int
	}{
		{"at once", func(v string) (string, func()) { return c.detach(shop(v)), func() {} }, []int{0}},
		{"tasks are starting", func(v string) (string, func()) {
			id := c.detach(shop(v, "--start-delay", "3s"))
			c.hold(id, "the new tasks run", func(v deploy.View) bool { return running(v, "new") })
			return id, func() {}
		}, []int{0}},
		{"preparing", func(v string) (string, func()) {
			release := c.freezeAgent(third)
			id := c.detach(shop(v))
			c.hold(id, "one Host is Ready", func(v deploy.View) bool { return vote(v, victim) == deploy.VoteReady })
			return id, release
		}, []int{0}},
		{"activating", func(v string) (string, func()) { return c.inActivate(shop(v), other) }, []int{0, 3}},
		{"draining", func(v string) (string, func()) {
			slow := c.loadWith(slowOnly(c.cluster, "/shop"))
			id := c.detach(shop(v))
			c.hold(id, "it is committed", func(v deploy.View) bool { return v.State == deploy.Succeeded })
			return id, func() { slow.Stop() }
		}, []int{0}},
		{"restoring", func(v string) (string, func()) {
			id, thaw := c.inActivate(shop(v), victim)
			c.cli("abort", id, "--detach").must(t, 0)
			return id, thaw
		}, []int{3, 6}},
	} {
		version := "v" + string(rune('2'+i))
		leader := c.second()
		id, goOn := step.at(version)
		watch := c.background("watch", id, "-o", "json", "--timeout", "5m", "--wait-for", "drained")
		c.eventually("the command line watches", func() bool { return strings.Contains(watch.err.String(), "step") })
		killed := time.Now()
		c.signal(leader.PID, syscall.SIGKILL)
		goOn()
		next := c.leader()
		t.Logf("%s: %s led again after %s", step.name, next.Name, time.Since(killed).Round(time.Millisecond))
		res := watch.wait()
		ok := false
		for _, code := range step.code {
			ok = ok || res.Code == code
		}
		if !ok {
			t.Fatalf("%s: want one of %v, got %v", step.name, step.code, res)
		}
		if res.Code == 0 {
			now = version
		}
		c.serves(now, "/shop")
		for _, h := range c.info.Hosts {
			c.agrees(h.Name)
		}
		c.eventually("only one version is left", func() bool { return c.upstreams(victim) == 4 })
	}
	if res := load.Stop(); res.Failed != 0 {
		t.Errorf("%v\n%v", res, res.Failures)
	}
	c.deploy(shop("v99")).must(t, 0)
	c.serves("v99", "/shop")
}

// Drill 21: the leader hands over, again and again, while deploys run under load. No request fails, every deploy succeeds.
func TestDrill21TheLeaderHandsOver(t *testing.T) {
	t.Parallel()
	const life = 90 * time.Second // of a session that nobody renews
	c := newLedCluster(t, "3", "haproxy=1,nginx=1", "--session-ttl", life.String())
	c.deploy(shop("v1")).must(t, 0)
	load := c.load("/shop")
	for _, version := range []string{"v2", "v3", "v4"} {
		leader := c.leader()
		if leader.APIURL == c.refresh().APIURL {
			leader = c.second()
		}
		id := c.detach(shop(version, "--start-delay", "1s"))
		watch := c.background("watch", id, "-o", "json", "--timeout", "5m")
		c.eventually("the command line watches", func() bool { return strings.Contains(watch.err.String(), "step") })
		told := time.Now()
		c.signal(leader.PID, syscall.SIGTERM)
		var next devOrchestrator
		c.eventually("another one leads", func() bool {
			for _, o := range c.info.Orchestrators {
				if o.Name != leader.Name && o.leads() {
					next = o
					return true
				}
			}
			return false
		})
		took := time.Since(told)
		t.Logf("%s handed over to %s in %s", leader.Name, next.Name, took.Round(time.Millisecond))
		// Nobody waited for the end of the session.
		if took > life/2 {
			t.Errorf("the hand-over took %s", took)
		}
		watch.wait().must(t, 0)
		c.serves(version, "/shop")
	}
	if res := load.Stop(); res.Failed != 0 {
		t.Errorf("%v\n%v", res, res.Failures)
	}
}

// Drill 22: a leader that was stopped for longer than its session lives wakes up. Another one leads by then, and the old
// one changes nothing: it follows.
func TestDrill22AnOldLeaderWakesUp(t *testing.T) {
	t.Parallel()
	c := newLedCluster(t, "2", "haproxy=2,nginx=1")
	c.deploy(shop("v1")).must(t, 0)
	load := c.load("/shop", other) // its proxy stands still for as long as a session lives: a balancer would have seen
	old := c.second()
	id, thaw := c.inActivate(shop("v2"), other)
	c.signal(old.PID, syscall.SIGSTOP)
	// While nobody leads, the stores answer what they know.
	apps := c.cli("apps").must(t, 0)
	if !strings.Contains(apps.Stdout, "shop") {
		t.Errorf("apps while the leader is silent: %v", apps)
	}
	first := c.orchestrator("orch-1")
	c.eventually("the other one leads", first.leads)
	thaw()
	res := c.watch(id, "--wait-for", "drained")
	if res.Code != 0 && res.Code != 3 {
		t.Fatalf("the deploy: %v", res)
	}
	want := map[int]string{0: "v2", 3: "v1"}[res.Code]
	c.serves(want, "/shop")
	for _, h := range c.info.Hosts {
		c.agrees(h.Name)
	}
	for _, h := range c.info.Hosts {
		c.eventually("only one version is left on "+h.Name, func() bool { return c.upstreams(h.Name) == 4 })
	}
	before := c.still()
	c.signal(old.PID, syscall.SIGCONT)
	c.eventually("the old leader follows", func() bool { return c.orchestrator(old.Name).standing().Role == "follower" })
	c.asBefore(before, "an old leader woke up")
	if l := c.leader(); l.Name != first.Name {
		t.Errorf("%s leads", l.Name)
	}
	// Through the old leader, too, deploys go on.
	c.cli("deploy", "-f", c.spec(shop("v3")), "--api", old.APIURL).must(t, 0)
	c.serves("v3", "/shop")
	if res := load.Stop(); res.Failed != 0 {
		t.Errorf("%v\n%v", res, res.Failures)
	}
}

// Drill 23: command lines ask different followers, and it is as if they asked the leader.
func TestDrill23CommandLinesAskFollowers(t *testing.T) {
	t.Parallel()
	c := newLedCluster(t, "3", "haproxy=1,nginx=1")
	leader := c.leader()
	var followers []string
	for _, o := range c.info.Orchestrators {
		if o.Name != leader.Name {
			followers = append(followers, o.APIURL)
		}
	}
	file := c.spec(shop("v1", "--start-delay", "1s"))
	a := c.background("deploy", "-f", file, "-o", "json", "--idempotency-key", "ci-1", "--api", followers[0])
	b := c.background("deploy", "-f", file, "-o", "json", "--idempotency-key", "ci-1", "--api", followers[1])
	ra, rb := a.wait().must(t, 0), b.wait().must(t, 0)
	if ra.View.DeployID == "" || ra.View.DeployID != rb.View.DeployID {
		t.Errorf("two deploys: %s and %s", ra.View.DeployID, rb.View.DeployID)
	}
	id := c.cli("deploy", "-f", c.spec(shop("v2", "--start-delay", "5s")), "-o", "json", "--detach", "--api", followers[0]).must(t, 0).View.DeployID
	if res := c.cli("deploy", "-f", c.spec(shop("v3")), "-o", "json", "--api", followers[1]).must(t, 8); !strings.Contains(res.Stdout, id) {
		t.Errorf("the refusal does not name %s: %v", id, res)
	}
	c.cli("watch", id, "-o", "json", "--api", followers[1]).must(t, 0)
	for _, api := range append(followers, leader.APIURL) {
		if res := c.cli("status", id, "-o", "json", "--api", api).must(t, 0); res.View.State != deploy.Succeeded || res.View.DeployID != id {
			t.Errorf("%s: %v", api, res)
		}
		if res := c.cli("version", "--api", api).must(t, 0); !strings.Contains(res.Stdout, leader.Name) && !strings.Contains(res.Stdout, "leads") {
			t.Errorf("version: %v", res)
		}
		if res := c.cli("lb", "hosts", "--api", api).must(t, 0); !strings.Contains(res.Stdout, "lb-nginx-1") {
			t.Errorf("hosts: %v", res)
		}
	}
	c.cli("deploy", "-f", file, "--api", followers[0], "--token", "cut_wrong").must(t, 9)
}

// Drill 24: Consul and Redis are killed and come back. Nothing that serves depends on them, and deploys go on.
func TestDrill24TheStoresGoAway(t *testing.T) {
	t.Parallel()
	c := newLedCluster(t, "2", "haproxy=1,nginx=1")
	c.deploy(shop("v1")).must(t, 0)
	load := c.load("/shop")
	for version, away := range map[string]interface {
		Kill()
		Start()
	}{"v2": c.consul, "v3": c.redis} {
		id := c.detach(shop(version, "--start-delay", "2s"))
		away.Kill()
		c.serves("v1", "/shop")
		away.Start()
		c.leader()
		c.watch(id, "--timeout", "5m").must(t, 0)
		c.serves(version, "/shop")
		c.deploy(shop("v1")).must(t, 0)
	}
	// Redis loses what it had acknowledged: the leader sees it, and the next term makes it again from what decides.
	backup := c.redis.Backup(t)
	c.deploy(shop("v4")).must(t, 0)
	c.redis.Rollback(t, backup)
	c.eventually("the committed state is known again", func() bool {
		res := c.cli("apps", "-o", "json")
		return res.Code == 0 && strings.Contains(res.Stdout, `"v4"`)
	})
	c.serves("v4", "/shop")
	c.deploys("v5")
	if res := load.Stop(); res.Failed != 0 {
		t.Errorf("%v\n%v", res, res.Failures)
	}
}
