package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/loadgen"
	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// numbered is the n-th of many small Apps.
func numbered(n int, version string, flags ...string) specFile {
	s := shop(version, flags...)
	s.Name, s.Path, s.Instances = fmt.Sprintf("app%03d", n), fmt.Sprintf("/app%03d", n), 1
	s.Deadline, s.Grace, s.Interval = 120*time.Second, 60*time.Second, 500*time.Millisecond
	return s
}

// together submits all Specs at once and returns the Deploys as they ended, in order.
func (c *cluster) together(specs []specFile) []deploy.View {
	c.t.Helper()
	api, err := client.New(client.Options{URL: c.info.APIURL, Token: c.info.Token})
	if err != nil {
		c.t.Fatal(err)
	}
	defer api.Close()
	ctx, cancel := context.WithTimeout(c.t.Context(), 3*generous)
	defer cancel()
	views := make([]deploy.View, len(specs))
	var all sync.WaitGroup
	for i, s := range specs {
		all.Go(func() {
			v, err := api.Submit(ctx, []byte(s.yaml()), client.Change{Reason: "drill"})
			if err != nil {
				c.t.Errorf("%s: %v", s.Name, err)
				return
			}
			w := &decided{}
			if err := api.Follow(ctx, v.DeployID, 0, w); err != nil {
				c.t.Errorf("%s: %v", s.Name, err)
			}
			views[i] = w.last
		})
	}
	all.Wait()
	return views
}

// Many Apps are deployed at once to one group, twice: all succeed. DRILL_APPS says how many; `make soak` takes a hundred.
func TestDrillManyAppsAtOnce(t *testing.T) {
	many := envInt("DRILL_APPS", 40)
	c := newCluster(t, "haproxy=2,nginx=2")
	for _, version := range []string{"v1", "v2"} {
		var specs []specFile
		for i := range many {
			specs = append(specs, numbered(i, version))
		}
		start := time.Now()
		views := c.together(specs)
		var last time.Time
		var each []time.Duration
		for i, v := range views {
			if v.State != deploy.Succeeded || v.CommittedAt == nil {
				t.Errorf("%s %s ended %s: %s", specs[i].Name, version, v.State, v.Reason)
				continue
			}
			if v.CommittedAt.After(last) {
				last = *v.CommittedAt
			}
			if v.HealthyAt != nil {
				each = append(each, v.CommittedAt.Sub(*v.HealthyAt))
			}
		}
		if t.Failed() {
			return
		}
		slices.Sort(each)
		t.Logf("%d Apps at once (%s): all committed after %.1f s; healthy to committed p50 %.0f ms, p99 %.0f ms, slowest %.0f ms", many, version,
			last.Sub(start).Seconds(), ms(each[len(each)/2]), ms(each[len(each)*99/100]), ms(each[len(each)-1]))
	}
}

// Twenty Apps at once where each change reloads nginx: the changes are merged, and the one that a host cannot reach is the
// only one that fails, with its name and its host.
func TestDrillReloadsAreMerged(t *testing.T) {
	c := newCluster(t, "nginx-reload=2")
	var specs []specFile
	for i := range 20 {
		specs = append(specs, numbered(i, "v1"))
	}
	const guilty = 13
	specs[guilty] = numbered(guilty, "v1", "--refuse-from", c.info.Hosts[0].address())
	start := time.Now()
	views := c.together(specs)
	generations := map[uint64]int{}
	for i, v := range views {
		switch {
		case i == guilty:
			if v.State != deploy.RolledBack || !strings.Contains(v.Reason, c.info.Hosts[0].Name) {
				t.Errorf("the guilty one ended %s: %s", v.State, v.Reason)
			}
		case v.State != deploy.Succeeded:
			t.Errorf("%s ended %s: %s", specs[i].Name, v.State, v.Reason)
		default:
			generations[v.Generation]++
		}
	}
	if len(generations) > 10 {
		t.Errorf("19 changes that came together were committed in %d transactions: %v", len(generations), generations)
	}
	t.Logf("20 Apps at once, each a reload: decided after %.1f s in %d transactions", time.Since(start).Seconds(), len(generations))
}

// joined writes Specs as one file of several documents.
func (c *cluster) joined(specs ...specFile) string {
	c.t.Helper()
	var docs []string
	for _, s := range specs {
		docs = append(docs, s.yaml())
	}
	name := c.t.TempDir() + "/all.yaml"
	if err := os.WriteFile(name, []byte(strings.Join(docs, "---\n")), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return name
}

// Lock-step: an API and its front end commit in one decision on every host, or nothing changes in either, under load.
func TestDrillLockStep(t *testing.T) {
	c := newCluster(t, "haproxy=1,nginx=1,nginx-reload=1")
	api, web := numbered(1, "v1"), numbered(2, "v1")
	first := c.cli("deploy", "-f", c.spec(api), "-f", c.spec(web), "-o", "json").must(t, 0).View
	if len(first.Apps) != 2 || first.Apps[0].Generation != first.Apps[1].Generation || first.State != deploy.Succeeded {
		t.Fatalf("the first: %+v", first)
	}
	before := c.still()
	// Not through the nginx that reloads: before 1.27.4 it may reset idle keep-alive connections (docs, limits).
	urls := slices.DeleteFunc(c.frontends(), func(u string) bool { return u == c.host("lb-nginx-reload-1").FrontendURL })
	load := c.loadWith(loadgen.Options{URLs: urls, Path: web.Path + "/buy", SlowPath: web.Path + "/slow?ms=3000", KeepAlive: 4, Close: 1, Slow: 1, Think: 10 * time.Millisecond})
	// One of the Apps never becomes healthy, or cannot be reached by one host: nothing changes in the other.
	broken := map[string]specFile{
		"never healthy":   numbered(1, "v2", "--start-delay", "5m"),
		"not for a host":  numbered(1, "v2", "--refuse-from", c.info.Hosts[1].address()),
		"ends at once":    numbered(1, "v2"),
		"aborted by name": numbered(1, "v2", "--start-delay", "5m"),
	}
	for name, s := range broken {
		s.Grace, s.Deadline = 2*time.Second, 45*time.Second
		if name == "ends at once" {
			s.Command = "exit 3"
		}
		if name == "aborted by name" {
			s.Grace = 5 * time.Minute
			r := c.background("deploy", "-f", c.joined(s, numbered(2, "v2")), "-o", "json")
			c.eventually("the lock-step is open", func() bool { return strings.Contains(r.err.String(), "gathering") })
			c.deploy(numbered(2, "v3")).must(t, 8)
			c.cli("abort", s.Name).must(t, 0)
			if res := r.wait().must(t, 6); res.View.Apps[1].State != deploy.Aborted {
				t.Errorf("%s: %s is %s", name, res.View.Apps[1].App, res.View.Apps[1].State)
			}
			continue
		}
		res := c.cli("deploy", "-f", c.joined(s, numbered(2, "v2")), "-o", "json").must(t, 3)
		if v := res.View; len(v.Apps) != 2 || v.Apps[1].State != deploy.RolledBack || !strings.Contains(v.Reason, s.Name) {
			t.Errorf("%s: %s (%s)", name, v.Reason, v.ReasonCode)
		}
	}
	c.asBefore(before, "no lock-step committed")
	second := c.cli("deploy", "-f", c.joined(numbered(1, "v2"), numbered(2, "v2")), "-o", "json", "--wait-for", "drained").must(t, 0).View
	if second.Apps[0].Generation != second.Apps[1].Generation {
		t.Errorf("generations %d and %d", second.Apps[0].Generation, second.Apps[1].Generation)
	}
	if res := load.Stop(); res.Failed != 0 {
		t.Error(res)
	}
}
