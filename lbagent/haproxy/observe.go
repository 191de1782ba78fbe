package haproxy

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// serverRow is one server of the pool as the running worker reported it.
type serverRow struct {
	name   string // HAProxy's: the upstream's name, with ":N" from its second life on
	state  stateRow
	stat   statRow
	marked bool // in warm.map
}

// upstream returns the upstream's name and the number of its life.
func (r serverRow) upstream() (name string, life int) {
	name, suffix, ok := strings.Cut(r.name, ":")
	if !ok {
		return name, 1
	}
	life, err := strconv.Atoi(suffix)
	if err != nil || life < 2 {
		return r.name, 1 // not one of our names: it matches no upstream
	}
	return name, life
}

// mode is what the server is to us. Zero: a tombstone. HAProxy has one drain for both of ours, so a warm server is
// marked in warm.map, which lives and dies with the worker. One that takes requests is Serving, marked or not.
func (r serverRow) mode() driver.Mode {
	switch {
	case r.state.maint():
		return 0
	case !r.state.drain() && r.state.weight > 0:
		return driver.Serving
	case r.marked:
		return driver.Warm
	default:
		return driver.Draining
	}
}

// parked says whether somebody else has put the server in maintenance ("set server ... state maint", "disable server"). A
// tombstone of ours is one that is not checked any more; one that is never checked cannot be told from it.
func (r serverRow) parked() bool {
	return r.state.admin&adminMaint == adminForced && r.state.checkState&checkEnabled != 0
}

// green says whether the worker's own checks passed in full and none is in flight. unchecked: the upstream is one that
// is not to be checked (HealthNone), which is green while HAProxy routes to it or drains it.
func (r serverRow) green(unchecked bool) bool {
	if r.state.checkState&checkEnabled == 0 {
		return unchecked && r.mode() != driver.Warm && r.state.running
	}
	want := "UP" // also of a server that drains by the weight 0 of the files alone
	if r.state.drain() {
		want = "DRAIN"
	}
	switch r.stat.checkStatus {
	case "L4OK", "L6OK", "L7OK":
	default:
		return false
	}
	return r.state.running && r.stat.status == want && !r.stat.checking && r.state.checkState&checkInProgress == 0 &&
		r.stat.health == r.stat.rise+r.stat.fall-1
}

// red says whether the worker keeps requests away because checks failed. A server that has not been checked yet, or is
// rising, is neither green nor red.
func (r serverRow) red() bool {
	if r.state.running || r.state.checkState&checkEnabled == 0 {
		return false
	}
	switch r.stat.checkStatus {
	case "", "INI", "UNK", "SOCKERR", "L4OK", "L6OK", "L7OK", "L7OKC":
		// SOCKERR is the proxy's own lack (of a port, of memory), which is no word about the upstream.
		return false
	}
	return true
}

// status is what HAProxy said, in its own words.
func (r serverRow) status() string {
	check := r.stat.checkStatus
	if r.stat.checking {
		check = "* " + check
	}
	return strings.TrimSpace(r.stat.status + " " + check)
}

// row translates for the participant.
func (r serverRow) row(unchecked bool) driver.Row {
	name, _ := r.upstream()
	return driver.Row{
		Name: name, Address: r.state.address, Weight: r.state.weight, Mode: r.mode(),
		Green: r.green(unchecked), Red: r.red(), Status: r.status(), Sessions: r.stat.sessions,
	}
}

// observation is what the worker held for some slots when it was asked.
type observation struct {
	at      time.Time
	procs   processes
	info    info
	mark    string
	servers map[slot][]serverRow
	missing []slot // backends that the worker does not have
	routes  *routeTable
	stateOf string // header of "show servers state", for the state file
}

// observationCommands asks for the slots; nil asks for all.
func observationCommands(o Options, slots []slot) []string {
	commands := []string{"show map " + o.mapFile(routesMap), "show map " + o.mapFile(warmMap)}
	if slots == nil {
		return append(commands, "show servers state", "show stat -1 4 -1")
	}
	for _, s := range slots {
		commands = append(commands, "show servers state "+s.backend(), fmt.Sprintf("show stat %s 4 -1", s.backend()))
	}
	return commands
}

// parseObservation reads the answers to observationCommands. A worker that does not know our maps has not loaded our
// tree.
func parseObservation(o Options, slots []slot, w witnessed, at time.Time, tables *routeTables) (observation, error) {
	obs := observation{at: at, procs: w.procs, info: w.info, mark: w.mark, servers: map[slot][]serverRow{}}
	if w.mark == "" {
		return obs, fmt.Errorf("%w: worker %d has not loaded %s: add -f %s/ after the owner's configuration to haproxy's command line and restart it",
			driver.ErrProxyMismatch, w.info.pid, o.currentDir(), o.currentDir())
	}
	var err error
	if obs.routes, err = tables.of(w.answers[0]); err != nil {
		return obs, fmt.Errorf("%s: %w", routesMap, err)
	}
	marks, err := parseMap(w.answers[1])
	if err != nil {
		return obs, fmt.Errorf("%s: %w", warmMap, err)
	}
	marked := map[string]bool{}
	for _, m := range marks {
		marked[m.key] = true
	}
	add := func(stateText, statText string) error {
		header, states, err := parseServersState(stateText)
		if err != nil {
			return err
		}
		obs.stateOf = header
		stats, err := parseStat(statText)
		if err != nil {
			return err
		}
		byName := make(map[string]statRow, len(stats))
		for _, s := range stats {
			byName[s.backend+"/"+s.server] = s
		}
		for _, state := range states {
			at, ours := parseSlot(state.backend)
			if !ours {
				continue
			}
			key := state.backend + "/" + state.server
			stat, ok := byName[key]
			if !ok {
				return fmt.Errorf("%s is in the servers' state and not in the statistics of the same answer", key)
			}
			obs.servers[at] = append(obs.servers[at], serverRow{name: state.server, state: state, stat: stat, marked: marked[key]})
		}
		return nil
	}
	if slots == nil {
		if err := add(w.answers[2], w.answers[3]); err != nil {
			return obs, err
		}
		return obs, nil
	}
	for i, s := range slots {
		stateText, statText := w.answers[2+2*i], w.answers[3+2*i]
		if strings.Contains(stateText, "find backend") { // "Can't find backend."
			obs.missing = append(obs.missing, s)
			continue
		}
		if err := add(stateText, statText); err != nil {
			return obs, err
		}
	}
	return obs, nil
}
