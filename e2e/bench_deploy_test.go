package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// deploysMeasured is how many Deploys in a row the overhead is taken from.
const deploysMeasured = 24

// benchDeploys measures the overhead of a Deploy as its asker sees it: from sending the POST to reading `succeeded` from
// the stream of events, minus the App's own time. 4 Hosts (2 HAProxy, 2 nginx with Lua), 4 instances that all change
// (blue-green), health interval 200 ms, rise 1.
//
// The App's own time is measured beside it, before each Deploy: the same 4 processes started by hand at once, until the
// last of them gives its first healthy answer (asked each millisecond). Its median is subtracted from every Deploy.
func benchDeploys(b *testing.B, t *table) {
	c := newBenchCluster(b, "haproxy=2,nginx=2")
	api := c.client()
	if _, _, err := c.deploy(api, shop("v0")); err != nil {
		b.Fatal(err)
	}
	var own, whole, server []time.Duration
	steps := map[string][]time.Duration{}
	for i := range deploysMeasured {
		own = append(own, samplesOwnTime(b, 4))
		took, view, err := c.deploy(api, shop(fmt.Sprintf("v%d", i+1)))
		if err != nil {
			b.Fatal(err)
		}
		whole = append(whole, took)
		server = append(server, view.CommittedAt.Sub(view.StartedAt))
		for j, s := range view.Steps {
			end := *view.CommittedAt
			if j+1 < len(view.Steps) {
				end = view.Steps[j+1].At
			}
			if !s.At.After(*view.CommittedAt) {
				steps[s.Step] = append(steps[s.Step], end.Sub(s.At))
			}
		}
		if view.HealthyAt != nil {
			steps["(start to all healthy)"] = append(steps["(start to all healthy)"], view.HealthyAt.Sub(view.StartedAt))
		}
	}
	overhead := make([]time.Duration, len(whole))
	for i, d := range whole {
		overhead[i] = d - median(own)
	}
	b.ReportMetric(0, "ns/op") // of no meaning here
	b.ReportMetric(ms(median(overhead)), "overhead-ms")
	t.times("deploy: overhead (4 hosts, 4 instances)", time.Second, pollingDeploy, overhead)
	t.times("deploy: POST to succeeded, App's own time included", 0, pollingNone, whole)
	t.times("deploy: the App's own time", 0, pollingNone, own)
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(steps)) {
		parts = append(parts, fmt.Sprintf("%s %.0f", name, ms(median(steps[name]))))
	}
	t.note("deploy: steps, p50 in ms: %s; started_at to committed_at %.0f", strings.Join(parts, ", "), ms(median(server)))
}

// samplesOwnTime starts n samples at once and returns how long until all have given a healthy answer.
func samplesOwnTime(b testing.TB, n int) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), generous)
	defer cancel()
	addresses := freeAddresses(b, n)
	answers := make(chan error, n)
	start := time.Now()
	for _, a := range addresses {
		task := startSample(b, a)
		defer task.stop()
		go func() { answers <- task.awaitHealthy(ctx) }()
	}
	var failed error
	for range n {
		if err := <-answers; err != nil {
			failed = err
		}
	}
	took := time.Since(start)
	if failed != nil {
		b.Fatal(failed)
	}
	return took
}

func (c *benchCluster) client() *client.Client {
	c.Helper()
	api, err := client.New(client.Options{URL: c.info.APIURL, Token: c.info.Token, UserAgent: "bench"})
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(api.Close)
	return api
}

// deploy returns how long it took from the POST to `succeeded`, and the Deploy as it was then. It goes back only when the
// old tasks are gone, so that one Deploy's end is not in the time of the next.
func (c *benchCluster) deploy(api *client.Client, s specFile) (time.Duration, deploy.View, error) {
	ctx, cancel := context.WithTimeout(c.Context(), 2*generous)
	defer cancel()
	start := time.Now()
	v, err := api.Submit(ctx, []byte(s.yaml()), client.Change{Reason: "benchmark"})
	if err != nil {
		return 0, v, err
	}
	w := &decided{}
	if err := api.Follow(ctx, v.DeployID, 0, w); err != nil {
		return 0, v, err
	}
	took := time.Since(start)
	if v = w.last; v.State != deploy.Succeeded || v.CommittedAt == nil {
		return took, v, fmt.Errorf("the deploy of %s %s ended %s: %s", s.Name, s.Version, v.State, v.Reason)
	}
	for {
		tasks, err := api.Tasks(ctx, s.Name)
		living := 0
		for _, t := range tasks {
			if t.State != "finished" && t.State != "failed" && t.State != "killed" {
				living++
			}
		}
		if err != nil || living == s.Instances {
			return took, v, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return took, v, fmt.Errorf("%d tasks of %s are alive, want %d", living, s.Name, s.Instances)
		}
	}
}

// decided follows a Deploy until its outcome is known.
type decided struct{ last deploy.View }

func (d *decided) Event(e deploy.Event) bool { return e.View == nil || d.View(*e.View) }

func (d *decided) View(v deploy.View) bool {
	d.last = v
	return v.State == deploy.Running
}
