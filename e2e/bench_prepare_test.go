package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
	"github.com/cutover/cutover/proto/gen/cutover/lbagent/v1/lbagentv1connect"
)

const (
	preparesMeasured = 120
	preparesFirst    = 3 // not counted: what is cached is cached at both sizes
)

// benchPrepare measures Prepare of one App beside 9 and beside 999 other Apps, as the round trip of the RPC to a real lbagent
// with its real proxy, with a Watch stream open as an orchestrator holds one. The other Apps come by Sync.
//
// Two Hosts of the kind, one with 10 Apps and one with 1,000, are asked in turn: what else the machine does meanwhile slows
// both. Two kinds of Prepare, each followed by Abort: one that adds an upstream whose task runs (checks every 50 ms, rise 1)
// and waits for that check; and one that adds none (a weight), which is the bare cost and hides nothing behind a wait. The
// bar is for the ratio of the medians of each. What the lbagent with 1,000 Apps weighs has a bar too.
//
// The other Apps share one real task and are checked every 5 s: they are idle Apps, and 1,000 Apps with quick checks on one
// machine would measure the machine.
func benchPrepare(b *testing.B, t *table, kind string) {
	c := newBenchCluster(b, kind+"=2")
	c.leaveHosts()
	tasks := runSamples(b, 3)
	sizes := []int{10, 1000}
	var hosts []*directHost
	for i, apps := range sizes {
		hosts = append(hosts, c.directHost(c.info.Hosts[i]))
		hosts[i].sync(apps, tasks)
	}
	b.ReportMetric(0, "ns/op") // of no meaning here
	for _, what := range []string{"adds an upstream", "adds none"} {
		took := make([][]time.Duration, len(sizes))
		for round := range preparesFirst + preparesMeasured {
			for i, h := range hosts {
				d := h.prepareAndAbort(what == "adds an upstream", tasks[2])
				if round >= preparesFirst {
					took[i] = append(took[i], d)
				}
			}
		}
		for i, apps := range sizes {
			t.times(fmt.Sprintf("prepare: %s, %s, beside %d Apps", kind, what, apps-1), 0, pollingNone, took[i])
		}
		ratio := float64(median(took[1])) / float64(median(took[0]))
		t.add(figure{name: fmt.Sprintf("prepare: %s, %s, at 1,000 Apps / at 10", kind, what), bar: 2, unit: "x", values: []float64{ratio}, polling: pollingNone})
		b.ReportMetric(ratio, strings.ReplaceAll(what, " ", "-")+"-ratio")
	}
	w := weigh(b, c.agentPID(1))
	t.memory(fmt.Sprintf("memory: lbagent (%s) with 1,000 Apps, VmRSS", kind), 64, []float64{w.resident})
	t.note("memory: lbagent (%s) with 1,000 Apps: %.0f MiB are not pages of files; the most since its start, %.0f MiB", kind, w.own, w.peak)
}

// directHost speaks to one lbagent as the leading orchestrator does.
type directHost struct {
	*benchCluster
	client lbagentv1connect.HostServiceClient
	order  uint64
	shop   *lbagentv1.Section
	at     *lbagentv1.Version
}

func (c *benchCluster) directHost(h devHost) *directHost {
	c.Helper()
	transport := &http.Transport{TLSClientConfig: c.tls(), ForceAttemptHTTP2: true}
	c.Cleanup(transport.CloseIdleConnections)
	d := &directHost{benchCluster: c, client: lbagentv1connect.NewHostServiceClient(&http.Client{Transport: transport}, h.AgentURL), order: 1000}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	c.Cleanup(func() { cancel(); <-over })
	stream, err := d.client.Watch(ctx, connect.NewRequest(&lbagentv1.WatchRequest{Fence: d.fence()}))
	if err != nil {
		c.Fatal(err)
	}
	go func() {
		defer close(over)
		for stream.Receive() {
		}
		_ = stream.Close()
	}()
	return d
}

func (d *directHost) fence() *lbagentv1.Fence {
	return &lbagentv1.Fence{Cluster: "dev", Group: "public", Epoch: benchEpoch, View: 1}
}

func (d *directHost) next() uint64 {
	d.order++
	return d.order
}

var benchOrigin = &lbagentv1.Origin{Actor: "bench", Reason: "benchmark"}

// sync installs n Apps; the one that is changed is among them. It is repeated until the Host has them all.
func (d *directHost) sync(n int, tasks []string) {
	d.Helper()
	request := &lbagentv1.SyncRequest{Fence: d.fence(), Order: d.next(), Origin: benchOrigin}
	d.at = &lbagentv1.Version{Txn: d.order}
	for i := range n {
		name, task, interval := fmt.Sprintf("filler-%d", i), tasks[0], 5*time.Second
		if i == 0 {
			name, task, interval = "shop", tasks[1], 50*time.Millisecond
		}
		s := &lbagentv1.Section{
			App: name, Spec: 1, Routes: []*lbagentv1.Route{{Host: "*", Path: "/" + name}}, Drain: durationpb.New(time.Second),
			Upstreams: []*lbagentv1.Upstream{benchUpstream(name+"-1", task, interval, 1)},
		}
		if i == 0 {
			d.shop = s
		}
		request.Sections = append(request.Sections, &lbagentv1.CommittedSection{Section: s, Version: d.at})
	}
	var refusal *lbagentv1.Refusal
	for range 6 {
		ctx, cancel := context.WithTimeout(d.Context(), generous)
		answer, err := d.client.Sync(ctx, connect.NewRequest(request))
		cancel()
		if err != nil {
			d.Fatal(err)
		}
		if synced := answer.Msg.GetSynced(); synced != nil {
			if len(synced.GetEvidence()) != n {
				d.Fatalf("Sync of %d Apps: evidence of %d", n, len(synced.GetEvidence()))
			}
			return
		}
		refusal = answer.Msg.GetRefusal()
	}
	d.Fatalf("Sync of %d Apps: %v", n, refusal)
}

// prepareAndAbort returns how long Prepare took.
func (d *directHost) prepareAndAbort(add bool, task string) time.Duration {
	d.Helper()
	ctx, cancel := context.WithTimeout(d.Context(), generous)
	defer cancel()
	order := d.next()
	id := fmt.Sprintf("bench-%d", order)
	target := proto.CloneOf(d.shop)
	if add {
		target.Upstreams = append(target.Upstreams, benchUpstream(id, task, 50*time.Millisecond, 1))
	} else {
		target.Upstreams[0].Weight = 50
	}
	request := &lbagentv1.PrepareRequest{
		Fence: d.fence(), TxnId: id, Order: order, Origin: benchOrigin, Deadline: durationpb.New(generous),
		Changes: []*lbagentv1.Change{{App: target.App, Base: d.at, Target: target}},
	}
	start := time.Now()
	prepared, err := d.client.Prepare(ctx, connect.NewRequest(request))
	took := time.Since(start)
	if err != nil {
		d.Fatal(err)
	}
	if prepared.Msg.GetReady() == nil {
		d.Fatalf("Prepare beside other Apps: %v", prepared.Msg.GetRefusal())
	}
	aborted, err := d.client.Abort(ctx, connect.NewRequest(&lbagentv1.AbortRequest{
		Fence: d.fence(), TxnId: id, Order: order, Apps: []string{target.App}, Origin: benchOrigin,
	}))
	if err != nil {
		d.Fatal(err)
	}
	if aborted.Msg.GetAborted() == nil {
		d.Fatalf("Abort: %v", aborted.Msg.GetRefusal())
	}
	return took
}
