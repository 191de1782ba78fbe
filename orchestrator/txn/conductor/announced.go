package conductor

import (
	"context"
	"time"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
)

// Source announces Hosts: a catalog.
type Source interface {
	// Watch calls hear with all that is announced, at first and whenever that changes, and with why it cannot be known; one call
	// after the other. It returns when ctx ends.
	Watch(ctx context.Context, hear func(registry.Listing))
}

// watchSource hears what is announced until the Conductor ends. Losing the source changes nothing (FAIL-STATIC).
func (c *Conductor) watchSource() {
	if c.opts.Source == nil {
		return
	}
	c.work.Go(func() {
		c.opts.Source.Watch(c.ctx, func(l registry.Listing) {
			c.post(func() {
				c.reg.Hear(l)
				c.admitAnnounced()
				c.opts.Listener.HostsChanged()
			})
		})
	})
}

// admitAnnounced lets the Hosts join whose Groups admit whoever is announced. What fails is tried again with the next sweep.
func (c *Conductor) admitAnnounced() {
	for _, name := range c.reg.Admissible() {
		m, _ := c.reg.Member(name)
		if c.changing(m.Group, name) {
			continue
		}
		c.queueChange(&memberChange{
			group: m.Group, host: name, free: true,
			decide: func() (registry.Membership, string, bool, error) {
				next, ok := c.reg.AdmitAnnounced(name, time.Now().UTC())
				return next, string(txn.Admit), ok && next.Group == m.Group, nil
			},
			done: func(err error) {
				if err != nil {
					c.log.Warn("a host that is announced was not admitted", "host", name, "error", err)
				}
			},
		})
	}
}

// changing: a change of the Host's Membership waits or is being written.
func (c *Conductor) changing(group, host string) bool {
	for _, ch := range c.changes[group] {
		if ch.host == host {
			return true
		}
	}
	return false
}

// Sources says what is known of the catalogs that announce Hosts.
func (c *Conductor) Sources() []txn.SourceInfo { return c.reg.Sources() }
