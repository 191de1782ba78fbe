package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// This file is the half of the API's Service that is about Hosts: who is a member, and what is stuck there.

// resolvePatience is how long a Host has to settle what it was told again, within one request; asked again, it has it again.
const resolvePatience = 3 * time.Second

// waitPatience is how long a change of membership waits for undecided transactions within one request; asked again, it
// waits again.
const waitPatience = 20 * time.Second

// ChangeHost changes a Host's membership.
func (e *Engine) ChangeHost(ctx context.Context, ask api.HostAsk, meta api.Meta) (api.Host, error) {
	if err := e.Ready(ctx); err != nil {
		return api.Host{}, err
	}
	done, err := e.askedBefore(ctx, meta)
	if err != nil {
		return api.Host{}, e.refuse(err)
	}
	if done {
		// It was done under this key, and may have been undone since: how the Host stands now is the answer.
		for _, h := range e.ports.Coordinator.Hosts() {
			if h.Name == ask.Host {
				return hostInfo(h), nil
			}
		}
		return api.Host{Name: ask.Host, Membership: wire.Membership{Standing: "removed"}}, nil
	}
	waiting, cancel := context.WithTimeout(ctx, waitPatience)
	defer cancel()
	info, err := e.ports.Coordinator.ChangeMember(waiting, txn.MemberAsk{
		Verb: ask.Verb, Host: ask.Host, Group: ask.Group, AgentURL: ask.AgentURL, Sure: ask.Sure, Actor: meta.Actor, Reason: meta.Reason,
	})
	if err != nil {
		return api.Host{}, e.refuse(memberRefusal(err))
	}
	if err := e.doneNow(ctx, meta); err != nil {
		return api.Host{}, e.refuse(err)
	}
	return hostInfo(info), nil
}

// memberRefusal is the coordinator's refusal in the words of the API.
func memberRefusal(err error) error {
	var no *txn.MemberRefusal
	if !errors.As(err, &no) {
		return err
	}
	kind := map[txn.MemberRefusalKind]deploy.RefusalKind{
		txn.MemberUnknown: deploy.RefusedNotFound, txn.MemberInvalid: deploy.RefusedInvalid, txn.MemberState: deploy.RefusedState,
		txn.MemberNoProof: deploy.RefusedState, txn.MemberWaiting: deploy.RefusedLocked,
	}[no.Kind]
	return refused(kind, "%s", no.Text)
}

func idemKey(meta api.Meta) string {
	sum := sha256.Sum256([]byte(meta.IdempotencyKey))
	return hex.EncodeToString(sum[:])
}

// askedBefore says whether a request about Hosts was carried out under this key; the same key for another one is refused.
func (e *Engine) askedBefore(ctx context.Context, meta api.Meta) (done bool, err error) {
	if meta.IdempotencyKey == "" {
		return false, nil
	}
	err = e.do(ctx, func() error {
		rec, ok := e.s.idem[idemKey(meta)]
		if ok && rec.Digest != meta.BodyDigest {
			return refused(deploy.RefusedIdempotency, "the idempotency key was used for another request: choose a new key, or send the same body")
		}
		done = ok
		return nil
	})
	return done, err
}

// doneNow keeps the key of a request about Hosts that was carried out.
func (e *Engine) doneNow(ctx context.Context, meta api.Meta) error {
	if meta.IdempotencyKey == "" {
		return nil
	}
	return e.do(ctx, func() error {
		e.remember(idemKey(meta), idemRecord{Digest: meta.BodyDigest, At: e.batch.now})
		return nil
	})
}

// Resolve lets the Hosts that ref names try again at once: a Host, or those that a Deploy (or an App's last one) waits for.
func (e *Engine) Resolve(ctx context.Context, ref string, _ api.Meta) (wire.Resolution, error) {
	if err := e.Ready(ctx); err != nil {
		return wire.Resolution{}, err
	}
	names := []string{ref}
	if !slices.ContainsFunc(e.ports.Coordinator.Hosts(), func(h txn.HostInfo) bool { return h.Name == ref }) {
		var err error
		if names, err = e.stuckHosts(ctx, ref); err != nil {
			return wire.Resolution{}, e.refuse(err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, resolvePatience)
	defer cancel()
	out := wire.Resolution{Resolved: true, Hosts: make([]wire.HostResolution, len(names))}
	errs := make([]error, len(names))
	wait := make(chan int, len(names))
	for i, name := range names {
		go func() {
			var r txn.Resolution
			r, errs[i] = e.ports.Coordinator.Resolve(ctx, name)
			out.Hosts[i] = wire.HostResolution{Name: name, Resolved: len(r.Left) == 0, Remaining: r.Left, Fix: r.Fix, Next: r.Next, Serves: servesViews(r.Serves)}
			wait <- i
		}()
	}
	for range names {
		<-wait
	}
	for i, err := range errs {
		if err != nil {
			return wire.Resolution{}, e.refuse(memberRefusal(err))
		}
		out.Resolved = out.Resolved && out.Hosts[i].Resolved
	}
	return out, nil
}

// stuckHosts are the Hosts that a Deploy, or the last one of an App, waits for.
func (e *Engine) stuckHosts(ctx context.Context, ref string) (names []string, err error) {
	err = e.do(ctx, func() error {
		id := ref
		if a := e.s.apps[ref]; a != nil && len(a.Deploys) > 0 {
			id = slices.Max(a.Deploys)
			if a.Open != "" {
				id = a.Open
			}
		}
		d := e.s.deploys.get(id)
		if d == nil {
			return refused(deploy.RefusedNotFound, "there is no host, no Deploy and no App %q: cutover lb hosts and cutover status list them", clip(ref))
		}
		v := d.View(nil)
		for _, s := range v.Stuck {
			names = append(names, s.Host)
		}
		if v.Drain != nil {
			names = append(names, v.Drain.Waiting...)
		}
		if len(names) == 0 {
			return refused(deploy.RefusedState, "Deploy %s is %s and waits for no host", id, strings.ReplaceAll(string(v.State), "_", " "))
		}
		slices.Sort(names)
		names = slices.Compact(names)
		return nil
	})
	return names, err
}

// HostHistory lists the newest changes of membership, newest first.
func (e *Engine) HostHistory(ctx context.Context, limit int) ([]wire.HostChange, error) {
	if err := e.Ready(ctx); err != nil {
		return nil, err
	}
	list, err := e.ports.Coordinator.MemberHistory(ctx, limit)
	if err != nil {
		return nil, e.refuse(err)
	}
	out := make([]wire.HostChange, len(list))
	for i, c := range list {
		out[i] = wire.HostChange{At: c.At, Host: c.Host, Group: c.Group, What: c.What, From: c.From, To: c.To, View: c.View, AgentURL: c.AgentURL, Actor: c.Actor, Reason: c.Reason, Proof: c.Proof}
	}
	return out, nil
}

// asked refuses to ask a Host to which nobody talks.
func asked(h txn.HostInfo) error {
	m := membershipInfo(h.Membership)
	if m.Asked() {
		return nil
	}
	return refused(deploy.RefusedState, "host %s is %s, not admitted, so nobody talks to it: cutover lb admit %s", h.Name, m.Standing, h.Name)
}

func membershipInfo(m txn.Membership) wire.Membership {
	out := wire.Membership{
		Standing: m.Standing, Drained: m.Drained, Announced: m.Announced, Source: m.Source, Notice: m.Notice, View: m.View, Policy: m.Policy, Actor: m.Actor, Reason: m.Reason, Proof: m.Proof, Waiting: m.Waiting,
	}
	if !m.At.IsZero() {
		at := m.At
		out.At = &at
	}
	return out
}

var trafficOrders = map[lbagentv1.TrafficOrder]string{
	lbagentv1.TrafficOrder_TRAFFIC_ORDER_UNSPECIFIED: "none", lbagentv1.TrafficOrder_TRAFFIC_ORDER_IN: "in",
	lbagentv1.TrafficOrder_TRAFFIC_ORDER_OUT: "out",
}

func trafficInfo(t *lbagentv1.Traffic, sentAt time.Time) *wire.Traffic {
	if t == nil {
		return nil
	}
	out := &wire.Traffic{Ordered: trafficOrders[t.GetOrder()], Ready: t.GetReady(), Reasons: t.GetReasons(), Counted: t.GetCounted(), Sessions: t.GetSessions()}
	if at := t.GetQuietSince(); at != nil {
		since := at.AsTime()
		out.QuietSince, out.QuietSeconds = &since, sentAt.Sub(since).Seconds()
	}
	return out
}
