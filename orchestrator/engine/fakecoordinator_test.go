package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// fakeTxn is a transaction of the fakeCoordinator.
type fakeTxn struct {
	p  txn.Proposal
	st txn.Status
}

// fakeCoordinator commits everything at once, unless it is told to stop in a phase or to end otherwise.
type fakeCoordinator struct {
	w        *world
	mu       sync.Mutex
	groups   []string
	sections map[string]*lbagentv1.Section // group/app
	txns     map[string]*fakeTxn
	dead     map[string]bool // removed by Amendments: subtracted from every target
	order    uint64
	begun    []txn.Proposal
	together [][]string // ids, by call
	amends   []txn.Amendment
	// stopAt holds transactions in a phase until go_ is called. end is how they end (default: Committed).
	stopAt txn.Phase
	end    func(*txn.Status)
	// holdDrain keeps Drained back; holdAmend keeps the answers to insertions back.
	holdDrain, holdAmend bool
	// deaf: aborts are taken and not heeded.
	deaf bool
	// noInsert is a Group that refuses insertions.
	noInsert string
	rows     int // how many upstreams each Host's evidence has besides the target's
	drains   []txn.Drained
	answers  []txn.Amended
	asks     []txn.MemberAsk
	refuse   error // what ChangeMember answers
}

func (c *fakeCoordinator) Begin(_ context.Context, proposals ...txn.Proposal) error {
	for _, p := range proposals {
		for _, ch := range p.Changes {
			for _, u := range ch.Target.GetUpstreams() {
				if w := c.w; w.mesos.told(u.GetTaskId()) {
					w.t.Errorf("transaction %s has task %s as a target, which was told to end", p.ID, u.GetTaskId())
				}
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.order++
	var ids []string
	for _, p := range proposals {
		if _, ok := c.txns[p.ID]; ok {
			return fmt.Errorf("transaction %s was begun before", p.ID)
		}
		c.txns[p.ID] = &fakeTxn{p: p, st: txn.Status{ID: p.ID, Deploy: p.Deploy, Order: c.order, Phase: txn.Waiting}}
		c.begun = append(c.begun, p)
		ids = append(ids, p.ID)
	}
	c.together = append(c.together, ids)
	go func() {
		for _, id := range ids {
			c.advance(id)
		}
	}()
	return nil
}

// advance walks a transaction to its end, or to where it is held.
func (c *fakeCoordinator) advance(id string) {
	c.mu.Lock()
	x := c.txns[id]
	var tell []txn.Status
	for x.st.Phase < txn.Committed && x.st.Phase != c.stopAt {
		if x.st.Phase == txn.Activating && c.end != nil {
			c.end(&x.st)
			break
		}
		x.st.Phase++
		if x.st.Phase == txn.Committed {
			c.commit(x)
		}
		tell = append(tell, c.status(x))
	}
	if len(tell) == 0 || tell[len(tell)-1].Phase != x.st.Phase {
		tell = append(tell, c.status(x))
	}
	e, drains := c.w.e, c.takeDrains()
	c.mu.Unlock()
	for _, s := range tell {
		e.TxnChanged(s)
	}
	for _, d := range drains {
		e.TxnDrained(d)
	}
}

func (c *fakeCoordinator) status(x *fakeTxn) txn.Status {
	st := x.st
	votes := map[txn.Phase]string{txn.Activating: "ready", txn.Deciding: "verified", txn.Committed: "verified", txn.RolledBack: "aborted"}
	for _, host := range []string{"lb1", "lb2"} {
		v := txn.HostVote{Host: host, Group: "public", Proxy: "haproxy", Vote: votes[st.Phase], SentActivate: st.Phase >= txn.Activating}
		for _, ch := range x.p.Changes {
			ev := &lbagentv1.Evidence{App: ch.App, Order: st.Order, Digest: "d"}
			for _, u := range ch.Target.GetUpstreams() {
				ev.Upstreams = append(ev.Upstreams, &lbagentv1.UpstreamStatus{Name: u.Name, Address: u.Address, Registered: true, Healthy: true, Status: "UP"})
			}
			for n := range c.rows {
				ev.Upstreams = append(ev.Upstreams, &lbagentv1.UpstreamStatus{Name: fmt.Sprintf("%s-old-%d", ch.App, n), Address: "10.0.0.1:31999", Registered: true, Healthy: true, Status: "UP"})
			}
			v.Evidence = append(v.Evidence, ev)
		}
		st.Hosts = append(st.Hosts, v)
	}
	return st
}

func (c *fakeCoordinator) commit(x *fakeTxn) {
	x.st.CommittedAt = time.Now()
	for _, ch := range x.p.Changes {
		key := ch.Group + "/" + ch.App
		keep := map[string]bool{}
		for _, u := range ch.Target.GetUpstreams() {
			keep[u.GetName()] = true
		}
		var old []string
		for _, u := range c.sections[key].GetUpstreams() {
			if !keep[u.GetName()] {
				old = append(old, u.GetName())
			}
		}
		if ch.Target == nil {
			delete(c.sections, key)
		} else {
			ch.Target.Upstreams = slices.DeleteFunc(ch.Target.Upstreams, func(u *lbagentv1.Upstream) bool { return c.dead[u.GetName()] })
			c.sections[key] = ch.Target
		}
		c.drains = append(c.drains, txn.Drained{Txn: x.p.ID, App: ch.App, Group: ch.Group, Done: true, Released: old})
	}
}

func (c *fakeCoordinator) takeDrains() []txn.Drained {
	if c.holdDrain {
		return nil
	}
	out := c.drains
	c.drains = nil
	return out
}

// proposals are all that were begun; amendments all that were asked for.
func (c *fakeCoordinator) proposals() []txn.Proposal {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.begun)
}

func (c *fakeCoordinator) amendments() []txn.Amendment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.amends)
}

func (c *fakeCoordinator) set(change func(c *fakeCoordinator)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

func (c *fakeCoordinator) setEnd(end func(*txn.Status)) {
	c.set(func(c *fakeCoordinator) { c.end = end })
}

// let undoes stopAt and the other holds.
func (c *fakeCoordinator) let() {
	c.mu.Lock()
	c.stopAt, c.holdDrain, c.holdAmend = 0, false, false
	ids := slices.Sorted(maps.Keys(c.txns))
	answers := c.answers
	c.answers = nil
	e := c.w.e
	c.mu.Unlock()
	for _, a := range answers {
		e.Amended(a)
	}
	for _, id := range ids {
		c.mu.Lock()
		open := c.txns[id].st.Phase < txn.Committed
		c.mu.Unlock()
		if open {
			c.advance(id)
		}
	}
	c.mu.Lock()
	drains := c.takeDrains()
	c.mu.Unlock()
	for _, d := range drains {
		e.TxnDrained(d)
	}
	synctest.Wait()
}

// finish ends a transaction as told.
func (c *fakeCoordinator) finish(id string, change func(*txn.Status)) {
	c.mu.Lock()
	x := c.txns[id]
	change(&x.st)
	st, e := c.status(x), c.w.e
	c.mu.Unlock()
	e.TxnChanged(st)
	synctest.Wait()
}

func (c *fakeCoordinator) Abort(_ context.Context, id string, cause txn.Cause, reason string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.txns[id]
	if x == nil || x.st.Phase == txn.Committed {
		return fmt.Errorf("transaction %s is committed or unknown", id)
	}
	if c.deaf {
		return nil
	}
	x.st.Phase, x.st.Cause, x.st.Reason = txn.RolledBack, cause, reason
	st, e := c.status(x), c.w.e
	go e.TxnChanged(st)
	return nil
}

func (c *fakeCoordinator) Outcome(_ context.Context, id string) (txn.Status, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x, ok := c.txns[id]; ok {
		return c.status(x), true, nil
	}
	return txn.Status{}, false, nil
}

func (c *fakeCoordinator) Committed(context.Context) ([]txn.CommittedApp, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	byApp := map[string]*txn.CommittedApp{}
	for id, x := range c.txns {
		if x.st.Phase != txn.Committed {
			continue
		}
		a := byApp[x.p.App]
		if a == nil {
			a = &txn.CommittedApp{App: x.p.App, Sections: map[string]*lbagentv1.Section{}}
			byApp[x.p.App] = a
		}
		if x.st.Order > a.Order {
			a.Txn, a.Order = id, x.st.Order
		}
	}
	for key, section := range c.sections {
		group, app, _ := strings.Cut(key, "/")
		byApp[app].Sections[group] = section
	}
	var out []txn.CommittedApp
	for _, app := range slices.Sorted(maps.Keys(byApp)) {
		out = append(out, *byApp[app])
	}
	return out, nil
}

func (c *fakeCoordinator) Decision(_ context.Context, id string) (txn.Decision, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.txns[id]
	if x == nil || x.st.Phase != txn.Committed {
		return txn.Decision{}, false, nil
	}
	return txn.Decision{
		ID: id, Deploy: x.p.Deploy, App: x.p.App, Order: x.st.Order, CommittedAt: x.st.CommittedAt, Actor: x.p.Actor, Reason: x.p.Reason, Record: x.p.Record,
	}, true, nil
}

// newLeader aborts what is undecided, as a coordinator does after a restart, and says again what was drained.
func (c *fakeCoordinator) newLeader() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.txns {
		if x.st.Phase < txn.Committed {
			x.st.Phase, x.st.Cause, x.st.Reason = txn.RolledBack, txn.CauseLeaderLost, "the orchestrator restarted"
		}
	}
}

func (c *fakeCoordinator) Amend(_ context.Context, a txn.Amendment) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.amends = append(c.amends, a)
	out := txn.Amended{ID: a.ID, Group: a.Group, App: a.App, Done: true, Released: append(slices.Clone(a.Remove), a.Retire...)}
	if a.Group == c.noInsert && len(a.Insert) > 0 {
		out.Done, out.Reason, out.Released = false, "host lb3 refused", []string{a.Insert[0].GetName()}
	} else if s := c.sections[a.Group+"/"+a.App]; s != nil {
		s.Upstreams = slices.DeleteFunc(s.Upstreams, func(u *lbagentv1.Upstream) bool { return slices.Contains(out.Released, u.GetName()) })
		for _, u := range a.Insert { // the same one may come again after a restart
			if !slices.ContainsFunc(s.Upstreams, func(have *lbagentv1.Upstream) bool { return have.GetName() == u.GetName() }) {
				s.Upstreams = append(s.Upstreams, u)
			}
		}
	}
	for _, name := range a.Remove {
		c.dead[name] = true
	}
	if c.holdAmend && len(a.Insert) > 0 {
		c.answers = append(c.answers, out)
		return nil
	}
	e := c.w.e
	go e.Amended(out)
	return nil
}

func (c *fakeCoordinator) Released(_ context.Context, names []string) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		for _, s := range c.sections {
			for _, u := range s.GetUpstreams() {
				if u.GetName() == name {
					return true
				}
			}
		}
		for _, d := range c.drains {
			if slices.Contains(d.Released, name) {
				return true
			}
		}
		for _, x := range c.txns {
			for _, ch := range x.p.Changes {
				for _, u := range ch.Target.GetUpstreams() {
					if x.st.Phase != txn.Committed && x.st.Phase != txn.RolledBack && u.GetName() == name {
						return true
					}
				}
			}
		}
		return false
	}), nil
}

func (c *fakeCoordinator) HostDrift(context.Context, string) (*lbagentv1.ShowResponse, error) {
	return &lbagentv1.ShowResponse{Policy: lbagentv1.DriftPolicy_DRIFT_POLICY_REPORT, Drifts: []*lbagentv1.Drift{{App: "shop",
		Cause: lbagentv1.DriftCause_DRIFT_CAUSE_FOREIGN_COMMAND, Place: "the running proxy", Left: true}}}, nil
}

func (c *fakeCoordinator) Hosts() []txn.HostInfo {
	return []txn.HostInfo{{Name: "lb1", Group: "public", Connected: true, State: &lbagentv1.HostState{Name: "lb1", Group: "public", Proxy: "haproxy"}}}
}

func (c *fakeCoordinator) Sources() []txn.SourceInfo {
	return []txn.SourceInfo{{Source: "consul", Hosts: 1, Problem: "away", Since: time.Unix(1, 0), Refused: []string{"host x: no"}}}
}

func (c *fakeCoordinator) Groups() []string { return c.groups }

func (c *fakeCoordinator) ChangeMember(_ context.Context, ask txn.MemberAsk) (txn.HostInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asks = append(c.asks, ask)
	if c.refuse != nil {
		return txn.HostInfo{}, c.refuse
	}
	return txn.HostInfo{Name: ask.Host, Membership: txn.Membership{Standing: string(ask.Verb)}}, nil
}

func (c *fakeCoordinator) Resolve(_ context.Context, host string) (txn.Resolution, error) {
	return txn.Resolution{Host: host, Left: []string{"as the test says"}, Next: "cutover lb resolve " + host}, nil
}

func (c *fakeCoordinator) MemberHistory(context.Context, int) ([]txn.MemberChange, error) {
	return nil, nil
}

func (c *fakeCoordinator) ShowHost(context.Context, string) (*lbagentv1.ShowResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &lbagentv1.ShowResponse{}
	for _, s := range c.sections {
		out.Sections = append(out.Sections, &lbagentv1.SectionShow{App: s.App, Committed: &lbagentv1.CommittedSection{Section: s}, Agrees: true})
	}
	return out, nil
}

// mustNotKnow is NO-ORPHAN-KILL as the proxies see it: a task that is ordered killed is in no committed Section and in no
// transaction that is undecided.
func (c *fakeCoordinator) mustNotKnow(task string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, s := range c.sections {
		for _, u := range s.GetUpstreams() {
			if u.GetTaskId() == task {
				c.w.t.Errorf("NO-ORPHAN-KILL: %s is killed and committed in %s", task, key)
			}
		}
	}
	for id, x := range c.txns {
		undecided := x.st.Phase != txn.Committed && x.st.Phase != txn.RolledBack
		for _, ch := range x.p.Changes {
			for _, u := range ch.Target.GetUpstreams() {
				if undecided && u.GetTaskId() == task {
					c.w.t.Errorf("NO-ORPHAN-KILL: %s is killed and named by %s in phase %d", task, id, x.st.Phase)
				}
			}
		}
	}
	for _, d := range c.drains {
		if slices.Contains(d.Released, deploy.UpstreamName(task)) {
			c.w.t.Errorf("NO-ORPHAN-KILL: %s is killed and not drained", task)
		}
	}
}
