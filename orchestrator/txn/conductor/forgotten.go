package conductor

import (
	"fmt"

	"github.com/cutover/cutover/orchestrator/txn"
)

// This file is about a store that knows less than the Hosts: it was lost, or put back from an older copy. No Host can hold
// a commit that the store does not have, since the record comes before every Commit that is sent, and no record of a
// Section is ever deleted. To "repair" such a Host would take routes from Apps that serve (FAIL-STATIC, NEVER-ZERO).

// forgotten says which commit of a Host the store does not know, or "". It holds back every Sync to that Host.
func (c *Conductor) forgotten(h *host) string {
	for _, app := range sortedKeys(h.suspects) {
		report := h.reports.Sections[app]
		if report.GetOpen() != nil || report.GetVersion().GetTxn() == 0 {
			continue
		}
		key := txn.SectionKey{Group: h.group, App: app}
		if c.writes.busy[key] {
			continue
		}
		switch s := c.sections[key]; {
		case s == nil && !report.GetRemoved():
			return fmt.Sprintf("it serves %s, of which this orchestrator's store has no record", app)
		case s != nil && report.GetVersion().GetTxn() > s.version().GetTxn():
			return fmt.Sprintf("it holds version %d of %s, and this orchestrator's store only knows of %d", report.GetVersion().GetTxn(), app, s.version().GetTxn())
		}
	}
	return ""
}

// noteForgotten keeps what forgotten says, for Hosts, and tells it once.
func (c *Conductor) noteForgotten(h *host, why string) {
	if why != "" {
		why += ": the store was lost or is an older copy; put the newest copy of it back (the host is left as it is, and can take no change of that App)"
	}
	if old := h.forgot.Swap(&why); old != nil && *old == why || old == nil && why == "" {
		return
	}
	if why != "" {
		c.log.Error("a host is not repaired", "host", h.name, "why", why)
	}
	c.opts.Listener.HostsChanged()
}
