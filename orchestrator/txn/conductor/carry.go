package conductor

import (
	"fmt"
	"slices"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/txn"
)

// This file is an undo that holds nothing that can serve (NEVER-ZERO). Its Hosts serve the target on and do not answer
// Aborted; replacements, started from the committed Spec, come as an insertion that names the transaction (Amendment.Undo).
//
//   - It is durable in the committed Section before anybody is told, as every insertion, so a new leader goes on with it.
//   - It waits for no lock. A Host that still owes Aborted gets it with Abort, and has it when its Aborted shows it; a Host
//     that owes nothing any more gets Amend.
//   - Behind the transaction it has the Section's lock, so that nothing comes between the undo and the last of its Hosts.
//   - It is never taken back: that would lead to the dead upstreams. What a Host refuses of it is left to Sync.

// checkUndo says why an insertion cannot belong to that undo. After the undo it is an insertion as any other.
func (c *Conductor) checkUndo(a *txn.Amendment) error {
	if a.Undo == "" {
		return nil
	}
	phase := c.past.byID[a.Undo].Status.Phase
	o := c.parts[a.Undo]
	if o != nil {
		phase = o.state.Phase
		if o.changeOf(txn.SectionKey{Group: a.Group, App: a.App}) == nil {
			return fmt.Errorf("%w: transaction %s does not change %s in group %s", ErrInvalid, a.Undo, a.App, a.Group)
		}
	}
	switch {
	case phase == txn.RolledBack:
		a.Undo = ""
	case o == nil && !c.past.has(a.Undo):
		return fmt.Errorf("%s: %w", a.Undo, ErrUnknown)
	case phase != txn.Restoring && phase != txn.StuckRestoring:
		// What is committed, or may be, is not replaced by upstreams of the Spec before.
		return fmt.Errorf("%w: transaction %s is %v and not being undone", ErrInvalid, a.Undo, phase)
	case !slices.ContainsFunc(o.state.Hosts, func(h txn.Host) bool { return h.SentActivate }):
		a.Undo = "" // no Host left the old ones: nothing is to be undone
	}
	return nil
}

// carried: the insertion belongs to an undo.
func (a *amendment) carried() bool { return a.record.Undo != "" }

// carrier is the undo, as long as some Host owes its Aborted; nil after that.
func (c *Conductor) carrier(a *amendment) *transaction {
	o := c.parts[a.record.Undo]
	if a.carried() && o != nil && (o.state.Phase == txn.Restoring || o.state.Phase == txn.StuckRestoring) {
		return o
	}
	return nil
}

// carry begins an insertion with an undo.
func (c *Conductor) carry(a *amendment) {
	if c.outdated(a) {
		return
	}
	c.queueBehind(a)
	c.applyInsert(a)
}

// queueBehind makes the insertion the next that has the Section, before all that waits for it.
func (c *Conductor) queueBehind(a *amendment) {
	var granted []txn.Grant
	c.locks, granted = c.locks.Add(txn.LockRequest{ID: a.lockID(), Sections: []txn.SectionKey{a.key()}, Rollback: true})
	c.grant(granted)
}

// abortAgain sends Abort with what is carried now to every Host that still has to restore.
func (c *Conductor) abortAgain(a *amendment) {
	if o := c.carrier(a); o != nil {
		c.step(o, txn.Replaced{})
	}
}

// replacements are what Abort carries for the Group: the inserted upstreams that are not dead by now. Only what is durable
// counts, which is what the committed Section holds.
func (c *Conductor) replacements(o *transaction, group string) []*lbagentv1.Section {
	var out []*lbagentv1.Section
	for _, app := range o.apps(group) {
		s := &lbagentv1.Section{App: app}
		for _, id := range sortedKeys(c.amends) {
			if a := c.amends[id]; o.unitOf(a.record.Undo) != nil && a.a.Group == group && a.a.App == app {
				addMissing(s, c.alive(a))
			}
		}
		if len(s.Upstreams) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// alive are the inserts that the committed Section holds.
func (c *Conductor) alive(a *amendment) []*lbagentv1.Upstream {
	return slices.DeleteFunc(slices.Clone(a.a.Insert), func(u *lbagentv1.Upstream) bool { return !c.committed(a.key(), u.GetName()) })
}

// cameWith notes which insertions a Host has by its Aborted. One that it has not, since it had aborted before, it gets as
// any other.
func (c *Conductor) cameWith(o *transaction, h *host, evidence []*lbagentv1.Evidence) {
	for _, id := range sortedKeys(c.amends) {
		a := c.amends[id]
		if a == nil || o.unitOf(a.record.Undo) == nil || a.a.Group != h.group || !a.inserting(h.name) {
			continue
		}
		if rows := txn.EvidenceOf(evidence, a.a.App).GetUpstreams(); a.insert.ready() && c.shows(a, rows) {
			a.insert.done(h.name)
		}
	}
}

// shows: the reading has every one of the inserts that live in service.
func (c *Conductor) shows(a *amendment, rows []*lbagentv1.UpstreamStatus) bool {
	for _, u := range c.alive(a) {
		if !slices.ContainsFunc(rows, func(row *lbagentv1.UpstreamStatus) bool {
			return row.GetName() == u.GetName() && row.GetRegistered() && row.GetMode() == lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING
		}) {
			return false
		}
	}
	return true
}

// advanceCarried goes on with insertions when a Host has answered the undo that carries them.
func (c *Conductor) advanceCarried(o *transaction) {
	for _, id := range sortedKeys(c.amends) {
		if a := c.amends[id]; a != nil && o.unitOf(a.record.Undo) != nil {
			c.advanceAmendment(a)
		}
	}
}

// leaveToSync ends an insertion that must not be taken back without the Hosts that do not have it: it is committed, so the
// reconciler brings them there.
func (c *Conductor) leaveToSync(a *amendment, why string) {
	c.log.Warn("replacements are left to the reconciler", "amendment", a.a.ID, "group", a.a.Group, "app", a.a.App, "reason", why)
	for _, name := range a.hosts {
		a.insert.done(name)
	}
	c.advanceAmendment(a)
	for _, name := range a.hosts {
		if h := c.hosts[name]; h != nil {
			c.refresh(h)
		}
	}
}
