package haproxy

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/internal/ownfile"
	"github.com/cutover/cutover/lbagent/driver"
)

const frameFile = "00-frame.cfg"

// errNoSpare says that a class has no free backend: the pool must grow, and HAProxy must load it.
type errNoSpare struct{ class string }

func (e errNoSpare) Error() string { return "no spare backend of class " + e.class }

// tree is the published tree and who holds which slot. The files are the truth; the fields are what they say. Its
// methods may be called concurrently.
type tree struct {
	o    Options
	log  *slog.Logger
	mark string // of the Frame on disk

	// renamed is called after each rename of a publish; tests look at the tree in between, or crash there.
	renamed func(path string) error

	mu        sync.Mutex
	holders   map[slot]string            // every slot of the pool; "" is spare
	apps      map[string]map[string]slot // App -> class -> slot
	published map[slot]published         // what the slots' files say; spare ones have no entry
	routes    map[string]string          // routes.map
	health    map[string]string          // health.map: only the exceptions of what is published
	former    map[string]map[string]slot // App -> class -> the slot that it gave back last, if nobody else has taken it

	files ownfile.Checker
	// onDisk is routes.map as it is on disk.
	onDisk shared[struct{}, *routeTable]
}

func slotFile(s slot) string { return "10-" + s.backend() + ".cfg" }

// openTree makes the tree if there is none, and otherwise reads it, finishes what a crash left half done, and renders
// what an older version of this package rendered differently. It needs no running proxy.
func openTree(o Options) (*tree, error) {
	t := &tree{
		o: o, log: o.Logger,
		holders: map[slot]string{}, apps: map[string]map[string]slot{}, published: map[slot]published{},
		routes: map[string]string{}, health: map[string]string{}, former: map[string]map[string]slot{},
	}
	for _, dir := range []string{o.Dir, o.currentDir(), o.slotsDir(), o.stagingDir()} {
		if err := makeDir(dir); err != nil {
			return nil, fmt.Errorf("haproxy tree: %w", err)
		}
	}
	for _, err := range []error{
		atomicfile.Clean(o.currentDir()), atomicfile.Clean(o.slotsDir()),
		removeContents(o.stagingDir()),
		atomicfile.Replace(o.stateFile(), []byte(noState)),
	} {
		if err != nil {
			return nil, fmt.Errorf("haproxy tree: clean up: %w", err)
		}
	}
	if err := t.load(); err != nil {
		return nil, fmt.Errorf("haproxy tree: %w", err)
	}
	if err := t.complete(); err != nil {
		return nil, fmt.Errorf("haproxy tree: %w", err)
	}
	return t, nil
}

// load reads the slots' files, the maps and the assignments.
func (t *tree) load() error {
	files, err := filepath.Glob(filepath.Join(t.o.currentDir(), "10-*.cfg"))
	if err != nil {
		return err
	}
	held, err := os.ReadDir(t.o.slotsDir())
	if err != nil {
		return err
	}
	for _, e := range held {
		// Only a slot that has a file is ever assigned: where there is none, it is lost.
		if s, ok := parseSlot(e.Name()); ok && !slices.Contains(files, t.o.mapFile(slotFile(s))) {
			files = append(files, t.o.mapFile(slotFile(s)))
		}
	}
	for _, path := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "10-"), ".cfg")
		s, ok := parseSlot(name)
		if !ok {
			continue // not ours: Survey tells it, and Mend sets it aside
		}
		if err := t.loadSlot(s, path); err != nil {
			return err
		}
	}
	for _, e := range held {
		path := filepath.Join(t.o.slotsDir(), e.Name())
		app, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		s, ok := parseSlot(e.Name())
		holder, exists := t.holders[s]
		if ok && exists && holder == "" && appName.Match(app) && !t.holds(string(app), s.class) {
			t.assign(string(app), s)
		} else if holder != string(app) {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	for name, into := range map[string]map[string]string{routesMap: t.routes, healthMap: t.health} {
		text, err := readOptional(t.o.mapFile(name))
		if err != nil {
			return err
		}
		maps.Copy(into, parseMapFile(text))
	}
	return nil
}

// loadSlot reads the file of a slot. A file that is not whole leaves its slot with its App, so that what runs there is not
// taken for a stranger's (NEVER-ZERO), and what should be published is what the journal says: the file is then a difference
// like any other, told by Survey and put right as the Group's policy says.
func (t *tree) loadSlot(s slot, path string) error {
	text, err := os.ReadFile(path)
	lost := errors.Is(err, os.ErrNotExist)
	if err != nil && !lost {
		return err
	}
	p, damage := parseSlotFile(text)
	if damage == nil && bytes.Equal(text, renderSlot(t.o, s, p)) {
		t.take(s, p)
		return nil
	}
	app, err := t.holderOf(s, p)
	if err != nil {
		return err
	}
	want, known := driver.Section{}, false
	if app != "" && t.o.Journaled != nil {
		want, known = t.o.Journaled(app)
	}
	switch journaled := slotOf(want, s); {
	case known && (damage != nil || !bytes.Equal(renderSlot(t.o, s, p), renderSlot(t.o, s, journaled))):
		t.log.Warn("a published file is damaged; the journal says what it should hold", "file", path, "app", app, "damage", damage)
		t.take(s, journaled)
		if !t.o.Restore {
			return nil
		}
		p = journaled
	case damage != nil:
		// HAProxy must be able to start, and the agent to be synced.
		t.log.Error("a published file is damaged, and the journal does not know its App: what can be read of it is written again",
			"file", path, "app", app, "kept", t.removedDir(), "damage", damage)
		if p.App = app; app == "" {
			p = published{}
		}
		if !lost {
			if err := t.setAside(path); err != nil {
				return err
			}
		}
		t.take(s, p)
	default:
		t.log.Warn("a published file was not as lbagent writes it; it is rendered again from its own comments", "file", path)
		t.take(s, p)
	}
	return atomicfile.Replace(path, renderSlot(t.o, s, p))
}

// take remembers what a slot's file says, or should say.
func (t *tree) take(s slot, p published) {
	t.holders[s] = ""
	if p.App != "" {
		t.published[s] = p
		t.assign(p.App, s)
	}
}

// holderOf is the App of a slot whose file is not as it was written: by the file's first line, else by the assignment
// beside it; "" if neither says.
func (t *tree) holderOf(s slot, p published) (string, error) {
	app := p.App
	if app == "" {
		holder, err := readOptional(filepath.Join(t.o.slotsDir(), s.backend()))
		if err != nil {
			return "", err
		}
		app = string(holder)
	}
	if !appName.MatchString(app) || t.holds(app, s.class) {
		return "", nil
	}
	return app, nil
}

// slotOf is what the file of the slot says of a published Section: nothing, if all of its upstreams belong elsewhere.
func slotOf(want driver.Section, s slot) published {
	all := withoutWarm(want).Upstreams
	mine := slices.DeleteFunc(slices.Clone(all), func(u driver.Upstream) bool { return classOf(u.Health).name != s.class })
	if len(mine) == 0 && len(all) > 0 {
		return published{}
	}
	return published{App: want.App, Upstreams: mine}
}

// complete writes what is missing: the Frame, the maps, the first pool.
func (t *tree) complete() error {
	frame, mark := renderFrame(t.o)
	t.mark = mark
	for _, c := range classes {
		n := 0
		for s := range t.holders {
			if s.class == c.name {
				n = max(n, s.number)
			}
		}
		if err := t.addSlots(c, max(n, c.initial(t.o.Pool))); err != nil {
			return err
		}
	}
	for _, file := range []struct {
		name string
		text []byte
	}{{routesMap, renderMap(t.routes)}, {healthMap, renderMap(t.health)}, {warmMap, nil}, {frameFile, frame}} {
		path := t.o.mapFile(file.name)
		old, err := readOptional(path)
		if err != nil {
			return err
		}
		if old == nil || !bytes.Equal(old, file.text) {
			if err := atomicfile.Replace(path, file.text); err != nil {
				return err
			}
		}
	}
	return errors.Join(atomicfile.SyncDir(t.o.currentDir()), atomicfile.SyncDir(t.o.Dir))
}

// addSlots writes the files of slots 1 to n of the class that do not exist. The caller syncs the directory.
func (t *tree) addSlots(c class, n int) error {
	for i := 1; i <= n; i++ {
		s := slot{c.name, i}
		if _, ok := t.holders[s]; ok {
			continue
		}
		if err := atomicfile.Replace(t.o.mapFile(slotFile(s)), renderSlot(t.o, s, published{})); err != nil {
			return err
		}
		t.holders[s] = ""
	}
	return nil
}

// grow doubles the class, unless it has a spare by now. The running proxy knows the new backends after a reload.
func (t *tree) grow(class string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for s, app := range t.holders {
		if s.class != class {
			continue
		}
		if app == "" {
			return nil
		}
		n++
	}
	if 2*n > 1<<17 {
		return fmt.Errorf("class %s has %d backends already: this host serves more Apps than one haproxy can", class, n)
	}
	if err := t.addSlots(classNamed(class), 2*n); err != nil {
		return fmt.Errorf("grow the pool: %w", err)
	}
	return atomicfile.SyncDir(t.o.currentDir())
}

func (t *tree) holds(app, class string) bool {
	_, ok := t.apps[app][class]
	return ok
}

func (t *tree) assign(app string, s slot) {
	if t.apps[app] == nil {
		t.apps[app] = map[string]slot{}
	}
	t.apps[app][s.class] = s
	t.holders[s] = app
}

// hold gives the App a slot in each of the classes, durably, and returns all slots that it holds. errNoSpare: the pool
// must grow first.
func (t *tree) hold(app string, needed []string) (map[string]slot, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.holdLocked(app, needed)
}

func (t *tree) holdLocked(app string, needed []string) (map[string]slot, error) {
	for _, class := range needed {
		if t.holds(app, class) {
			continue
		}
		spare, ok := t.spare(app, class)
		if !ok {
			return nil, errNoSpare{class}
		}
		if err := atomicfile.Replace(filepath.Join(t.o.slotsDir(), spare.backend()), []byte(app)); err != nil {
			return nil, fmt.Errorf("assign a backend: %w", err)
		}
		if err := atomicfile.SyncDir(t.o.slotsDir()); err != nil {
			return nil, fmt.Errorf("assign a backend: %w", err)
		}
		t.assign(app, spare)
	}
	return maps.Clone(t.apps[app]), nil
}

// spare chooses a slot for the App: the one that it gave back last, so that an undo finds its files under their names
// (UNDO); else the first that nobody gave back; and only then one that another App may come back for.
func (t *tree) spare(app, class string) (slot, bool) {
	if s, ok := t.former[app][class]; ok && t.holders[s] == "" {
		return s, true
	}
	kept := map[slot]bool{}
	for _, slots := range t.former {
		kept[slots[class]] = true
	}
	better := func(a, b slot) bool {
		if kept[a] != kept[b] {
			return kept[b]
		}
		return a.number < b.number
	}
	best, found := slot{}, false
	for s, holder := range t.holders {
		if s.class == class && holder == "" && (!found || better(s, best)) {
			best, found = s, true
		}
	}
	return best, found
}

// gaveBack remembers the slot for the App, and for nobody else. Memory only: after a restart of the agent an undo may find
// another slot, which is as good but for its name.
func (t *tree) gaveBack(app string, s slot) {
	for other, slots := range t.former {
		if slots[s.class] == s {
			delete(slots, s.class)
		}
		if len(slots) == 0 {
			delete(t.former, other)
		}
	}
	if t.former[app] == nil {
		t.former[app] = map[string]slot{}
	}
	t.former[app][s.class] = s
}

// release gives back the App's slots outside of keep that publish nothing. The caller has emptied them in the proxy.
func (t *tree) release(app string, keep []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for class, s := range t.apps[app] {
		if _, used := t.published[s]; used || slices.Contains(keep, class) {
			continue
		}
		if err := os.Remove(filepath.Join(t.o.slotsDir(), s.backend())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("give back a backend: %w", err)
		}
		delete(t.apps[app], class)
		t.holders[s] = ""
		t.gaveBack(app, s)
	}
	if len(t.apps[app]) == 0 {
		delete(t.apps, app)
	}
	return nil
}

// slotsOf returns the slots that the App holds, by class.
func (t *tree) slotsOf(app string) map[string]slot {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.apps[app])
}

// holdersOf returns the App of every slot that one of the Apps holds.
func (t *tree) holdersOf(apps []string) map[slot]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[slot]string{}
	for _, app := range apps {
		for _, s := range t.apps[app] {
			out[s] = app
		}
	}
	return out
}

// allHolders returns the App of every held slot.
func (t *tree) allHolders() map[slot]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[slot]string{}
	for s, app := range t.holders {
		if app != "" {
			out[s] = app
		}
	}
	return out
}

// publishedHealth returns the checks of the App's published upstreams, by name.
func (t *tree) publishedHealth(app string) map[string]driver.Health {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]driver.Health{}
	for _, s := range t.apps[app] {
		for _, u := range t.published[s].Upstreams {
			out[u.Name] = u.Health
		}
	}
	return out
}

// publishedApps lists the Apps that have files, sorted.
func (t *tree) publishedApps() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen := map[string]bool{}
	for _, p := range t.published {
		seen[p.App] = true
	}
	return slices.Sorted(maps.Keys(seen))
}
