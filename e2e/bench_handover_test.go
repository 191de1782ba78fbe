package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/internal/servertest/consultest"
	"github.com/cutover/cutover/internal/servertest/redistest"
	"github.com/cutover/cutover/orchestrator/lead"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/consulstore"
	"github.com/cutover/cutover/orchestrator/store/redisstore"
	"github.com/cutover/cutover/orchestrator/store/splitstore"
)

// benchHandover is benchRestart for several orchestrators: the leader of two, on Consul and Redis, is told to stop, and the
// other one takes over. What is measured begins when the lock in Consul is the other one's; what it took until then is
// printed beside. The Consul and the Redis share this machine's processors, too.
func benchHandover(b *testing.B, t *table) {
	apps := envInt("BENCH_APPS", 1000)
	o := newWholeOrchestrator(b, envInt("BENCH_HOSTS", 4), newSharedStores(b))
	name := fmt.Sprintf("recovery: hand-over on Consul and Redis, %d Apps x %d tasks", apps, tasksPerApp)
	b.ReportMetric(0, "ns/op") // of no meaning here
	o.start()
	began := time.Now()
	o.fill(appsDeployed)
	t.note("%s: %d of them were deployed through the API, in %.0f s", name, appsDeployed, time.Since(began).Seconds())
	o.multiply(apps / appsDeployed)
	var elected, took, answered, used []float64
	steps := make([][]float64, len(openSteps))
	for round := range restartRounds {
		o.standBy()
		open := o.leaveOpen(round)
		before := loadAverage()
		asked, led := o.handOver()
		idle := o.cpu()
		elected = append(elected, ms(led.Sub(asked)))
		o.await("the other orchestrator leads", o.leads)
		answered = append(answered, ms(time.Since(led)))
		var slowest time.Duration
		for i, at := range o.moved(open, led) {
			spent := at.Sub(led)
			slowest = max(slowest, spent)
			steps[i] = append(steps[i], ms(spent))
		}
		took = append(took, ms(slowest))
		used = append(used, ms(o.cpu()-idle))
		t.note("%s: round %d at a load of %s, then %s", name, round+1, before, loadAverage())
		o.settle(open)
	}
	b.ReportMetric(quantile(took, 0.5), "moving-ms")
	t.add(figure{name: name + ", the leader is told to stop, to another one's lock", bar: 1000, unit: "ms", values: elected, polling: pollingNone})
	t.add(figure{name: name + ", the lock to all open Deploys moving", bar: 2000, unit: "ms", values: took, polling: pollingNone})
	t.add(figure{name: name + ", the lock to the first answer as the leader", unit: "ms", values: answered, polling: pollingNone})
	t.add(figure{name: name + ", CPU of the process until then", unit: "ms", values: used, polling: pollingNone})
	for i, s := range openSteps {
		t.note("%s: the last of %d Deploys in %s moved after %.0f ms (p50)", name, openOfEach, s.step, quantile(steps[i], 0.5))
	}
}

// sharedStores are a Consul and a Redis of the benchmark's own.
type sharedStores struct {
	consul *consultest.Server
	redis  *redistest.Server
}

func newSharedStores(b testing.TB) *sharedStores {
	return &sharedStores{consul: consultest.Start(b, consultest.Options{}), redis: redistest.Start(b, redistest.Options{})}
}

// prefix is where the cluster of the benchmark has its keys in Consul.
func (s *sharedStores) prefix() string { return consulstore.Prefix("dev") }

// open opens both stores and leads, as an orchestrator does.
func (s *sharedStores) open(b testing.TB) (store.Store, *lead.Term) {
	b.Helper()
	deciding, err := consulstore.Open(b.Context(), s.consul.URL, consulstore.Options{Prefix: s.prefix()})
	if err != nil {
		b.Fatal(err)
	}
	rest, err := redisstore.Open(b.Context(), s.redis.URL, redisstore.Options{Cluster: "dev"})
	if err != nil {
		b.Fatal(err)
	}
	st := splitstore.New(deciding, rest)
	election, err := lead.NewConsul(lead.ConsulOptions{
		Client: s.consul.Client(b), Key: consulstore.LeaderKey(s.prefix()), Self: lead.Leader{Name: "bench", URL: "http://127.0.0.1:1"},
		Store: deciding, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(election.Close)
	term, err := election.Acquire(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return st, term
}

// holder is the session that has the lock, and where to wait for the next one.
func (s *sharedStores) holder(ctx context.Context, kv *api.KV, after uint64) (session string, index uint64, err error) {
	q := &api.QueryOptions{WaitIndex: after, WaitTime: 10 * time.Second}
	pair, meta, err := kv.Get(consulstore.LeaderKey(s.prefix()), q.WithContext(ctx))
	if err != nil {
		return "", 0, err
	}
	if pair != nil {
		session = pair.Session
	}
	return session, meta.LastIndex, nil
}

// leads is whether the process says that it is the leader.
func (o *wholeOrchestrator) leads() bool { return devOrchestrator{APIURL: o.url}.leads() }

// standBy starts the other process, which does not lead.
func (o *wholeOrchestrator) standBy() {
	o.Helper()
	o.seat, o.other = o.other, o.seat
	o.launch()
	o.await("the other orchestrator is there", func() bool { return devOrchestrator{APIURL: o.url}.standing().Role != "" })
	o.seat, o.other = o.other, o.seat
}

// handOver tells the leader to stop, and returns when the other one, which is used from now on, has the lock. From then on
// Mesos holds nothing back.
func (o *wholeOrchestrator) handOver() (asked, led time.Time) {
	o.Helper()
	kv := o.shared.consul.Client(o).KV()
	was, index, err := o.shared.holder(o.Context(), kv, 0)
	if err != nil || was == "" {
		o.Fatalf("the lock is held by %q, %v", was, err)
	}
	asked = time.Now()
	if err := o.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		o.Fatal(err)
	}
	for now := was; now == was || now == ""; {
		if now, index, err = o.shared.holder(o.Context(), kv, index); err != nil {
			o.Fatal(err)
		}
	}
	led = time.Now()
	o.mesos.Release()
	if err := o.cmd.Wait(); err != nil {
		o.Fatalf("the orchestrator, told to stop: %v", err)
	}
	o.cmd = nil
	o.seat, o.other = o.other, o.seat
	return asked, led
}
