package nginx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/probe"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

const (
	// callTimeout bounds a call whose context has no deadline.
	callTimeout = 30 * time.Second
	// settleTimeout bounds the wait until every worker has reported a version: they look every 20 ms.
	settleTimeout = 5 * time.Second
	// settlePoll is the time between two looks.
	settlePoll = 3 * time.Millisecond
	// maxSilence is how old the last report of a living worker may be; it reports twice a second.
	maxSilence = 5 * time.Second
	// watchInterval is the time between two looks at who runs, when nobody reads.
	watchInterval = time.Second
	// meetInterval is the same before the first answer.
	meetInterval = 50 * time.Millisecond
)

// Lua drives nginx with the http-lua module. It is safe for concurrent use for different Apps. Publish, then Converge; all
// routable changes of one App are one write to the shared dictionary, so there is no moment in between (NEVER-ZERO).
type Lua struct {
	common
	epoch   uint64
	counter atomic.Uint64
	met     atomic.Bool // the red upstreams that the workers hold were read once

	frameFiles map[string][]byte // by name

	writing  sync.Mutex                // held while files are written or compared
	sections map[string]driver.Section // published; guarded by writing

	mu      sync.Mutex
	family  family // as last seen
	tainted string // the generation whose workers have loaded an altered file of the Frame
}

var _ driver.Driver = (*Lua)(nil)

// NewLua opens the driver on a Dir that BootstrapLua has made. nginx may run or not. Close ends the driver; nginx runs on.
func NewLua(options Options) (*Lua, error) {
	o, err := options.normal()
	if err != nil {
		return nil, err
	}
	p := paths{o.Dir}
	if err := errors.Join(os.RemoveAll(p.stage()), clearLeft(p.frames(), p.apps())); err != nil {
		return nil, fmt.Errorf("nginx: %w", err)
	}
	sections, _, err := readSections(o, p.apps())
	if err != nil {
		return nil, fmt.Errorf("nginx: published sections: %w (run Bootstrap first)", err)
	}
	frame, frameFiles, err := luaFrame(o)
	if err != nil {
		return nil, err
	}
	epoch, err := nextEpoch(p)
	if err != nil {
		return nil, fmt.Errorf("nginx: %w", err)
	}
	d := &Lua{epoch: epoch, frameFiles: frameFiles, sections: sections}
	d.open(o, "nginx-lua", frame)
	d.check(probe.Config{Changed: d.tellRed}, sections)
	d.wg.Go(d.watch)
	return d, nil
}

// nextWrite is the next fencing number.
func (d *Lua) nextWrite() uint64 { return d.epoch<<epochShift | d.counter.Add(1) }

// passed says whether a write was refused because somebody else wrote with a higher number of our own epoch: no agent did,
// since an epoch is one start of one agent. The count goes on above it, so that the Section can be put right.
func (d *Lua) passed(err error) bool {
	var refused *passedError
	if !errors.As(err, &refused) || refused.write>>epochShift != d.epoch {
		return false
	}
	for count := refused.write & (1<<epochShift - 1); ; {
		now := d.counter.Load()
		if now >= count || d.counter.CompareAndSwap(now, count) {
			return true
		}
	}
}

// watch notices a restarted or reloaded nginx when nobody reads. Until it has met the workers once it looks more often.
func (d *Lua) watch() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	known := ""
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-timer.C:
		}
		ctx, cancel := context.WithTimeout(d.ctx, controlTimeout)
		w, err := d.control.whoami(ctx)
		if err == nil && w.generation != known {
			// What the workers hold as red is compared with what we know.
			if _, err = d.Read(ctx); err == nil {
				known = w.generation
				d.met.Store(true)
				d.log.Info("nginx runs", "generation", w.generation, "worker", w.pid)
			}
		}
		cancel()
		if d.met.Load() {
			timer.Reset(watchInterval)
		} else {
			timer.Reset(meetInterval)
		}
	}
}

// tellRed writes the red upstreams of an App into the dictionary: the balancer skips them from the next request on.
func (d *Lua) tellRed(ctx context.Context, app string) error {
	if !d.met.Load() {
		return errors.New("what the last agent took out is not known yet")
	}
	body := fmt.Appendf(nil, "%d %s\n", d.epoch, app)
	for _, name := range d.prober.Red(app) {
		body = fmt.Appendf(body, "%s\n", name)
	}
	_, err := d.control.write(ctx, "/health", body)
	return err
}

// look finds out who runs: the worker that answers, and its family by the kernel.
func (d *Lua) look(ctx context.Context) (workerLine, family, error) {
	w, err := d.control.whoami(ctx)
	if err != nil {
		return w, family{}, downWithReason(err, d.o.Listen)
	}
	f, err := familyOf(w.pid, d.o.Binary)
	if err != nil {
		return w, f, err
	}
	d.mu.Lock()
	d.family = f
	d.mu.Unlock()
	return w, f, nil
}

// Process names the running nginx.
func (d *Lua) Process(ctx context.Context) (driver.Process, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	w, f, err := d.look(ctx)
	if err != nil {
		return driver.Process{}, err
	}
	return f.process(w.version), nil
}

// Check verifies the contract with the owner's base configuration and the running nginx.
func (d *Lua) Check(ctx context.Context) (driver.Info, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := checkContract(d.o); err != nil {
		return driver.Info{}, err
	}
	if err := d.checkBase(ctx); err != nil {
		return driver.Info{}, err
	}
	w, f, err := d.look(ctx)
	if err != nil {
		return driver.Info{}, err
	}
	if err := d.serves(f, w.frame); err != nil {
		return driver.Info{}, err
	}
	return driver.Info{
		Proxy: "nginx-lua", Version: w.version,
		Limits: []string{
			"nginx has no active checks: the agent checks through nginx's workers; while no agent runs, the last verdict on an upstream stays",
			"red marks are kept in nginx's memory: after a restart of nginx every upstream may get requests until its first fall failed checks",
			"closing the sessions of a draining upstream shuts down its connections from outside (pidfd_getfd) and needs root, CAP_SYS_PTRACE, or nginx's own user where kernel.yama.ptrace_scope is 0",
			"nginx before 1.27.4 resets some idle keep-alive connections when its owner reloads it; changes of Apps never reload",
			"routes are HTTP only: Debian has no Lua module for nginx's stream proxy",
		},
	}, nil
}

func (d *Lua) checkBase(ctx context.Context) error {
	return d.checker.check(ctx, d.frame, existing(filepath.Join(d.p.frames(), d.frame)))
}

// Stage validates a Section, which is data here, and asks nginx about the owner's base with our Frame. That answer is
// remembered by the digest of both, so the cost does not grow with the number of Apps.
func (d *Lua) Stage(ctx context.Context, want driver.Section) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := checkSection(want); err != nil {
		return err
	}
	if text := sectionfile.Encode(want, d.epoch<<epochShift); len(text) > sectionfile.MaxSize {
		err := fmt.Errorf("section of %d bytes, the limit is %d", len(text), sectionfile.MaxSize)
		return &driver.RefusedError{Checker: "cutover section check", Output: err.Error(), Err: err}
	}
	if err := stageContract(d.o); err != nil {
		return err
	}
	return d.checkBase(ctx)
}

// Publish writes the file that a restart of nginx loads for this App. Equal Sections have equal files (UNDO).
func (d *Lua) Publish(ctx context.Context, want driver.Section) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := sectionfile.Check(want); err != nil {
		return err
	}
	s := sectionfile.Published(want)
	d.writing.Lock()
	defer d.writing.Unlock()
	err := fenced(ctx, d.p, d.epoch, func() error {
		name := d.p.sectionFile(s.App)
		if driver.Digest(s) != "" {
			return atomicfile.Write(name, sectionfile.File(s))
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return atomicfile.SyncDir(d.p.apps())
	})
	if err == nil {
		d.sections = with(d.sections, s)
	}
	if err != nil {
		return fmt.Errorf("nginx: publish %s: %w", s.App, err)
	}
	return nil
}

// Converge writes the Section into the dictionary and returns when every current worker has applied it.
func (d *Lua) Converge(ctx context.Context, want driver.Section) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := sectionfile.Check(want); err != nil {
		return err
	}
	_, f, err := d.look(ctx)
	if err != nil {
		return err
	}
	if err := ownsListeners(f.master.PID, d.o.Listen); err != nil {
		return err
	}
	version, err := d.control.write(ctx, "/section", sectionfile.Encode(want, d.nextWrite()))
	if d.passed(err) {
		version, err = d.control.write(ctx, "/section", sectionfile.Encode(want, d.nextWrite()))
	}
	if err != nil {
		return fmt.Errorf("converge %s: %w", want.App, err)
	}
	d.prober.Set(want.App, targets(want))
	if _, _, err := d.settled(ctx, []string{want.App}, version); err != nil {
		return fmt.Errorf("converge %s: %w", want.App, err)
	}
	return nil
}

// settled reads until every current worker has reported that it applied at least the version that the answering worker
// routes by, between two looks that saw the same processes. That is what makes it evidence (RUNNING = JOURNAL).
func (d *Lua) settled(caller context.Context, apps []string, atLeast uint64) (luaReading, family, error) {
	ctx, cancel := context.WithTimeout(caller, settleTimeout)
	defer cancel()
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	d.mu.Lock()
	before := d.family
	d.mu.Unlock()
	if before.master.PID != 0 {
		// The master may have ended since; familyOfMaster then fails and the first answer tells who runs.
		before, _ = familyOfMaster(before.master.PID, d.o.Binary)
	}
	var why error
	for {
		var pids []int
		for _, w := range before.workers() {
			pids = append(pids, w.PID)
		}
		r, err := d.control.read(ctx, pids, apps)
		if err != nil {
			switch {
			case caller.Err() != nil:
			case ctx.Err() != nil:
				// The caller would wait on; the worker that took the question does not answer.
				err = fmt.Errorf("%w: a worker took a question and did not answer in %s: %w", driver.ErrProxyDown, settleTimeout, err)
				if why != nil {
					err = fmt.Errorf("%w (before that: %w)", err, why)
				}
			default:
				err = downWithReason(err, d.o.Listen)
			}
			return r, family{}, err
		}
		after, err := familyOf(r.worker.pid, d.o.Binary)
		why = err
		if err == nil {
			if why = judge(before, after, r, atLeast); why == nil {
				d.mu.Lock()
				d.family = after
				d.mu.Unlock()
				return r, after, nil
			}
			before = after
		}
		select {
		case <-ctx.Done():
			if errors.Is(why, driver.ErrProxyDown) {
				return r, after, why
			}
			return r, after, fmt.Errorf("%w: %w", driver.ErrProxyMismatch, why)
		case <-tick.C:
		}
	}
}

// judge says why a reading is not evidence yet.
func judge(before, after family, r luaReading, atLeast uint64) error {
	switch {
	case !before.sameAs(after):
		return errors.New("nginx's processes changed while they were read")
	case r.worker.leaving:
		return fmt.Errorf("worker %d answered and is leaving", r.worker.pid)
	case r.version < atLeast:
		return fmt.Errorf("worker %d routes by version %d, want %d: nginx was restarted meanwhile", r.worker.pid, r.version, atLeast)
	}
	for _, w := range after.current {
		a, ok := r.applied[w.PID]
		switch {
		case !ok:
			return fmt.Errorf("worker %d has not reported", w.PID)
		case a.generation != r.worker.generation:
			return fmt.Errorf("worker %d is of generation %s, worker %d of %s", w.PID, a.generation, r.worker.pid, r.worker.generation)
		case a.version < r.version:
			return fmt.Errorf("worker %d has applied version %d of %d", w.PID, a.version, r.version)
		case a.age > maxSilence:
			return fmt.Errorf("worker %d has been silent for %s", w.PID, a.age)
		}
	}
	return nil
}

// Read reports what every current worker routes by, with the verdicts of the checks that these workers made.
func (d *Lua) Read(ctx context.Context, apps ...string) (driver.Reading, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	for _, app := range apps {
		if err := sectionfile.CheckApp(app); err != nil {
			return driver.Reading{}, err
		}
	}
	r, f, err := d.settled(ctx, apps, 0)
	if err != nil {
		return driver.Reading{}, err
	}
	d.prober.Generation(r.worker.generation)
	out := driver.Reading{Process: f.process(r.worker.version), At: time.Now(), Sections: make(map[string]driver.SectionReading)}
	for app, s := range r.sections {
		var red []string
		rows := make([]driver.Row, 0, len(s.Upstreams))
		for _, u := range s.Upstreams {
			there := r.rows[app][u.Name]
			if there.red {
				red = append(red, u.Name)
			}
			state := d.prober.State(app, u.Name, r.worker.generation)
			rows = append(rows, driver.Row{
				Name: u.Name, Address: u.Address, Weight: u.Weight, Mode: u.Mode,
				// Red is what the workers route by; a verdict on its way to them is neither green nor red yet.
				Green: state.Green && !there.red, Red: there.red, Status: state.Status, Sessions: there.sessions,
			})
		}
		d.prober.Reconcile(app, red)
		out.Sections[app] = driver.NewSectionReading(app, s.Routes, rows)
	}
	return out, nil
}

// Cut shuts down the connections of all workers, leaving ones included, to a Draining upstream. nginx sees the upstream
// close, ends the requests, and the count of sessions goes down by itself; nothing here declares them gone.
func (d *Lua) Cut(ctx context.Context, app, name string) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := sectionfile.CheckApp(app); err != nil {
		return err
	}
	if !sectionfile.IsUpstreamName(name) {
		return fmt.Errorf("cut %s/%q: not the name of an upstream", app, name)
	}
	r, f, err := d.settled(ctx, []string{app}, 0)
	if err != nil {
		return err
	}
	if _, err := d.control.write(ctx, "/cut", fmt.Appendf(nil, "%d %s/%s\n", d.epoch, app, name)); err != nil {
		return fmt.Errorf("cut %s/%s: %w", app, name, err)
	}
	return cutDraining(ctx, d.log, f, r.sections[app], name)
}

// Apps lists the Apps of the published tree and of the running nginx. Without a running nginx it is the published tree.
func (d *Lua) Apps(ctx context.Context) ([]string, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	sections, _, err := readSections(d.o, d.p.apps())
	if err != nil {
		return nil, err
	}
	r, _, err := d.settled(ctx, nil, 0)
	if err != nil && !errors.Is(err, driver.ErrProxyDown) {
		return nil, err
	}
	maps.Copy(sections, r.sections)
	return slices.Sorted(maps.Keys(sections)), nil
}

// PublishedDigest is the digest of the App's file; "" if it has none.
func (d *Lua) PublishedDigest(_ context.Context, app string) (string, error) {
	if err := sectionfile.CheckApp(app); err != nil {
		return "", err
	}
	return fileDigest(d.p.sectionFile(app), app)
}
