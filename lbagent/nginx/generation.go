package nginx

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/internal/ownfile"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

// The files of a generation directory. What current points to is its tree, which is a function of the Frame and of the
// Sections alone: restoring the Sections restores it byte for byte (UNDO). The number of the generation, by which a running
// worker is told from an older one, is beside the tree.
//
// nginx goes through the link current for two files: one that never changes, and from that the number, which leads by
// absolute paths to all others of its generation. So one lookup of the link decides what is loaded: a generation that is
// published while nginx loads another one, for its owner or for another App, is loaded whole or not at all, and the number
// that a worker says is that of the files it has read (RUNNING = JOURNAL).
const (
	treeDir     = "tree"
	numberFile  = "generation.conf" // beside the tree: the number, as nginx says it, and where its files are
	frameFile   = "cutover.conf"    // what the owner's include finds: leads to the number; the same in every generation
	loadDir     = "load"            // in the tree: what nginx loads of this generation
	routesFile  = "frame.conf"      // in loadDir: frontends, routes of all Apps, private endpoints
	frameDigest = "FRAME"           // digest of the Frame alone
	sectionsDir = "sections"        // the Sections that it was rendered from
	noUpstream  = "none"            // a route whose App has nothing that serves: 503
)

// routeData is one line of the route maps. All words are quoted for regular expressions.
type routeData struct {
	Match    string // of "host|uri"
	Path     string
	Upstream string
	Number   int
	Strip    bool
}

// blockFile is the file of an App in a tree that nginx loads.
func blockFile(app string) string { return filepath.Join(loadDir, "app-"+app+".conf") }

func upstreamBlock(app string) string { return "cutover_" + app }

// serves says whether the App has an upstream that new requests may go to.
func serves(s driver.Section) bool {
	return slices.ContainsFunc(s.Upstreams, func(u driver.Upstream) bool { return u.Mode == driver.Serving })
}

// routeTable orders the routes of all Apps as nginx has to try them: exact hosts before any host, longer paths first. It is
// the same on every Host: ties go by name.
func routeTable(sections map[string]driver.Section) []routeData {
	type entry struct {
		driver.Route
		app string
	}
	var all []entry
	for app, s := range sections {
		for _, r := range s.Routes {
			all = append(all, entry{r, app})
		}
	}
	anyHost := func(e entry) int {
		if e.Host == "*" {
			return 1
		}
		return 0
	}
	slices.SortFunc(all, func(a, b entry) int {
		return cmp.Or(anyHost(a)-anyHost(b), len(strings.TrimRight(b.Path, "/"))-len(strings.TrimRight(a.Path, "/")),
			cmp.Compare(a.Path, b.Path), cmp.Compare(a.Host, b.Host), cmp.Compare(a.app, b.app))
	})
	out := make([]routeData, 0, len(all))
	for i, e := range all {
		host := regexp.QuoteMeta(e.Host)
		if e.Host == "*" {
			host = `[^|]*`
		}
		path := regexp.QuoteMeta(strings.TrimRight(e.Path, "/"))
		name := noUpstream
		if serves(sections[e.app]) {
			name = upstreamBlock(e.app)
		}
		out = append(out, routeData{
			Match: host + `\|` + path + `(?:[/?]|$)`, Path: path, Upstream: name, Number: i, Strip: e.Strip,
		})
	}
	return out
}

// renderApp renders the upstream block of one App; nil if nothing of it serves. Draining upstreams are there and down:
// they get no new request.
func renderApp(s driver.Section) []byte {
	if !serves(s) {
		return nil
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# App %s\nupstream %s {\n", s.App, upstreamBlock(s.App))
	for _, u := range driver.SortedUpstreams(s.Upstreams) {
		switch u.Mode {
		case driver.Serving:
			fmt.Fprintf(&b, "    server %s weight=%d max_fails=2 fail_timeout=2s; # %s\n", u.Address, u.Weight, u.Name)
		case driver.Draining:
			fmt.Fprintf(&b, "    server %s weight=%d down; # %s, draining\n", u.Address, u.Weight, u.Name)
		case driver.Warm: // probed by the agent, and no server of nginx yet
		}
	}
	b.WriteString("}\n")
	return b.Bytes()
}

// renderFrame renders the part of a generation that all Apps share.
func renderFrame(o Options, sections map[string]driver.Section) ([]byte, error) {
	d := newFrameData(o)
	digest, err := reloadFrameDigest(o)
	if err != nil {
		return nil, err
	}
	d.Frame, d.Routes = digest, routeTable(sections)
	return render("frame-reload.conf.tmpl", d)
}

// renderNumber renders what tells generation n from all others, and where its files are: those of tree.
func renderNumber(o Options, n uint64, tree string) ([]byte, error) {
	d := newFrameData(o)
	d.Generation, d.Socket, d.Tree = n, (paths{o.Dir}).generationSocket(n), tree
	return render("generation.conf.tmpl", d)
}

// renderEntry renders the one file that nginx finds by the owner's include.
func renderEntry(o Options) ([]byte, error) { return render("entry-reload.conf.tmpl", newFrameData(o)) }

// reloadFrameDigest is the digest of the Frame without any App.
func reloadFrameDigest(o Options) (string, error) {
	d := newFrameData(o)
	frame, err := render("frame-reload.conf.tmpl", d)
	if err != nil {
		return "", err
	}
	number, err := render("generation.conf.tmpl", d)
	if err != nil {
		return "", err
	}
	entry, err := renderEntry(o)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(slices.Concat(frame, number, entry))
	return hex.EncodeToString(sum[:])[:16], nil
}

// writeGeneration writes generation n as a new directory. Files of Apps that did not change since the tree prev
// ("": there is none) are linked, not written again.
func writeGeneration(o Options, n uint64, sections map[string]driver.Section, prev string, changed map[string]bool) error {
	p := paths{o.Dir}
	tmp, err := os.MkdirTemp(p.gens(), atomicfile.Temporary)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // nothing is left of it after the rename
	tree := filepath.Join(tmp, treeDir)
	if err := makeDirs(tree, filepath.Join(tree, loadDir), filepath.Join(tree, sectionsDir)); err != nil {
		return err
	}
	number, err := renderNumber(o, n, p.tree(n))
	if err != nil {
		return err
	}
	if err := atomicfile.Create(filepath.Join(tmp, numberFile), number); err != nil {
		return err
	}
	frame, err := renderFrame(o, sections)
	if err != nil {
		return err
	}
	digest, err := reloadFrameDigest(o)
	if err != nil {
		return err
	}
	entry, err := renderEntry(o)
	if err != nil {
		return err
	}
	if err := atomicfile.Create(filepath.Join(tree, frameFile), entry); err != nil {
		return err
	}
	if err := atomicfile.Create(filepath.Join(tree, loadDir, routesFile), frame); err != nil {
		return err
	}
	if err := atomicfile.Create(filepath.Join(tree, frameDigest), []byte(digest+"\n")); err != nil {
		return err
	}
	for app, s := range sections {
		files := map[string]func() []byte{
			blockFile(app): func() []byte { return renderApp(s) },
			filepath.Join(sectionsDir, app+sectionSuffix): func() []byte { return sectionfile.File(s) },
		}
		for name, text := range files {
			if prev != "" && !changed[app] {
				err := os.Link(filepath.Join(prev, name), filepath.Join(tree, name))
				if err == nil {
					continue
				}
				// It was not there: what somebody deleted is written again, since this generation is loaded (NEVER-ZERO).
			}
			data := text()
			if data == nil {
				continue // an App that serves nothing has no block
			}
			if err := atomicfile.Create(filepath.Join(tree, name), data); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(atomicfile.SyncDir(filepath.Join(tree, sectionsDir)), atomicfile.SyncDir(filepath.Join(tree, loadDir)), atomicfile.SyncDir(tree), atomicfile.SyncDir(tmp)); err != nil {
		return err
	}
	if err := os.Rename(tmp, p.generation(n)); err != nil {
		return err
	}
	return atomicfile.SyncDir(p.gens())
}

// generations lists the numbers of the generations on disk, sorted.
func generations(p paths) ([]uint64, error) {
	entries, err := os.ReadDir(p.gens())
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, e := range entries {
		if n, ok := generationNumber(e.Name()); ok {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

func generationNumber(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, "gen-")
	n, err := strconv.ParseUint(digits, 10, 40)
	return n, ok && err == nil
}

// publishedGeneration reads which generation is published; 0 if there is none yet.
func publishedGeneration(p paths) (uint64, error) {
	target, err := os.Readlink(p.current())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, ok := generationNumber(filepath.Base(filepath.Dir(target)))
	if !ok {
		return 0, fmt.Errorf("%s points to %q, which is no generation", p.current(), target)
	}
	return n, nil
}

func readGeneration(o Options, n uint64) (sections map[string]driver.Section, damaged []string, err error) {
	tree := (paths{o.Dir}).tree(n)
	sections, damaged, err = readSections(o, filepath.Join(tree, sectionsDir))
	if err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(filepath.Join(tree, loadDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a generation of an earlier Frame has its blocks elsewhere
		return nil, nil, err
	}
	for _, e := range entries {
		// An App with a block has a Section: where there is none, its file is lost.
		app, ok := strings.CutPrefix(strings.TrimSuffix(e.Name(), ".conf"), "app-")
		if _, known := sections[app]; !ok || known || slices.Contains(damaged, app) {
			continue
		}
		o.Logger.Warn("the published file of a Section is lost; the journal says what it should hold", "app", app, "generation", n)
		damaged = append(damaged, app)
		if s, ok := o.journaled(app); ok {
			sections[app] = s
		}
	}
	return sections, damaged, nil
}

// intactGeneration says whether every file of a generation is as it was written for the Sections.
func intactGeneration(o Options, n uint64, sections map[string]driver.Section) (bool, error) {
	var c ownfile.Checker
	for _, f := range generationFiles(o, n, sections) {
		if a, err := c.Look(f.path, f.want); err != nil || a != nil {
			return false, err
		}
	}
	return true, nil
}

// publishGeneration points current to generation n.
func publishGeneration(p paths, n uint64) error {
	return atomicfile.Symlink(filepath.Join("gens", generationName(n), treeDir), p.current())
}

// BootstrapReload makes Dir hold a valid generation for the reload driver; with Restore it clears what would keep nginx from
// starting. Run it so before every start of nginx, and without Restore at the start of the lbagent. After an upgrade of Cutover that changes the Frame it publishes a new generation
// with the same Sections; Check then asks for a reload.
func BootstrapReload(options Options) error {
	o, err := options.normal()
	if err != nil {
		return err
	}
	p := paths{o.Dir}
	if err := makeDirs(p.dir, p.run(), p.gens()); err != nil {
		return err
	}
	all, err := generations(p)
	if err != nil {
		return fmt.Errorf("nginx: %w", err)
	}
	published, err := publishedGeneration(p)
	if err == nil && published != 0 && !slices.Contains(all, published) {
		err = fmt.Errorf("%s points to generation %d, which is not there", p.current(), published)
	}
	if len(all) > 0 && (err != nil || published == 0) {
		// The newest is the one that was published last, or was about to be.
		o.Logger.Warn("the link to the published generation is damaged: it is made again", "generation", all[len(all)-1], "damage", err)
		published, err = all[len(all)-1], publishGeneration(p, all[len(all)-1])
	}
	if err != nil {
		return fmt.Errorf("nginx: %w", err)
	}
	digest, err := reloadFrameDigest(o)
	if err != nil {
		return err
	}
	sections := map[string]driver.Section{}
	have := ""
	if published != 0 {
		if sections, _, err = readGeneration(o, published); err != nil {
			return fmt.Errorf("nginx: published generation: %w", err)
		}
		text, err := os.ReadFile(filepath.Join(p.tree(published), frameDigest))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("nginx: published generation: %w", err)
		}
		have = strings.TrimSpace(string(text))
	}
	anew := have != digest
	if !anew && o.Restore {
		intact, err := intactGeneration(o, published, sections)
		if err != nil {
			return fmt.Errorf("nginx: published generation: %w", err)
		}
		anew = !intact
	}
	if anew {
		next := uint64(1)
		if len(all) > 0 {
			next = all[len(all)-1] + 1
		}
		if err := writeGeneration(o, next, sections, "", nil); err != nil {
			return fmt.Errorf("nginx: write generation %d: %w", next, err)
		}
		if err := publishGeneration(p, next); err != nil {
			return fmt.Errorf("nginx: publish generation %d: %w", next, err)
		}
	}
	return finishBootstrap(o)
}

// maxUnknown bounds the generations that are kept because one of them may be the one that runs.
const maxUnknown = 256

// collect removes old generations: those before the running one (0: it is not known), but not the newest keep, and not the
// one before the published. What is newer than the running one stays: a reload under way may be loading it.
func collect(p paths, keep int, before, running uint64) error {
	all, err := generations(p)
	if err != nil || len(all) <= keep {
		return err
	}
	for i, n := range all[:len(all)-keep] {
		old := n < running || i < len(all)-maxUnknown
		if old && n != running && n != before {
			if err := os.RemoveAll(p.generation(n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// with returns sections with the published part of s in its place.
func with(sections map[string]driver.Section, s driver.Section) map[string]driver.Section {
	out := maps.Clone(sections)
	if driver.Digest(s) == "" {
		delete(out, s.App)
	} else {
		out[s.App] = s
	}
	return out
}
