package haproxy

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cutover/cutover/lbagent/driver"
)

// worker is a model of what HAProxy does with the commands of a plan: just enough to hold the planner to its promises
// at every point between two commands.
type worker struct {
	o       Options
	servers map[slot][]serverRow
	maps    map[string][]mapEntry
	ids     int
}

// named says whether a command that names an entry means this one: by its key, or by "#ID".
func (e mapEntry) named(by string) bool { return e.key == by || "#"+e.id == by }

func (w *worker) entry(key, value string) mapEntry {
	w.ids++
	return mapEntry{fmt.Sprintf("0x%x", w.ids), key, value}
}

func newWorker(o Options) *worker {
	return &worker{o: o, servers: map[slot][]serverRow{}, maps: map[string][]mapEntry{}}
}

func (w *worker) observe() observation {
	obs := observation{servers: map[slot][]serverRow{}, routes: newRouteTable(slices.Clone(w.maps[routesMap]))}
	for s, rows := range w.servers {
		for _, row := range rows {
			row.marked = slices.ContainsFunc(w.maps[warmMap], func(e mapEntry) bool { return e.key == s.backend()+"/"+row.name })
			obs.servers[s] = append(obs.servers[s], row)
		}
	}
	return obs
}

// do is HAProxy's side of one command. An error is a bug of the planner: HAProxy would have refused.
func (w *worker) do(command string) error {
	f := strings.Fields(command)
	mapName := func(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }
	find := func(server string) (*serverRow, error) {
		backend, name, _ := strings.Cut(server, "/")
		s, ok := parseSlot(backend)
		if !ok {
			return nil, fmt.Errorf("no backend %s", backend)
		}
		for i := range w.servers[s] {
			if w.servers[s][i].name == name {
				return &w.servers[s][i], nil
			}
		}
		return nil, fmt.Errorf("no server %s", server)
	}
	switch {
	case f[0] == "del" && f[1] == "map":
		name := mapName(f[2])
		w.maps[name] = slices.DeleteFunc(w.maps[name], func(e mapEntry) bool { return e.named(f[3]) })
	case f[0] == "add" && f[1] == "map":
		name := mapName(f[2])
		w.maps[name] = append(w.maps[name], w.entry(f[3], f[4]))
	case f[0] == "set" && f[1] == "map":
		name, found := mapName(f[2]), false
		for i, e := range w.maps[name] {
			if e.named(f[3]) {
				w.maps[name][i].value, found = f[4], true
			}
		}
		if !found {
			return fmt.Errorf("set map: no key %s", f[3])
		}
	case f[0] == "add" && f[1] == "server":
		if _, err := find(f[2]); err == nil {
			return fmt.Errorf("server %s exists", f[2])
		}
		backend, name, _ := strings.Cut(f[2], "/")
		s, ok := parseSlot(backend)
		if !ok || f[4] != "weight" {
			return fmt.Errorf("bad: %s", command)
		}
		weight, err := strconv.Atoi(f[5])
		if err != nil {
			return err
		}
		row := serverRow{name: name, state: stateRow{
			backend: backend, server: name, address: netip.MustParseAddrPort(f[3]),
			weight: weight, running: true, admin: 1,
		}}
		if slices.Contains(f, "check") {
			row.state.checkState = checkConfigured
		}
		w.servers[s] = append(w.servers[s], row)
	case f[0] == "del" && f[1] == "server":
		row, err := find(f[2])
		if err != nil {
			return err
		}
		if !row.state.maint() {
			return fmt.Errorf("del server %s: not in MAINT", f[2])
		}
		s, _ := parseSlot(row.state.backend)
		name := row.name
		w.servers[s] = slices.DeleteFunc(w.servers[s], func(r serverRow) bool { return r.name == name })
	case f[0] == "enable" || f[0] == "disable":
		row, err := find(f[2])
		if err != nil {
			return err
		}
		if row.state.checkState&checkConfigured == 0 {
			return fmt.Errorf("%s: health checks are not configured", command)
		}
		row.state.checkState &^= checkEnabled
		if f[0] == "enable" {
			row.state.checkState |= checkEnabled
		}
	case f[0] == "set" && f[1] == "server":
		row, err := find(f[2])
		if err != nil {
			return err
		}
		switch {
		case f[3] == "weight":
			row.state.weight, err = strconv.Atoi(f[4])
			return err
		case f[3] == "health":
			row.state.running = f[4] != "down"
		case f[4] == "ready":
			row.state.admin = 0
		case f[4] == "drain":
			row.state.admin = 8
		case f[4] == "maint":
			row.state.admin = 1
		}
	default:
		return fmt.Errorf("unknown command %q", command)
	}
	return nil
}

// serving counts the upstreams that a request for the key could reach.
func (w *worker) serving(key string) int {
	n := 0
	for _, e := range w.maps[routesMap] {
		if e.key != key {
			continue
		}
		_, to, _ := parseRoute(e.key, e.value)
		for _, backend := range to.backends {
			s, _ := parseSlot(backend)
			for _, row := range w.servers[s] {
				if !row.state.maint() && !row.state.drain() && row.state.weight > 0 && row.state.running {
					n++
				}
			}
		}
	}
	return n
}

// checksPass lets everything that was added rise.
func (w *worker) checksPass() {
	for _, rows := range w.servers {
		for i := range rows {
			rows[i].state.running = true
		}
	}
}

// section is what a Read would say.
func (w *worker) section(app string, held map[string]slot) driver.Section {
	obs := w.observe()
	s := driver.Section{App: app, Routes: obs.routes.routesOf(held)}
	for _, at := range held {
		for _, row := range obs.servers[at] {
			if row.mode() == 0 {
				continue
			}
			name, _ := row.upstream()
			s.Upstreams = append(s.Upstreams, driver.Upstream{Name: name, Address: row.state.address, Weight: row.state.weight, Mode: row.mode()})
		}
	}
	return s
}

var planOptions = Options{
	Dir: "/var/lib/cutover/haproxy", BaseConfig: "/etc/haproxy/haproxy.cfg", Binary: "haproxy",
	RuntimeSocket: "/run/hp.sock", MasterSocket: "/run/master.sock", Pool: 4,
	Frontends: []Frontend{{Name: "public", Binds: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080")}}},
	Logger:    slog.New(slog.DiscardHandler),
}

func drawSection(t *rapid.T, label string) driver.Section {
	s := driver.Section{App: "shop"}
	for i := range 4 {
		mode := rapid.SampledFrom([]driver.Mode{0, driver.Warm, driver.Serving, driver.Serving, driver.Draining}).Draw(t, label+"mode")
		if mode == 0 {
			continue
		}
		health := driver.Health{
			Kind:     rapid.SampledFrom([]driver.HealthKind{driver.HealthHTTP, driver.HealthHTTP, driver.HealthTCP, driver.HealthNone}).Draw(t, label+"kind"),
			Interval: time.Second, Timeout: time.Second, Rise: 2, Fall: rapid.IntRange(1, 2).Draw(t, label+"fall"),
		}
		if health.Kind == driver.HealthHTTP {
			health.Path = rapid.SampledFrom([]string{"/healthz", "/ready?x=1;y"}).Draw(t, label+"path")
		}
		s.Upstreams = append(s.Upstreams, driver.Upstream{
			Name:    fmt.Sprintf("task-%d", i),
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 2).Draw(t, label+"addr"))}), uint16(8000+i)),
			Weight:  rapid.IntRange(1, 256).Draw(t, label+"weight"),
			Mode:    mode, Health: health,
		})
	}
	if rapid.Bool().Draw(t, label+"route") {
		s.Routes = append(s.Routes, driver.Route{Host: "*", Path: "/shop/" + rapid.SampledFrom([]string{"", "x", "x/"}).Draw(t, label+"path"), Strip: rapid.Bool().Draw(t, label+"strip")})
	}
	return s
}

// A server that somebody else put in maintenance comes back as the very one where that is sound, and else begins a new life.
func TestPlanOfAServerInMaintenance(t *testing.T) {
	at := slot{"h1", 1}
	held := map[string]slot{"h1": at}
	upstream := driver.Upstream{Name: "task", Address: netip.MustParseAddrPort("10.0.0.1:8000"), Weight: 100, Mode: driver.Serving,
		Health: driver.Health{Kind: driver.HealthHTTP, Path: "/healthz", Interval: time.Second, Timeout: time.Second, Rise: 2, Fall: 3}}
	row := serverRow{name: "task", state: stateRow{backend: at.backend(), server: "task", address: upstream.Address, weight: 100,
		admin: adminForced, checkState: checkConfigured | checkEnabled}}
	tombstone := row
	tombstone.state.checkState = checkConfigured
	elsewhere := row
	elsewhere.state.admin |= 0x20
	single, warm, draining := upstream, upstream, upstream
	single.Health.Fall, warm.Mode, draining.Mode = 1, driver.Warm, driver.Draining
	for name, c := range map[string]struct {
		row  serverRow
		want driver.Upstream
		back string // the command that brings it back; "": a new life
	}{
		"serving":                 {row, upstream, "set server cutover_h1_0001/task state ready"},
		"draining":                {row, draining, "set server cutover_h1_0001/task state drain"},
		"a single failure is red": {row, single, ""},
		"to rise by its checks":   {row, warm, ""},
		"a tombstone of ours":     {tombstone, upstream, ""},
		"by more than a command":  {elsewhere, upstream, ""},
	} {
		obs := observation{servers: map[slot][]serverRow{at: {c.row}}, routes: newRouteTable(nil)}
		plan := planner{o: planOptions, slots: held}.plan(driver.Section{App: "shop", Upstreams: []driver.Upstream{c.want}}, obs).must
		renewed := slices.ContainsFunc(plan, func(s string) bool { return strings.HasPrefix(s, "add server cutover_h1_0001/task:2 ") })
		if c.back == "" && !renewed || c.back != "" && (renewed || !slices.Equal(plan, []string{c.back})) {
			t.Errorf("%s: %q", name, plan)
		}
	}
}

// The laws of a plan, from any state of the worker to any wanted Section: HAProxy refuses none of its commands; at the
// end it holds exactly the Section, and planning again gives nothing to do; and NEVER-ZERO: a route that had servers
// before and has Serving upstreams after has some at every point between.
func TestPlanLaws(t *testing.T) {
	held := map[string]slot{}
	for i, c := range classes {
		held[c.name] = slot{c.name, i + 1}
	}
	rapid.Check(t, func(t *rapid.T) {
		deletes := rapid.Bool().Draw(t, "deletes")
		w := newWorker(planOptions)
		other := w.entry("*|/other/", "cutover_h1_0099:0:0")
		w.maps[routesMap] = []mapEntry{other}
		for step := range rapid.IntRange(2, 4).Draw(t, "steps") {
			want := drawSection(t, fmt.Sprint(step))
			if err := validateSection(want); err != nil {
				t.Fatalf("the test drew a Section that is refused: %v", err)
			}
			hasServing := slices.ContainsFunc(want.Upstreams, func(u driver.Upstream) bool { return u.Mode == driver.Serving })
			before := map[string]int{}
			for _, r := range want.Routes {
				before[routeKey(r)] = w.serving(routeKey(r))
			}
			p := planner{o: planOptions, slots: held, deletes: deletes}
			plan := p.plan(want, w.observe())
			for _, command := range slices.Concat(plan.must, plan.may) {
				if err := w.do(command); err != nil {
					t.Fatalf("%q: %v", command, err)
				}
				for key, n := range before {
					if n > 0 && hasServing && w.serving(key) == 0 {
						t.Fatalf("NEVER-ZERO: %s has no server after %q\nplan: %s", key, command, strings.Join(plan.must, "\n"))
					}
				}
			}
			if got := w.section("shop", held); driver.Digest(got) != driver.Digest(want) {
				t.Fatalf("the worker holds\n%+v\nwant\n%+v\nafter %s", got, want, strings.Join(plan.must, "\n"))
			}
			p = planner{o: planOptions, slots: held, deletes: deletes}
			if again := p.plan(want, w.observe()); len(again.must) > 0 {
				t.Fatalf("a second plan is not empty: %s", strings.Join(again.must, "\n"))
			}
			if !slices.Contains(w.maps[routesMap], other) {
				t.Fatal("the route of another App is gone")
			}
			for _, row := range w.servers[held["h1"]] {
				if row.mode() == 0 && row.state.checkState&checkEnabled != 0 {
					t.Fatalf("tombstone %s is still checked", row.name)
				}
			}
			w.checksPass() // a participant waits for green before it makes an upstream Serving
			if rapid.IntRange(0, 4).Draw(t, "restart") == 0 {
				// A restart: the worker has what the files say, and nothing is in drain by command.
				fresh := newWorker(planOptions)
				for _, u := range withoutWarm(want).Upstreams {
					c := classOf(u.Health).name
					row := serverRow{name: u.Name, state: stateRow{backend: held[c].backend(), server: u.Name, address: u.Address, weight: u.Weight, running: true}}
					if u.Mode == driver.Draining {
						row.state.weight = 0
					}
					if u.Health.Kind != driver.HealthNone {
						row.state.checkState = checkConfigured | checkEnabled
					}
					fresh.servers[held[c]] = append(fresh.servers[held[c]], row)
				}
				fresh.maps[routesMap] = w.maps[routesMap]
				fresh.ids = w.ids
				w = fresh
			}
			for s, rows := range w.servers { // a foreign hand puts some in maintenance
				for i := range rows {
					if w.servers[s][i].mode() != 0 && rapid.IntRange(0, 4).Draw(t, "parked") == 0 {
						w.servers[s][i].state.admin = adminForced
					}
				}
			}
			for _, r := range want.Routes { // a foreign hand gives some routes second entries, before or behind
				if e := w.entry(routeKey(r), "elsewhere:0:0"); rapid.IntRange(0, 3).Draw(t, "second entry") == 0 {
					w.maps[routesMap] = slices.Insert(w.maps[routesMap], rapid.IntRange(0, 1).Draw(t, "at"), e)
				}
			}
		}
	})
}
