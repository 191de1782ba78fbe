package e2e

import (
	"encoding/json"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/servertest/consultest"
	"github.com/cutover/cutover/internal/servertest/redistest"
)

// ledCluster is a cluster with several orchestrators, and with the Consul and the Redis that they share.
type ledCluster struct {
	*cluster
	consul *consultest.Server
	redis  *redistest.Server
}

// newLedCluster starts a cluster with n orchestrators. A leader that crashes is replaced sooner than in production.
func newLedCluster(t *testing.T, n, lb string, flags ...string) *ledCluster {
	t.Helper()
	return newLedClusterOf(t, cutoverBin, n, lb, flags...)
}

// newLedClusterOf runs another build of the binary.
func newLedClusterOf(t *testing.T, bin, n, lb string, flags ...string) *ledCluster {
	t.Helper()
	c := &ledCluster{consul: consultest.Start(t, consultest.Options{}), redis: redistest.Start(t, redistest.Options{})}
	flags = append([]string{"--orchestrators", n, "--consul", c.consul.URL, "--store", c.redis.URL, "--session-ttl", "3s"}, flags...)
	c.cluster = newClusterOf(t, bin, lb, flags...)
	return c
}

// standing is what /readyz says.
type standing struct {
	Role   string `json:"role"`
	Leader struct {
		Name string `json:"name"`
	} `json:"leader"`
}

func (o devOrchestrator) standing() (s standing) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(o.APIURL + "/readyz")
	if err != nil {
		return s
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		_ = json.NewDecoder(resp.Body).Decode(&s)
	}
	return s
}

func (o devOrchestrator) leads() bool { return o.standing().Role == "leader" }

func (c *ledCluster) orchestrator(name string) devOrchestrator {
	c.t.Helper()
	for _, o := range c.refresh().Orchestrators {
		if o.Name == name {
			return o
		}
	}
	c.t.Fatalf("no orchestrator %s", name)
	return devOrchestrator{}
}

// leader waits for one that leads, and returns it.
func (c *ledCluster) leader() (leader devOrchestrator) {
	c.t.Helper()
	c.eventually("one of the orchestrators leads", func() bool {
		for _, o := range c.refresh().Orchestrators {
			if o.PID > 0 && o.leads() {
				leader = o
				return true
			}
		}
		return false
	})
	return leader
}

// second makes an orchestrator the leader that the command line does not ask: it asks the first.
func (c *ledCluster) second() devOrchestrator {
	c.t.Helper()
	for {
		l := c.leader()
		if l.APIURL != c.refresh().APIURL {
			return l
		}
		c.signal(l.PID, syscall.SIGTERM)
		c.eventually(l.Name+" is there again", func() bool {
			now := c.orchestrator(l.Name)
			return now.PID > 0 && now.PID != l.PID && now.standing().Role != ""
		})
	}
}

// upstreams counts what a Host's proxy has registered.
func (c *ledCluster) upstreams(host string) (n int) {
	c.t.Helper()
	for _, s := range c.show(host).Sections {
		n += len(s.Running)
	}
	return n
}
