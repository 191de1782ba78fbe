package conductor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/registry/hosttest"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
	"github.com/cutover/cutover/orchestrator/txn"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// patience bounds every wait of the tests.
const patience = 30 * time.Second

// recorder is a Listener that keeps everything it hears and lets tests wait for it.
type recorder struct {
	mu      sync.Mutex
	changed chan struct{}
	status  map[string][]txn.Status
	drained []txn.Drained
	amended []txn.Amended
	hosts   int
}

func newRecorder() *recorder {
	return &recorder{changed: make(chan struct{}), status: map[string][]txn.Status{}}
}

func (r *recorder) note(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *recorder) TxnChanged(s txn.Status) {
	r.note(func() { r.status[s.ID] = append(r.status[s.ID], s) })
}
func (r *recorder) TxnDrained(d txn.Drained) { r.note(func() { r.drained = append(r.drained, d) }) }
func (r *recorder) Amended(a txn.Amended)    { r.note(func() { r.amended = append(r.amended, a) }) }
func (r *recorder) HostsChanged()            { r.note(func() { r.hosts++ }) }

// until waits until ok, which is called with the lock held, says yes.
func (r *recorder) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		yes, changed := ok(), r.changed
		r.mu.Unlock()
		if yes {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("waited in vain for %s; heard: %s", what, r.story())
		}
	}
}

func (r *recorder) story() string {
	var b strings.Builder
	for id, list := range r.status {
		for _, s := range list {
			fmt.Fprintf(&b, "\n%s: %v cause=%q reason=%q", id, s.Phase, s.Cause, s.Reason)
			for _, h := range s.Hosts {
				fmt.Fprintf(&b, " %s=%s(%s)", h.Host, h.Vote, h.Reason)
			}
		}
	}
	fmt.Fprintf(&b, "\ndrained: %+v\namended: %+v", r.drained, r.amended)
	return b.String()
}

// last returns the newest status of a transaction; the lock must be held.
func (r *recorder) last(id string) txn.Status {
	if l := r.status[id]; len(l) > 0 {
		return l[len(l)-1]
	}
	return txn.Status{}
}

// amend returns what was told last of an Amendment; ok: anything was. The lock must be held.
func (r *recorder) amend(id string) (last txn.Amended, ok bool) {
	for _, a := range r.amended {
		if a.ID == id {
			last, ok = a, true
		}
	}
	return last, ok
}

// toldOf is amend for those who do not hold the lock.
func (r *recorder) toldOf(id string) (last txn.Amended, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.amend(id)
}

// phase waits until the transaction is in one of the phases and returns its status.
func (r *recorder) phase(t *testing.T, id string, phases ...txn.Phase) txn.Status {
	t.Helper()
	var s txn.Status
	r.until(t, fmt.Sprintf("%s to be %v", id, phases), func() bool {
		s = r.last(id)
		return slices.Contains(phases, s.Phase)
	})
	return s
}

// end waits for an end of the transaction and requires that it is this one.
func (r *recorder) end(t *testing.T, id string, want txn.Phase) txn.Status {
	t.Helper()
	s := r.phase(t, id, txn.Committed, txn.RolledBack, txn.StuckRestoring)
	if s.Phase != want {
		t.Fatalf("%s ended %v (cause %q, reason %q), want %v", id, s.Phase, s.Cause, s.Reason, want)
	}
	return s
}

// crashStore is a store that can stop answering as if the process were gone before a Commit reached it, and run a hook.
type crashStore struct {
	store.Store
	mu     sync.Mutex
	before func(ops []store.Op) error
}

func (s *crashStore) Commit(ctx context.Context, f store.Fence, ops ...store.Op) (store.Revision, error) {
	s.mu.Lock()
	before := s.before
	s.mu.Unlock()
	if before != nil {
		if err := before(ops); err != nil {
			return 0, err
		}
	}
	return s.Store.Commit(ctx, f, ops...)
}

func (s *crashStore) hook(f func(ops []store.Op) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

// cluster is Hosts, a store, and one conductor after the other.
type cluster struct {
	t       *testing.T
	store   *crashStore
	hosts   map[string]*hosttest.Host
	declare []registry.Host
	groups  []registry.Group
	exact   bool // what is not declared was taken down
	epoch   uint64
	source  Source // nil: no catalog
	rules   txn.Rules
	// heartbeat is how long a Host may say nothing.
	heartbeat time.Duration
	keep      int // KeepEnded; 0: the default

	*Conductor
	heard *recorder
	fatal chan error
	ahead chan uint64 // what HigherEpoch was told
}

// patient are rules under which nothing is given up on because the machine is slow.
func patient() txn.Rules {
	r := txn.DefaultRules()
	r.HostWait, r.Restore, r.Tidy = patience, patience, patience
	r.RetryMin, r.RetryMax = 5*time.Millisecond, 50*time.Millisecond
	return r
}

// What an impatient cluster has instead: a Host that is away is given up on, and one that is silent is away.
const (
	shortHostWait  = time.Second
	shortRestore   = 600 * time.Millisecond
	shortHeartbeat = 1500 * time.Millisecond
)

// newCluster starts the named Hosts in group public, and a conductor that waits for them with patience.
func newCluster(t *testing.T, names ...string) *cluster {
	t.Helper()
	return startCluster(t, patient(), patience, names...)
}

// newImpatient is newCluster for tests of what becomes of a Host that is missing: killed, or silent.
func newImpatient(t *testing.T, names ...string) *cluster {
	t.Helper()
	rules := patient()
	rules.HostWait, rules.Restore, rules.Tidy = shortHostWait, shortRestore, txn.DefaultRules().Tidy
	return startCluster(t, rules, shortHeartbeat, names...)
}

func startCluster(t *testing.T, rules txn.Rules, heartbeat time.Duration, names ...string) *cluster {
	t.Helper()
	cl := &cluster{
		t: t, store: &crashStore{Store: memstore.New()}, hosts: map[string]*hosttest.Host{}, groups: []registry.Group{{Name: "public"}},
		rules: rules, heartbeat: heartbeat,
	}
	for _, name := range names {
		h := hosttest.Start(t, name, "public")
		cl.hosts[name] = h
		cl.declare = append(cl.declare, registry.Host{Name: name, Group: "public", AgentURL: h.URL})
	}
	cl.start()
	t.Cleanup(func() { cl.Stop() })
	return cl
}

// start begins the next term.
func (cl *cluster) start() {
	cl.t.Helper()
	cl.epoch++
	level := slog.New(slog.DiscardHandler)
	if os.Getenv("CONDUCTOR_TEST_LOG") != "" {
		level = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	reg, err := registry.New(cl.t.Context(), registry.Options{
		Cluster: "test", Groups: cl.groups, Hosts: cl.declare, Exact: cl.exact, Catalog: cl.source != nil, Store: cl.store, Fence: store.Fence{Epoch: cl.epoch}, Logger: level,
		Heartbeat: cl.heartbeat,
	})
	if err != nil {
		cl.t.Fatal(err)
	}
	cl.heard = newRecorder()
	cl.fatal, cl.ahead = make(chan error, 10), make(chan uint64, 10)
	cl.Conductor, err = New(Options{
		Registry: reg, Store: cl.store, Fence: store.Fence{Epoch: cl.epoch}, Listener: cl.heard, Logger: level, Source: cl.source, Rules: cl.rules,
		Fatal: func(err error) { cl.fatal <- err }, HigherEpoch: func(_ string, seen uint64) { cl.ahead <- seen },
		Sweep: 100 * time.Millisecond, KeepEnded: cl.keep,
	})
	if err != nil {
		cl.t.Fatal(err)
	}
	if err := cl.Start(context.Background()); err != nil {
		cl.t.Fatal(err)
	}
}

// restart ends the term as a crash does, apart from writes that had begun, and begins the next one.
func (cl *cluster) restart() {
	cl.t.Helper()
	cl.Stop()
	cl.store.hook(nil)
	cl.start()
}

// up waits until all Hosts are connected.
func (cl *cluster) up() *cluster {
	cl.t.Helper()
	defer eventually(cl.t, "all hosts to know whether they may get traffic", func() bool {
		for _, h := range cl.Hosts() {
			if h.State != nil && h.State.GetTraffic().GetOrder() == lbagentv1.TrafficOrder_TRAFFIC_ORDER_UNSPECIFIED {
				return false
			}
		}
		return true
	})
	cl.heard.until(cl.t, "all hosts to be connected", func() bool {
		for _, h := range cl.Hosts() {
			if !h.Connected {
				return false
			}
		}
		return true
	})
	return cl
}

// missed waits until the conductor knows that the Host is away.
func (cl *cluster) missed(name string) {
	cl.t.Helper()
	eventually(cl.t, name+" to be missed", func() bool {
		up := true
		_ = cl.ask(cl.t.Context(), func() { up = cl.Conductor.hosts[name].up })
		return !up
	})
}

func upstream(name string) *lbagentv1.Upstream {
	return &lbagentv1.Upstream{Name: name, Address: "127.0.0.1:80", Weight: 100}
}

func target(app string, names ...string) *lbagentv1.Section {
	s := &lbagentv1.Section{App: app, Routes: []*lbagentv1.Route{{Host: "*", Path: "/" + app}}, Drain: durationpb.New(time.Second)}
	for _, n := range names {
		s.Upstreams = append(s.Upstreams, upstream(n))
	}
	return s
}

// proposal moves shop in group public to the named upstreams; none: it removes the Section.
func proposal(id string, names ...string) txn.Proposal {
	ch := txn.GroupChange{Group: "public", App: "shop"}
	if len(names) > 0 {
		ch.Target = target("shop", names...)
	}
	return txn.Proposal{ID: id, Deploy: "d-" + id, App: "shop", Changes: []txn.GroupChange{ch}, Deadline: time.Now().Add(20 * time.Second),
		Actor: "kim", Reason: "test"}
}

func (cl *cluster) begin(p txn.Proposal) {
	cl.t.Helper()
	if err := cl.Begin(cl.t.Context(), p); err != nil {
		cl.t.Fatal(err)
	}
}

// commit runs a transaction that must commit.
func (cl *cluster) commit(id string, names ...string) txn.Status {
	cl.t.Helper()
	cl.begin(proposal(id, names...))
	return cl.heard.end(cl.t, id, txn.Committed)
}

// eventually polls something that has no event.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// holds waits until every named Host holds exactly these committed upstreams of shop.
func (cl *cluster) holds(names []string, hosts ...string) {
	cl.t.Helper()
	for _, h := range hosts {
		eventually(cl.t, fmt.Sprintf("%s to hold %v", h, names), func() bool {
			got, _ := cl.hosts[h].Committed("shop")
			return slices.Equal(got, names)
		})
	}
}

// settled waits until the Host has been heard after now, and nothing follows from what it said: every report of before, on its
// way for however long, has been looked at.
func (cl *cluster) settled(name string) {
	cl.t.Helper()
	now := time.Now()
	eventually(cl.t, name+" to be heard", func() bool { return cl.reg.Link(name).Info().SentAt.After(now) })
	eventually(cl.t, name+" to be settled", func() bool {
		busy := true
		_ = cl.ask(cl.t.Context(), func() { h := cl.Conductor.hosts[name]; busy = h.look || h.syncing })
		return !busy
	})
}

func request[T any](m *T) *connect.Request[T] { return connect.NewRequest(m) }
