package mesosframework

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"

	"github.com/cutover/cutover/mesosframework/placement"
)

// takeOffers takes new offers in. They are placed or declined at once, or after
// Options.Gather if there is something to place and other agents may follow.
func (c *core) takeOffers(offers []mesos.Offer, now time.Time) {
	c.stats.Offers += uint64(len(offers))
	for i := range offers {
		c.takeOffer(&offers[i], now)
	}
	if len(c.offers) == 0 {
		return
	}
	if len(c.pending) == 0 || c.allAgentsOffer() {
		c.place(now)
		return
	}
	if c.gather.IsZero() {
		c.gather = now.Add(c.opts.Gather)
	}
}

func (c *core) takeOffer(o *mesos.Offer, now time.Time) {
	id := o.ID.Value
	if c.offers[id] != nil {
		return
	}
	a := c.agents[o.AgentID.Value]
	if a == nil {
		a = &agent{id: o.AgentID.Value}
		c.agents[a.id] = a
	}
	// An agent that restarts may come back with another address or attributes.
	a.hostname = o.Hostname
	a.host, a.url = agentAddress(o)
	a.class = c.classes.Class(attributes(o))
	x := &offer{id: id, agent: a, unavailable: unavailable(o.Unavailability, now)}
	for k := range o.Resources {
		if usable(&o.Resources[k]) {
			x.resources = append(x.resources, o.Resources[k])
		}
	}
	a.offers = append(a.offers, x)
	c.offers[id] = x
}

// agentAddress returns where tasks of the agent are reached, and the base URL of
// the agent itself.
func agentAddress(o *mesos.Offer) (host, url string) {
	host = o.Hostname
	if o.URL == nil {
		return host, ""
	}
	at := o.URL.Address
	if ip := at.GetIP(); ip != "" {
		host = ip
	}
	name := host
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	return host, fmt.Sprintf("%s://%s:%d", o.URL.Scheme, name, at.Port)
}

// attributes flattens an agent's attributes and fault domain.
func attributes(o *mesos.Offer) map[string]string {
	m := make(map[string]string, len(o.Attributes)+2)
	for i := range o.Attributes {
		a := &o.Attributes[i]
		switch {
		case a.Text != nil:
			m[a.Name] = a.Text.Value
		case a.Scalar != nil:
			m[a.Name] = strconv.FormatFloat(float64(toMilli(a.Scalar.Value))/1000, 'f', -1, 64)
		case a.Set != nil:
			m[a.Name] = strings.Join(slices.Sorted(slices.Values(a.Set.Item)), ",")
		case a.Ranges != nil:
			var parts []string
			for _, r := range a.Ranges.Range {
				parts = append(parts, fmt.Sprintf("%d-%d", r.Begin, r.End))
			}
			m[a.Name] = strings.Join(parts, ",")
		}
	}
	if o.Domain != nil && o.Domain.FaultDomain != nil {
		m[placement.AttributeRegion] = o.Domain.FaultDomain.Region.Name
		m[placement.AttributeZone] = o.Domain.FaultDomain.Zone.Name
	}
	return m
}

// unavailable reports whether maintenance is scheduled and not over.
func unavailable(u *mesos.Unavailability, now time.Time) bool {
	if u == nil {
		return false
	}
	if u.Duration == nil {
		return true
	}
	return u.Start.Nanoseconds+u.Duration.Nanoseconds > now.UnixNano()
}

func (c *core) allAgentsOffer() bool {
	for _, a := range c.agents {
		if len(a.offers) == 0 {
			return false
		}
	}
	return true
}

// rescind drops an offer; unknown ones are normal.
func (c *core) rescind(id string) {
	if o, ok := c.offers[id]; ok {
		c.dropOffer(o)
	}
	if len(c.offers) == 0 {
		c.gather = time.Time{}
	}
}

func (c *core) dropOffer(o *offer) {
	delete(c.offers, o.id)
	o.agent.offers = slices.DeleteFunc(o.agent.offers, func(x *offer) bool { return x == o })
}

func (c *core) dropOffers() {
	clear(c.offers)
	for _, a := range c.agents {
		a.offers = nil
	}
	c.gather = time.Time{}
}

// agentGone forgets an agent that the master removed, and asks for its tasks.
func (c *core) agentGone(id string, now time.Time) {
	if a := c.agents[id]; a != nil {
		for _, o := range slices.Clone(a.offers) {
			c.dropOffer(o)
		}
		delete(c.agents, id)
	}
	var ids []string
	for taskID, t := range c.tasks {
		if t.ref.AgentID == id {
			ids = append(ids, taskID)
		}
	}
	slices.Sort(ids)
	c.ask(ids, now)
}

// portBlocked reports ports that a task which has not durably ended holds, or
// that the owner holds back.
func (c *core) portBlocked(agentID, host string, port uint16) bool {
	if _, held := c.ports[agentID][port]; held {
		return true
	}
	return c.opts.PortBlocked != nil && c.opts.PortBlocked(agentID, host, port)
}

// place puts pending tasks on the offers at hand and declines the rest: no
// offer is held afterwards.
func (c *core) place(now time.Time) {
	c.gather = time.Time{}
	tasks, index := c.dueTasks(now)
	rows := make([]placement.Agent, 0, len(c.agents))
	stocks := make(map[string]stock)
	for _, id := range slices.Sorted(maps.Keys(c.agents)) {
		a := c.agents[id]
		if len(a.offers) == 0 {
			continue
		}
		var s stock
		row := placement.Agent{ID: a.id, Hostname: a.hostname, Host: a.host, Class: a.class}
		for _, o := range a.offers {
			s = append(s, o.resources...)
			row.Unavailable = row.Unavailable || o.unavailable
		}
		row.CPUs, row.MemoryMB, row.DiskMB, row.Ports = total(s)
		stocks[a.id] = s
		rows = append(rows, row)
	}
	c.seed++
	var res placement.Result
	if len(tasks) > 0 {
		res = placement.Place(rows, c.population, tasks, placement.Options{Seed: c.seed, PortBlocked: c.portBlocked, MaxVetoes: maxExamples})
	}
	blocked := c.noteRefusals(res.Refusals, index)
	c.accept(res.Assignments, stocks, index, blocked, now)
	c.decline(slices.Sorted(maps.Keys(c.offers)), c.refuseFor(blocked))
	c.dropOffers()
	c.adjust(now)
}

// dueTasks lists the pending tasks that may be placed now.
func (c *core) dueTasks(now time.Time) ([]placement.Task, map[string]*pendingTask) {
	tasks := make([]placement.Task, 0, len(c.pending))
	index := make(map[string]*pendingTask, len(c.pending))
	for _, p := range c.pending {
		if now.Before(p.notBefore) {
			continue
		}
		s := &p.spec
		tasks = append(tasks, placement.Task{
			ID: s.ID, App: s.App, Group: s.Group, CPUs: s.CPUs, MemoryMB: s.MemoryMB, DiskMB: s.DiskMB,
			Ports: s.Ports, Constraints: s.Constraints, Exclude: s.ExcludeAgents,
		})
		index[s.ID] = p
	}
	return tasks, index
}

// noteRefusals remembers why tasks still wait. It reports whether a blocked port
// was a reason: that passes by itself, soon.
func (c *core) noteRefusals(refusals []placement.Refusal, index map[string]*pendingTask) (blocked bool) {
	for i := range refusals {
		r := &refusals[i]
		blocked = blocked || r.Histogram[placement.ReasonPortsBlocked] > 0
		for _, id := range r.TaskIDs {
			p := index[id]
			p.refusal = r
			p.passes++
			p.note = ""
		}
	}
	return blocked
}

// refuseFor is how long declined resources stay away, unless more come free on
// their agent or a Launch revives the offers.
func (c *core) refuseFor(blocked bool) time.Duration {
	switch {
	case blocked:
		return filterBlocked
	case len(c.pending) > 0:
		return filterPending
	}
	return filterIdle
}

// accept turns assignments into one ACCEPT per agent.
func (c *core) accept(assignments []placement.Assignment, stocks map[string]stock, index map[string]*pendingTask, blocked bool, now time.Time) {
	if len(assignments) == 0 {
		return
	}
	byAgent := make(map[string][]placement.Assignment)
	for _, x := range assignments {
		byAgent[x.AgentID] = append(byAgent[x.AgentID], x)
	}
	var e launchEffect
	for _, agentID := range slices.Sorted(maps.Keys(byAgent)) {
		a := c.agents[agentID]
		var ids []mesos.OfferID
		acc := acceptCall{}
		for _, o := range a.offers {
			ids = append(ids, mesos.OfferID{Value: o.id})
			acc.offerIDs = append(acc.offerIDs, o.id)
		}
		left := stocks[agentID].clone()
		var infos []mesos.TaskInfo
		for _, x := range byAgent[agentID] {
			p := index[x.TaskID]
			l := Launch{
				TaskID: p.spec.ID, App: p.spec.App, Group: p.spec.Group, AgentID: a.id, Hostname: a.hostname, Host: a.host, AgentURL: a.url,
				Attributes: a.class.Attributes(), OfferIDs: acc.offerIDs, Ports: x.Ports, At: now,
			}
			info, err := taskInfo(&p.spec, &l, left)
			if err != nil {
				p.note = err.Error() // placement and offers disagree: leave it pending
				continue
			}
			infos = append(infos, info)
			acc.taskIDs = append(acc.taskIDs, l.TaskID)
			e.launches = append(e.launches, l)
			c.unqueue(p)
			t := &task{ref: l.Ref(), spec: &p.spec, known: true, launching: true, deadline: now.Add(c.opts.LaunchTimeout), refusals: p.refusals}
			c.hold(t)
		}
		if len(infos) == 0 {
			continue // the offers are declined with the others
		}
		for _, o := range slices.Clone(a.offers) {
			c.dropOffer(o)
		}
		c.stats.Placed += uint64(len(infos))
		call := calls.Accept(calls.OfferOperations{calls.OpLaunch(infos...)}.WithOffers(ids...))
		call.FrameworkID = &mesos.FrameworkID{Value: c.frameworkID}
		acc.call = call
		e.accepts = append(e.accepts, acc)
	}
	c.compact()
	seconds := c.refuseFor(blocked).Seconds()
	for i := range e.accepts {
		e.accepts[i].call.Accept.Filters = &mesos.Filters{RefuseSeconds: &seconds}
	}
	if len(e.accepts) > 0 {
		c.emit(e)
	}
}

// unqueue takes a task out of the index; compact takes such tasks out of the queue.
func (c *core) unqueue(p *pendingTask) { delete(c.pendingByID, p.spec.ID) }

func (c *core) compact() {
	c.pending = slices.DeleteFunc(c.pending, func(p *pendingTask) bool { return c.pendingByID[p.spec.ID] != p })
}

// decline gives offers back, all in one call.
func (c *core) decline(ids []string, refuse time.Duration) {
	if len(ids) == 0 || !c.subscribed {
		return
	}
	offerIDs := make([]mesos.OfferID, len(ids))
	for i, id := range ids {
		offerIDs[i] = mesos.OfferID{Value: id}
	}
	c.stats.Declined += uint64(len(ids))
	c.call(calls.Decline(offerIDs...).With(calls.RefuseSeconds(refuse)))
}

// adjust tells the master whether offers are wanted.
func (c *core) adjust(now time.Time) {
	if !c.subscribed {
		return
	}
	// Tasks that pause after a failure want no offers yet.
	if !slices.ContainsFunc(c.pending, func(p *pendingTask) bool { return p.notBefore.IsZero() }) {
		c.reviveNow = false
		if !c.suppressed && len(c.offers) == 0 {
			c.suppressed = true
			c.call(calls.Suppress())
		}
		return
	}
	if !c.reviveNow && !c.suppressed {
		return
	}
	// Each REVIVE makes the master run its allocator: a bucket bounds them.
	if !c.tokensAt.IsZero() {
		c.tokens = min(reviveBurst, c.tokens+now.Sub(c.tokensAt).Seconds()*revivePerSecond)
	}
	c.tokensAt = now
	if c.tokens < 1 {
		return
	}
	c.tokens--
	c.reviveNow, c.suppressed = false, false
	c.call(calls.Revive())
}

// launched takes the outcome of one ACCEPT, or of a save that failed (unsent).
func (c *core) launched(taskIDs, offerIDs []string, v verdict, detail string, now time.Time) {
	switch v {
	case accepted:
		c.stats.Launched += uint64(len(taskIDs))
		return
	case resubscribe, unauthorized:
		// Not done; the subscription ends and its offers with it.
		v = unsent
	case ambiguous:
		// The subscription ends, and the next one asks.
		c.stats.LaunchesUnknown++
		return
	case refused:
		c.stats.LaunchesRefused++
		c.decline(offerIDs, filterBlocked)
	case unsent:
		c.decline(offerIDs, filterBlocked)
	}
	for _, id := range taskIDs {
		t := c.tasks[id]
		if t == nil || !t.launching || t.state != "" || t.spec == nil {
			continue // an update says otherwise
		}
		c.forget(t)
		if v == refused {
			t.refusals++
		}
		switch {
		case t.killing:
			c.lose(t.ref, LossNotLaunched, "it was killed before its launch was sent: "+detail)
		case t.refusals >= maxRefusals:
			c.lose(t.ref, LossRefused, fmt.Sprintf("the master refused the launch %d times: %s", t.refusals, detail))
		default:
			pause := saveFailedPause
			if v == refused {
				pause = refusedPause
			}
			c.enqueue(&pendingTask{spec: *t.spec, since: now, notBefore: now.Add(pause), refusals: t.refusals, note: detail})
		}
	}
	c.adjust(now)
}

// pendingTasks explains what waits and why.
func (c *core) pendingTasks() []PendingTask {
	out := make([]PendingTask, 0, len(c.pending))
	for _, p := range c.pending {
		x := PendingTask{TaskID: p.spec.ID, App: p.spec.App, Since: p.since, Passes: p.passes}
		switch {
		case p.note != "":
			x.Detail = p.note
		case p.refusal == nil && !c.subscribed:
			x.Detail = "not connected to a Mesos master"
		case p.refusal == nil:
			x.Detail = "no offer has come yet"
		case p.refusal.Err != nil:
			x.Detail = p.refusal.Err.Error()
		default:
			x.Vetoes = maps.Clone(p.refusal.Histogram)
			x.Examples = slices.Clone(p.refusal.Vetoes)
			x.Detail = summary(p.refusal)
		}
		out = append(out, x)
	}
	return out
}

// summary is a refusal in one line: the commonest reason first.
func summary(r *placement.Refusal) string {
	type kv struct {
		reason placement.Reason
		n      int
	}
	var all []kv
	agents := 0
	for k, n := range r.Histogram {
		all = append(all, kv{k, n})
		agents += n
	}
	if agents == 0 {
		return "no agent has offered anything"
	}
	slices.SortFunc(all, func(a, b kv) int {
		if a.n != b.n {
			return b.n - a.n
		}
		return strings.Compare(string(a.reason), string(b.reason))
	})
	parts := make([]string, len(all))
	for i, x := range all {
		parts[i] = fmt.Sprintf("%s %d", x.reason, x.n)
	}
	s := fmt.Sprintf("no agent of %d fits (%s)", agents, strings.Join(parts, ", "))
	if len(r.Vetoes) > 0 {
		s += fmt.Sprintf("; %s: %s", r.Vetoes[0].Hostname, r.Vetoes[0].Detail)
	}
	return s
}
