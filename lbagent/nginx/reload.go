package nginx

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/probe"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

// Reload drives nginx without Lua: every change of routable state is a new generation directory and a reload. Warm
// upstreams are known to the agent alone, which checks them through nginx's workers. It is safe for concurrent use for
// different Apps; changes that are published when a reload starts share it.
type Reload struct {
	common

	publishing chan struct{} // 1: one writer of generations
	reloading  chan struct{} // 1: one reload

	mu        sync.Mutex
	published uint64
	sections  map[string]driver.Section // of the published generation
	warm      map[string][]driver.Upstream
	draining  map[upstreamKey]uint64 // StartTicks of the first workers that do not route to it
	cohort    cohort
	proved    map[workerKey]uint64 // generation of a worker: it never changes
	loaded    map[uint64]map[string]driver.Section
	// tainted are the Apps for which workers of generation taintedIn have loaded something altered.
	tainted   map[string]bool
	taintedIn uint64
	// counted are the sessions by address as they were at countedAt.
	counted   map[netip.AddrPort]int
	countedAt time.Time
}

type upstreamKey struct{ app, name string }

var _ driver.Driver = (*Reload)(nil)

// NewReload opens the driver on a Dir that BootstrapReload has made. nginx may run or not. Close ends the driver; nginx
// runs on.
func NewReload(options Options) (*Reload, error) {
	o, err := options.normal()
	if err != nil {
		return nil, err
	}
	p := paths{o.Dir}
	if err := errors.Join(os.RemoveAll(p.stage()), clearLeft(p.gens())); err != nil {
		return nil, fmt.Errorf("nginx: %w", err)
	}
	published, err := publishedGeneration(p)
	if err == nil && published == 0 {
		err = errors.New("there is none")
	}
	if err != nil {
		return nil, fmt.Errorf("nginx: published generation: %w (run Bootstrap first)", err)
	}
	sections, damaged, err := readGeneration(o, published)
	if err != nil {
		return nil, fmt.Errorf("nginx: published generation: %w", err)
	}
	frame, err := reloadFrameDigest(o)
	if err != nil {
		return nil, err
	}
	d := &Reload{
		publishing: make(chan struct{}, 1), reloading: make(chan struct{}, 1),
		published: published, sections: sections,
		warm: map[string][]driver.Upstream{}, draining: map[upstreamKey]uint64{},
		proved: map[workerKey]uint64{}, loaded: map[uint64]map[string]driver.Section{},
	}
	d.open(o, "nginx-reload", frame)
	d.doubt(damaged)
	d.check(probe.Config{Generation: d.generationOf}, sections)
	d.wg.Go(d.watch)
	return d, nil
}

// doubt marks the Apps whose Section the published generation cannot tell, unless what nginx loads of them is what the
// journal says: then it is known what runs all the same (RUNNING = JOURNAL).
func (d *Reload) doubt(damaged []string) {
	for _, app := range damaged {
		block, err := os.ReadFile(filepath.Join(d.p.tree(d.published), blockFile(app)))
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		if err != nil || !bytes.Equal(block, renderApp(d.sections[app])) {
			d.taint(d.published, []alteredFile{{ownedFile: ownedFile{app: app}}})
		}
	}
}

func (d *Reload) watch() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		ctx, cancel := context.WithTimeout(d.ctx, controlTimeout)
		if _, err := d.look(ctx); err != nil && d.ctx.Err() == nil {
			d.log.Debug("nginx does not answer", "error", err)
		}
		cancel()
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Process names the running nginx.
func (d *Reload) Process(ctx context.Context) (driver.Process, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	c, err := d.look(ctx)
	if err != nil {
		return driver.Process{}, err
	}
	return c.family.process(c.version), nil
}

// Check verifies the contract with the owner's base configuration and the running nginx.
func (d *Reload) Check(ctx context.Context) (driver.Info, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := checkContract(d.o); err != nil {
		return driver.Info{}, err
	}
	if err := d.checkBase(ctx); err != nil {
		return driver.Info{}, err
	}
	c, err := d.look(ctx)
	if err != nil {
		return driver.Info{}, err
	}
	if err := d.serves(c.family, c.frame); err != nil {
		return driver.Info{}, err
	}
	return driver.Info{
		Proxy: "nginx-reload", Version: c.version, ReloadPerChange: true,
		Limits: []string{
			"every change of routes, weights or routable upstreams reloads nginx",
			"nginx before 1.27.4 resets idle keep-alive connections at each reload: a client that may not repeat its request (POST) can lose it; use nginx with Lua, or nginx 1.27.4 or later with keepalive_min_timeout",
			"nginx before 1.23.1 may truncate a proxied response while it reloads",
			"nginx has no active checks: the agent checks through nginx's workers, but only nginx's own failed requests (2 in 2 s) keep a red upstream from getting traffic",
			"a draining upstream is drained only when every older worker is gone: one long request of any App delays it",
			"an upstream whose check is TCP or none gets a short HEAD request as its check",
			"closing the sessions of a draining upstream shuts down its connections from outside (pidfd_getfd) and needs root, CAP_SYS_PTRACE, or nginx's own user where kernel.yama.ptrace_scope is 0",
		},
	}, nil
}

// checkBase asks nginx about the owner's base with the published tree. The answer is remembered by the digest of base and
// Frame: Sections are checked one by one in Stage.
func (d *Reload) checkBase(ctx context.Context) error {
	return d.checker.check(ctx, "frame "+d.frame, func() (string, func(), error) {
		tree, err := filepath.EvalSymlinks(d.p.current())
		return tree, func() {}, err
	})
}

// Stage asks nginx about the owner's base, and about the base with a tree that holds this App alone: Apps cannot clash,
// since all names are made of theirs, so the cost does not grow with their number.
func (d *Reload) Stage(ctx context.Context, want driver.Section) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := checkSection(want); err != nil {
		return err
	}
	if err := stageContract(d.o); err != nil {
		return err
	}
	if err := d.checkBase(ctx); err != nil {
		return err
	}
	s := sectionfile.Published(want)
	only := map[string]driver.Section{s.App: s}
	frame, err := renderFrame(d.o, only)
	if err != nil {
		return err
	}
	entry, err := renderEntry(d.o)
	if err != nil {
		return err
	}
	block := renderApp(s)
	sum := sha256.Sum256(slices.Concat(frame, block))
	return d.checker.check(ctx, "section "+hex.EncodeToString(sum[:]), func() (string, func(), error) {
		if err := makeDirs(d.p.stage()); err != nil {
			return "", nil, err
		}
		generation, err := os.MkdirTemp(d.p.stage(), "gen-")
		if err != nil {
			return "", nil, err
		}
		done := func() { _ = os.RemoveAll(generation) } // what is left goes at the next start
		tree := filepath.Join(generation, treeDir)
		number, err := renderNumber(d.o, 0, tree)
		err = errors.Join(err, makeDirs(tree, filepath.Join(tree, loadDir)))
		for name, text := range map[string][]byte{
			filepath.Join("..", numberFile): number, frameFile: entry,
			filepath.Join(loadDir, routesFile): frame, blockFile(s.App): block,
		} {
			if err == nil && text != nil {
				err = os.WriteFile(filepath.Join(tree, name), text, 0o600)
			}
		}
		if err != nil {
			done()
			return "", nil, err
		}
		return tree, done, nil
	})
}

// lock takes one of the driver's locks within the context.
func lock(ctx context.Context, c chan struct{}) (unlock func(), err error) {
	select {
	case c <- struct{}{}:
		return func() { <-c }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", driver.ErrBusy, ctx.Err())
	}
}

// Publish writes a new generation with this Section and points current to it.
func (d *Reload) Publish(ctx context.Context, want driver.Section) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := sectionfile.Check(want); err != nil {
		return err
	}
	unlock, err := lock(ctx, d.publishing)
	if err != nil {
		return err
	}
	defer unlock()
	s := sectionfile.Published(want)
	d.mu.Lock()
	before, prev, running := d.sections, d.published, d.cohort.generation
	d.mu.Unlock()
	if had, ok := before[s.App]; (ok || driver.Digest(s) == "") && slices.Equal(sectionfile.File(had), sectionfile.File(s)) && d.intact(had) {
		return nil
	}
	after := with(before, s)
	next, err := d.next(prev)
	if err != nil {
		return fmt.Errorf("nginx: publish %s: %w", s.App, err)
	}
	if err := writeGeneration(d.o, next, after, d.p.tree(prev), map[string]bool{s.App: true}); err != nil {
		return fmt.Errorf("nginx: publish %s: generation %d: %w", s.App, next, err)
	}
	if err := publishGeneration(d.p, next); err != nil {
		return fmt.Errorf("nginx: publish %s: generation %d: %w", s.App, next, err)
	}
	d.mu.Lock()
	d.published, d.sections = next, after
	d.keepLoaded(prev, before)
	d.mu.Unlock()
	if err := collect(d.p, d.o.KeepGenerations, prev, running); err != nil {
		d.log.Warn("old generations are not removed", "error", err)
	}
	return nil
}

// intact says whether the App's files in the published tree are as they were written. The caller holds the publishing lock.
func (d *Reload) intact(s driver.Section) bool {
	if driver.Digest(s) == "" {
		return true
	}
	for _, f := range appFiles(d.p.tree(d.published), s.App, s) {
		if a, err := d.files.Look(f.path, f.want); err != nil || a != nil {
			return false
		}
	}
	return true
}

// Converge makes the running nginx hold want. Only a difference in what nginx itself holds reloads it; Warm upstreams are
// the agent's. A Section that was not published is published first: nginx can only load what is published.
func (d *Reload) Converge(ctx context.Context, want driver.Section) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := sectionfile.Check(want); err != nil {
		return err
	}
	unlock, err := lock(ctx, d.reloading)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := d.look(ctx)
	if err != nil {
		return err
	}
	if err := ownsListeners(c.family.master.PID, d.o.Listen); err != nil {
		return err
	}
	if err := d.reloadTo(ctx, c, sectionfile.Published(want)); err != nil {
		return fmt.Errorf("converge %s: %w", want.App, err)
	}
	var warm []driver.Upstream
	for _, u := range want.Upstreams {
		if u.Mode == driver.Warm {
			warm = append(warm, u)
		}
	}
	d.mu.Lock()
	if len(warm) == 0 {
		delete(d.warm, want.App)
	} else {
		d.warm[want.App] = warm
	}
	d.mu.Unlock()
	d.prober.Set(want.App, targets(want))
	return nil
}

// reloadTo reloads nginx unless it holds s already.
func (d *Reload) reloadTo(ctx context.Context, c cohort, s driver.Section) error {
	sections, err := d.running(c.generation)
	if err != nil {
		return err
	}
	tainted := d.isTainted(c.generation, s.App)
	if driver.Digest(sections[s.App]) == driver.Digest(s) && !tainted {
		d.noteDraining(c, sections) // it was loaded for another App, or by the owner
		return nil
	}
	if tainted {
		if err := d.Mend(ctx); err != nil { // the generation that nginx has loaded must not be loaded again
			return err
		}
	}
	d.mu.Lock()
	published := d.sections[s.App]
	d.mu.Unlock()
	if driver.Digest(published) != driver.Digest(s) {
		if err := d.Publish(ctx, s); err != nil {
			return err
		}
	}
	d.mu.Lock()
	target := d.published
	d.mu.Unlock()
	if c, err = d.reload(ctx, c, target); err != nil {
		return err
	}
	if sections, err = d.running(c.generation); err != nil {
		return err
	}
	if driver.Digest(sections[s.App]) != driver.Digest(s) {
		return fmt.Errorf("%w: generation %d holds another set for %s", driver.ErrProxyMismatch, c.generation, s.App)
	}
	d.noteDraining(c, sections)
	return nil
}

// noteDraining remembers from which workers on no new request goes to each upstream that drains: none of the generation that
// runs sends any. One that served in between begins anew.
func (d *Reload) noteDraining(c cohort, sections map[string]driver.Section) {
	d.mu.Lock()
	defer d.mu.Unlock()
	still := make(map[upstreamKey]bool)
	for app, s := range sections {
		for _, u := range s.Upstreams {
			if u.Mode == driver.Draining {
				key := upstreamKey{app, u.Name}
				still[key] = true
				if _, ok := d.draining[key]; !ok {
					d.draining[key] = c.oldest
				}
			}
		}
	}
	maps.DeleteFunc(d.draining, func(k upstreamKey, _ uint64) bool { return !still[k] })
}

// Read reports the generation that every current worker runs, with the verdicts of the checks that these workers made.
func (d *Reload) Read(ctx context.Context, apps ...string) (driver.Reading, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	before, err := d.look(ctx)
	if err != nil {
		return driver.Reading{}, err
	}
	sections, err := d.running(before.generation)
	if err != nil {
		return driver.Reading{}, err
	}
	d.mu.Lock()
	merged := make(map[string]driver.Section)
	for app, s := range sections {
		merged[app] = s
	}
	for app, warm := range d.warm {
		s := merged[app]
		s.App = app
		s.Upstreams = slices.Concat(s.Upstreams, warm)
		merged[app] = s
	}
	d.mu.Unlock()
	all := maps.Clone(merged)
	if len(apps) > 0 {
		maps.DeleteFunc(merged, func(app string, _ driver.Section) bool { return !slices.Contains(apps, app) })
	}
	sessions, err := d.sessions(before.family, merged, all)
	if err != nil {
		return driver.Reading{}, err
	}
	after, err := d.look(ctx)
	if err != nil {
		return driver.Reading{}, err
	}
	if before.id != after.id {
		return driver.Reading{}, fmt.Errorf("%w: nginx was reloaded while it was read", driver.ErrBusy)
	}
	out := driver.Reading{Process: after.family.process(after.version), At: time.Now(), Sections: make(map[string]driver.SectionReading)}
	for app, s := range merged {
		rows := make([]driver.Row, 0, len(s.Upstreams))
		for _, u := range s.Upstreams {
			state := d.prober.State(app, u.Name, after.id)
			row := driver.Row{
				Name: u.Name, Address: u.Address, Weight: u.Weight, Mode: u.Mode,
				Green: state.Green, Red: state.Red, Status: state.Status, Sessions: sessions[u.Address],
			}
			if u.Mode == driver.Draining {
				row.Sessions += d.olderWorkers(before, app, u.Name)
			}
			rows = append(rows, row)
		}
		section := driver.NewSectionReading(app, s.Routes, rows)
		if d.isTainted(before.generation, app) {
			section.Mark(fmt.Sprintf("nginx has loaded a file of generation %d that somebody had altered", before.generation))
		}
		out.Sections[app] = section
	}
	return out, nil
}

// Cut shuts down the connections of all workers, leaving ones included, to a Draining upstream.
func (d *Reload) Cut(ctx context.Context, app, name string) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	c, err := d.look(ctx)
	if err != nil {
		return err
	}
	sections, err := d.running(c.generation)
	if err != nil {
		return err
	}
	return cutDraining(ctx, d.log, c.family, sections[app], name)
}

// Apps lists the Apps of the published and the running generation and those that are only warm.
func (d *Reload) Apps(ctx context.Context) ([]string, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	apps := make(map[string]bool)
	c, err := d.look(ctx)
	if err == nil {
		sections, err := d.running(c.generation)
		if err != nil {
			return nil, err
		}
		for app := range sections {
			apps[app] = true
		}
	} else if !errors.Is(err, driver.ErrProxyDown) {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for app := range d.sections {
		apps[app] = true
	}
	for app := range d.warm {
		apps[app] = true
	}
	return slices.Sorted(maps.Keys(apps)), nil
}

// PublishedDigest is the digest of the App's Section in the published generation; "" if it has none.
func (d *Reload) PublishedDigest(_ context.Context, app string) (string, error) {
	if err := sectionfile.CheckApp(app); err != nil {
		return "", err
	}
	n, err := publishedGeneration(d.p)
	if err != nil {
		return "", err
	}
	return fileDigest(filepath.Join(d.p.tree(n), sectionsDir, app+sectionSuffix), app)
}
