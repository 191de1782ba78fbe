package conductor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
)

// This file is about what is stuck: why, on which Host, and trying again now.

// noteTrouble tells the transactions why a Host is not connected, where that has changed.
func (c *Conductor) noteTrouble(h *host) {
	if h.up {
		return
	}
	info := h.link.Info()
	if info.Connected {
		return // its report is on its way
	}
	for _, id := range sortedKeys(c.txns) {
		if o := c.txns[id]; o != nil {
			if m := o.host(h.name); m != nil && m.Trouble != info.Trouble {
				c.step(o, txn.HostTrouble{Host: h.name, Trouble: info.Trouble, Why: info.Problem})
			}
		}
	}
}

// status is what the asker of a transaction sees, with what the Hosts that are stuck have said last.
func (c *Conductor) status(o *transaction) txn.Status {
	s := c.rules.Status(o.state)
	for i := range s.Stuck {
		if h := c.hosts[s.Stuck[i].Host]; h != nil {
			s.Stuck[i].Serves = h.serves(o.apps(h.group))
		}
	}
	return s
}

// serves is the newest evidence of the Apps; shared, read only.
func (h *host) serves(apps []string) []*lbagentv1.Evidence {
	var out []*lbagentv1.Evidence
	for _, app := range apps {
		if e := h.reports.Sections[app].GetEvidence(); txn.HasRead(e) {
			out = append(out, e)
		}
	}
	return out
}

// tellServed tells again how a stuck transaction stands when a Host that keeps it serves something else.
func (c *Conductor) tellServed(h *host, app string) {
	for _, id := range sortedKeys(c.txns) {
		o := c.txns[id]
		if o.state.Phase == txn.StuckRestoring && o.state.Unfinished(h.name) && slices.Contains(o.apps(h.group), app) {
			c.tell(o)
		}
	}
}

// owes lists what is not settled on the Host, why, and what to do about the first of it.
func (c *Conductor) owes(h *host) (left []string, apps []string, fix, next string) {
	first := func(f, n string) {
		if fix == "" && next == "" {
			fix, next = f, n
		}
	}
	if !h.up {
		left = append(left, away(h.link.Info()))
	}
	for _, id := range sortedKeys(c.txns) {
		o := c.txns[id]
		if o.state.Undecided() || !o.state.Unfinished(h.name) {
			continue
		}
		m := o.host(h.name)
		if o.state.Phase == txn.Committed {
			left = append(left, fmt.Sprintf("transaction %s is committed, and the host has not acknowledged it (%s)", id, m.Reason))
			apps = append(apps, o.apps(h.group)...)
			continue
		}
		if one, ok := c.rules.Stuck(o.state, h.name); ok {
			left = append(left, fmt.Sprintf("transaction %s is not undone there: %s", id, one.What))
			apps = append(apps, o.apps(h.group)...)
			first(one.Fix, one.Next)
		}
	}
	if h.up && h.counts() {
		if h.syncing {
			left = append(left, "it is being synced")
		} else if app, why := c.disagreement(h); why != "" {
			left = append(left, app+": "+why)
			apps = append(apps, app)
		}
		if why := c.forgotten(h); why != "" {
			left = append(left, why)
		}
	}
	if !h.up {
		trouble := c.rules.Away(h.name, h.group, h.link.Info().Trouble)
		first(trouble.Fix, trouble.Next)
	}
	slices.Sort(apps)
	return left, slices.Compact(apps), fix, next
}

// resolveEvery is how often Resolve looks whether anything is left.
const resolveEvery = 100 * time.Millisecond

// Resolve tells a Host at once all that it has not answered, and compares it with what is committed; it returns when nothing
// is left to settle there, or when ctx ends: then Left says what.
func (c *Conductor) Resolve(ctx context.Context, name string) (txn.Resolution, error) {
	out := txn.Resolution{Host: name}
	begin := func() bool {
		h := c.hosts[name]
		if h == nil {
			return false
		}
		for _, id := range sortedKeys(c.txns) {
			if o := c.txns[id]; o != nil && o.host(name) != nil {
				c.step(o, txn.HostRetry{Host: name})
			}
		}
		h.syncTries, h.syncAt = 0, time.Time{}
		c.suspectAll(h)
		c.settleInDoubt(h)
		c.refresh(h)
		return true
	}
	look := func() bool {
		h := c.hosts[name]
		if h == nil {
			return false
		}
		var apps []string
		out.Left, apps, out.Fix, out.Next = c.owes(h)
		out.Serves = nil
		for _, e := range h.serves(apps) {
			out.Serves = append(out.Serves, proto.CloneOf(e))
		}
		return true
	}
	known := false
	if err := c.ask(ctx, func() { known = begin() }); err != nil {
		return out, err
	}
	tick := time.NewTicker(resolveEvery)
	defer tick.Stop()
	for known {
		over := ctx.Err() != nil
		// What is left is asked for when the time is over, too.
		if err := c.ask(context.WithoutCancel(ctx), func() { known = look() }); err != nil {
			return out, err
		}
		if len(out.Left) == 0 || over {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	if !known {
		return out, &txn.MemberRefusal{Kind: txn.MemberUnknown, Text: fmt.Sprintf("there is no host %q that is admitted: cutover lb hosts lists them", name)}
	}
	return out, nil
}

// away says why a Host is not there, as the end of a sentence about it.
func away(info registry.Info) string {
	if why := strings.TrimPrefix(info.Problem, "not connected"); info.Problem == "" || why != info.Problem {
		return "it is not connected" + why
	}
	return "it is not ready: " + info.Problem
}
