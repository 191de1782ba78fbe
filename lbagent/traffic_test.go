package lbagent

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/cutover/cutover/internal/servertest"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

func (h *host) traffic(order lbagentv1.TrafficOrder) *lbagentv1.Traffic {
	h.t.Helper()
	r, err := h.client.SetTraffic(h.ctx(), connect.NewRequest(&lbagentv1.SetTrafficRequest{Fence: h.fence(), Order: order,
		Origin: &lbagentv1.Origin{Actor: "kim", Reason: "because"}}))
	if err != nil || r.Msg.GetTraffic() == nil {
		h.t.Fatal(r, err)
	}
	return r.Msg.GetTraffic()
}

func (h *host) ready(want int, says string) {
	h.t.Helper()
	var code int
	var body string
	h.eventually("readyz answers as it should", func() bool {
		code, body = h.get("/readyz")
		return code == want && strings.Contains(body, says)
	})
}

const (
	in  = lbagentv1.TrafficOrder_TRAFFIC_ORDER_IN
	out = lbagentv1.TrafficOrder_TRAFFIC_ORDER_OUT
)

// The readiness endpoint is red until somebody says that the Host may get traffic and its proxy serves what is committed,
// red while it is ordered out, over restarts too, and never because nobody calls.
func TestReadinessIsTruthful(t *testing.T) {
	h := newHost(t).start()
	h.ready(http.StatusServiceUnavailable, "no orchestrator has said yet")
	h.traffic(in)
	h.ready(http.StatusOK, "ready")
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	h.ready(http.StatusOK, "ready")
	if got := h.traffic(out); got.GetReady() || got.GetOrigin().GetActor() != "kim" || got.GetOrderedAt() == nil {
		t.Errorf("%v", got)
	}
	h.ready(http.StatusServiceUnavailable, "out of traffic (kim: because)")
	h.stop()
	h.start()
	h.ready(http.StatusServiceUnavailable, "out of traffic (kim: because)")
	h.traffic(in)
	h.ready(http.StatusOK, "ready")
	h.stop() // nobody calls it any more: it is as ready as before (FAIL-STATIC)
	h.start()
	h.ready(http.StatusOK, "ready")

	// An order of a leader that was replaced moves nothing (FENCE).
	h.epoch = 2
	h.traffic(in)
	h.epoch = 1
	r, err := h.client.SetTraffic(h.ctx(), connect.NewRequest(&lbagentv1.SetTrafficRequest{Fence: h.fence(), Order: out}))
	if err != nil || r.Msg.GetRefusal().GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_STALE_EPOCH {
		t.Errorf("%v %v", r, err)
	}
	if _, err := h.client.SetTraffic(h.ctx(), connect.NewRequest(&lbagentv1.SetTrafficRequest{Fence: h.fence()})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("no order: %v", err)
	}
	h.epoch = 2
	h.ready(http.StatusOK, "ready")
}

// An agent that starts beside a proxy which serves something else says so until that is put right.
func TestNotReadyBeforeTheCommittedStateIsServed(t *testing.T) {
	h := newHost(t).start()
	h.traffic(in)
	h.deploy("t1", 1, 0, pbSection("shop", "a1"))
	h.ready(http.StatusOK, "ready")
	h.stop()
	h.proxy.with(func() { h.proxy.down = true })
	h.start()
	h.ready(http.StatusServiceUnavailable, "the proxy")
	h.proxy.with(func() { h.proxy.down = false })
	h.ready(http.StatusOK, "ready")
}

// The client connections of the frontend are counted while the Host is out of traffic, and only then.
func TestClientsAreCounted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := newHost(t)
	h.frontend = []netip.AddrPort{netip.MustParseAddrPort(l.Addr().String())}
	h.start()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	state := func() *lbagentv1.Traffic { return h.agent.traffic(h.agent.state.Load()) }
	h.traffic(in)
	if state().GetCounted() {
		t.Error("counted although it is in traffic")
	}
	h.traffic(out)
	h.eventually("the client to be counted", func() bool { s := state(); return s.GetCounted() && s.GetSessions() == 1 && s.GetQuietSince() == nil })
	_ = server.Close()
	_ = client.Close()
	// The kernel may tell of the end after a count has found none.
	h.eventually("no client to be left for a while", func() bool {
		s := state()
		return s.GetSessions() == 0 && s.GetQuietSince() != nil && time.Since(s.GetQuietSince().AsTime()) > 3*countEvery
	})
}

// Clients whose connections are too short to be seen in any one moment are clients all the same.
func TestShortConnectionsAreTraffic(t *testing.T) {
	frontend := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer frontend.Close()
	h := newHost(t)
	h.frontend = []netip.AddrPort{netip.MustParseAddrPort(frontend.Listener.Addr().String())}
	h.start()
	h.traffic(in)
	h.traffic(out)
	state := func() *lbagentv1.Traffic { return h.agent.traffic(h.agent.state.Load()) }
	h.eventually("it to be quiet", func() bool { return state().GetQuietSince() != nil })
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	for range 4 {
		asked := time.Now()
		resp, err := client.Get(frontend.URL)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		h.eventually("what came and went to be counted", func() bool {
			q := state().GetQuietSince()
			return q == nil || q.AsTime().After(asked)
		})
	}
	h.eventually("it to be quiet again", func() bool { return state().GetQuietSince() != nil })
}

// Upstream balancers ask in the clear, and learn nothing but yes or no.
func TestReadinessEndpointForBalancers(t *testing.T) {
	h := newHost(t)
	h.readyListen = fmt.Sprintf("127.0.0.1:%d", servertest.FreePorts(t, 1)[0])
	h.start()
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + h.readyListen + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	defer http.DefaultClient.CloseIdleConnections()
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || body != "not ready\n" {
		t.Errorf("%d %q", code, body)
	}
	h.traffic(in)
	h.eventually("ready", func() bool { code, body := get("/readyz"); return code == http.StatusOK && body == "ready\n" })
	for _, path := range []string{"/metrics", "/healthz", "/"} {
		if code, _ := get(path); code != http.StatusNotFound {
			t.Errorf("%s is answered with %d", path, code)
		}
	}
}
