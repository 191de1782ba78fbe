package protocol

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/orchestrator/registry"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// quietFor is how long no client must have come.
const quietFor = 5 * time.Second

// traffic is what a Host says of the traffic that it gets. at is when it said so, quiet since when no client comes.
type traffic struct {
	order     participant.TrafficOrder
	at, quiet time.Time
}

func (h *host) traffic(now time.Time) traffic {
	return traffic{order: h.disk.Traffic.Order, at: now, quiet: h.quiet}
}

// proves: no client came for long enough when it was said.
func (t traffic) proves() bool { return !t.quiet.IsZero() && t.at.Sub(t.quiet) >= quietFor }

func (t traffic) report() *lbagentv1.Traffic {
	r := &lbagentv1.Traffic{Order: lbagentv1.TrafficOrder(t.order), Ready: t.order != participant.TrafficOut, Counted: true, Sessions: 1}
	if !t.quiet.IsZero() {
		r.Sessions, r.QuietSince = 0, timestamppb.New(t.quiet)
	}
	return r
}

// trafficMoves are what follows by itself when a Host is to get no traffic, or is to get it again.
func (w *world) trafficMoves(l *leader, add func(k kind, at, arg int)) {
	for i, h := range w.hosts {
		s := &l.hosts[i]
		if h.disk.Traffic.Order == participant.TrafficOut && !h.out {
			add(mLeave, i, 0)
		}
		if now := h.traffic(w.now); s.up && !h.away && (now.order != s.traffic.order || now.quiet.IsZero() != s.traffic.quiet.IsZero() || now.proves() != s.traffic.proves()) {
			add(mTell, i, 0)
		}
		if s.up && s.direct == 0 && s.member.InTraffic() == (s.traffic.order == participant.TrafficOut) {
			add(mDirect, i, 0)
		}
	}
}

// direct tells the Host whether it may get traffic.
func (w *world) direct(l *leader, i int) {
	l.calls++
	s := &l.hosts[i]
	s.direct = l.calls
	order, what := participant.TrafficOut, " out"
	if s.member.InTraffic() {
		order, what = participant.TrafficIn, " in"
	}
	m := &message{epoch: l.epoch, host: i, call: callTraffic, try: l.calls, sentAt: w.now, what: what,
		req: participant.SetTraffic{Fence: w.fence(l, i), Order: order}}
	w.wire = append(w.wire, m)
	w.say("the leader of epoch %d sends %s to %s", l.epoch, m, hostName(i))
}

// ordered: the Host has heard whether it may get traffic. Its balancer lets clients come to a ready one at once.
func (w *world) ordered(i int) {
	h := w.host(i)
	if h.out && h.disk.Traffic.Order == participant.TrafficIn {
		h.out, h.quiet = false, time.Time{}
		w.say("clients come to %s again", hostName(i))
	}
}

// allIn: every Host is in traffic, and is known to be.
func (w *world) allIn(l *leader) bool {
	for i, h := range w.hosts {
		if s := &l.hosts[i]; h.out && !h.quiet.IsZero() || s.direct != 0 || s.member.Standing != registry.Member || s.member.Drained {
			return false
		}
	}
	return true
}
