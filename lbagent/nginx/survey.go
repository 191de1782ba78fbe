package nginx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/internal/ownfile"
	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

// ownedFile is a file of ours and what it should hold.
type ownedFile struct {
	path, app string
	want      func() []byte
}

// alteredFile is one that is not as it should be, or one that is nobody's.
type alteredFile struct {
	ownedFile
	ownfile.Altered
	unknown bool
}

// altered compares files, and lists what else is in their directories.
func (c *common) altered(files []ownedFile, dirs ...string) ([]alteredFile, error) {
	var out []alteredFile
	var errs []error
	ours := map[string]bool{}
	for _, f := range files {
		ours[f.path] = true
		a, err := c.files.Look(f.path, f.want)
		if err != nil {
			errs = append(errs, err)
		} else if a != nil {
			out = append(out, alteredFile{ownedFile: f, Altered: *a})
		}
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if ours[path] || e.IsDir() || strings.HasPrefix(e.Name(), atomicfile.Temporary) {
				continue
			}
			a, err := c.files.Look(path, func() []byte { return nil })
			errs = append(errs, err)
			if a == nil {
				a = &ownfile.Altered{Path: path} // empty, and as little ours as a full one
			}
			if err == nil && !a.Missing {
				out = append(out, alteredFile{ownedFile: ownedFile{path: path}, Altered: *a, unknown: true})
			}
		}
	}
	c.files.Keep(func(path string) bool { return ours[path] })
	slices.SortFunc(out, func(a, b alteredFile) int { return cmp.Compare(a.path, b.path) })
	return out, errors.Join(errs...)
}

// difference tells of a file. loaded: nginx may have read it so.
func (f alteredFile) difference(loaded bool) driver.Difference {
	d := driver.Difference{App: f.app, Place: f.path, File: true, Found: string(f.Found), Absent: f.unknown, Missing: f.Missing, Loaded: loaded}
	if !f.unknown {
		d.Wanted = string(f.want())
	}
	return d
}

// since says whether the oldest current worker began when the file was altered already; if in doubt, it did.
func (f family) since(altered time.Time) bool {
	if len(f.current) == 0 {
		return false
	}
	oldest := f.current[0].Started()
	for _, s := range f.current {
		if s.Started().Before(oldest) {
			oldest = s.Started()
		}
	}
	return !oldest.Before(altered.Add(-procfs.Grain))
}

// links compares the link that publishes, and the owner's include of it.
func (c *common) links(target string) []driver.Difference {
	var out []driver.Difference
	link := func(path, want string) {
		found, err := os.Readlink(path)
		if err == nil && found == want {
			return
		}
		d := driver.Difference{Place: path, File: true, Wanted: "link to " + want + "\n", Found: "link to " + found + "\n"}
		if err != nil {
			d.Found, d.Missing = "", errors.Is(err, fs.ErrNotExist)
			if !d.Missing {
				d.Found = "no symbolic link\n"
			}
		}
		out = append(out, d)
	}
	link(c.p.current(), target)
	if include := filepath.Join(filepath.Dir(c.o.BaseConfig), IncludeName); include != c.p.current() {
		link(include, c.p.current())
	}
	if err := includesUs(c.o); err != nil {
		out = append(out, driver.Difference{Place: c.o.BaseConfig, File: true, Base: true, Found: err.Error() + "\n"})
	}
	return out
}

// mendFiles writes altered files again and moves those that are nobody's to Dir/removed.
func (c *common) mendFiles(altered []alteredFile) error {
	for _, f := range altered {
		err := makeDirs(filepath.Dir(f.path))
		switch {
		case err != nil:
		case f.unknown:
			err = setAside(c.p, f.path)
		default:
			if f.Found != nil && !f.Missing { // what is there may be a directory, which no rename replaces
				if info, serr := os.Lstat(f.path); serr == nil && !info.Mode().IsRegular() {
					err = setAside(c.p, f.path)
				}
			}
			if err == nil {
				err = atomicfile.Write(f.path, f.want())
			}
		}
		if err != nil {
			return fmt.Errorf("nginx: mend %s: %w", f.path, err)
		}
		c.log.Warn("a file that somebody else had altered is put right", "file", f.path, "app", f.app)
	}
	return nil
}

// setAside moves what is not ours to where nginx does not load it: its owner may want it back.
func setAside(p paths, path string) error {
	dir := filepath.Join(p.dir, "removed")
	if err := makeDirs(dir); err != nil {
		return err
	}
	to := filepath.Join(dir, filepath.Base(path))
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.Rename(path, to)
}

// mendLinks points the links where they belong. One beside the owner's configuration that leads elsewhere is the owner's.
func (c *common) mendLinks(target string) error {
	if info, err := os.Lstat(c.p.current()); err == nil && info.Mode()&fs.ModeSymlink == 0 {
		if err := setAside(c.p, c.p.current()); err != nil {
			return fmt.Errorf("nginx: mend %s: %w", c.p.current(), err)
		}
	}
	if err := atomicfile.Symlink(target, c.p.current()); err != nil {
		return fmt.Errorf("nginx: mend %s: %w", c.p.current(), err)
	}
	return linkInclude(c.o)
}

// owned are the files of the Lua driver. The caller holds d.writing.
func (d *Lua) owned() ([]ownedFile, []string) {
	tree := filepath.Join(d.p.frames(), d.frame)
	var out []ownedFile
	for name, text := range d.frameFiles {
		out = append(out, ownedFile{path: filepath.Join(tree, name), want: func() []byte { return text }})
	}
	for app, s := range d.sections {
		out = append(out, ownedFile{path: d.p.sectionFile(app), app: app, want: func() []byte { return sectionfile.File(s) }})
	}
	return out, []string{tree, d.p.apps()}
}

// Survey implements driver.Driver.
func (d *Lua) Survey(ctx context.Context) ([]driver.Difference, error) {
	d.writing.Lock()
	files, dirs := d.owned()
	altered, err := d.altered(files, dirs...)
	d.writing.Unlock()
	if err != nil {
		return nil, fmt.Errorf("nginx survey: %w", err)
	}
	out := d.links(filepath.Join("frames", d.frame))
	d.mu.Lock()
	tainted := d.tainted
	d.mu.Unlock()
	loaded := func(alteredFile) bool { return false }
	if len(altered) > 0 || tainted != "" {
		if w, f, err := d.look(ctx); err == nil {
			loaded = func(a alteredFile) bool { return f.since(a.Since) }
			frame := func(a alteredFile) bool { return filepath.Dir(a.path) != d.p.apps() }
			switch {
			case slices.ContainsFunc(altered, func(a alteredFile) bool { return frame(a) && loaded(a) }):
				tainted = w.generation
			case tainted != w.generation:
				tainted = ""
			}
			d.mu.Lock()
			d.tainted = tainted
			d.mu.Unlock()
		}
	}
	for _, a := range altered {
		out = append(out, a.difference(loaded(a)))
	}
	if tainted != "" && len(altered) == 0 {
		out = append(out, driver.Difference{Place: "nginx's workers", Absent: true, Loaded: true, Base: true,
			Found: "they have loaded a file of the Frame that somebody had altered: reload nginx (kill -HUP its master)\n"})
	}
	return out, nil
}

// Mend implements driver.Driver. Workers that have loaded an altered Frame are told and left: a reload of nginx can cost
// requests, and is the owner's.
func (d *Lua) Mend(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	d.writing.Lock()
	defer d.writing.Unlock()
	files, dirs := d.owned()
	altered, err := d.altered(files, dirs...)
	if err != nil {
		return fmt.Errorf("nginx mend: %w", err)
	}
	return fenced(ctx, d.p, d.epoch, func() error {
		return errors.Join(d.mendFiles(altered), d.mendLinks(filepath.Join("frames", d.frame)))
	})
}

// owned are the files of the published generation. The caller holds the publishing lock.
func (d *Reload) owned() ([]ownedFile, []string) {
	d.mu.Lock()
	n, sections := d.published, d.sections
	d.mu.Unlock()
	tree := d.p.tree(n)
	return generationFiles(d.o, n, sections), []string{tree, filepath.Join(tree, loadDir), filepath.Join(tree, sectionsDir)}
}

// generationFiles are the files of generation n, if it holds the Sections.
func generationFiles(o Options, n uint64, sections map[string]driver.Section) []ownedFile {
	p := paths{o.Dir}
	tree := p.tree(n)
	must := func(text []byte, err error) []byte {
		if err != nil {
			return fmt.Appendf(nil, "# %v\n", err) // templates that were rendered before do not fail
		}
		return text
	}
	frame, err := reloadFrameDigest(o)
	out := []ownedFile{
		{path: filepath.Join(p.generation(n), numberFile), want: func() []byte { return must(renderNumber(o, n, tree)) }},
		{path: filepath.Join(tree, frameFile), want: func() []byte { return must(renderEntry(o)) }},
		{path: filepath.Join(tree, loadDir, routesFile), want: func() []byte { return must(renderFrame(o, sections)) }},
		{path: filepath.Join(tree, frameDigest), want: func() []byte { return must([]byte(frame+"\n"), err) }},
	}
	for app, s := range sections {
		out = append(out, appFiles(tree, app, s)...)
	}
	return out
}

// appFiles are those of one App in a tree.
func appFiles(tree, app string, s driver.Section) []ownedFile {
	out := []ownedFile{{path: filepath.Join(tree, sectionsDir, app+sectionSuffix), app: app, want: func() []byte { return sectionfile.File(s) }}}
	if serves(s) { // an App that serves nothing has no block
		out = append(out, ownedFile{path: filepath.Join(tree, blockFile(app)), app: app, want: func() []byte { return renderApp(s) }})
	}
	return out
}

// Survey implements driver.Driver. A generation of which workers have loaded an altered file is remembered: Read tells it
// as foreign, and Converge replaces it.
func (d *Reload) Survey(ctx context.Context) ([]driver.Difference, error) {
	unlock, err := lock(ctx, d.publishing)
	if err != nil {
		return nil, err
	}
	altered, n, err := d.surveyLocked()
	unlock()
	if err != nil {
		return nil, fmt.Errorf("nginx survey: %w", err)
	}
	out := d.links(filepath.Join("gens", generationName(n), treeDir))
	loaded := func(alteredFile) bool { return false }
	if len(altered) > 0 {
		if c, err := d.look(ctx); err == nil && c.generation == n {
			loaded = func(a alteredFile) bool { return c.family.since(a.Since) }
			d.taint(n, slices.DeleteFunc(slices.Clone(altered), func(a alteredFile) bool { return !loaded(a) }))
		}
	}
	for _, a := range altered {
		out = append(out, a.difference(loaded(a)))
	}
	return out, nil
}

func (d *Reload) surveyLocked() ([]alteredFile, uint64, error) {
	files, dirs := d.owned()
	altered, err := d.altered(files, dirs...)
	d.mu.Lock()
	defer d.mu.Unlock()
	return altered, d.published, err
}

// taint remembers for which Apps workers have loaded something altered of the generation; "" stands for all.
func (d *Reload) taint(n uint64, altered []alteredFile) {
	if len(altered) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tainted == nil || d.taintedIn != n {
		d.tainted, d.taintedIn = map[string]bool{}, n
	}
	for _, a := range altered {
		d.tainted[a.app] = true
	}
}

// isTainted says whether workers of the generation may do for the App what no Section says.
func (d *Reload) isTainted(n uint64, app string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.taintedIn == n && (d.tainted[app] || d.tainted[""])
}

// Mend implements driver.Driver: generations are immutable, so an altered one is followed by a new one that is right. It is
// loaded with the next reload, which Converge makes where nginx has loaded the altered one.
func (d *Reload) Mend(ctx context.Context) error {
	unlock, err := lock(ctx, d.publishing)
	if err != nil {
		return err
	}
	defer unlock()
	altered, n, err := d.surveyLocked()
	if err != nil {
		return fmt.Errorf("nginx mend: %w", err)
	}
	if len(altered) > 0 {
		if c, err := d.look(ctx); err == nil && c.generation == n {
			d.taint(n, slices.DeleteFunc(slices.Clone(altered), func(a alteredFile) bool { return !c.family.since(a.Since) }))
		}
		if n, err = d.republish(); err != nil {
			return fmt.Errorf("nginx mend: %w", err)
		}
		d.log.Warn("files that somebody else had altered are published anew", "files", len(altered), "generation", n)
	}
	return d.mendLinks(filepath.Join("gens", generationName(n), treeDir))
}

// republish writes what is published as a new generation, without a file of the old one. The caller holds the publishing
// lock.
func (d *Reload) republish() (uint64, error) {
	d.mu.Lock()
	sections, prev := d.sections, d.published
	d.mu.Unlock()
	next, err := d.next(prev)
	if err != nil {
		return prev, err
	}
	if err := writeGeneration(d.o, next, sections, "", nil); err != nil {
		return prev, err
	}
	if err := publishGeneration(d.p, next); err != nil {
		return prev, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.published = next
	d.keepLoaded(prev, sections)
	return next, nil
}

// keepLoaded remembers what a generation holds that workers may still run: its files may not say so any longer. The caller
// holds d.mu.
func (d *Reload) keepLoaded(n uint64, sections map[string]driver.Section) {
	if _, ok := d.loaded[d.cohort.generation]; n == d.cohort.generation || !ok {
		clear(d.loaded) // one is enough
		d.loaded[n] = sections
	}
}

// next is the number of the next generation.
func (d *Reload) next(prev uint64) (uint64, error) {
	all, err := generations(d.p)
	if err != nil {
		return 0, err
	}
	for _, n := range all {
		prev = max(prev, n)
	}
	return prev + 1, nil
}
