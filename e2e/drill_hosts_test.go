package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

func (c *cluster) task(id string) deploy.TaskView {
	c.t.Helper()
	res := c.cli("tasks", "-o", "json").must(c.t, 0)
	var list struct {
		Tasks []deploy.TaskView `json:"tasks"`
	}
	if err := json.Unmarshal([]byte(res.Stdout), &list); err != nil {
		c.t.Fatalf("tasks: %v\n%s", err, res.Stdout)
	}
	for _, task := range list.Tasks {
		if task.ID == id {
			return task
		}
	}
	c.t.Fatalf("no task %s among %d", id, len(list.Tasks))
	return deploy.TaskView{}
}

// base is the owner's configuration of a Host's proxy.
func (c *cluster) base(host string) string {
	h := c.host(host)
	name := "nginx.conf"
	if h.Proxy == "haproxy" {
		name = "haproxy.cfg"
	}
	return filepath.Join(c.dir, "hosts", host, name)
}

// Drill 2: one Host cannot reach the new version. No request ever reaches it; every Host is as before.
func TestDrill02OneHostCannotReachTheNewVersion(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=2,nginx=2")
	c.deploy(shop("v1")).must(t, 0)
	before := c.still()
	load := c.load("/shop")
	for _, h := range c.info.Hosts {
		s := shop("v2", "--refuse-from", h.address())
		s.Deadline = c.missed(12 * time.Second)
		// What the new tasks served is asked while they still live.
		most := 0
		undone := func() result {
			id := c.detach(s)
			v := c.view(id)
			for v.State == deploy.Running {
				for _, task := range v.Tasks {
					if task.Role == "new" && task.Health == "healthy" {
						if n, err := served(task.Address); err == nil {
							most = max(most, n)
						}
					}
				}
				v = c.view(id)
			}
			return c.watch(id).must(t, 3)
		}
		res := undone()
		// The Host says what it found when its time is over; on a busy machine that may come after the deploy's own.
		for range 4 {
			if !strings.Contains(res.View.Reason, "no answer to prepare came from "+h.Name) {
				break
			}
			c.asBefore(before, "the deploy is undone")
			res = undone()
		}
		if !strings.Contains(res.View.Reason, h.Name) {
			t.Errorf("the reason does not name %s: %s", h.Name, res.View.Reason)
		}
		if !strings.Contains(res.View.Reason, "shop") {
			t.Errorf("the reason does not name the upstream: %s", res.View.Reason)
		}
		if most != 0 {
			t.Errorf("%d requests reached the version that %s could not reach", most, h.Name)
		}
		c.asBefore(before, "the deploy is undone")
	}
	if res := load.Stop(); res.Failed != 0 {
		t.Errorf("%v\n%v", res, res.Failures)
	}
	c.serves("v1", "/shop")
}

// Drill 3: one Host's proxy refuses the rendered configuration: refused in Prepare, with the checker's words.
func TestDrill03OneProxyRefusesTheConfiguration(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=2,nginx=2")
	c.deploy(shop("v1")).must(t, 0)
	for _, host := range []string{"lb-haproxy-2", "lb-nginx-1"} {
		base := c.base(host)
		good, err := os.ReadFile(base)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(base, append(good, []byte("\nthis_is_no_directive 1;\n")...), 0o600); err != nil {
			t.Fatal(err)
		}
		res := c.deploy(shop("v2")).must(t, 3)
		found := false
		for _, h := range res.View.Hosts {
			if h.Name == host {
				found = strings.Contains(h.Output, "this_is_no_directive") && h.Vote == deploy.VoteFailed
			} else if h.Vote == deploy.VoteVerified {
				t.Errorf("%s activated", h.Name)
			}
		}
		if !found || !strings.Contains(res.View.Reason, host) {
			t.Errorf("%s: checker output is not in the report: %s\n%s", host, res.View.Reason, res.Stdout)
		}
		if err := os.WriteFile(base, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.deploy(shop("v2")).must(t, 0)
	c.serves("v2", "/shop")
}

// Drill 4, first half: a foreign process holds the port of a Host's proxy.
func TestDrill04AForeignProcessHoldsThePort(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=1,nginx=1")
	c.deploy(shop("v1")).must(t, 0)
	for _, host := range []string{"lb-haproxy-1", "lb-nginx-1"} {
		h := c.host(host)
		c.signal(h.SupervisorPID, syscall.SIGSTOP)
		c.signal(-h.ProxyPID, syscall.SIGKILL)
		addr := strings.TrimPrefix(h.FrontendURL, "http://")
		var ln net.Listener
		c.eventually("the port is free", func() bool {
			var err error
			ln, err = net.Listen("tcp", addr)
			return err == nil
		})
		c.signal(h.SupervisorPID, syscall.SIGCONT)
		s := shop("v2")
		s.Deadline = c.missed(12 * time.Second)
		res := c.deploy(s).must(t, 3)
		if !strings.Contains(res.View.Reason, host) {
			t.Errorf("the reason does not name %s: %s", host, res.View.Reason)
		}
		ln.Close()
		c.eventually("the proxy is back", func() bool {
			code, _, err := get(h.FrontendURL + "/shop/x")
			return err == nil && code == 200
		})
	}
	c.serves("v1", "/shop")
}

// Drill 4, second half: nginx says that the reload is fine and keeps its old workers, because a port that the owner added
// belongs to somebody else.
func TestDrill04AReloadThatKeepsTheOldWorkers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "nginx-reload=1")
	c.deploy(shop("v1")).must(t, 0)
	h := c.info.Hosts[0]
	ln, err := net.Listen("tcp", h.address()+":9099")
	if err != nil {
		t.Fatal(err)
	}
	base := c.base(h.Name)
	good, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	stolen := strings.Replace(string(good), "http {", fmt.Sprintf("http {\n    server { listen %s:9099; return 204; }", h.address()), 1)
	if stolen == string(good) {
		t.Fatalf("no http block in %s", base)
	}
	if err := os.WriteFile(base, []byte(stolen), 0o600); err != nil {
		t.Fatal(err)
	}
	s := shop("v2")
	s.Deadline = c.missed(15 * time.Second)
	c.deploy(s).must(t, 3)
	ln.Close()
	if err := os.WriteFile(base, good, 0o600); err != nil {
		t.Fatal(err)
	}
	c.serves("v1", "/shop")
	c.deploy(shop("v2")).must(t, 0)
	c.serves("v2", "/shop")
}

// Drill 8: a proxy dies during a deploy and is started again; its owner reloads it between Verified and Commit.
func TestDrill08AProxyRestartsDuringADeploy(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=2,nginx=2")
	c.deploy(shop("v1")).must(t, 0)
	version := 2
	for _, host := range []string{"lb-haproxy-1", "lb-nginx-1"} {
		for _, how := range []string{"killed", "reloaded"} {
			next := fmt.Sprintf("v%d", version)
			version++
			// Another Host is held in Activate, so that this one stays between Verified and Commit.
			id, thaw := c.inActivate(shop(next), third)
			h := c.host(host)
			switch {
			case how == "killed":
				c.signal(h.ProxyPID, syscall.SIGKILL)
				c.eventually("the proxy is back", func() bool {
					now := c.host(host)
					return now.ProxyPID != h.ProxyPID && now.ProxyPID > 0
				})
			case h.Proxy == "haproxy":
				c.signal(h.ProxyPID, syscall.SIGUSR2)
			default:
				c.signal(h.ProxyPID, syscall.SIGHUP)
			}
			thaw()
			res := c.watch(id)
			switch res.Code {
			case 0:
				c.serves(next, "/shop")
				for _, hv := range res.View.Hosts {
					if hv.Evidence == nil || hv.Vote != deploy.VoteVerified {
						t.Errorf("%s %s: success without evidence from %s", host, how, hv.Name)
					}
				}
			case 3:
				// Also true; the old version must then serve everywhere.
				c.deploy(shop(next)).must(t, 0)
				c.serves(next, "/shop")
			default:
				t.Errorf("%s %s: %v", host, how, res)
			}
			// No old generation comes back, now or when the lbagent has applied its journal to the new process.
			c.agrees(host)
			c.serves(fmt.Sprintf("v%d", version-1), "/shop")
		}
	}
}

// Drill 11: a Group without Hosts, and a Host of the view that is not there.
func TestDrill11NoHostsAndAMissingHost(t *testing.T) {
	t.Parallel()
	t.Run("no hosts", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, "none")
		res := c.deploy(shop("v1")).must(t, 3)
		if !strings.Contains(res.View.Reason, "public") {
			t.Errorf("the reason does not name the group: %s", res.View.Reason)
		}
	})
	t.Run("missing host", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, "haproxy=1,nginx=1")
		c.deploy(shop("v1")).must(t, 0)
		back := c.takeAway("lb-nginx-1")
		res := c.deploy(shop("v2")).must(t, 3)
		if !strings.Contains(res.View.Reason, "lb-nginx-1") || res.View.NextCommand == "" {
			t.Errorf("reason %q, next %q", res.View.Reason, res.View.NextCommand)
		}
		back()
		c.eventually("the Host is back", func() bool { return c.cli("lb", "show", "lb-nginx-1", "-o", "json").Code == 0 })
		c.deploy(shop("v2")).must(t, 0)
		c.serves("v2", "/shop")
	})
}
