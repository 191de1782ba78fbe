package conductor

import (
	"context"
	"slices"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/txn"
)

// drain watches how the Hosts release what one committed transaction or one Amendment took out (NO-ORPHAN-KILL).
type drain struct {
	id, app string
	changes []retiredRecord
	views   []viewRecord
	// min is the version from which on a report counts, by Section.
	min map[txn.SectionKey]*lbagentv1.Version
	// released is by name; once released, a name stays so: it is never a target again.
	released map[string]bool
	forced   bool
	done     bool
	// amendment: tell is through Listener.Amended, as the end of that Amendment.
	amendment *txn.Amended
	told      string // what was told last
}

// trackCommit begins to watch what a commit retired.
func (c *Conductor) trackCommit(o *transaction, retired []retiredRecord) {
	for _, p := range o.parts() {
		d := &drain{id: p.id, app: p.app, changes: partsOf(p, retired, retiredRecord.key), views: o.record.Views,
			min: map[txn.SectionKey]*lbagentv1.Version{}, released: map[string]bool{}}
		for _, r := range d.changes {
			d.min[r.key()] = &lbagentv1.Version{Txn: o.state.Order}
		}
		c.drains[d.id] = d
	}
}

// hostsOf returns the Hosts of the Group's pinned view whose word is needed.
func (c *Conductor) hostsOf(views []viewRecord, group string) []*host {
	var out []*host
	for _, v := range views {
		if v.Group != group {
			continue
		}
		for _, name := range v.Hosts {
			// One that is out of the View now is proven out of traffic, and is synced before it is back.
			if h := c.hosts[name]; h != nil && h.counts() {
				out = append(out, h)
			}
		}
	}
	return out
}

// watchDrain looks again at what the Hosts say, and tells what changed.
func (c *Conductor) watchDrain(d *drain) {
	if d == nil || d.done {
		return
	}
	waiting := c.waitingFor(d)
	d.done = len(waiting) == 0
	c.tellDrain(d, waiting)
	if !d.done {
		return
	}
	delete(c.drains, d.id)
	if past, ok := c.past.get(d.id); ok && !past.Drained {
		past.Drained, past.Forced = true, d.forced
		c.endTxn(d.id, false, endedPart{d.id, past})
	} else if o := c.parts[d.id]; o != nil {
		c.drains[d.id] = d // finish notes it
	}
	if d.amendment != nil {
		c.forgetAmendment(d.amendment.ID)
	}
}

// waitingFor notes what is released by now and returns the Hosts that still hold something, sorted.
func (c *Conductor) waitingFor(d *drain) []string {
	var waiting []string
	for _, r := range d.changes {
		key := txn.SectionKey{Group: r.Group, App: r.App}
		hosts := c.hostsOf(d.views, r.Group)
		for _, h := range hosts {
			if !h.reports.Known || txn.CompareVersions(versionOn(h, r.App), d.min[key]) < 0 && !absentOn(h, r.App) {
				waiting = append(waiting, h.name)
			}
		}
		for _, name := range r.Retired {
			if d.released[name] || c.committed(key, name) {
				continue // committed again: the commit that takes it out will watch it
			}
			all := true
			if c.inOpenTxn(key, name) {
				all = false // it may come back into traffic, or stay: its transaction decides
				for _, h := range hosts {
					waiting = append(waiting, h.name)
				}
			}
			for _, h := range hosts {
				ok, forced := txn.ReleasedOn(h.reports, r.App, name, d.min[key])
				d.forced = d.forced || (ok && forced)
				if !ok {
					all = false
					waiting = append(waiting, h.name)
				}
			}
			if all {
				d.released[name] = true
			}
		}
	}
	slices.Sort(waiting)
	return slices.Compact(waiting)
}

func versionOn(h *host, app string) *lbagentv1.Version { return h.reports.Sections[app].GetVersion() }

// absentOn: the Host has said everything and has nothing of the App.
func absentOn(h *host, app string) bool { return h.reports.Known && h.reports.Sections[app] == nil }

// committed: the name is in the committed Section.
func (c *Conductor) committed(key txn.SectionKey, name string) bool {
	return slices.ContainsFunc(c.sections[key].upstreams(), func(u *lbagentv1.Upstream) bool { return u.GetName() == name })
}

// inOpenTxn: an open transaction may make the name routable, or bring it back.
func (c *Conductor) inOpenTxn(key txn.SectionKey, name string) bool {
	for _, o := range c.txns {
		if ch := o.changeOf(key); ch != nil && o.holds(ch, name) {
			return true
		}
	}
	return false
}

// holds: the transaction can still put the name into traffic on some Host, or bring it back.
func (o *transaction) holds(ch *change, name string) bool {
	return o.state.Holds(name, ch.target, ch.base.GetSection(), o.dead)
}

// tellDrain tells the Listener, once for every change, how far the drain is and which Hosts it waits for.
func (c *Conductor) tellDrain(d *drain, waiting []string) {
	names := sortedKeys(d.released)
	if d.amendment != nil {
		if len(names) == 0 || d.said(names, nil) {
			return
		}
		a := *d.amendment
		a.Released = names
		c.opts.Listener.Amended(a)
		return
	}
	if d.said(names, waiting) && !d.done {
		return
	}
	// One message for each Group, and one without a Group for a transaction that named none.
	if len(d.changes) == 0 {
		c.opts.Listener.TxnDrained(txn.Drained{Txn: d.id, App: d.app, Done: true})
	}
	for _, r := range d.changes {
		out := txn.Drained{Txn: d.id, App: r.App, Group: r.Group, Done: d.done, Forced: d.forced}
		for _, name := range r.Retired {
			if d.released[name] {
				out.Released = append(out.Released, name)
			}
		}
		if !d.done {
			for _, h := range c.hostsOf(d.views, r.Group) {
				if slices.Contains(waiting, h.name) {
					out.Waiting = append(out.Waiting, h.name)
				}
			}
		}
		c.opts.Listener.TxnDrained(out)
	}
}

// said notes what is about to be told, and says whether the same was told before.
func (d *drain) said(names, waiting []string) bool {
	what := string(encode([]any{names, waiting, d.forced, d.done}))
	same := d.told == what
	d.told = what
	return same
}

// pastDrain is the drain of a transaction that ended drained.
func pastDrain(id string, r endedRecord) *drain {
	d := &drain{id: id, app: r.App, changes: r.Changes, views: r.Hosts, released: map[string]bool{}, forced: r.Forced, done: true}
	for _, ch := range r.Changes {
		for _, name := range ch.Retired {
			d.released[name] = true
		}
	}
	return d
}

// Released returns those of the names that no Host routes, holds sessions for or has registered, and that nothing under
// way may bring back: they are not committed, in no open transaction, in no pending Amendment, drained everywhere if they
// ever left a committed Section, and no Host reports them. Only their tasks may be killed, and only their ports given
// away (NO-ORPHAN-KILL). Until every declared Host was heard once in this term nothing is known to be released.
func (c *Conductor) Released(ctx context.Context, names []string) ([]string, error) {
	var out []string
	err := c.ask(ctx, func() {
		for _, h := range c.hosts {
			if h.counts() && !h.hasRead() {
				return
			}
		}
		held := c.held(names)
		for _, name := range names {
			if !held[name] {
				out = append(out, name)
			}
		}
	})
	return out, err
}

// hasRead: the Host has said what its running proxy holds, for every Section.
func (h *host) hasRead() bool {
	if !h.reports.Known {
		return false
	}
	for _, s := range h.reports.Sections {
		if !s.GetRemoved() && !txn.HasRead(s.GetEvidence()) {
			return false
		}
	}
	return true
}

// held says which of the names may be in traffic somewhere. It looks at everything that is, which may be very many names, and
// remembers only those that were asked for.
func (c *Conductor) held(names []string) map[string]bool {
	held := make(map[string]bool, len(names))
	for _, name := range names {
		held[name] = false
	}
	note := func(name string) {
		if _, asked := held[name]; asked {
			held[name] = true
		}
	}
	for _, s := range c.sections {
		for _, u := range s.upstreams() {
			note(u.GetName())
		}
	}
	for _, o := range c.txns {
		for i := range o.changes {
			ch := &o.changes[i]
			for _, s := range []*lbagentv1.Section{ch.target, ch.base.GetSection()} {
				for _, u := range s.GetUpstreams() {
					if o.holds(ch, u.GetName()) {
						note(u.GetName())
					}
				}
			}
		}
	}
	for _, d := range c.drains {
		for _, r := range d.changes {
			for _, name := range r.Retired {
				if !d.released[name] {
					note(name)
				}
			}
		}
	}
	for _, a := range c.amends {
		for _, name := range a.heldNames() {
			note(name)
		}
	}
	for _, h := range c.hosts {
		if !h.counts() {
			continue
		}
		for _, s := range h.reports.Sections {
			for _, row := range s.GetEvidence().GetUpstreams() {
				if !row.GetDrained() || row.GetRegistered() {
					note(row.GetName())
				}
			}
		}
	}
	return held
}

// resumeDrain goes on watching a transaction that ended in an earlier term, and was not drained by then.
func (c *Conductor) resumeDrain(id string, r endedRecord) {
	d := pastDrain(id, r)
	d.done, d.released = false, map[string]bool{}
	d.min = map[txn.SectionKey]*lbagentv1.Version{}
	for _, ch := range r.Changes {
		d.min[txn.SectionKey{Group: ch.Group, App: ch.App}] = &lbagentv1.Version{Txn: r.Status.Order}
	}
	c.drains[id] = d
}
