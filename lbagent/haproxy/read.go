package haproxy

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/cutover/cutover/lbagent/driver"
)

// manySlots is the number of backends above which one dump of all is cheaper than asking for each.
const manySlots = 40

// Read reports what the running worker holds for the Apps, with the sessions of workers that are leaving added. It reads
// the worker alone: what is published plays no part, except to know which upstreams are meant to be without checks. It is
// ErrProxyMismatch if the frontends' ports are not, or no longer, this HAProxy's; that is looked at once in listensFor.
func (d *Driver) Read(ctx context.Context, apps ...string) (driver.Reading, error) {
	holders := d.tree.holdersOf(apps)
	if len(apps) == 0 {
		holders = d.tree.allHolders()
	}
	slots := slices.SortedFunc(maps.Keys(holders), slot.compare)
	if slots == nil {
		slots = []slot{}
	}
	if len(slots) > manySlots || len(apps) == 0 {
		slots = nil // one dump of all, spare backends too
	}
	obs, err := d.observe(ctx, slots)
	if err != nil {
		return driver.Reading{}, fmt.Errorf("haproxy read: %w", err)
	}
	process, err := d.process(obs.procs)
	if err != nil {
		return driver.Reading{}, fmt.Errorf("haproxy read: %w", err)
	}
	// What clients cannot reach proves nothing, however well its servers look.
	if err := d.stillListens(ctx, obs.procs); err != nil {
		return driver.Reading{}, fmt.Errorf("haproxy read: %w", err)
	}
	if len(apps) == 0 {
		d.noteStrangers(obs, holders)
	}
	leaving := d.askLeaving(ctx, obs.procs.leaving, holders)

	rows := map[string][]driver.Row{}
	foreign := map[string][]string{}
	held := map[string]map[string]slot{}
	for s, app := range holders {
		if held[app] == nil {
			held[app] = map[string]slot{}
		}
		held[app][s.class] = s
	}
	for app, slots := range held {
		health := d.healthOf(app)
		foreign[app] = obs.routes.doubled(slots)
		for _, s := range slots {
			foreign[app] = append(foreign[app], foreignIn(obs.servers[s], health)...)
			for _, server := range obs.servers[s] {
				if server.mode() == 0 {
					continue
				}
				name, _ := server.upstream()
				h, known := health[name]
				row := server.row(known && h.Kind == driver.HealthNone)
				row.Sessions += leaving.sessions[s.backend()+"/"+name]
				if row.Mode == driver.Draining {
					row.Sessions += leaving.unknown
					if !d.wasCut(app, name) {
						row.Sessions += leaving.clients[s.backend()+"/"+name]
					}
				}
				rows[app] = append(rows[app], row)
			}
		}
	}
	reading := driver.Reading{Process: process, At: obs.at, Sections: map[string]driver.SectionReading{}}
	if len(apps) == 0 {
		reading.Tombstones = obs.tombstones()
	}
	for app, slots := range held {
		routes := obs.routes.routesOf(slots)
		if len(routes) == 0 && len(rows[app]) == 0 {
			continue
		}
		section := driver.NewSectionReading(app, routes, rows[app])
		section.Mark(foreign[app]...)
		reading.Sections[app] = section
	}
	return reading, nil
}

// noteStrangers keeps, for Survey, what of a dump of all is of no App. before are the holders from before the dump.
func (d *Driver) noteStrangers(obs observation, before map[slot]string) {
	holders := d.tree.allHolders()
	maps.Copy(holders, before)
	found := strangersIn(obs, holders)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.strangers = found
}

// tombstones counts the removed servers that the worker still remembers. They cost memory, and time in every reading; a
// Reload collects them.
func (o observation) tombstones() int {
	n := 0
	for _, servers := range o.servers {
		for _, s := range servers {
			if s.mode() == 0 {
				n++
			}
		}
	}
	return n
}
