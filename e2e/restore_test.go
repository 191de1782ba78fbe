package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cutover/cutover/dev/supervisor"
	"github.com/cutover/cutover/internal/pki"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
	"github.com/cutover/cutover/proto/gen/cutover/lbagent/v1/lbagentv1connect"
)

// script plays the orchestrator towards one Host: it sends what it likes, when it likes, in a term of its own.
type script struct {
	t      *testing.T
	c      *cluster
	host   devHost
	client lbagentv1connect.HostServiceClient
	rng    *rand.Rand
	fence  *lbagentv1.Fence
	order  uint64
	// committed Sections by App; an App that was removed has the version of its removal and no Section.
	committed map[string]*lbagentv1.CommittedSection
	addresses []string // of upstreams that answer
	names     int
	did       map[string]int
}

// upstreams are servers that answer every check.
func upstreams(t *testing.T, n int) []string {
	t.Helper()
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }), ReadHeaderTimeout: 5 * time.Second}
	var out []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, ln.Addr().String())
		go func() { _ = srv.Serve(ln) }()
	}
	t.Cleanup(func() { _ = srv.Close() })
	return out
}

func newScript(t *testing.T, c *cluster, h devHost, rng *rand.Rand, addresses []string) *script {
	t.Helper()
	conf, err := pki.Config(filepath.Join(c.dir, "pki", "orchestrator"), "dev", "lbagent")
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &script{t: t, c: c, host: h, rng: rng, addresses: addresses, client: lbagentv1connect.NewHostServiceClient(&http.Client{Transport: transport}, h.AgentURL),
		// The epoch of the next term: the orchestrator that is started at the end to stop everything has it as well.
		fence:     &lbagentv1.Fence{Cluster: "dev", Group: "public", Epoch: 2, View: 1},
		committed: map[string]*lbagentv1.CommittedSection{}, did: map[string]int{}}
}

const scriptApps = 5

func (s *script) app() string { return fmt.Sprintf("app%d", s.rng.IntN(scriptApps)) }

// upstream makes one that was never there before; addresses come back.
func (s *script) upstream(app string) *lbagentv1.Upstream {
	s.names++
	return &lbagentv1.Upstream{Name: fmt.Sprintf("%s.%d", app, s.names), Address: s.addresses[s.rng.IntN(len(s.addresses))], Weight: uint32(1 + s.rng.IntN(256)),
		Health: &lbagentv1.Health{Kind: lbagentv1.HealthKind_HEALTH_KIND_HTTP, Path: fmt.Sprintf("/healthz/%d", s.rng.IntN(2)), Interval: durationpb.New(50 * time.Millisecond),
			Timeout: durationpb.New(time.Second), Rise: 1, Fall: 3}}
}

// next is a random target for the App; nil removes it.
func (s *script) next(app string) *lbagentv1.Section {
	var now *lbagentv1.Section
	if c := s.committed[app]; c != nil && !c.GetRemoved() {
		now = c.GetSection()
	}
	if now != nil && s.rng.IntN(6) == 0 {
		return nil
	}
	next := &lbagentv1.Section{App: app, Drain: durationpb.New(time.Second)}
	if now != nil {
		next = proto.Clone(now).(*lbagentv1.Section)
	}
	if now == nil || s.rng.IntN(3) == 0 {
		next.Routes = nil
		for i := range 1 + s.rng.IntN(2) {
			next.Routes = append(next.Routes, &lbagentv1.Route{Host: []string{"*", "a.example", "b.example"}[s.rng.IntN(3)],
				Path: fmt.Sprintf("/%s/%d%d", app, i, s.rng.IntN(3)), Strip: s.rng.IntN(2) == 0})
		}
	}
	if now == nil || s.rng.IntN(4) == 0 { // the other colour
		next.Upstreams = nil
	}
	next.Upstreams = slices.DeleteFunc(next.Upstreams, func(*lbagentv1.Upstream) bool { return s.rng.IntN(4) == 0 })
	for range s.rng.IntN(3) {
		next.Upstreams = append(next.Upstreams, s.upstream(app))
	}
	if len(next.Upstreams) == 0 {
		next.Upstreams = append(next.Upstreams, s.upstream(app))
	}
	// One address is in one task's hands.
	seen := map[string]bool{}
	next.Upstreams = slices.DeleteFunc(next.Upstreams, func(u *lbagentv1.Upstream) bool {
		again := seen[u.GetAddress()]
		seen[u.GetAddress()] = true
		return again
	})
	return next
}

// scripted is one transaction.
type scripted struct {
	id      string
	order   uint64
	changes []*lbagentv1.Change
}

func (s *script) begin() scripted {
	s.order++
	x := scripted{id: fmt.Sprintf("txn-%d", s.order), order: s.order}
	apps := map[string]bool{}
	for range 1 + s.rng.IntN(2) {
		app := s.app()
		if apps[app] {
			continue
		}
		apps[app] = true
		c := &lbagentv1.Change{App: app, Base: s.committed[app].GetVersion(), Target: s.next(app)}
		if c.Base == nil {
			c.Base = &lbagentv1.Version{}
		}
		x.changes = append(x.changes, c)
	}
	return x
}

func (x scripted) apps() (out []string) {
	for _, c := range x.changes {
		out = append(out, c.GetApp())
	}
	return out
}

const scriptDeadline = 30 * time.Second

func (s *script) prepare(ctx context.Context, x scripted) (*lbagentv1.Refusal, error) {
	resp, err := s.client.Prepare(ctx, connect.NewRequest(&lbagentv1.PrepareRequest{Fence: s.fence, TxnId: x.id, Order: x.order, Changes: x.changes,
		Origin: &lbagentv1.Origin{Actor: "script"}, Deadline: durationpb.New(scriptDeadline)}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetRefusal(), nil
}

func (s *script) activate(ctx context.Context, x scripted) (*lbagentv1.Refusal, error) {
	resp, err := s.client.Activate(ctx, connect.NewRequest(&lbagentv1.ActivateRequest{Fence: s.fence, TxnId: x.id, Order: x.order, Deadline: durationpb.New(scriptDeadline)}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetRefusal(), nil
}

// persist repeats a call until the Host has answered yes: an lbagent may be dying, or reloading its proxy.
func (s *script) persist(what string, call func(ctx context.Context) (*lbagentv1.Refusal, error)) {
	s.t.Helper()
	var last any
	for deadline := time.Now().Add(generous); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(s.t.Context(), generous)
		refusal, err := call(ctx)
		cancel()
		if err == nil && refusal == nil {
			return
		}
		if last = refusal; err != nil {
			last = err
		}
	}
	s.t.Fatalf("%s: %s: %v", s.host.Name, what, last)
}

// commits changes what later transactions start from. On a busy machine a proxy may be too slow for a vote: then the transaction
// is aborted, as a deploy would be, and nothing has changed.
func (s *script) commits(x scripted) {
	s.t.Helper()
	s.persist("prepare", func(ctx context.Context) (*lbagentv1.Refusal, error) { return s.prepare(ctx, x) })
	ctx, cancel := context.WithTimeout(s.t.Context(), generous)
	refusal, err := s.activate(ctx, x)
	cancel()
	if err != nil {
		s.t.Fatalf("%s: activate %s: %v", s.host.Name, x.id, err)
	}
	if refusal != nil {
		s.t.Logf("%s: %s is not committed: %v", s.host.Name, x.id, refusal)
		s.abort(x, "refused")
		return
	}
	s.persist("commit", func(ctx context.Context) (*lbagentv1.Refusal, error) {
		resp, err := s.client.Commit(ctx, connect.NewRequest(&lbagentv1.CommitRequest{Fence: s.fence, TxnId: x.id, Order: x.order}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetRefusal(), nil
	})
	s.took(x)
	s.did["committed"]++
}

// took notes that the transaction is committed.
func (s *script) took(x scripted) {
	for _, c := range x.changes {
		s.committed[c.GetApp()] = &lbagentv1.CommittedSection{Section: c.GetTarget(), Version: &lbagentv1.Version{Txn: x.order}, Removed: c.GetTarget() == nil}
	}
}

// ways are how far a transaction gets before it is aborted.
var ways = []string{"at once", "during Prepare", "Ready", "during Activate", "Verified", "Verified"}

// aborts brings a transaction somewhere, kills the lbagent perhaps, and aborts. The digests that Aborted proves are returned by App.
func (s *script) aborts(x scripted, way string, kill bool) map[string]string {
	s.t.Helper()
	calls, giveUp := context.WithCancel(s.t.Context())
	ended := make(chan struct{})
	soon := func() { <-time.After(time.Duration(s.rng.IntN(120)) * time.Millisecond) }
	go func() {
		defer close(ended)
		if way == "at once" {
			return
		}
		refusal, err := s.prepare(calls, x)
		if err != nil || refusal != nil || way == "during Prepare" || way == "Ready" {
			return
		}
		_, _ = s.activate(calls, x)
	}()
	if strings.HasPrefix(way, "during") {
		soon()
	} else {
		<-ended
	}
	if kill {
		// dev.json is as old as the orchestrator's death; the supervisor records who runs.
		if id, alive, err := supervisor.Read(filepath.Join(s.c.dir, "hosts", s.host.Name), "lbagent"); err == nil && alive && syscall.Kill(id.PID, syscall.SIGKILL) == nil {
			s.did["lbagent killed"]++
		}
	}
	digests := s.abort(x, way)
	giveUp()
	<-ended
	s.did["aborted, "+way]++
	return digests
}

// abort tells that the transaction is aborted until the Host has proved that it is as before; the digests by App.
func (s *script) abort(x scripted, way string) map[string]string {
	s.t.Helper()
	digests := map[string]string{}
	s.persist("abort "+way, func(ctx context.Context) (*lbagentv1.Refusal, error) {
		resp, err := s.client.Abort(ctx, connect.NewRequest(&lbagentv1.AbortRequest{Fence: s.fence, TxnId: x.id, Order: x.order, Apps: x.apps(),
			Origin: &lbagentv1.Origin{Actor: "script"}}))
		if err != nil {
			return nil, err
		}
		for _, e := range resp.Msg.GetAborted().GetEvidence() {
			digests[e.GetApp()] = e.GetDigest()
		}
		return resp.Msg.GetRefusal(), nil
	})
	return digests
}

// dump is the state of the Host: what the proxy itself says, and every file that it would load.
type dump struct {
	running string            // of all Apps, as the lbagent reads it
	digests map[string]string // the same, by App
	raw     string            // what the proxy says on its own socket, without us in between
	tree    string
	story   string // for people: what the lbagent says of each row
}

func (s *script) dump() (d dump, settled bool) {
	s.t.Helper()
	d.digests = map[string]string{}
	var show *lbagentv1.ShowResponse
	s.persist("show", func(ctx context.Context) (*lbagentv1.Refusal, error) {
		resp, err := s.client.Show(ctx, connect.NewRequest(&lbagentv1.ShowRequest{}))
		if err != nil {
			return nil, err
		}
		show = resp.Msg
		return nil, nil
	})
	settled = true
	var lines, story []string
	for _, sec := range show.GetSections() {
		settled = settled && sec.GetAgrees()
		story = append(story, sec.GetApp()+" "+sec.GetDifference())
		rows := slices.DeleteFunc(sec.GetRunning().GetUpstreams(), func(u *lbagentv1.UpstreamStatus) bool { return !u.GetRegistered() }) // it remembers who has left
		if len(rows) == 0 && len(sec.GetRunning().GetRoutes()) == 0 {
			continue // an App that is gone
		}
		d.digests[sec.GetApp()] = sec.GetRunning().GetDigest()
		for _, r := range sec.GetRunning().GetRoutes() {
			lines = append(lines, fmt.Sprintf("%s route %s %s %v", sec.GetApp(), r.GetHost(), r.GetPath(), r.GetStrip()))
		}
		for _, u := range rows {
			settled = settled && u.GetMode() == lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING
			lines = append(lines, fmt.Sprintf("%s %s %s %d %s", sec.GetApp(), u.GetName(), u.GetAddress(), u.GetWeight(), u.GetMode()))
			story = append(story, fmt.Sprintf("%s %s %s, %d sessions, drained %v, forced %v, %s", u.GetName(), u.GetAddress(), u.GetMode(), u.GetSessions(), u.GetDrained(), u.GetForced(), u.GetStatus()))
		}
	}
	sort.Strings(lines)
	d.running, d.story = strings.Join(lines, "\n"), strings.Join(story, "\n")
	if s.host.Driver == "haproxy" {
		d.raw = s.rawHAProxy()
	}
	d.tree = s.c.treeDigest(s.host.Name)
	return d, settled
}

// rawHAProxy asks HAProxy itself for its servers (name, address, port, weight, administrative state), its routes and the
// health paths of its servers. Servers in maintenance are tombstones, and no part of the state, nor are their health paths.
func (s *script) rawHAProxy() string {
	s.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(s.c.dir, "hosts", s.host.Name, "run", "haproxy.sock"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	current := filepath.Join(s.c.dir, "hosts", s.host.Name, "proxy", "current")
	if _, err := fmt.Fprintf(conn, "show servers state;show map %s;show map %s\n", filepath.Join(current, "routes.map"), filepath.Join(current, "health.map")); err != nil {
		s.t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		s.t.Fatal(err)
	}
	const maint = 0x01 | 0x02 | 0x04 // forced, inherited, by its configuration
	var lines []string
	alive, paths := map[string]string{}, map[string]string{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 3 && strings.HasPrefix(f[0], "0x") && strings.Contains(f[1], "|"):
			lines = append(lines, "route "+f[1]+" "+f[2])
		case len(f) == 3 && strings.HasPrefix(f[0], "0x"):
			paths[f[1]] = f[2]
		case len(f) > 18 && f[0] != "#":
			var admin int
			if _, err := fmt.Sscan(f[6], &admin); err != nil {
				s.t.Fatalf("haproxy says %q", line)
			}
			if name, _, _ := strings.Cut(f[3], ":"); admin&maint == 0 && strings.HasPrefix(name, "app") {
				lines = append(lines, fmt.Sprintf("server %s %s:%s weight %s state %d", name, f[4], f[18], f[7], admin))
				alive[f[3]] = name
			}
		}
	}
	for server, path := range paths {
		if name, ok := alive[server]; ok {
			lines = append(lines, "health path "+name+" "+path)
		}
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// settledDump waits until nothing moves on the Host.
func (s *script) settledDump(what string) dump {
	s.t.Helper()
	for deadline := time.Now().Add(generous); ; <-time.After(10 * time.Millisecond) {
		d, settled := s.dump()
		if settled {
			return d
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: %s, and it does not settle:\n%s", s.host.Name, what, d.story)
		}
	}
}

// equal waits until the Host is as before: what was warm may be on its way out for a moment.
func (s *script) equal(before dump, what string) {
	s.t.Helper()
	for deadline := time.Now().Add(generous); ; <-time.After(10 * time.Millisecond) {
		after, settled := s.dump()
		same := settled && after.running == before.running && after.raw == before.raw && after.tree == before.tree
		if same {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("UNDO: %s: %s, and the Host is not as before (settled %v, tree equal %v):\nbefore\n%s\n%s\nafter\n%s\n%s", s.host.Name, what, settled,
				after.tree == before.tree, before.running, before.raw, after.running+"\n"+after.story, after.raw)
		}
	}
}

// Restore equality: after an aborted transaction, what the proxy runs and what is on its disk is what it was, byte for byte,
// whatever the transaction was to change, however far it had come, and whether or not the lbagent was killed meanwhile. On each
// driver RESTORE_TXNS transactions (make soak: 1,000), drawn by RESTORE_SEED.
func TestRestoreEquality(t *testing.T) {
	amount, long := amountOf(t, "RESTORE_TXNS", 60), os.Getenv("RESTORE_TXNS") != ""
	seed, _ := seedOf(t, "RESTORE_SEED")
	c := newCluster(t, "haproxy=1,nginx=1,nginx-reload=1")
	c.kill9() // its Hosts go on; from here on the script is their orchestrator
	addresses := upstreams(t, 24)
	for i, h := range c.info.Hosts {
		t.Run(h.Driver, func(t *testing.T) {
			t.Parallel()
			s := newScript(t, c, h, rand.New(rand.NewPCG(seed, uint64(i))), addresses)
			for range 3 {
				s.commits(s.begin())
			}
			began, amount := time.Now(), amount
			if h.Driver == "nginx-reload" && !long {
				amount /= 4 // each of them reloads
			}
			for n := range amount {
				if s.rng.IntN(8) == 0 {
					s.commits(s.begin())
				}
				before := s.settledDump("before a transaction")
				x := s.begin()
				way, kill := ways[s.rng.IntN(len(ways))], s.rng.IntN(6) == 0
				what := fmt.Sprintf("transaction %d of %d, aborted %s, lbagent killed %v: %v", n+1, amount, way, kill, x.changes)
				for app, digest := range s.aborts(x, way, kill) {
					if want := before.digests[app]; want != "" && digest != want {
						t.Fatalf("UNDO: %s: Aborted proves %s of %s, want %s", what, digest, app, want)
					}
				}
				s.equal(before, what)
			}
			t.Logf("RESTORE_SEED=%d: %d aborted transactions in %s, each as before: %v", seed, amount, time.Since(began).Round(time.Millisecond), s.did)
		})
	}
}
