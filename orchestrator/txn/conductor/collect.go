package conductor

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
)

// A proxy that cannot forget a removed upstream (HAProxy before its "del server" is safe) collects tombstones. Above
// collectAbove of them on a Host, the Group's Frame lock is taken and the Hosts that have many are reloaded: one alone at
// first, and the others only when that one serves again, so that a reload that goes wrong goes wrong once.
const (
	collectAbove = 500
	// collectWith: a Host with that many is reloaded with those that need it.
	collectWith = collectAbove / 2
	// collectPatience is how long a collection may wait for the open transactions of its Group, and so hold back others; one
	// that is stuck must not stop a Group for the sake of some memory.
	collectPatience = 10 * time.Second
	// collectPause follows a collection, collectRetry one that failed or waited in vain.
	collectPause = 5 * time.Second
	collectRetry = time.Minute
	// collectAsk is the pause between two attempts at a Host on which a transaction is open still.
	collectAsk = 25 * time.Millisecond
)

// collect is the collection of one Group.
type collect struct {
	waiting bool      // for its lock, since
	since   time.Time // it waits
	running bool
	next    time.Time // not before
}

// collectLocks begins the names of the Frame locks of collections; ids of transactions have no slash.
const collectLocks = "collect/"

// collectTombstones queues collections where they are due.
func (c *Conductor) collectTombstones() {
	now := time.Now()
	for _, name := range sortedKeys(c.hosts) {
		h := c.hosts[name]
		if !h.up || h.state.GetTombstones() <= collectAbove {
			continue
		}
		g := c.collects[h.group]
		if g == nil {
			g = &collect{}
			c.collects[h.group] = g
		}
		if g.waiting || g.running || now.Before(g.next) {
			continue
		}
		g.waiting, g.since = true, now
		var granted []txn.Grant
		c.locks, granted = c.locks.Add(txn.LockRequest{ID: collectLocks + h.group, Exclusive: []string{h.group}})
		c.grant(granted)
	}
	for group, g := range c.collects {
		if g.waiting && now.Sub(g.since) > collectPatience {
			c.log.Warn("removed upstreams are not collected: transactions of the group stay open", "group", group)
			g.waiting, g.next = false, now.Add(collectRetry)
			c.unlock(collectLocks + group)
		}
	}
}

// collectGranted reloads the Hosts: no transaction of the Group is open, and none begins before all have answered.
func (c *Conductor) collectGranted(group string) {
	g := c.collects[group]
	g.waiting, g.running = false, true
	var hosts []*host
	for _, name := range sortedKeys(c.hosts) {
		if h := c.hosts[name]; h.group == group && h.up && h.state.GetTombstones() > collectWith {
			hosts = append(hosts, h)
		}
	}
	if len(hosts) == 0 {
		c.collected(group, time.Now().Add(collectPause))
		return
	}
	c.collectFrom(group, hosts[:1], func() {
		c.collectFrom(group, hosts[1:], func() { c.collected(group, time.Now().Add(collectPause)) })
	})
}

// collectFrom reloads the Hosts at once and goes on with then if all of it worked.
func (c *Conductor) collectFrom(group string, hosts []*host, then func()) {
	left, failed := len(hosts), false
	if left == 0 {
		then()
		return
	}
	for _, h := range slices.Clone(hosts) {
		c.log.Info("a host collects removed upstreams", "host", h.name, "tombstones", h.state.GetTombstones())
		c.spawn(h, "collect", c.opts.CallTimeout, c.collectCall(h), func(r reply) {
			if r.err != nil || r.refusal != nil {
				failed = true
				c.noteHigherEpoch(h, r.refusal)
				why := r.refusal.GetMessage()
				if r.err != nil {
					why = registry.Plain(r.err)
				}
				c.log.Error("a host could not collect removed upstreams; it serves on", "host", h.name, "why", why)
			}
			switch left--; {
			case left > 0:
			case failed:
				c.collected(group, time.Now().Add(collectRetry))
			default:
				then()
			}
		})
	}
}

// collectCall asks until the Host has nothing open: what is decided here may not have arrived there.
func (c *Conductor) collectCall(h *host) func(context.Context) reply {
	req := &lbagentv1.CollectRequest{Fence: c.reg.FenceOf(h.group),
		Origin: &lbagentv1.Origin{Actor: "cutover", Reason: "collect removed upstreams"}}
	client := h.link.Client()
	return func(ctx context.Context) reply {
		for end := time.Now().Add(collectPatience); ; {
			resp, err := client.Collect(ctx, connect.NewRequest(req))
			if err != nil {
				return reply{err: err}
			}
			no := resp.Msg.GetRefusal()
			if no.GetReason() != lbagentv1.RefusalReason_REFUSAL_REASON_BUSY || time.Now().After(end) {
				return orEmpty(reply{refusal: no}, resp.Msg.GetCollected() != nil)
			}
			select {
			case <-time.After(collectAsk):
			case <-ctx.Done():
				return reply{err: ctx.Err()}
			}
		}
	}
}

// collected gives the Group free again.
func (c *Conductor) collected(group string, next time.Time) {
	g := c.collects[group]
	g.running, g.next = false, next
	c.unlock(collectLocks + group)
}
