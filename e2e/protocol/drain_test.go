package protocol

import (
	"slices"
	"strings"

	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// drain watches how the Hosts release what a Commit or an Amendment took out (NO-ORPHAN-KILL).
type drain struct {
	id       string
	app      int
	retired  []string
	min      *lbagentv1.Version
	released []string
}

func (l *leader) track(id string, app int, retired []string, min *lbagentv1.Version) {
	if len(retired) > 0 && !slices.ContainsFunc(l.drains, func(d *drain) bool { return d.id == id }) {
		l.drains = append(l.drains, &drain{id: id, app: app, retired: retired, min: min})
		slices.SortFunc(l.drains, func(a, b *drain) int { return strings.Compare(a.id, b.id) })
	}
}

// trackCommit watches what a Commit retired, for each proposal.
func (l *leader) trackCommit(o *open, rec decision) {
	for _, p := range o.parts() {
		l.track(p.id, p.app, rec.retired[p.app], &lbagentv1.Version{Txn: rec.order})
	}
}

// trackPart watches what a proposal of an earlier term retired.
func (l *leader) trackPart(id string, rec decision) {
	for app, retired := range rec.retired {
		l.track(id, app, retired, &lbagentv1.Version{Txn: rec.order})
	}
}

func (w *world) watchDrains(l *leader) {
	for _, d := range l.drains {
		for _, name := range d.retired {
			if slices.Contains(d.released, name) || l.committed(name) || l.inOpenTxn(name) {
				continue
			}
			all := true
			for i := range l.hosts {
				if w.groupOf(d.app) != w.hostGroup(i) || !l.hosts[i].counts() {
					continue
				}
				ok, _ := txn.ReleasedOn(l.hosts[i].reports, apps[d.app], name, d.min)
				all = all && ok
			}
			if all {
				d.released = append(d.released, name)
				slices.Sort(d.released)
			}
		}
	}
}

func (l *leader) inOpenTxn(name string) bool {
	return slices.ContainsFunc(l.txns, func(o *open) bool {
		c := o.changeOf(appOf(name))
		return c != nil && o.state.Holds(name, c.target, c.base.GetSection(), o.dead)
	})
}

// released says whether the task may be killed: nothing here or on any Host holds its upstream.
func (l *leader) released(name string) bool {
	if l.committed(name) || l.inOpenTxn(name) {
		return false
	}
	for _, a := range l.amends {
		if a.rec.remove == name || a.rec.insert == name {
			return false
		}
	}
	for _, d := range l.drains {
		if slices.Contains(d.retired, name) && !slices.Contains(d.released, name) {
			return false
		}
	}
	for i := range l.hosts {
		r := l.hosts[i].reports
		if !l.hosts[i].counts() {
			continue
		}
		if !r.Known {
			return false
		}
		for _, s := range r.Sections {
			if !s.GetRemoved() && !txn.HasRead(s.GetEvidence()) {
				return false
			}
			for _, row := range s.GetEvidence().GetUpstreams() {
				if row.GetName() == name && (!row.GetDrained() || row.GetRegistered()) {
					return false
				}
			}
		}
	}
	return true
}

// drained says whether the commit that retired the name has it released everywhere: the engine's other way to a kill.
func (l *leader) drained(name string) bool {
	return slices.ContainsFunc(l.drains, func(d *drain) bool { return slices.Contains(d.released, name) })
}
