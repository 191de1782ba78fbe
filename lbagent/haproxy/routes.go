package haproxy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cutover/cutover/lbagent/driver"
)

// routeKey is the key of a route in routes.map. A request's key is its host, a bar, its path and a slash; the map takes
// the longest key that is a prefix of it. The slash at the end of both makes prefixes match on segment boundaries only,
// and a request for exactly the prefix match.
func routeKey(r driver.Route) string {
	return r.Host + "|" + strings.TrimSuffix(r.Path, "/") + "/"
}

// target is the value of a route in routes.map: "backend:strip:slash[:backend...]". Later backends are used while those
// before them have no usable server.
type target struct {
	backends []string // 1 to len(classes)
	strip    int      // number of leading segments to remove; 0 is no stripping
	root     bool     // Strip was asked for on "/": nothing to remove, but the Route must read back as it was written
	slash    bool     // the Route was written with a slash at the end
}

func targetOf(r driver.Route, backends []string) target {
	t := target{backends: backends, slash: len(r.Path) > 1 && strings.HasSuffix(r.Path, "/")}
	if r.Strip {
		t.strip = segments(r.Path)
		t.root = t.strip == 0
	}
	return t
}

func (t target) String() string {
	strip := strconv.Itoa(t.strip)
	if t.root {
		strip = "r"
	}
	slash := "0"
	if t.slash {
		slash = "1"
	}
	return strings.Join(append([]string{t.backends[0], strip, slash}, t.backends[1:]...), ":")
}

// segments counts the segments of a path without empty ones.
func segments(path string) int {
	path = strings.Trim(path, "/")
	if path == "" {
		return 0
	}
	return strings.Count(path, "/") + 1
}

// parseRoute reads an entry of routes.map. False: it was not written by this package.
func parseRoute(key, value string) (driver.Route, target, bool) {
	host, path, ok := strings.Cut(key, "|")
	fields := strings.Split(value, ":")
	if !ok || host == "" || !strings.HasPrefix(path, "/") || !strings.HasSuffix(path, "/") || len(fields) < 3 {
		return driver.Route{}, target{}, false
	}
	t := target{backends: append([]string{fields[0]}, fields[3:]...)}
	for _, b := range t.backends {
		if _, ok := parseSlot(b); !ok {
			return driver.Route{}, target{}, false
		}
	}
	switch n, err := strconv.Atoi(fields[1]); {
	case fields[1] == "r":
		t.root = true
	case err != nil || n < 0 || n > maxStrip:
		return driver.Route{}, target{}, false
	default:
		t.strip = n
	}
	t.slash = fields[2] == "1"
	r := driver.Route{Host: host, Path: path, Strip: t.strip > 0 || t.root}
	if !t.slash && path != "/" {
		r.Path = strings.TrimSuffix(path, "/")
	}
	return r, t, true
}

// routeTable is routes.map as a worker told it, with what each value names looked up once: a Host of many Apps has many
// entries, and each reading is about few of them. It is not changed once made.
type routeTable struct {
	entries []mapEntry
	parsed  []parsedRoute    // of the entry with the same index
	byKey   map[string][]int // indexes of entries, ascending
	byName  map[string][]int // the same, by backend that the value names
}

type parsedRoute struct {
	route driver.Route
	to    target
	ours  bool // written by this package
}

func newRouteTable(entries []mapEntry) *routeTable {
	t := &routeTable{entries: entries, parsed: make([]parsedRoute, len(entries)), byKey: make(map[string][]int, len(entries)), byName: make(map[string][]int, len(entries))}
	for i, e := range entries {
		p := &t.parsed[i]
		p.route, p.to, p.ours = parseRoute(e.key, e.value)
		t.byKey[e.key] = append(t.byKey[e.key], i)
		for name := range strings.SplitSeq(e.value, ":") {
			if _, ok := parseSlot(name); ok {
				t.byName[name] = append(t.byName[name], i)
			}
		}
	}
	return t
}

// naming returns the entries whose values name one of the slots, in the order of the map.
func (t *routeTable) naming(held map[string]slot) []int {
	var out []int
	for _, s := range held {
		out = append(out, t.byName[s.backend()]...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// routesOf returns the routes of the App that holds the slots, sorted.
func (t *routeTable) routesOf(held map[string]slot) []driver.Route {
	var out []driver.Route
	for _, i := range t.naming(held) {
		if t.parsed[i].ours {
			out = append(out, t.parsed[i].route)
		}
	}
	slices.SortFunc(out, func(a, b driver.Route) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), strings.Compare(a.Path, b.Path))
	})
	return out
}

// doubled are sentences about second entries for the routes of the App that holds the slots.
func (t *routeTable) doubled(held map[string]slot) []string {
	var out []string
	mine := t.naming(held)
	told := map[string]bool{}
	for _, i := range mine {
		key := t.entries[i].key
		if told[key] {
			continue
		}
		told[key] = true
		for _, other := range t.byKey[key] {
			if _, is := slices.BinarySearch(mine, other); !is {
				out = append(out, fmt.Sprintf("the route %s has a second entry: %s", key, t.entries[other].value))
			}
		}
	}
	return out
}

// routeTables makes a routeTable of an answer, or has it still: most answers equal the one before.
type routeTables struct {
	mu    sync.Mutex
	text  string
	table *routeTable
}

func (c *routeTables) of(text string) (*routeTable, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.table != nil && c.text == text {
		return c.table, nil
	}
	text = strings.Clone(text) // it is part of a larger answer, which is not kept for it
	entries, err := parseMap(text)
	if err != nil {
		return nil, err
	}
	c.text, c.table = text, newRouteTable(entries)
	return c.table, nil
}

// routeBackends chooses the backends that the App's routes name, of the slots that it holds by class: first the class
// with the most Serving weight, then the other classes with Serving upstreams. Without any, the class of what drains, so
// that a set in doubt still names its own backend; and any slot for a Section of routes alone.
func routeBackends(s driver.Section, slots map[string]slot) []string {
	type candidate struct {
		class           string
		serving, others int
	}
	byClass := map[string]*candidate{}
	for name := range slots {
		byClass[name] = &candidate{class: name}
	}
	for _, u := range s.Upstreams {
		c := byClass[classOf(u.Health).name]
		if c == nil {
			continue
		}
		if u.Mode == driver.Serving {
			c.serving += u.Weight
		} else {
			c.others++
		}
	}
	order := make([]*candidate, 0, len(byClass))
	for _, c := range byClass {
		order = append(order, c)
	}
	slices.SortFunc(order, func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(b.serving, a.serving), cmp.Compare(b.others, a.others),
			cmp.Compare(classIndex(a.class), classIndex(b.class)))
	})
	var out []string
	for i, c := range order {
		if i == 0 || c.serving > 0 {
			out = append(out, slots[c.class].backend())
		}
	}
	return out
}
