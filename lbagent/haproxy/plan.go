package haproxy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/cutover/cutover/lbagent/driver"
)

// planner turns a wanted Section and what the worker holds into runtime commands. It is pure: the same input gives the
// same commands, in an order that keeps NEVER-ZERO at every point between two of them.
type planner struct {
	o     Options
	slots map[string]slot // that the App holds, by class
	// deletes: this version deletes servers safely. 2.6.12 as Debian ships it lacks fixes of upstream (use after free when
	// a server with live streams is deleted), so there a removed server stays as a tombstone until the next reload.
	deletes bool
	// paths are the health paths that the worker checks with, as far as this driver set them, by upstream.
	paths map[string]string

	ready, route, drain, remove []string // in the order of execution
	attempt                     []string // may be refused: deletions of tombstones that still have connections
}

// steps are the commands of a plan. All of must have to succeed; those of may can be refused.
type steps struct{ must, may []string }

// deletesSafely is the gate for "del server": 3.0 has "wait srv-removable" and the fixes.
func deletesSafely(v version) bool { return v.atLeast(3, 0) }

// plan computes the commands. Every slot of want's classes is in p.slots and was observed.
func (p planner) plan(want driver.Section, obs observation) steps {
	wanted := map[string]driver.Upstream{}
	for _, u := range want.Upstreams {
		wanted[u.Name] = u
	}
	done := map[string]bool{}
	for _, class := range slices.Sorted(maps.Keys(p.slots)) {
		at := p.slots[class]
		lives := map[string]int{}
		current := map[string]serverRow{}
		for _, row := range obs.servers[at] {
			name, life := row.upstream()
			lives[name] = max(lives[name], life)
			u, ok := wanted[name]
			if !ok || classOf(u.Health).name != class || row.state.address != u.Address || row.mode() == 0 && !comesBack(row, u) {
				continue
			}
			if isChecked(u) && row.state.checkState&checkConfigured == 0 {
				continue // rendered without a check, which cannot be given later: a new life
			}
			if old, ok := current[name]; ok {
				_, l := old.upstream()
				if alive := row.mode() != 0; alive == (old.mode() != 0) && l > life || !alive && old.mode() != 0 {
					continue
				}
			}
			current[name] = row
		}
		for _, u := range driver.SortedUpstreams(want.Upstreams) {
			if classOf(u.Health).name != class || done[u.Name] {
				continue
			}
			done[u.Name] = true
			if row, ok := current[u.Name]; ok {
				p.change(at, row, u)
			} else {
				p.add(at, u, lives[u.Name])
			}
		}
		for _, row := range obs.servers[at] {
			name, _ := row.upstream()
			if keep, ok := current[name]; !ok || keep.name != row.name {
				p.dismiss(at, row)
			}
		}
	}
	p.routes(want, obs.routes)
	return steps{must: slices.Concat(p.ready, p.route, p.drain, p.remove), may: p.attempt}
}

// add registers a new server. It is born in MAINT; a Warm one is in drain and DOWN before its checks begin, so that it
// rises by its own checks and by nothing else. One that is added as Serving is UP from the start, as the contract of
// Converge says.
func (p *planner) add(at slot, u driver.Upstream, lives int) {
	name := u.Name
	if lives > 0 {
		name = fmt.Sprintf("%s:%d", u.Name, lives+1)
	}
	server := at.backend() + "/" + name
	if u.Health.Kind == driver.HealthHTTP {
		p.ready = append(p.ready, p.setEntry(healthMap, name, u.Health.Path)...)
	}
	health := u.Health
	if health.Kind == driver.HealthNone {
		health = withoutChecks()
	}
	if u.Mode == driver.Warm {
		p.ready = append(p.ready, p.setEntry(warmMap, server, "1")...)
	}
	state := "drain"
	if u.Mode == driver.Serving {
		state = "ready"
	}
	p.ready = append(p.ready,
		fmt.Sprintf("add server %s %s weight %d%s", server, u.Address, u.Weight, checkWords(health)),
		fmt.Sprintf("set server %s state %s", server, state))
	if u.Mode == driver.Warm {
		p.ready = append(p.ready, fmt.Sprintf("set server %s health down", server))
	}
	if isChecked(u) {
		p.ready = append(p.ready, "enable health "+server)
	}
}

// comesBack says whether the very server that somebody else put in maintenance can be the upstream again. HAProxy takes it for
// up at once, as one that is added, and checks it; where a single failure is enough it also counts as green before that check,
// by the one from before. Such a server, and one that is to rise by its own checks, begins a new life instead.
func comesBack(row serverRow, u driver.Upstream) bool {
	return row.parked() && isChecked(u) && u.Mode != driver.Warm && u.Health.Fall > 1
}

// change takes a registered server to the wanted mode and weight.
func (p *planner) change(at slot, row serverRow, u driver.Upstream) {
	server := at.backend() + "/" + row.name
	checked := row.state.checkState&checkEnabled != 0
	weight := fmt.Sprintf("set server %s weight %d", server, u.Weight)
	unmark := p.delEntry(warmMap, server)
	if path, known := p.paths[u.Name]; known && path != u.Health.Path && u.Health.Kind == driver.HealthHTTP {
		p.ready = append(p.ready, p.setEntry(healthMap, row.name, u.Health.Path)...)
	}
	into := &p.ready
	if u.Mode != driver.Serving {
		into = &p.drain
	}
	switch u.Mode {
	case driver.Serving:
		if row.state.weight != u.Weight {
			*into = append(*into, weight)
		}
		if row.state.drain() || row.state.maint() {
			*into = append(*into, fmt.Sprintf("set server %s state ready", server))
		}
		if row.marked {
			*into = append(*into, unmark)
		}
	case driver.Draining, driver.Warm:
		if u.Mode == driver.Warm && !row.marked {
			*into = append(*into, p.setEntry(warmMap, server, "1")...)
		}
		// Drain before the weight: a row from the files drains by weight 0 alone, and must not serve in between.
		if !row.state.drain() {
			*into = append(*into, fmt.Sprintf("set server %s state drain", server))
		}
		if row.state.weight != u.Weight {
			*into = append(*into, weight)
		}
		if u.Mode == driver.Draining && row.marked {
			*into = append(*into, unmark)
		}
	}
	switch {
	case checked && !isChecked(u):
		*into = append(*into, "disable health "+server)
	case !checked && isChecked(u):
		*into = append(*into, "enable health "+server)
	}
}

// isChecked says whether HAProxy checks the upstream in its mode: one without checks is connected to while it is warm.
func isChecked(u driver.Upstream) bool {
	return u.Health.Kind != driver.HealthNone || u.Mode == driver.Warm
}

// dismiss takes a server out: a tombstone that is not checked, or nothing at all where deleting is safe.
func (p *planner) dismiss(at slot, row serverRow) {
	server := at.backend() + "/" + row.name
	if !row.state.maint() {
		p.remove = append(p.remove, fmt.Sprintf("set server %s state maint", server))
	}
	if row.state.checkState&checkEnabled != 0 {
		p.remove = append(p.remove, "disable health "+server)
	}
	if row.marked {
		p.remove = append(p.remove, p.delEntry(warmMap, server))
	}
	// The health path stays as long as the server: a check that is under way reads it when its connection stands, and without
	// it would ask for another path. Where servers stay until the next reload, so do their paths.
	if p.deletes {
		p.attempt = append(p.attempt, "del server "+server)
		if classNamed(at.class).http {
			p.attempt = append(p.attempt, p.delEntry(healthMap, row.name))
		}
	}
}

// routes makes the worker's map hold exactly the wanted routes of this App.
func (p *planner) routes(want driver.Section, table *routeTable) {
	wanted := map[string]string{}
	if len(want.Routes) > 0 {
		backends := routeBackends(want, p.slots)
		for _, r := range want.Routes {
			wanted[routeKey(r)] = targetOf(r, backends).String()
		}
	}
	have := map[string][]mapEntry{}
	for key := range wanted {
		for _, i := range table.byKey[key] {
			have[key] = append(have[key], table.entries[i])
		}
	}
	for _, i := range table.naming(p.slots) {
		if e := table.entries[i]; wanted[e.key] == "" && table.parsed[i].ours {
			have[e.key] = append(have[e.key], e)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		value, got := wanted[key], have[key]
		if len(got) == 0 {
			p.route = append(p.route, p.addEntry(routesMap, key, value))
			continue
		}
		// Somebody else may have given the key a second entry. One of them becomes, or is, what is wanted; the others go by
		// their ids, so the route is never without an entry (NEVER-ZERO).
		keep := max(slices.IndexFunc(got, func(e mapEntry) bool { return e.value == value }), 0)
		if got[keep].value != value {
			p.route = append(p.route, fmt.Sprintf("set map %s #%s %s", p.o.mapFile(routesMap), got[keep].id, escape(value)))
		}
		for i, e := range got {
			if i != keep {
				p.route = append(p.route, fmt.Sprintf("del map %s #%s", p.o.mapFile(routesMap), e.id))
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if _, ok := wanted[key]; !ok {
			p.route = append(p.route, p.delEntry(routesMap, key))
		}
	}
}

// setEntry makes the map hold the entry once, whatever it holds now: "add map" alone would add a second one.
func (p *planner) setEntry(name, key, value string) []string {
	return []string{p.delEntry(name, key), p.addEntry(name, key, value)}
}

func (p *planner) addEntry(name, key, value string) string {
	return fmt.Sprintf("add map %s %s %s", p.o.mapFile(name), escape(key), escape(value))
}

func (p *planner) delEntry(name, key string) string {
	return fmt.Sprintf("del map %s %s", p.o.mapFile(name), escape(key))
}
