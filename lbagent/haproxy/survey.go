package haproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/internal/ownfile"
	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/driver"
)

// alteredFile is a file of the tree that is not as this driver wrote it.
type alteredFile struct {
	path string
	app  string
	want []byte // nil: there should be no such file
	ownfile.Altered
}

// stranger is what the running worker holds of no App: a server in a spare backend, or a route to nowhere of ours.
type stranger struct {
	at    slot
	row   string // of the server; "" for a route
	entry mapEntry
}

func (s stranger) text() string {
	if s.row != "" {
		return fmt.Sprintf("server %s/%s\n", s.at.backend(), s.row)
	}
	return fmt.Sprintf("%s %s\n", s.entry.key, s.entry.value)
}

// Survey compares every file of the tree with what this driver wrote, and tells what the last Read of all found in the
// worker that is of no App.
func (d *Driver) Survey(ctx context.Context) ([]driver.Difference, error) {
	altered, err := d.tree.altered()
	if err != nil {
		return nil, fmt.Errorf("haproxy survey: %w", err)
	}
	loaded := func(alteredFile) bool { return false }
	d.mu.Lock()
	strangers, tainted := slices.Clone(d.strangers), d.tainted
	d.mu.Unlock()
	if len(altered) > 0 || tainted != (driver.Process{}) {
		if p, err := d.Process(ctx); err == nil {
			loaded = func(f alteredFile) bool {
				return isLoaded(f.path) && !p.StartedAt.Before(f.Since.Add(-procfs.Grain))
			}
			tainted = d.taint(tainted, p, slices.ContainsFunc(altered, loaded))
		}
	}
	out := make([]driver.Difference, 0, len(altered)+len(strangers))
	for _, f := range altered {
		out = append(out, driver.Difference{App: f.app, Place: f.path, File: true, Wanted: string(f.want), Found: string(f.Found),
			Absent: f.want == nil, Missing: f.Missing, Loaded: loaded(f)})
	}
	for _, s := range strangers {
		place := "the servers of spare backends in the running worker"
		if s.row == "" {
			place = "routes.map in the running worker"
		}
		out = append(out, driver.Difference{Place: place, Absent: true, Found: s.text()})
	}
	if tainted != (driver.Process{}) && len(altered) == 0 {
		out = append(out, driver.Difference{Place: fmt.Sprintf("haproxy's worker %d", tainted.WorkerPID), Loaded: true, Absent: true,
			Found: "it has loaded a file of ours that somebody had altered\n"})
	}
	return out, nil
}

// taint remembers the worker that has loaded an altered file, as long as it is the current one.
func (d *Driver) taint(was, now driver.Process, loaded bool) driver.Process {
	switch {
	case loaded:
		was = now
	case !was.Same(now):
		was = driver.Process{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tainted = was
	return was
}

// isLoaded says whether a worker that reads the file at its start takes more from it than Read shows and Converge mends.
func isLoaded(path string) bool {
	return strings.HasSuffix(path, ".cfg") || filepath.Base(path) == healthMap
}

// altered looks at every file of the tree.
func (t *tree) altered() ([]alteredFile, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []alteredFile
	var errs []error
	ours := map[string]bool{}
	look := func(app, path string, want func() []byte) {
		ours[path] = true
		a, err := t.files.Look(path, want)
		if err != nil {
			errs = append(errs, err)
		} else if a != nil {
			out = append(out, alteredFile{path: path, app: app, want: want(), Altered: *a})
		}
	}
	look("", t.o.mapFile(frameFile), func() []byte { frame, _ := renderFrame(t.o); return frame })
	look("", t.o.mapFile(routesMap), func() []byte { return text(renderMap(t.routes)) })
	look("", t.o.mapFile(healthMap), func() []byte { return text(renderMap(t.health)) })
	look("", t.o.mapFile(warmMap), func() []byte { return text(nil) })
	for s, app := range t.holders {
		look(app, t.o.mapFile(slotFile(s)), func() []byte { return renderSlot(t.o, s, t.published[s]) })
		assignment := filepath.Join(t.o.slotsDir(), s.backend())
		ours[assignment] = app != ""
		if _, published := t.published[s]; app != "" && !published {
			look(app, assignment, func() []byte { return []byte(app) })
		}
	}
	// haproxy loads whatever .cfg is in the directory.
	for _, dir := range []string{t.o.currentDir(), t.o.slotsDir()} {
		entries, err := os.ReadDir(dir)
		errs = append(errs, err)
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if ours[path] || strings.HasPrefix(e.Name(), atomicfile.Temporary) {
				continue
			}
			a, err := t.files.Look(path, func() []byte { return nil })
			errs = append(errs, err)
			if err == nil && a == nil {
				a = &ownfile.Altered{Path: path} // an empty file: as little ours as a full one
			}
			if a != nil && !a.Missing {
				out = append(out, alteredFile{path: path, Altered: *a})
			}
		}
	}
	slices.SortFunc(out, func(a, b alteredFile) int { return cmp.Compare(a.path, b.path) })
	return out, errors.Join(errs...)
}

// text is what a file without a line holds: nothing, which is not "no file".
func text(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Mend writes altered files again, moves files that are nobody's to DIR/removed, and takes out of the worker what is of
// no App. A worker that has loaded an altered file is replaced by a reload, which loses no request.
func (d *Driver) Mend(ctx context.Context) error {
	if _, err := d.Survey(ctx); err != nil { // also notes a worker that has loaded something
		return err
	}
	if err := d.tree.mend(); err != nil {
		return fmt.Errorf("haproxy mend: %w", err)
	}
	d.mu.Lock()
	tainted, strangers := d.tainted != (driver.Process{}), len(d.strangers)
	d.mu.Unlock()
	if tainted {
		if err := d.Reload(ctx); err != nil {
			return fmt.Errorf("haproxy mend: %w", err)
		}
	}
	if strangers > 0 || tainted {
		if err := d.expel(ctx); err != nil {
			return fmt.Errorf("haproxy mend: %w", err)
		}
	}
	return nil
}

// mend makes the files what the fields say, one by one, each atomically: all of them are right already but for somebody
// else's hand, so no order between them matters.
func (t *tree) mend() error {
	altered, err := t.altered()
	if err != nil || len(altered) == 0 {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range altered {
		if f.want == nil {
			err = t.setAside(f.path)
		} else {
			err = atomicfile.Replace(f.path, f.want)
		}
		if err != nil {
			return err
		}
		t.log.Warn("a file that somebody else had altered is put right", "file", f.path, "app", f.app)
	}
	return errors.Join(atomicfile.SyncDir(t.o.currentDir()), atomicfile.SyncDir(t.o.slotsDir()))
}

// removedDir is where setAside moves files to.
func (t *tree) removedDir() string { return filepath.Join(t.o.Dir, "removed") }

// setAside moves a file that is not ours to where haproxy does not load it: its owner may want it back.
func (t *tree) setAside(path string) error {
	if err := makeDir(t.removedDir()); err != nil {
		return err
	}
	to := filepath.Join(t.removedDir(), filepath.Base(path))
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.Rename(path, to)
}

// expel takes the strangers out of the worker. All changes wait meanwhile, so that what is a stranger's stays one.
func (d *Driver) expel(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, busyAfter)
	defer cancel()
	if err := d.reloading.Acquire(wait, allChanges); err != nil {
		return driver.ErrBusy
	}
	defer d.reloading.Release(allChanges)
	obs, err := d.observe(ctx, nil)
	if err != nil {
		return err
	}
	found := strangersIn(obs, d.tree.allHolders())
	var commands []string
	for _, s := range found {
		if s.row == "" {
			commands = append(commands, fmt.Sprintf("del map %s #%s", d.o.mapFile(routesMap), s.entry.id))
			continue
		}
		server := s.at.backend() + "/" + s.row
		commands = append(commands, fmt.Sprintf("set server %s state maint", server), "disable health "+server)
	}
	if err := d.command(ctx, obs.info.pid, commands); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.strangers = nil
	return nil
}

// strangersIn finds what is of no App: holders are those from before and after the observation, so nothing of an App
// that came or went meanwhile is taken for a stranger.
func strangersIn(obs observation, holders map[slot]string) []stranger {
	var out []stranger
	for s, rows := range obs.servers {
		if holders[s] != "" {
			continue
		}
		for _, row := range rows {
			if row.mode() != 0 {
				out = append(out, stranger{at: s, row: row.name})
			}
		}
	}
	ofApp := func(p parsedRoute) bool {
		return p.ours && slices.ContainsFunc(p.to.backends, func(b string) bool { s, _ := parseSlot(b); return holders[s] != "" })
	}
	for i, e := range obs.routes.entries {
		p := obs.routes.parsed[i]
		if ofApp(p) {
			continue
		}
		// A second entry for the route of an App is told as that App's.
		if !p.ours && slices.ContainsFunc(obs.routes.byKey[e.key], func(other int) bool { return ofApp(obs.routes.parsed[other]) }) {
			continue
		}
		out = append(out, stranger{entry: e})
	}
	slices.SortFunc(out, func(a, b stranger) int { return cmp.Compare(a.text(), b.text()) })
	return out
}

// foreignIn are sentences about what the worker holds of one App that no Section expresses.
func foreignIn(rows []serverRow, health map[string]driver.Health) []string {
	var out []string
	alive := map[string]bool{}
	for _, row := range rows {
		if name, _ := row.upstream(); row.mode() != 0 {
			alive[name] = true
		}
	}
	for _, row := range rows {
		name, _ := row.upstream()
		h, known := health[name]
		if known && row.parked() && !alive[name] {
			server := row.state.backend + "/" + row.name
			out = append(out, fmt.Sprintf("%s is in maintenance, by a command on HAProxy's socket (set server %s state maint; set server %s state ready takes it back)", name, server, server))
		}
		if !known || row.mode() == 0 {
			continue
		}
		want := isChecked(driver.Upstream{Health: h, Mode: row.mode()})
		switch have := row.state.checkState&checkEnabled != 0; {
		case want && !have:
			out = append(out, fmt.Sprintf("the health checks of %s are switched off", name))
		case !want && have:
			out = append(out, fmt.Sprintf("the health checks of %s are switched on", name))
		}
	}
	return out
}
