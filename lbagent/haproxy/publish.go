package haproxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/lbagent/driver"
)

// neededClasses returns the classes in which the Section needs a slot. One with routes alone needs any: held, or t.
func neededClasses(s driver.Section, held map[string]slot) []string {
	seen := map[string]bool{}
	for _, u := range s.Upstreams {
		seen[classOf(u.Health).name] = true
	}
	if len(seen) == 0 && len(s.Routes) > 0 {
		name := "t"
		for _, c := range classes {
			if _, ok := held[c.name]; ok {
				name = c.name
				break
			}
		}
		seen[name] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// withoutWarm is the part of a Section that is published.
func withoutWarm(s driver.Section) driver.Section {
	s.Upstreams = slices.DeleteFunc(slices.Clone(s.Upstreams), func(u driver.Upstream) bool { return u.Mode == driver.Warm })
	return s
}

// publish makes the files say s (without Warm). Between any two of its renames the tree is one that HAProxy may load:
// backends that gain upstreams, then routes to them, then backends that lose theirs (NEVER-ZERO). In the common case, a
// change of upstreams in one backend, it is a single rename. A crash in between is mended by publishing again.
func (t *tree) publish(s driver.Section) error {
	s = withoutWarm(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	needed := neededClasses(s, t.apps[s.App])
	held, err := t.holdLocked(s.App, needed)
	if err != nil {
		return err
	}
	target := map[slot]published{}
	slots := map[string]slot{}
	for _, class := range needed {
		slots[class] = held[class]
		target[held[class]] = published{App: s.App}
	}
	for _, u := range s.Upstreams {
		at := held[classOf(u.Health).name]
		p := target[at]
		p.Upstreams = append(p.Upstreams, u)
		target[at] = p
	}
	for _, class := range slices.Sorted(maps.Keys(held)) {
		if at := held[class]; t.published[at].App == s.App {
			if _, kept := target[at]; !kept {
				target[at] = published{}
			}
		}
	}

	// Routes of this App: those that name one of its slots go, the wanted come.
	routes := maps.Clone(t.routes)
	mine := mentionsAny(held)
	for key, value := range routes {
		if !mine(value) {
			continue
		}
		if _, to, ok := parseRoute(key, value); ok && holdsAny(held, to.backends) {
			delete(routes, key)
		}
	}
	var serving []string
	if len(s.Routes) > 0 {
		serving = routeBackends(s, slots)
	}
	for _, r := range s.Routes {
		routes[routeKey(r)] = targetOf(r, serving).String()
	}
	health := maps.Clone(t.health)
	for at := range target {
		for _, u := range t.published[at].Upstreams {
			delete(health, u.Name)
		}
	}
	for _, p := range target {
		maps.Copy(health, healthExceptions(p.Upstreams))
	}
	union := maps.Clone(t.health)
	maps.Copy(union, health)

	w := treeWriter{t: t}
	w.mapFile(healthMap, t.health, union)
	for at, p := range target {
		if slices.Contains(serving, at.backend()) {
			w.slotFile(at, p)
		}
	}
	w.barrier()
	w.mapFile(routesMap, t.routes, routes)
	w.barrier()
	for at, p := range target {
		if !slices.Contains(serving, at.backend()) {
			w.slotFile(at, p)
		}
	}
	w.barrier()
	w.mapFile(healthMap, union, health)
	w.barrier()
	if w.err != nil {
		return fmt.Errorf("publish %s: %w", s.App, w.err)
	}
	t.routes, t.health = routes, health
	return nil
}

// treeWriter writes files in order and remembers the first error; after one it does nothing.
type treeWriter struct {
	t     *tree
	dirty bool
	err   error
}

// replace replaces a file of the tree.
func (w *treeWriter) replace(path string, text []byte) error {
	w.dirty = true
	if err := atomicfile.Replace(path, text); err != nil {
		return err
	}
	if w.t.renamed != nil {
		return w.t.renamed(path)
	}
	return nil
}

// slotFile writes the file of a slot unless it is as it should be. What is compared is the disk, not the memory of it.
func (w *treeWriter) slotFile(at slot, p published) {
	if w.err != nil {
		return
	}
	path, text := w.t.o.mapFile(slotFile(at)), renderSlot(w.t.o, at, p)
	old, err := readOptional(path)
	if err == nil && !bytes.Equal(old, text) {
		err = w.replace(path, text)
	}
	if err != nil {
		w.err = err
		return
	}
	if p.App == "" {
		delete(w.t.published, at)
	} else {
		w.t.published[at] = p
	}
}

func (w *treeWriter) mapFile(name string, old, entries map[string]string) {
	if w.err != nil || maps.Equal(old, entries) {
		return
	}
	w.err = w.replace(w.t.o.mapFile(name), renderMap(entries))
}

// barrier makes the renames so far durable before any that follows.
func (w *treeWriter) barrier() {
	if w.err == nil && w.dirty {
		w.err = atomicfile.SyncDir(w.t.o.currentDir())
		w.dirty = false
	}
}

// healthExceptions are the entries of health.map that the slot's file does not already say.
func healthExceptions(ups []driver.Upstream) map[string]string {
	out := map[string]string{}
	common := commonHealthPath(ups)
	for _, u := range ups {
		if u.Health.Kind == driver.HealthHTTP && u.Health.Path != common {
			out[u.Name] = u.Health.Path
		}
	}
	return out
}

// mentionsAny returns a quick test for values of routes that may name one of the slots: most entries of the map are of
// other Apps, and are not worth parsing.
func mentionsAny(held map[string]slot) func(value string) bool {
	names := make([]string, 0, len(held))
	for _, s := range held {
		names = append(names, s.backend())
	}
	return func(value string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return strings.Contains(value, name) })
	}
}

func holdsAny(held map[string]slot, backends []string) bool {
	for _, s := range held {
		if slices.Contains(backends, s.backend()) {
			return true
		}
	}
	return false
}

// renderMap renders a map file, sorted: hosts that published in different order hold equal files.
func renderMap(entries map[string]string) []byte {
	var b bytes.Buffer
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		fmt.Fprintf(&b, "%s %s\n", key, entries[key])
	}
	return b.Bytes()
}

func parseMapFile(text []byte) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimRight(line, "\n"), " "); ok {
			out[key] = value
		}
	}
	return out
}

// digest reads the App's published files back from disk and digests what HAProxy would load from them. It equals
// driver.Digest of the published Section without its Warm upstreams, unless a file is not as publish wrote it.
func (t *tree) digest(ctx context.Context, app string) (string, error) {
	held := t.slotsOf(app)
	s := driver.Section{App: app}
	altered := sha256.New()
	isAltered := false
	for _, class := range slices.Sorted(maps.Keys(held)) {
		at := held[class]
		text, err := readOptional(t.o.mapFile(slotFile(at)))
		if err != nil {
			return "", fmt.Errorf("published digest of %s: %w", app, err)
		}
		p, err := parseSlotFile(text) // no file is as little whole as an empty one
		if err != nil || p.App != "" && p.App != app || !bytes.Equal(text, renderSlot(t.o, at, p)) {
			isAltered = true
		}
		altered.Write(text)
		s.Upstreams = append(s.Upstreams, p.Upstreams...)
	}
	table, err := t.onDisk.get(ctx, struct{}{}, t.readRoutes)
	if err != nil {
		return "", fmt.Errorf("published digest of %s: %w", app, err)
	}
	s.Routes = table.routesOf(held)
	if isAltered {
		return "altered:" + hex.EncodeToString(altered.Sum(nil)), nil
	}
	return driver.Digest(s), nil
}

// readRoutes reads routes.map from disk, once for all Apps that ask at the same time.
func (t *tree) readRoutes(context.Context, struct{}) (*routeTable, error) {
	text, err := os.ReadFile(t.o.mapFile(routesMap))
	if err != nil {
		return nil, err
	}
	var entries []mapEntry
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		entries = append(entries, mapEntry{key: key, value: value})
	}
	return newRouteTable(entries), nil
}
