package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// lbHost is one Host as `lb hosts` lists it.
func (c *cluster) lbHost(name string) wire.Host {
	c.t.Helper()
	var list wire.HostList
	if err := json.Unmarshal([]byte(c.cli("lb", "hosts", "-o", "json").must(c.t, 0).Stdout), &list); err != nil {
		c.t.Fatal(err)
	}
	for _, h := range list.Hosts {
		if h.Name == name {
			return h
		}
	}
	c.t.Fatalf("no host %s", name)
	return wire.Host{}
}

// readyz is what an upstream balancer sees: 0 if nobody answers.
func (c *cluster) readyz(host string) int {
	c.t.Helper()
	code, _, err := get(c.host(host).ReadyURL)
	if err != nil {
		return 0
	}
	return code
}

func (c *cluster) turns(host string, want int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("the readiness of %s is %d", host, want), func() bool { return c.readyz(host) == want })
}

// serving are the upstreams that a Host's proxy routes to, by its own word.
func (c *cluster) serving(host, app string) map[string]bool {
	c.t.Helper()
	out := map[string]bool{}
	for _, s := range c.show(host).Sections {
		for _, u := range s.Running {
			if s.App == app && u.Mode == "serving" {
				out[u.Name] = true
			}
		}
	}
	return out
}

// A dead Host is taken out of its Group, deploys go on without it, and it comes back synced, and only then ready.
func TestADeadHostIsExcludedAndReadmitted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=1,nginx=2")
	c.deploy(shop("v1")).must(t, 0)
	const dead = "lb-nginx-2"
	c.turns(dead, http.StatusOK)
	back := c.takeAway(dead)
	c.eventually("it is away", func() bool { return !c.lbHost(dead).Connected })
	res := c.cli("lb", "exclude", dead, "--reason", "its disk died").must(t, 1)
	if !strings.Contains(res.Stderr, "--i-know-it-gets-no-traffic") {
		t.Errorf("the refusal does not say what to do: %v", res)
	}
	c.cli("lb", "exclude", dead, "--reason", "its disk died", "--i-know-it-gets-no-traffic").must(t, 0)
	v := c.deploy(shop("v2"), "--wait-for", "drained").must(t, 0).View
	if len(v.Hosts) != 2 {
		t.Errorf("hosts of the deploy: %+v", v.Hosts)
	}
	c.eventually("the old tasks are gone", func() bool { return c.aliveBySpec("shop")[1] == 0 })
	back()
	c.eventually("it is connected again", func() bool { return c.lbHost(dead).Connected })
	c.turns(dead, http.StatusServiceUnavailable)
	if h := c.lbHost(dead); h.Membership.Standing != "excluded" || !strings.Contains(h.Membership.Proof, "its disk died") {
		t.Errorf("%+v", h.Membership)
	}
	c.cli("lb", "readmit", dead, "--reason", "new disk").must(t, 0)
	if h := c.lbHost(dead); h.Membership.Standing != "member" || h.Traffic == nil || !h.Traffic.Ready {
		t.Errorf("%+v %+v", h.Membership, h.Traffic)
	}
	c.turns(dead, http.StatusOK)
	for _, task := range v.Tasks {
		if task.Role == "new" && !c.serving(dead, "shop")[task.Upstream] {
			t.Errorf("%s does not serve %s", dead, task.Upstream)
		}
	}
	if got := c.deploy(shop("v3")).must(t, 0).View; len(got.Hosts) != 3 {
		t.Errorf("hosts of the deploy after it is back: %+v", got.Hosts)
	}
	log := c.cli("lb", "log").must(t, 0).Stdout
	for _, want := range []string{"exclude", "readmit", "join", "its disk died", "new disk"} {
		if !strings.Contains(log, want) {
			t.Errorf("the audit record lacks %q:\n%s", want, log)
		}
	}
}

// With all-but(1) a dead Host does not hold up a deploy; it is recorded as unproven, and no old task is killed before it is
// back and has let them go.
func TestAHostThatMayBeMissing(t *testing.T) {
	t.Parallel()
	c := newClusterWith(t, "haproxy=2,nginx=1", "--policy", "all-but(1)")
	c.deploy(shop("v1")).must(t, 0)
	const dead = "lb-haproxy-2"
	back := c.takeAway(dead)
	c.eventually("it is away", func() bool { return !c.lbHost(dead).Connected })
	v := c.deploy(shop("v2")).must(t, 0).View
	for _, h := range v.Hosts {
		unproven := h.Standing == deploy.StandingUnproven
		if unproven != (h.Name == dead) || !unproven && h.Vote != deploy.VoteVerified {
			t.Errorf("%s: vote %s, standing %q", h.Name, h.Vote, h.Standing)
		}
	}
	c.eventually("the other hosts have let the old ones go", func() bool {
		d := c.view(v.DeployID).Drain
		return d != nil && len(d.Waiting) == 1 && d.Waiting[0] == dead
	})
	if n := c.aliveBySpec("shop")[1]; n != 4 {
		t.Errorf("%d of 4 old tasks live although %s may route to them (NO-ORPHAN-KILL)", n, dead)
	}
	back()
	c.eventually("the old tasks are killed", func() bool { return c.aliveBySpec("shop")[1] == 0 })
	c.serves("v2", "/shop")
}

// A Host that is drained turns red, says how many clients it has, and is proven out of traffic when there is none.
func TestDrainIsTheProof(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=1,nginx=1")
	c.deploy(shop("v1")).must(t, 0)
	for _, host := range []string{"lb-haproxy-1", "lb-nginx-1"} {
		c.turns(host, http.StatusOK)
		client := c.client(host)
		client.request()
		drain := c.background("lb", "drain", host, "--reason", "maintenance", "-o", "json")
		c.eventually("its client is counted", func() bool {
			tr := c.lbHost(host).Traffic
			return tr != nil && tr.Ordered == "out" && tr.Counted && tr.Sessions == 1
		})
		c.turns(host, http.StatusServiceUnavailable)
		client.request() // whoever is there is served
		if res := c.cli("lb", "exclude", host, "--reason", "maintenance").must(t, 1); !strings.Contains(res.Stderr, "1 client connections") {
			t.Errorf("%v", res)
		}
		_ = client.conn.Close()
		res := drain.wait().must(t, 0)
		var h wire.Host
		if err := json.Unmarshal([]byte(res.Stdout), &h); err != nil || h.Traffic == nil || h.Traffic.Sessions != 0 || h.Membership.Standing != "member" {
			t.Errorf("%v %+v", err, h)
		}
		c.cli("lb", "exclude", host, "--reason", "maintenance").must(t, 0)
		if h := c.lbHost(host); h.Membership.Standing != "excluded" || !strings.Contains(h.Membership.Proof, "no client connection since") {
			t.Errorf("%+v", h.Membership)
		}
		c.cli("lb", "readmit", host, "--reason", "done").must(t, 0)
		c.turns(host, http.StatusOK)
	}
}

// frontendClient is one keep-alive connection to a Host's frontend.
type frontendClient struct {
	c    *cluster
	conn net.Conn
	in   *bufio.Reader
}

func (c *cluster) client(host string) frontendClient {
	c.t.Helper()
	u, err := url.Parse(c.host(host).FrontendURL)
	if err != nil {
		c.t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return frontendClient{c, conn, bufio.NewReader(conn)}
}

func (f frontendClient) request() {
	f.c.t.Helper()
	if _, err := fmt.Fprintf(f.conn, "GET /shop HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		f.c.t.Fatal(err)
	}
	resp, err := http.ReadResponse(f.in, nil)
	if err != nil {
		f.c.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		f.c.t.Fatalf("status %d", resp.StatusCode)
	}
}

// A deploy that is stuck says which Host keeps it, why, what serves there and what to run; resolve settles it when the cause
// is gone.
func TestStuckSaysWhyAndIsResolved(t *testing.T) {
	t.Parallel()
	bin, err := buildCrashing()
	if err != nil {
		t.Fatal(err)
	}
	c := newClusterOf(t, bin, "haproxy=1,nginx=1", "--restore-deadline", "5s")
	c.deploy(shop("v1")).must(t, 0)
	before := c.still()
	pid := c.host("lb-nginx-1").AgentPID
	hold := arm(t, filepath.Join(c.dir, "hosts", "lb-nginx-1"), "before-verified stop")
	id := c.detach(c.v2())
	v := c.watch(id).must(t, deploy.ExitStuck).View
	if !hold.reached() {
		t.Fatal("the lbagent was never stopped between its Activate and its Verified")
	}
	if len(v.Stuck) != 1 || v.Stuck[0].Host != "lb-nginx-1" || v.Stuck[0].Cause != "silent" || len(v.Stuck[0].Serves) == 0 {
		t.Fatalf("%+v\n%s", v.Stuck, v.Reason)
	}
	if !strings.Contains(v.NextCommand, fmt.Sprint("kill -9 ", pid)) {
		t.Errorf("next command %q", v.NextCommand)
	}
	if out := c.cli("status", id).must(t, 0).Stdout; !strings.Contains(out, "says nothing") || !strings.Contains(out, "serves of shop") {
		t.Errorf("status:\n%s", out)
	}
	c.cli("lb", "resolve", id, "--timeout", "3s").must(t, 4)
	c.signal(pid, syscall.SIGCONT)
	c.eventually("it is connected again", func() bool { return c.lbHost("lb-nginx-1").Connected })
	c.cli("lb", "resolve", "lb-nginx-1", "--timeout", "30s").must(t, 0)
	c.watch(id).must(t, 3)
	c.asBefore(before, "the deploy is undone")
}
