package haproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/lbagent/driver"
)

var (
	_ driver.Driver    = (*Driver)(nil)
	_ driver.Collector = (*Driver)(nil)
)

// Driver drives one running HAProxy. See driver.Driver for the contract; its methods may be called concurrently for
// different Apps.
type Driver struct {
	o      Options
	log    *slog.Logger
	tree   *tree
	worker commandLine
	master commandLine

	// reloading keeps changes apart from our own reloads: a change holds one, a reload holds all. What a change did to a
	// worker that is being replaced would be lost.
	reloading  *semaphore.Weighted
	lastMaster atomic.Int64 // pid of the master that answered last
	listened   atomic.Pointer[listened]

	mu     sync.Mutex
	health map[string]map[string]driver.Health // App -> upstream -> check, as converged last by this process
	// cut are the draining upstreams, by App, whose sessions were closed at the end of their drain.
	cut map[string]map[string]bool
	// strangers are what the last Read of all found in the worker that is of no App.
	strangers []stranger
	tainted   driver.Process // whose worker has loaded a file that somebody had altered; zero: none

	masterWord shared[struct{}, processes]
	ports      shared[processes, processes]
	looks      shared[[]slot, observation]
	tables     routeTables

	checks validator
	lock   *os.File // the tree is ours alone while the Driver is open
}

const allChanges = 1 << 20

// Bootstrap makes the published tree, so that HAProxy can be started on it before any agent runs: DIR/current with the
// Frame, the pool and empty maps. On a tree that exists it changes nothing but what a crash left half done, and the
// Frame if the Options ask for another one. It is called by New.
func Bootstrap(o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	lock, err := lockTree(o)
	if errors.Is(err, flock.ErrHeld) {
		// An agent is at work on the tree. If it has come as far as the Frame, which New writes last, all is there.
		if _, serr := os.Stat(o.mapFile(frameFile)); serr == nil {
			return nil
		}
	}
	if err != nil {
		return err
	}
	_, err = openTree(o)
	return errors.Join(err, lock.Close())
}

// Arguments are those of haproxy's command line for the Options: what the owner's unit, or a supervisor, starts.
func Arguments(o Options) []string {
	return []string{"-W", "-S", o.MasterSocket + ",mode,600", "-f", o.BaseConfig, "-f", o.currentDir() + "/"}
}

// New opens the tree in Options.Dir (Bootstrap) and returns a Driver for the HAProxy that the owner's unit runs. It does
// not need HAProxy to run yet.
func New(o Options) (*Driver, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	lock, err := lockTree(o)
	if err != nil {
		return nil, err
	}
	t, err := openTree(o)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	d := &Driver{
		o: o, log: o.Logger, tree: t, lock: lock,
		worker: commandLine{o.RuntimeSocket}, master: commandLine{o.MasterSocket},
		reloading: semaphore.NewWeighted(allChanges), looks: shared[[]slot, observation]{merge: allSlots},
		health: map[string]map[string]driver.Health{}, cut: map[string]map[string]bool{},
	}
	d.checks.init(o)
	return d, nil
}

// Close ends the driver's background check and gives the tree free. HAProxy runs on.
func (d *Driver) Close() error {
	d.checks.close()
	return d.lock.Close()
}

// Process names the master and the current worker.
func (d *Driver) Process(ctx context.Context) (driver.Process, error) {
	p, err := d.processes(ctx)
	if err != nil {
		return driver.Process{}, err
	}
	return d.process(p)
}

// Check verifies the contract: the worker and the master answer, the worker has loaded our tree and lets us change it,
// our frontends' ports are this HAProxy's, the last reload worked, and the checker accepts the whole. A worker that runs
// an older Frame of ours (the agent was upgraded or reconfigured) is reloaded.
func (d *Driver) Check(ctx context.Context) (driver.Info, error) {
	// Permission is asked with a command that only "level admin" may give, about a server that does not exist.
	w, err := d.bracketed(ctx, "enable health cutover_none/none")
	if err != nil {
		return driver.Info{}, fmt.Errorf("haproxy check: %w", err)
	}
	v, err := parseVersion(w.info.version)
	if err != nil {
		return driver.Info{}, fmt.Errorf("haproxy check: %w", err)
	}
	info := driver.Info{Proxy: "haproxy", Version: w.info.version, Limits: limits(v)}
	if !v.atLeast(2, 6) {
		return info, fmt.Errorf("haproxy check: version %s is too old: install 2.6 or newer (dynamic servers)", w.info.version)
	}
	if answer := w.answers[0]; !mentions(answer, "such") && !mentions(answer, "server") {
		return info, fmt.Errorf("haproxy check: %s lets us change nothing (%q): give it \"level admin\" in the global section of %s",
			d.o.RuntimeSocket, answer, d.o.BaseConfig)
	}
	if w.mark == "" {
		_, err := parseObservation(d.o, nil, w, time.Now(), &d.tables)
		return info, fmt.Errorf("haproxy check: %w", err)
	}
	if err := d.healthyReloads(w.procs); err != nil {
		return info, fmt.Errorf("haproxy check: %w", err)
	}
	if err := d.checks.whole(ctx, d.tree.mark); err != nil {
		return info, fmt.Errorf("haproxy check: %w", err)
	}
	if w.mark != d.tree.mark {
		if err := d.Reload(ctx); err != nil {
			return info, fmt.Errorf("haproxy check: load the new Frame: %w", err)
		}
		if w.procs, err = d.processes(ctx); err != nil {
			return info, fmt.Errorf("haproxy check: %w", err)
		}
	}
	if err := d.ownsListeners(ctx, w.procs); err != nil {
		return info, fmt.Errorf("haproxy check: %w", err)
	}
	return info, nil
}

// healthyReloads tells a reload that failed: the worker that answers is an older one than the files on disk.
func (d *Driver) healthyReloads(p processes) error {
	if p.failed == 0 {
		return nil
	}
	return fmt.Errorf("%w: the last %d reloads of haproxy failed, worker %d runs an older configuration: correct %s (haproxy -c -f %s -f %s/) and reload",
		driver.ErrProxyMismatch, p.failed, p.current[0], d.o.BaseConfig, d.o.BaseConfig, d.o.currentDir())
}

// limits are sentences for the owner about what his version cannot do.
func limits(v version) []string {
	out := []string{
		"After a reload by its owner, HAProxy takes every server for up until its first check has run.",
		"A new health interval, rise or fall of an upstream that is kept takes effect with the next reload.",
		"After a reload, an upstream that drains waits until the old worker has no client left (idle ones too), or for the end of its drain.",
		"A health timeout is rounded up to 1, 5 or 30 seconds, and the connect of a check has to work within one interval.",
	}
	if !v.atLeast(3, 4) {
		out = append(out, "New backends need a reload: a pool of spare ones is kept, and doubled with a reload when it is used up.")
	}
	if !deletesSafely(v) {
		out = append(out, "Removed servers stay as disabled rows until the next reload: this version cannot delete them safely.")
	}
	return out
}

// Publish makes the Section what HAProxy loads when it restarts. The pool may grow; the running worker is told at the
// next Converge. It waits for a reload of ours: a worker that read some files before and some after would route to a backend
// that is still empty there (NEVER-ZERO).
func (d *Driver) Publish(ctx context.Context, want driver.Section) error {
	if err := validateSection(want); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		release, err := d.change(ctx)
		if err != nil {
			return fmt.Errorf("publish %s: %w", want.App, err)
		}
		err = d.tree.publish(want)
		release()
		var full errNoSpare
		if errors.As(err, &full) {
			if err = d.tree.grow(full.class); err == nil {
				continue
			}
		}
		if err == nil {
			d.checks.changed(d.tree.mark)
		}
		return err
	}
}

// PublishedDigest is driver.Digest of the published Section, computed from the files as they are on disk; a file that
// is not as Publish wrote it gives a digest that equals no other.
func (d *Driver) PublishedDigest(ctx context.Context, app string) (string, error) {
	return d.tree.digest(ctx, app)
}

// Apps lists the Apps that have published files or servers in the running worker. Without a running worker it lists
// what is published.
func (d *Driver) Apps(ctx context.Context) ([]string, error) {
	apps := map[string]bool{}
	for _, app := range d.tree.publishedApps() {
		apps[app] = true
	}
	reading, err := d.Read(ctx)
	if err != nil && !errors.Is(err, driver.ErrProxyDown) {
		return nil, err
	}
	for app := range reading.Sections {
		apps[app] = true
	}
	return slices.Sorted(maps.Keys(apps)), nil
}

// healthOf returns what is known of the checks of an App's upstreams: what this process converged, over what is
// published.
func (d *Driver) healthOf(app string) map[string]driver.Health {
	out := d.tree.publishedHealth(app)
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.Copy(out, d.health[app])
	return out
}

func (d *Driver) rememberHealth(want driver.Section) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.cut[want.App], func(name string, _ bool) bool {
		return !slices.ContainsFunc(want.Upstreams, func(u driver.Upstream) bool { return u.Name == name && u.Mode == driver.Draining })
	})
	if len(want.Upstreams) == 0 {
		delete(d.cut, want.App)
		delete(d.health, want.App)
		return
	}
	known := make(map[string]driver.Health, len(want.Upstreams))
	for _, u := range want.Upstreams {
		known[u.Name] = u.Health
	}
	d.health[want.App] = known
}
