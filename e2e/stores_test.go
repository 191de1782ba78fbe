package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/netfault"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// storeDrill is a cluster of two orchestrators, each of which reaches Consul and Redis through a network of its own.
type storeDrill struct {
	*crashDrill
	led *ledCluster
	// networks are by orchestrator and store, "orch-1 redis".
	networks map[string]*netfault.Proxy
}

func newStoreDrill(t *testing.T) *storeDrill {
	t.Helper()
	bin, err := buildCrashing()
	if err != nil {
		t.Fatal(err)
	}
	led := newLedClusterOf(t, bin, "2", "haproxy=1,nginx=1")
	d := &storeDrill{led: led, networks: map[string]*netfault.Proxy{}}
	for _, o := range led.info.Orchestrators {
		d.part(o.Name)
	}
	led.kept = true // the one that the command line asks is away for moments
	led.leader()
	d.crashDrill = newCrashDrillOn(led.cluster)
	return d
}

// part puts networks that can fail between an orchestrator and its stores: it is started again with their addresses.
func (d *storeDrill) part(name string) {
	t := d.led.t
	t.Helper()
	through := func(store, address string) string {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		p, err := netfault.Listen(context.Background(), "127.0.0.1:0", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		d.networks[name+" "+store] = p
		u.Host = p.Addr().String()
		return u.String()
	}
	own := filepath.Join(d.led.dir, "orchestrators", name)
	file := filepath.Join(own, "supervisor.json")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(d.led.consul.URL, through("consul", d.led.consul.URL), d.led.redis.URL, through("redis", d.led.redis.URL)).Replace(string(data))
	if text == string(data) || !json.Valid([]byte(text)) {
		t.Fatalf("%s names neither store:\n%s", file, data)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	was := d.led.orchestrator(name)
	d.led.signal(was.SupervisorPID, syscall.SIGTERM)
	d.led.eventually(name+" has stopped", func() bool { return d.led.orchestrator(name).SupervisorPID == 0 })
	if err := d.led.supervise(own); err != nil {
		t.Fatal(err)
	}
	d.led.eventually(name+" runs behind its networks", func() bool {
		now := d.led.orchestrator(name)
		return now.PID > 0 && now.PID != was.PID && now.standing().Role != ""
	})
}

// storeFault is one way in which the leader loses a store in the middle of a deploy.
type storeFault struct {
	name  string
	store string
	// mode or delay is what its network does; neither: the store's server is stopped, for everybody.
	mode  netfault.Mode
	delay time.Duration
	// at is the write at which the leader stands still until the fault is there.
	at string
	// lasts is when the fault ends; 0: when another orchestrator leads.
	lasts time.Duration
	code  []int
}

var either = []int{0, deploy.ExitRolledBack}

// While the network between the leader and Consul, which decides, or Redis, which remembers, is cut, half-open or slower than
// every patience, or the server stands still, a deploy goes on or is taken up by another leader, and ends: the decision that
// was written counts even if nobody heard so, one that was not never happens. No request is lost, no success is without proof
// by every Host, and what the network held back moves nothing when it arrives.
func TestStorePartitions(t *testing.T) {
	for store, faults := range map[string][]storeFault{
		"consul": {
			// The write arrives and its answer does not: succeeded, and the next leader finds it.
			{name: "the answer is lost", mode: netfault.Mute, at: "before-write-decision", code: []int{0}},
			// Nothing arrives, and the session ends: the next leader finds no record, aborts for good, and tries again.
			{name: "half-open", mode: netfault.Silent, at: "before-write-decision", code: either},
			{name: "slower than a session lives", delay: 4 * time.Second, at: "after-write-mark", code: either},
			{name: "cut for a moment", mode: netfault.Cut, at: "before-write-decision", lasts: time.Second, code: either},
			{name: "stopped for longer than a session lives", at: "before-write-decision", lasts: 4 * time.Second, code: either},
		},
		"redis": {
			{name: "cut for a moment", mode: netfault.Cut, at: "before-write-engine", lasts: 2 * time.Second, code: either},
			{name: "the answer is late", mode: netfault.Mute, at: "before-write-engine", lasts: 2 * time.Second, code: either},
			{name: "stopped", at: "before-write-engine", lasts: 3 * time.Second, code: either},
			// For longer than the store's patience: the term ends, since nobody knows what was written.
			{name: "the answer is lost", mode: netfault.Mute, at: "before-write-engine", code: either},
		},
	} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			d := newStoreDrill(t)
			for _, f := range faults {
				f.store = store
				d.lose(f)
			}
		})
	}
}

// lose lets the leader lose a store in the middle of a deploy.
func (d *storeDrill) lose(f storeFault) {
	d.t.Helper()
	began := time.Now()
	before := d.still()
	leader := d.led.second() // the command line asks the other one
	d.version++
	version := fmt.Sprintf("v%d", d.version)
	what := fmt.Sprintf("%s %s, %s: deploy %s", f.store, f.name, f.at, version)
	own := filepath.Join(d.dir, "orchestrators", leader.Name)
	var hold armed
	if f.at != "before-write-engine" {
		hold = arm(d.t, own, f.at+" stop")
	}
	id := d.cli("deploy", "-f", d.cluster.spec(d.spec(version)), "-o", "json", "--detach").must(d.t, 0).View.DeployID
	if f.at == "before-write-engine" { // there is one in every step: the first is the answer to whoever asked
		hold = arm(d.t, own, f.at+" stop")
	}
	d.eventually(what+": the moment has come", hold.reached)
	heal := d.fail(f, leader)
	d.signal(leader.PID, syscall.SIGCONT)
	watch := d.background("watch", id, "-o", "json", "--timeout", "5m", "--wait-for", "drained")
	if f.lasts > 0 {
		<-time.After(f.lasts)
	} else {
		d.eventually(what+": another one leads", func() bool {
			return slices.ContainsFunc(d.refresh().Orchestrators, func(o devOrchestrator) bool { return o.Name != leader.Name && o.leads() })
		})
	}
	healed := time.Now()
	heal()
	res := watch.wait()
	if !slices.Contains(f.code, res.Code) {
		d.t.Fatalf("%s: want exit %v, got %v", what, f.code, res)
	}
	if res.Code == 0 {
		d.evident(res.View)
		d.serving = version
	}
	d.eventually(what+": "+leader.Name+" takes part again", func() bool { return d.led.orchestrator(leader.Name).standing().Role != "" })
	d.rest(what)
	if end := d.view(id); end.State != res.View.State {
		d.t.Fatalf("%s: exit %d, and then %s", what, res.Code, end.State)
	}
	if res.Code != 0 {
		d.asBefore(before, what)
	}
	d.t.Logf("%s: exit %d %s; the fault lasted %s, all %s", what, res.Code, res.View.Reason, healed.Sub(began).Round(100*time.Millisecond), time.Since(began).Round(100*time.Millisecond))
}

// fail makes it happen; the returned function ends it.
func (d *storeDrill) fail(f storeFault, leader devOrchestrator) (heal func()) {
	network := d.networks[leader.Name+" "+f.store]
	switch {
	case f.delay > 0:
		network.Delay(f.delay)
		return func() { network.Delay(0) }
	case f.mode != netfault.Pass:
		network.Set(f.mode)
		return func() { network.Set(netfault.Pass) }
	case f.store == "redis":
		d.led.redis.Freeze()
		return d.led.redis.Thaw
	default:
		d.led.consul.Freeze()
		return d.led.consul.Thaw
	}
}
