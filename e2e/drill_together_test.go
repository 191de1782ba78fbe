package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// numbered is the n-th of many small Apps.
func numbered(n int, version string, flags ...string) specFile {
	s := shop(version, flags...)
	s.Name, s.Path, s.Instances = fmt.Sprintf("app%03d", n), fmt.Sprintf("/app%03d", n), 1
	s.Deadline, s.Drain, s.Grace, s.Interval = 120*time.Second, time.Second, 60*time.Second, 500*time.Millisecond
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

// A hundred Apps are deployed at once to one group, twice: all succeed.
func TestDrillHundredAppsAtOnce(t *testing.T) {
	c := newCluster(t, "haproxy=2,nginx=2")
	for _, version := range []string{"v1", "v2"} {
		var specs []specFile
		for i := range 100 {
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
		t.Logf("100 Apps at once (%s): all committed after %.1f s; healthy to committed p50 %.0f ms, p99 %.0f ms, slowest %.0f ms", version,
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
