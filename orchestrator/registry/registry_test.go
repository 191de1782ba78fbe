package registry_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/pki"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/registry/hosttest"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const patience = 30 * time.Second

// events collects what the Handler hears, as text.
type events struct{ ch chan string }

func newEvents() *events { return &events{ch: make(chan string, 1024)} }

func (e *events) HostConnected(_ context.Context, host string, first *lbagentv1.WatchResponse) {
	e.ch <- fmt.Sprintf("%s connected complete=%t", host, first.GetComplete())
}
func (e *events) HostReported(context.Context, string, *lbagentv1.WatchResponse) {}
func (e *events) HostDisconnected(_ context.Context, host string, reason string) {
	e.ch <- host + " disconnected: " + reason
}

func (e *events) HostAhead(_ context.Context, host string, seen uint64) {
	e.ch <- fmt.Sprintf("%s has seen epoch %d", host, seen)
}

func (e *events) want(t *testing.T, prefix string) string {
	t.Helper()
	select {
	case got := <-e.ch:
		if !strings.HasPrefix(got, prefix) {
			t.Fatalf("event %q, want %q", got, prefix)
		}
		return got
	case <-time.After(patience):
		t.Fatalf("no event, want %q", prefix)
	}
	return ""
}

func open(t *testing.T, s store.Store, hosts ...registry.Host) *registry.Registry {
	t.Helper()
	return openWith(t, patience, s, hosts...)
}

// openWith is open for tests of a Host that is silent: for so long it may say nothing.
func openWith(t *testing.T, heartbeat time.Duration, s store.Store, hosts ...registry.Host) *registry.Registry {
	t.Helper()
	r, err := registry.New(t.Context(), registry.Options{
		Cluster: "test", Groups: []registry.Group{{Name: "empty"}}, Hosts: hosts, Store: s, Fence: store.Fence{Epoch: 1},
		Logger: slog.New(slog.DiscardHandler), Heartbeat: heartbeat,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestViewsAreNumberedAndDurable(t *testing.T) {
	s := memstore.New()
	a := registry.Host{Name: "a", Group: "public", AgentURL: "http://127.0.0.1:1"}
	b := registry.Host{Name: "b", Group: "public", AgentURL: "http://127.0.0.1:2"}
	c := registry.Host{Name: "c", Group: "public", AgentURL: "http://127.0.0.1:3"}
	for i, step := range []struct {
		hosts []registry.Host
		want  string
	}{
		{[]registry.Host{b, a}, "1 [a b]"},
		{[]registry.Host{a, b}, "1 [a b]"},
		{[]registry.Host{a}, "1 [a b]"},       // only an operator takes a member out
		{[]registry.Host{a, b, c}, "1 [a b]"}, // c joins when it holds what is committed
	} {
		v, ok := open(t, s, step.hosts...).View("public")
		if got := fmt.Sprint(v.Number, v.Hosts); !ok || got != step.want {
			t.Errorf("start %d: view %s, want %s", i, got, step.want)
		}
		rec, err := s.Get(t.Context(), registry.ViewKey("public"))
		if err != nil || rec.Revision != v.Revision {
			t.Errorf("start %d: record at %d (%v), view at %d", i, rec.Revision, err, v.Revision)
		}
	}
	r := open(t, s, a)
	if v, ok := r.View("empty"); !ok || len(v.Hosts) != 0 || v.Number == 0 {
		t.Errorf("a declared group without hosts: %+v %t", v, ok)
	}
	if _, ok := r.View("unknown"); ok {
		t.Error("an unknown group has a view")
	}
}

func TestBadDeclarations(t *testing.T) {
	ok := registry.Host{Name: "a", Group: "public", AgentURL: "http://127.0.0.1:1"}
	for want, hosts := range map[string][]registry.Host{
		"declared twice":     {ok, ok},
		"host name":          {{Name: "a/b", Group: "public", AgentURL: ok.AgentURL}},
		"group name":         {{Name: "a", Group: "", AgentURL: ok.AgentURL}},
		"want http://":       {{Name: "a", Group: "public", AgentURL: "127.0.0.1:1"}},
		"loopback":           {{Name: "a", Group: "public", AgentURL: "http://10.0.0.1:1"}},
		"loopback addresses": {{Name: "a", Group: "public", AgentURL: "http://example.com:1"}},
	} {
		_, err := registry.New(t.Context(), registry.Options{Hosts: hosts, Store: memstore.New(), Logger: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want an error with %q", hosts, err, want)
		}
	}
}

func TestLinkFollowsItsHost(t *testing.T) {
	h := hosttest.Start(t, "lb1", "public")
	// A machine that stands still for so long makes silence of this Host's heartbeats.
	r := openWith(t, 3*time.Second, memstore.New(), registry.Host{Name: "lb1", Group: "public", AgentURL: h.URL})
	e := newEvents()
	r.Start(t.Context(), e)
	defer r.Stop()
	e.want(t, "lb1 connected complete=true")
	info := r.Link("lb1").Info()
	if !info.Connected || info.Problem != "" || info.State.GetProxy() != "haproxy" || info.LastSeen.IsZero() {
		t.Errorf("info of a connected host: %+v", info)
	}

	h.Kill()
	e.want(t, "lb1 disconnected")
	if _, err := r.Link("lb1").Client().Show(t.Context(), connect.NewRequest(&lbagentv1.ShowRequest{})); err == nil {
		t.Error("a call to a killed host was answered")
	} else if got := registry.Plain(err); !strings.Contains(got, "its lbagent does not run") {
		t.Errorf("error %q does not say what is wrong", got)
	}
	h.Restart(t)
	e.want(t, "lb1 connected")

	// A stopped agent keeps its connections: only its silence tells.
	h.Freeze()
	if got := e.want(t, "lb1 disconnected"); !strings.Contains(got, "said nothing for 3s") {
		t.Errorf("reason %q, want the silence", got)
	}
	h.Thaw()
	e.want(t, "lb1 connected")
}

func TestAStrangerIsNotConnected(t *testing.T) {
	h := hosttest.Start(t, "lb2", "public")
	r := open(t, memstore.New(), registry.Host{Name: "lb1", Group: "public", AgentURL: h.URL})
	e := newEvents()
	r.Start(t.Context(), e)
	defer r.Stop()
	deadline := time.Now().Add(patience)
	for !strings.Contains(r.Link("lb1").Info().Problem, `answered by host "lb2"`) {
		if time.Now().After(deadline) {
			t.Fatalf("problem %q does not name the stranger", r.Link("lb1").Info().Problem)
		}
		time.Sleep(5 * time.Millisecond)
	}
	select {
	case got := <-e.ch:
		t.Errorf("event %q of a stranger", got)
	default:
	}
}

func TestHigherEpochIsAProblem(t *testing.T) {
	h := hosttest.Start(t, "lb1", "public")
	r := open(t, memstore.New(), registry.Host{Name: "lb1", Group: "public", AgentURL: h.URL})
	// Another leader has been there.
	req := &lbagentv1.VerifyRequest{Fence: &lbagentv1.Fence{Epoch: 9}}
	if _, err := r.Link("lb1").Client().Verify(t.Context(), connect.NewRequest(req)); err != nil {
		t.Fatal(err)
	}
	e := newEvents()
	r.Start(t.Context(), e)
	defer r.Stop()
	e.want(t, "lb1 has seen epoch 9")
	deadline := time.Now().Add(patience)
	for !strings.Contains(r.Link("lb1").Info().Problem, "stale epoch") {
		if time.Now().After(deadline) {
			t.Fatalf("problem %q does not speak of the epoch", r.Link("lb1").Info().Problem)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// An address may lead to another Host of the cluster, which has a certificate, too: that of its own name.
func TestACertifiedStrangerIsNotConnected(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.OpenAuthority(filepath.Join(dir, "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	conf := func(role, name, peer string) *tls.Config {
		if err := ca.Issue(filepath.Join(dir, name), role, name, net.IPv4(127, 0, 0, 1)); err != nil {
			t.Fatal(err)
		}
		c, err := pki.Config(filepath.Join(dir, name), "test", peer)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	asked := make(chan string, 1)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.URL.Path:
		default:
		}
	}))
	srv.TLS = conf("lbagent", "lb6", "orchestrator")
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	orch := conf("orchestrator", "orch", "lbagent")
	r := open(t, memstore.New(), registry.Host{Name: "lb1", Group: "public", AgentURL: srv.URL, TLS: orch}, registry.Host{Name: "lb6", Group: "public", AgentURL: srv.URL, TLS: orch})
	r.Start(t.Context(), newEvents())
	defer r.Stop()
	deadline := time.Now().Add(patience)
	for !strings.Contains(r.Link("lb1").Info().Problem, `the peer's certificate is that of lbagent ["lb6"], not of "lb1"`) {
		if time.Now().After(deadline) {
			t.Fatalf("problem %q does not name the stranger", r.Link("lb1").Info().Problem)
		}
		time.Sleep(5 * time.Millisecond)
	}
	select {
	case <-asked: // by the link of lb6, whose certificate it is
	case <-time.After(patience):
		t.Fatalf("the host itself is not asked: %s", r.Link("lb6").Info().Problem)
	}
}

// slowly is a Handler that takes its time to hear of an end.
type slowly struct {
	*events
	release chan struct{}
}

func (s slowly) HostDisconnected(ctx context.Context, host string, reason string) {
	<-s.release
	s.events.HostDisconnected(ctx, host, reason)
}

// A Host that was removed and admitted again, elsewhere, is heard of in order: the old link's end before the new one's beginning.
func TestAHostThatMovesIsHeardInOrder(t *testing.T) {
	old, next := hosttest.Start(t, "lb1", "public"), hosttest.Start(t, "lb1", "public")
	s := memstore.New()
	r := open(t, s, registry.Host{Name: "lb1", Group: "public", AgentURL: old.URL})
	e := slowly{newEvents(), make(chan struct{})}
	r.Start(t.Context(), e)
	defer r.Stop()
	e.want(t, "lb1 connected")
	become := func(standing registry.Standing, url string) {
		t.Helper()
		m, _ := r.Member("lb1")
		m.Standing, m.AgentURL, m.Last.At = standing, url, time.Now()
		ops, install := r.Change(m, "test")
		rev, err := s.Commit(t.Context(), store.Fence{Epoch: 1}, ops...)
		if err != nil {
			t.Fatal(err)
		}
		install(rev)
	}
	become(registry.Removed, old.URL)
	become(registry.Joining, next.URL)
	select {
	case got := <-e.ch:
		t.Errorf("event %q before the old link has ended", got)
	case <-time.After(100 * time.Millisecond): // it cannot be waited for that nothing comes
	}
	close(e.release)
	e.want(t, "lb1 disconnected")
	e.want(t, "lb1 connected")
}
