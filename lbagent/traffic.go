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
	"github.com/cutover/cutover/internal/sockdiag"
	"github.com/cutover/cutover/lbagent/participant"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// This file is whether the Host gets client traffic: the readiness endpoint that upstream balancers watch, the order of the
// orchestrator behind it, and the count of client connections that proves that they have gone.

// countEvery is how often the client connections are counted while the Host is to be out of traffic.
const countEvery = 500 * time.Millisecond

// clients is a count of the client connections of the Group's frontend.
type clients struct {
	sessions int // there are, or have ended since the count before
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
// proxy, leaving ones included, and those that no worker has taken yet; and it tells of each that has ended, so that none is
// too short to be counted.
func (a *Agent) countLoop(ctx context.Context) {
	if len(a.opts.Frontend) == 0 {
		return
	}
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	var endings *sockdiag.Endings
	end := func() {
		if endings != nil {
			_ = endings.Close()
			endings = nil
		}
	}
	defer end()
	failed := false
	for {
		if a.state.Load().Durable.Traffic.Order != participant.TrafficOut {
			end()
			a.clients.Store(nil)
		} else if n, err := a.countClients(&endings); err != nil {
			a.clients.Store(nil) // what could not be counted proves nothing
			end()                // and the next count begins anew
			if !failed {
				a.log.Warn("the client connections cannot be counted, so nothing proves that this host is out of traffic", "err", err)
			}
			failed = true
		} else {
			failed = false
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

// countClients counts the connections to the frontend: those that there are, without the ones in TIME_WAIT, and those that
// have ended since the count before.
func (a *Agent) countClients(endings **sockdiag.Endings) (int, error) {
	ofFrontend := func(local netip.AddrPort) bool {
		return slices.ContainsFunc(a.opts.Frontend, func(f netip.AddrPort) bool {
			return local.Port() == f.Port() && (f.Addr().IsUnspecified() || local.Addr().Unmap() == f.Addr().Unmap())
		})
	}
	if *endings == nil {
		var err error
		if *endings, err = sockdiag.Subscribe(); err != nil {
			return 0, err
		}
	}
	rows, err := procfs.TCP(func(c procfs.Conn) bool { return !c.Listening && ofFrontend(c.Local) })
	if err != nil {
		return 0, err
	}
	ended, err := (*endings).Read(ofFrontend)
	return len(rows) + ended, err
}
