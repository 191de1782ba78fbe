package lbagent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant/journal"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
	"github.com/cutover/cutover/proto/gen/cutover/lbagent/v1/lbagentv1connect"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const patience = 30 * time.Second

// host is an Agent under test on a fake proxy, reached over real HTTP.
type host struct {
	t      *testing.T
	proxy  *fakeProxy
	driver *fakeDriver
	dir    string
	fs     journal.FS
	agent  *Agent
	client lbagentv1connect.HostServiceClient
	http   *http.Client
	epoch  uint64
	// frontend is where clients reach the proxy.
	frontend []netip.AddrPort
	// readyListen is where upstream balancers ask.
	readyListen string
}

func newHost(t *testing.T) *host {
	h := &host{t: t, proxy: newFakeProxy(), dir: t.TempDir(), epoch: 1}
	t.Cleanup(func() {
		h.stop()
		h.proxy.with(func() {
			if h.proxy.overlap != nil {
				t.Error(h.proxy.overlap)
			}
		})
	})
	return h
}

func (h *host) start() *host {
	h.t.Helper()
	h.driver = h.proxy.driver()
	level := slog.LevelInfo
	a, err := New(Options{Name: "lb1", Group: "public", Cluster: "test", Dir: h.dir, Listen: "127.0.0.1:0", Driver: h.driver,
		Version: "test", Logger: slog.New(slog.NewTextHandler(testWriter{h.t}, &slog.HandlerOptions{Level: level})), JournalFS: h.fs, JournalSize: 4 << 10, Frontend: h.frontend, ReadyListen: h.readyListen,
		WatchProcess: func(int) (ProcessWatch, time.Time, error) {
			return &lasting{closed: make(chan struct{})}, time.Time{}, nil
		}})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := a.Start(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.agent = a
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	h.http = &http.Client{Transport: &http.Transport{Protocols: protocols}}
	h.client = lbagentv1connect.NewHostServiceClient(h.http, "http://"+a.Addr().String())
	return h
}

func (h *host) stop() {
	if h.agent == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.agent.Stop(ctx); err != nil && !errors.Is(err, errInjected) {
		h.t.Error(err)
	}
	h.http.CloseIdleConnections()
	select {
	case <-h.driver.closed:
	default:
		h.t.Error("the driver was not closed")
	}
	h.agent = nil
}

// testWriter shows the agent's log with the test's output.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if testing.Verbose() {
		_, _ = os.Stderr.Write(p)
	}
	return len(p), nil
}

func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *host) fence() *lbagentv1.Fence {
	return &lbagentv1.Fence{Cluster: "test", Group: "public", Epoch: h.epoch, View: 1}
}

func pbSection(app string, names ...string) *lbagentv1.Section {
	s := &lbagentv1.Section{App: app, Spec: 1, Routes: []*lbagentv1.Route{{Host: "*", Path: "/" + app}}, Drain: durationpb.New(time.Minute)}
	for _, n := range names {
		s.Upstreams = append(s.Upstreams, pbUpstream(n))
	}
	return s
}

func pbUpstream(name string) *lbagentv1.Upstream {
	return &lbagentv1.Upstream{Name: name, Address: "127.0.0.1:8080", Weight: 100, TaskId: "task-" + name,
		Health: &lbagentv1.Health{Kind: lbagentv1.HealthKind_HEALTH_KIND_HTTP, Path: "/healthz", Interval: durationpb.New(50 * time.Millisecond),
			Timeout: durationpb.New(50 * time.Millisecond), Rise: 1, Fall: 1}}
}

func (h *host) prepareReq(id string, order, base uint64, target *lbagentv1.Section) *connect.Request[lbagentv1.PrepareRequest] {
	app := "shop"
	if target != nil {
		app = target.GetApp()
	}
	return connect.NewRequest(&lbagentv1.PrepareRequest{Fence: h.fence(), TxnId: id, Order: order, Deadline: durationpb.New(20 * time.Second),
		Origin:  &lbagentv1.Origin{Actor: "test", Reason: "because", Deploy: "d1"},
		Changes: []*lbagentv1.Change{{App: app, Base: &lbagentv1.Version{Txn: base}, Target: target}}})
}

func (h *host) prepare(id string, order, base uint64, target *lbagentv1.Section) *lbagentv1.PrepareResponse {
	h.t.Helper()
	r, err := h.client.Prepare(h.ctx(), h.prepareReq(id, order, base, target))
	if err != nil {
		h.t.Fatalf("prepare %s: %v", id, err)
	}
	return r.Msg
}

func (h *host) mustPrepare(id string, order, base uint64, target *lbagentv1.Section) {
	h.t.Helper()
	if r := h.prepare(id, order, base, target); r.GetReady() == nil {
		h.t.Fatalf("prepare %s: %v", id, r)
	}
}

func (h *host) activate(id string, order uint64) *lbagentv1.ActivateResponse {
	h.t.Helper()
	r, err := h.client.Activate(h.ctx(), connect.NewRequest(&lbagentv1.ActivateRequest{Fence: h.fence(), TxnId: id, Order: order,
		Deadline: durationpb.New(20 * time.Second)}))
	if err != nil {
		h.t.Fatalf("activate %s: %v", id, err)
	}
	return r.Msg
}

func (h *host) mustActivate(id string, order uint64) *lbagentv1.Verified {
	h.t.Helper()
	r := h.activate(id, order)
	if r.GetVerified() == nil {
		h.t.Fatalf("activate %s: %v", id, r)
	}
	return r.GetVerified()
}

func (h *host) commit(id string, order uint64) *lbagentv1.CommitResponse {
	h.t.Helper()
	r, err := h.client.Commit(h.ctx(), connect.NewRequest(&lbagentv1.CommitRequest{Fence: h.fence(), TxnId: id, Order: order}))
	if err != nil {
		h.t.Fatalf("commit %s: %v", id, err)
	}
	return r.Msg
}

func (h *host) abort(id string, order uint64) *lbagentv1.AbortResponse {
	h.t.Helper()
	r, err := h.client.Abort(h.ctx(), connect.NewRequest(&lbagentv1.AbortRequest{Fence: h.fence(), TxnId: id, Order: order, Apps: []string{"shop"}}))
	if err != nil {
		h.t.Fatalf("abort %s: %v", id, err)
	}
	return r.Msg
}

func (h *host) verify(id string) *lbagentv1.VerifyResponse_Answer {
	h.t.Helper()
	r, err := h.client.Verify(h.ctx(), connect.NewRequest(&lbagentv1.VerifyRequest{Fence: h.fence(), TxnIds: []string{id}}))
	if err != nil {
		h.t.Fatalf("verify %s: %v", id, err)
	}
	return r.Msg.GetAnswers()[0]
}

func (h *host) deploy(id string, order, base uint64, target *lbagentv1.Section) {
	h.t.Helper()
	h.mustPrepare(id, order, base, target)
	h.mustActivate(id, order)
	if r := h.commit(id, order); r.GetCommitted() == nil {
		h.t.Fatalf("commit %s: %v", id, r)
	}
}

// eventually waits for something that the agent does by itself.
func (h *host) eventually(what string, ok func() bool) {
	h.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			h.t.Fatalf("never: %s (%v)", what, h.proxy.modes("shop"))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (h *host) expect(app string, want map[string]driver.Mode) {
	h.t.Helper()
	h.eventually("the proxy holds the expected set", func() bool {
		got := h.proxy.modes(app)
		if len(got) != len(want) {
			return false
		}
		for n, m := range want {
			if got[n] != m {
				return false
			}
		}
		return true
	})
}

var errInjected = errors.New("no space left on device")

// brokenFS fails writes while it is told to.
type brokenFS struct {
	journal.OS
	mu     sync.Mutex
	broken bool
}

func (f *brokenFS) set(broken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = broken
}

func (f *brokenFS) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken {
		return errInjected
	}
	return nil
}

func (f *brokenFS) OpenFile(name string, flag int, perm os.FileMode) (journal.File, error) {
	file, err := f.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &brokenFile{File: file, fs: f}, nil
}

type brokenFile struct {
	journal.File
	fs *brokenFS
}

func (f *brokenFile) Sync() error {
	if err := f.fs.err(); err != nil {
		return err
	}
	return f.File.Sync()
}

// lasting watches a process of the fake proxy: it is none of this machine's, and its end is seen by reading.
type lasting struct{ closed chan struct{} }

func (l *lasting) Wait() bool { <-l.closed; return false }

func (l *lasting) Close() { close(l.closed) }
