package lbagent

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/participant"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// This file is whether the Host gets client traffic: the readiness endpoint that upstream balancers watch, the order of the
// orchestrator behind it, and the count of client connections that proves that they have gone.

// countEvery is how often the client connections are counted while the Host is to be out of traffic.
const countEvery = 500 * time.Millisecond

// clients is a count of the client connections of the Group's frontend.
type clients struct {
	sessions int
	// quietSince: every count from then on found none; zero while there are some.
	quietSince time.Time
}

// SetTraffic implements HostService.
func (s service) SetTraffic(ctx context.Context, req *connect.Request[lbagentv1.SetTrafficRequest]) (*connect.Response[lbagentv1.SetTrafficResponse], error) {
	fence, err1 := fenceOf(req.Msg.GetFence())
	origin, err2 := originOf(req.Msg.GetOrigin())
	order := participant.TrafficOrder(req.Msg.GetOrder()) // #nosec G115: checked below
	if order != participant.TrafficIn && order != participant.TrafficOut {
		return nil, badArgument(invalidf("order %v: want in or out", req.Msg.GetOrder()))
	}
	if err := badArgument(err1, err2); err != nil {
		return nil, err
	}
	ans, err := s.call(ctx, "SetTraffic", func(t participant.Token) participant.Event {
		return participant.SetTraffic{To: t, Fence: fence, Order: order, Origin: origin}
	})
	if err != nil {
		return nil, err
	}
	out := &lbagentv1.SetTrafficResponse{Answer: &lbagentv1.SetTrafficResponse_Traffic{Traffic: s.a.traffic(s.a.state.Load())}}
	if ans.Refusal != nil {
		out.Answer = &lbagentv1.SetTrafficResponse_Refusal{Refusal: s.refusal(ans.Refusal)}
	}
	return connect.NewResponse(out), nil
}

// traffic describes whether the Host gets traffic.
func (a *Agent) traffic(st *participant.State) *lbagentv1.Traffic {
	t := st.Durable.Traffic
	out := &lbagentv1.Traffic{
		Order:  lbagentv1.TrafficOrder(t.Order), // #nosec G115: three values
		Origin: &lbagentv1.Origin{Actor: text(t.Origin.Actor), Reason: text(t.Origin.Reason)},
	}
	if !t.At.IsZero() {
		out.OrderedAt = timestamppb.New(t.At)
	}
	for _, why := range st.Unready() {
		out.Reasons = append(out.Reasons, text(why))
	}
	out.Ready = len(out.Reasons) == 0
	if c := a.clients.Load(); c != nil {
		out.Counted, out.Sessions = true, uint32(c.sessions) // #nosec G115: a number of sockets
		if !c.quietSince.IsZero() {
			out.QuietSince = timestamppb.New(c.quietSince)
		}
	}
	return out
}

// readyz is the one switch that upstream balancers watch: 200 while the running proxy serves what is committed and nobody
// has ordered this Host out of traffic. Losing the orchestrator never turns it (FAIL-STATIC).
func (a *Agent) readyz(w http.ResponseWriter, _ *http.Request) {
	reasons := a.state.Load().Unready()
	if len(reasons) == 0 {
		writeText(w, http.StatusOK, "ready\n")
		return
	}
	if _, err := a.contract.get(); err != nil {
		reasons = append(reasons, err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = json.NewEncoder(w).Encode(map[string]any{"problems": reasons})
}

// countLoop counts the client connections while the Host is ordered out. The kernel knows those of every worker of the
// proxy, leaving ones included, and those that no worker has taken yet.
func (a *Agent) countLoop(ctx context.Context) {
	if len(a.opts.Frontend) == 0 {
		return
	}
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	for {
		if a.state.Load().Durable.Traffic.Order != participant.TrafficOut {
			a.clients.Store(nil)
		} else if n, err := countClients(a.opts.Frontend); err != nil {
			a.clients.Store(nil) // what could not be counted proves nothing
			a.log.Warn("the client connections cannot be counted", "err", err)
		} else {
			next := &clients{sessions: n}
			if n == 0 {
				next.quietSince = time.Now()
				if last := a.clients.Load(); last != nil && !last.quietSince.IsZero() {
					next.quietSince = last.quietSince
				}
			}
			a.clients.Store(next)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// countClients counts the connections to the addresses that are not in TIME_WAIT: those have ended.
func countClients(frontend []netip.AddrPort) (int, error) {
	rows, err := procfs.TCP(func(c procfs.Conn) bool {
		return !c.Listening && slices.ContainsFunc(frontend, func(f netip.AddrPort) bool {
			return c.Local.Port() == f.Port() && (f.Addr().IsUnspecified() || c.Local.Addr() == f.Addr().Unmap())
		})
	})
	return len(rows), err
}
