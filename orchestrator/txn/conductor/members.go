package conductor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// This file is about who is a member of a Group's View. A change of the View waits until no transaction of the Group is
// undecided, and holds back those that come after it, rollbacks apart; what only waits for an Aborted or a Drained is
// decided, and holds up nothing. One Host of a Group is changed at a time.

// memberChange is one change of a Host's Membership that waits for its turn.
type memberChange struct {
	group, host string
	// decide is asked when the turn comes, since what it was asked for may hold no longer. changed false: nothing is to be done.
	decide func() (m registry.Membership, what string, changed bool, err error)
	done   func(error)
	// free: it changes no View, so it waits for no transaction.
	free    bool
	writing bool
}

// viewLock is the name of a Group's View in the lock table. While it waits there, or has the Group, nothing that comes later
// is granted.
func viewLock(group string) string { return viewLocks + group }

// viewLocks begins the names of those locks; ids of transactions have no slash.
const viewLocks = "view/"

// queueChange lets the change happen in its turn.
func (c *Conductor) queueChange(ch *memberChange) {
	if len(c.changes[ch.group]) == 0 {
		c.holdGroup(ch)
	}
	c.changes[ch.group] = append(c.changes[ch.group], ch)
}

func (c *Conductor) holdGroup(ch *memberChange) {
	if ch.free {
		return
	}
	locks, granted := c.locks.Add(txn.LockRequest{ID: viewLock(ch.group), Exclusive: []string{ch.group}})
	c.locks = locks
	c.grant(granted)
}

// dropChange ends a change that was made or given up.
func (c *Conductor) dropChange(ch *memberChange) {
	list := c.changes[ch.group]
	at := slices.Index(list, ch)
	if at < 0 {
		return
	}
	c.changes[ch.group] = slices.Delete(list, at, at+1)
	if at > 0 {
		return
	}
	if !ch.free {
		c.unlock(viewLock(ch.group))
	}
	if rest := c.changes[ch.group]; len(rest) > 0 {
		c.holdGroup(rest[0])
	} else {
		delete(c.changes, ch.group)
	}
}

// undecidedIn names the transactions of the Group that have begun and are undecided.
func (c *Conductor) undecidedIn(group string) []string {
	var out []string
	for _, id := range sortedKeys(c.txns) {
		o := c.txns[id]
		if _, in := o.views[group]; in && o.granted && o.state.Undecided() {
			out = append(out, id)
		}
	}
	return out
}

// advanceChanges makes the changes whose turn it is.
func (c *Conductor) advanceChanges() {
	for _, group := range sortedKeys(c.changes) {
		for len(c.changes[group]) > 0 {
			ch := c.changes[group][0]
			if ch.writing || !ch.free && len(c.undecidedIn(group)) > 0 {
				break
			}
			m, what, changed, err := ch.decide()
			if err != nil || !changed {
				c.dropChange(ch)
				ch.done(err)
				continue
			}
			ch.writing = true
			c.writeChange(ch, m, what)
		}
	}
}

func (c *Conductor) writeChange(ch *memberChange, m registry.Membership, what string) {
	var install func(store.Revision)
	c.submit(write{
		what: "view",
		keys: []txn.SectionKey{{App: viewLock(ch.group)}},
		ops: func() ([]store.Op, error) {
			var ops []store.Op
			ops, install = c.reg.Change(m, what)
			return ops, nil
		},
		done: func(rev store.Revision, err error) {
			if err == nil {
				c.log.Info("membership", "host", m.Host, "group", m.Group, "what", what, "standing", m.Standing, "drained", m.Drained, "actor", m.Last.Actor,
					"reason", m.Last.Reason)
				install(rev)
				c.installed(m)
			} else {
				err = fmt.Errorf("the change of host %s was not recorded: %w", m.Host, err)
			}
			c.dropChange(ch)
			ch.done(err)
		},
	})
}

// installed carries out what follows from a Membership that is durable.
func (c *Conductor) installed(m registry.Membership) {
	h := c.hosts[m.Host]
	if l := c.reg.Link(m.Host); h == nil && l != nil {
		h = c.addHost(l)
	}
	if h != nil {
		h.standing = m.Standing
	}
	switch m.Standing {
	case registry.Excluded, registry.Removed:
		gone := m.Standing == registry.Removed
		if gone {
			c.dropHost(m.Host)
		}
		c.doWithout(m.Host, gone)
	case registry.Joining:
		c.suspectAll(h)
	default: // the next reports say the rest
	}
	if h != nil && m.Standing != registry.Removed {
		c.refresh(h)
	}
	c.opts.Listener.HostsChanged()
}

// doWithout ends the waiting for a Host that gets no traffic: that stands for the Aborted and the Drained that it has not
// answered. It is told all the same, unless it is gone for good.
func (c *Conductor) doWithout(name string, gone bool) {
	for _, id := range sortedKeys(c.txns) {
		if o := c.txns[id]; o != nil && o.host(name) != nil {
			c.step(o, txn.HostExcluded{Host: name, Gone: gone})
		}
	}
	for _, id := range sortedKeys(c.amends) {
		a := c.amends[id]
		if a == nil {
			continue
		}
		for _, s := range a.stages() {
			s.done(name) // it is synced before it is a member again
		}
		c.advanceAmendment(a)
	}
	for _, id := range sortedKeys(c.drains) {
		c.watchDrain(c.drains[id])
	}
}

// addHost begins to work with a Host that has a link now.
func (c *Conductor) addHost(l *registry.Link) *host {
	d := l.Host()
	m, _ := c.reg.Member(d.Name)
	h := &host{
		link: l, group: d.Group, name: d.Name, standing: m.Standing, slots: make(chan struct{}, callsPerHost), warming: make(chan struct{}, callsPerHost),
		downAt:  time.Now(),
		inDoubt: map[string]*settling{}, suspects: map[string]bool{}, agreed: map[string]agreement{},
	}
	c.hostsMu.Lock()
	defer c.hostsMu.Unlock()
	c.hosts[h.name] = h
	return h
}

func (c *Conductor) dropHost(name string) {
	c.hostsMu.Lock()
	defer c.hostsMu.Unlock()
	delete(c.hosts, name)
}

// counts: the word of the Host is needed. One that is out of the View is proven to get no traffic, and gets none before it
// holds the committed state.
func (h *host) counts() bool { return h.standing == registry.Member }

// policies of the Groups of the views.
func (c *Conductor) policies(views map[string]registry.View) map[string]txn.Policy {
	out := map[string]txn.Policy{}
	for group := range views {
		g, _ := c.reg.Group(group)
		out[group] = g.Policy
	}
	return out
}

// repin takes the Views as they are when the locks are granted: while the transaction waited, a Host may have left or come.
func (c *Conductor) repin(o *transaction) {
	moved := false
	for group, old := range o.views {
		if v, ok := c.reg.View(group); ok && v.Number != old.Number {
			o.views[group], moved = v, true
		}
	}
	if moved {
		o.state = o.state.Repinned(c.pinned(o.views))
	}
}

// join makes a Host a member that holds the whole committed state, as read back from its proxy.
func (c *Conductor) join(h *host) {
	if h.standing != registry.Joining || c.lacks(h) != "" {
		return
	}
	if c.changing(h.group, h.name) {
		return
	}
	c.queueChange(&memberChange{
		group: h.group, host: h.name,
		decide: func() (registry.Membership, string, bool, error) {
			m, ok := c.reg.Member(h.name)
			if !ok || m.Standing != registry.Joining || c.lacks(h) != "" {
				return m, "", false, nil // something came between: it is asked again with the next report
			}
			m.Standing = registry.Member
			m.Last.At = time.Now().UTC()
			return m, "join", true, nil
		},
		done: func(error) {},
	})
}

// lacks says what keeps a joining Host from being a member, or "".
func (c *Conductor) lacks(h *host) string {
	switch {
	case !h.up || !h.reports.Known:
		return away(h.link.Info())
	case h.syncing:
		return "it is being synced"
	}
	for _, app := range sortedKeys(h.reports.Sections) {
		if open := h.reports.Sections[app].GetOpen(); open != nil {
			return fmt.Sprintf("transaction %s is open there on %s", open.GetTxnId(), app)
		}
	}
	if why := c.forgotten(h); why != "" {
		return why
	}
	if app, why := c.disagreement(h); why != "" {
		return app + ": " + why
	}
	if len(h.suspects) > 0 {
		return "it is being compared with what is committed: " + strings.Join(sortedKeys(h.suspects), ", ")
	}
	if !h.hasRead() {
		return "its proxy has not been read yet"
	}
	return ""
}

// trafficPause is between two orders to a Host, so that a report that was on its way does not cause another one.
const trafficPause = 2 * time.Second

// directTraffic tells the Host whether it may get traffic, where it says otherwise. Its readiness endpoint is what upstream
// balancers watch.
func (c *Conductor) directTraffic(h *host) {
	m, ok := c.reg.Member(h.name)
	if !ok || !h.up || h.state == nil || h.directing || time.Now().Before(h.directAt) {
		return
	}
	order := lbagentv1.TrafficOrder_TRAFFIC_ORDER_OUT
	if m.InTraffic() {
		order = lbagentv1.TrafficOrder_TRAFFIC_ORDER_IN
	}
	if h.state.GetTraffic().GetOrder() == order {
		return
	}
	h.directing = true
	req := &lbagentv1.SetTrafficRequest{Fence: c.reg.FenceOf(h.group), Order: order, Origin: &lbagentv1.Origin{Actor: m.Last.Actor, Reason: m.Last.Reason}}
	c.spawn(h, "set-traffic", c.opts.VerifyTimeout, func(ctx context.Context) reply {
		resp, err := h.link.Client().SetTraffic(ctx, connect.NewRequest(req))
		if err != nil {
			return reply{err: err}
		}
		return orEmpty(reply{refusal: resp.Msg.GetRefusal()}, resp.Msg.GetTraffic() != nil)
	}, func(r reply) {
		h.directing, h.directAt = false, time.Now().Add(trafficPause)
		if r.err != nil {
			c.log.Warn("a host does not take the order about its traffic", "host", h.name, "order", order.String(), "error", registry.Plain(r.err))
		} else if r.refusal != nil {
			c.noteHigherEpoch(h, r.refusal)
			c.log.Warn("a host refused the order about its traffic", "host", h.name, "order", order.String(), "message", r.refusal.GetMessage())
		}
	})
}

// ChangeMember carries out an ask about a Host's membership and returns how it stands then. It waits for the undecided
// transactions of the Group, for as long as ctx lets it. An error that is the asker's is a *txn.MemberRefusal.
func (c *Conductor) ChangeMember(ctx context.Context, ask txn.MemberAsk) (txn.HostInfo, error) {
	result := make(chan error, 1)
	var ch *memberChange
	err := c.ask(ctx, func() {
		old, known := c.reg.Member(ask.Host)
		m, _, err := c.decideMember(ask)
		if err != nil {
			result <- err
			return
		}
		if _, ok := c.reg.Group(m.Group); !ok {
			result <- &txn.MemberRefusal{Kind: txn.MemberInvalid, Text: fmt.Sprintf("group %q is not declared: cutover lb hosts lists the hosts with their groups", m.Group)}
			return
		}
		inView := func(s registry.Standing) bool { return s == registry.Member }
		ch = &memberChange{
			group: m.Group, host: m.Host, free: !known || inView(old.Standing) == inView(m.Standing),
			decide: func() (registry.Membership, string, bool, error) {
				m, changed, err := c.decideMember(ask)
				return m, string(ask.Verb), changed, err
			},
			done: func(err error) { result <- err },
		}
		c.queueChange(ch)
	})
	if err != nil {
		return txn.HostInfo{}, err
	}
	select {
	case err = <-result:
	case <-c.ended:
		err = ErrStopped
	case <-ctx.Done():
		err = c.giveUpChange(ch, result, ask)
	}
	if err != nil {
		return txn.HostInfo{}, err
	}
	for _, h := range c.Hosts() {
		if h.Name == ask.Host {
			return h, nil
		}
	}
	// It was removed, and nobody announces it: nothing is known of it any longer.
	return txn.HostInfo{Name: ask.Host, Membership: txn.Membership{Standing: string(registry.Removed), Actor: ask.Actor, Reason: ask.Reason}}, nil
}

func (c *Conductor) decideMember(ask txn.MemberAsk) (registry.Membership, bool, error) {
	var old *registry.Membership
	if m, ok := c.reg.Member(ask.Host); ok {
		old = &m
	}
	seen := registry.Seen{}
	if h := c.hosts[ask.Host]; h != nil {
		i := h.link.Info() // what a reader of Hosts has seen counts here too
		seen.Connected, seen.Traffic, seen.SentAt = i.Connected, i.State.GetTraffic(), i.SentAt
	}
	if old != nil {
		for _, m := range c.reg.Members() {
			if m.Group == old.Group && m.Host != old.Host && m.InTraffic() {
				seen.Others++
			}
		}
	}
	return registry.Decide(ask, old, seen, time.Now().UTC())
}

// giveUpChange takes a change back that still waits; one that is being written is waited for.
func (c *Conductor) giveUpChange(ch *memberChange, result chan error, ask txn.MemberAsk) error {
	var waiting []string
	// Not the asker's context: it has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), writeTimeout)
	defer cancel()
	err := c.ask(ctx, func() {
		if !ch.writing {
			waiting = c.undecidedIn(ch.group)
			c.dropChange(ch)
			ch.done(&txn.MemberRefusal{Kind: txn.MemberWaiting, Text: fmt.Sprintf(
				"host %s is not changed yet: transactions of group %s are undecided (%s); %s it again, or see cutover status", ask.Host, ch.group, strings.Join(waiting, ", "), ask.Verb)})
		}
	})
	if err != nil {
		return err
	}
	select {
	case err := <-result:
		return err
	case <-c.ended:
		return ErrStopped
	}
}

// MemberHistory lists the newest changes of membership, newest first.
func (c *Conductor) MemberHistory(ctx context.Context, limit int) ([]txn.MemberChange, error) {
	entries, err := c.reg.History(ctx, limit)
	if err != nil {
		return nil, err
	}
	out := make([]txn.MemberChange, len(entries))
	for i, e := range entries {
		out[i] = txn.MemberChange{At: e.At, Host: e.Host, Group: e.Group, What: e.What, From: e.From, To: e.To, View: e.View, AgentURL: e.AgentURL, Actor: e.Actor, Reason: e.Reason}
		if e.Proof != nil {
			out[i].Proof = e.Proof.Text
		}
	}
	return out, nil
}
