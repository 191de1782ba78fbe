package simulation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// How a simulated proxy checks: an upstream is green this long after it came up, red this long after it went down.
const (
	riseTime = 120 * time.Millisecond
	fallTime = 300 * time.Millisecond
)

// proxy is a Host's proxy process with the tree that it loads when it starts. It knows nothing of its lbagent, and
// serves on without one.
type proxy struct {
	w    *world
	host string

	mu       sync.Mutex
	pid      int
	started  time.Time
	down     bool
	running  map[string]*runningApp
	files    map[string]driver.Section
	blocked  map[netip.AddrPort]bool // addresses that this Host does not reach
	refuses  map[string]bool         // Apps that the checker refuses
	sluggish bool                    // calls take much longer
	skew     time.Duration           // of the Host's clock
	reloads  bool                    // every change is a reload
	gone     chan struct{}           // closed when the process ends
}

type runningApp struct {
	routes []driver.Route
	ups    map[string]runningUpstream
}

type runningUpstream struct {
	driver.Upstream
	since time.Time // registered, or checked by this process
	// emptyAt is when the last session of a draining one ends.
	emptyAt time.Time
}

func newProxy(w *world, host string) *proxy {
	return &proxy{w: w, host: host, pid: 1000, started: time.Now(), running: map[string]*runningApp{}, files: map[string]driver.Section{},
		blocked: map[netip.AddrPort]bool{}, refuses: map[string]bool{}, gone: make(chan struct{})}
}

// kill ends the process; start loads the published tree in a new one.
func (p *proxy) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.down {
		p.down, p.running = true, map[string]*runningApp{}
		close(p.gone)
	}
}

func (p *proxy) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.down {
		return
	}
	p.down, p.pid, p.started, p.gone = false, p.pid+1, time.Now(), make(chan struct{})
	for app, want := range p.files {
		p.hold(app, want)
	}
}

// reload is a new process that serves the same, and has checked nothing yet.
func (p *proxy) reload() {
	close(p.gone)
	p.pid, p.started, p.gone = p.pid+1, time.Now(), make(chan struct{})
	for _, a := range p.running {
		for n, u := range a.ups {
			u.since = time.Now()
			a.ups[n] = u
		}
	}
}

// hold makes what runs equal to want.
func (p *proxy) hold(app string, want driver.Section) {
	if len(want.Routes) == 0 && len(want.Upstreams) == 0 {
		delete(p.running, app)
		return
	}
	old := p.running[app]
	next := &runningApp{routes: want.Routes, ups: map[string]runningUpstream{}}
	for _, u := range want.Upstreams {
		up := runningUpstream{Upstream: u, since: time.Now()}
		if old != nil {
			if o, ok := old.ups[u.Name]; ok {
				up.since, up.emptyAt = o.since, o.emptyAt
				if u.Mode == driver.Draining && o.Mode == driver.Serving {
					up.emptyAt = time.Now().Add(between(p.w.chance("sessions "+p.host+u.Name), 0, 8*time.Second))
				}
			}
		}
		next.ups[u.Name] = up
	}
	p.running[app] = next
}

// reaches: a check of the proxy would pass now; since when it has been so.
func (p *proxy) reaches(addr netip.AddrPort) (bool, time.Time) {
	if p.blocked[addr] {
		return false, p.started
	}
	return p.w.mesos.health(addr)
}

// routes says whether requests go to the upstream, and how many sessions it has.
func (p *proxy) routes(app, name string) (routed bool, sessions int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.running[app]
	if a == nil {
		return false, 0
	}
	u, ok := a.ups[name]
	if !ok {
		return false, 0
	}
	return u.Mode == driver.Serving, u.sessions()
}

func (u runningUpstream) sessions() int {
	if time.Now().Before(u.emptyAt) {
		return 1
	}
	return 0
}

// serving are the names of the App that get requests, sorted.
func (p *proxy) serving(app string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	if a := p.running[app]; a != nil {
		for n, u := range a.ups {
			if u.Mode == driver.Serving {
				out = append(out, n)
			}
		}
	}
	slices.Sort(out)
	return out
}

// contents is what runs and what is on disk, for comparisons.
func (p *proxy) contents() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := ""
	for _, app := range slices.Sorted(maps.Keys(p.running)) {
		out += "running " + app + ":"
		for _, n := range slices.Sorted(maps.Keys(p.running[app].ups)) {
			out += fmt.Sprintf(" %s=%s", n, p.running[app].ups[n].Mode)
		}
		out += "\n"
	}
	for _, app := range slices.Sorted(maps.Keys(p.files)) {
		if f := p.files[app]; len(f.Upstreams) > 0 || len(f.Routes) > 0 {
			out += "disk " + app + ":"
			for _, u := range f.Upstreams {
				out += fmt.Sprintf(" %s=%s", u.Name, u.Mode)
			}
			out += "\n"
		}
	}
	return out
}

// reach is the driver of one lbagent process: when that has died, nothing of it has an effect any more.
type reach struct {
	*proxy
	dead context.Context
}

var _ driver.Driver = (*reach)(nil)

// Survey finds nothing: no foreign hand is in this world.
func (d *reach) Survey(ctx context.Context) ([]driver.Difference, error) {
	return nil, d.begin(ctx, "survey", "")
}

// Mend has nothing to put right.
func (d *reach) Mend(ctx context.Context) error { return d.begin(ctx, "mend", "") }

// begin takes the time of one call.
func (d *reach) begin(ctx context.Context, call, app string) error {
	dice := d.w.chance("driver " + d.host + call + app)
	took := between(dice, 100*time.Microsecond, 4*time.Millisecond)
	d.mu.Lock()
	slow := d.sluggish
	d.mu.Unlock()
	if slow && call != "process" {
		took = between(dice, 50*time.Millisecond, 3*time.Second)
	}
	if err := d.w.pause(ctx, took); err != nil {
		return err
	}
	if err := d.dead.Err(); err != nil {
		return errDied
	}
	d.w.step(call + " " + d.host + " " + app)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down && call != "publish" && call != "published" {
		return driver.ErrProxyDown
	}
	if oneIn(dice, d.w.faults().driver) && (call == "publish" || call == "converge" || call == "stage") {
		return errors.New("simulated: " + call + " failed")
	}
	return nil
}

func (d *reach) Check(ctx context.Context) (driver.Info, error) {
	return driver.Info{Proxy: "haproxy", Version: "simulated", ReloadPerChange: d.reloads}, d.begin(ctx, "check", "")
}

func (d *reach) Stage(ctx context.Context, want driver.Section) error {
	if err := d.begin(ctx, "stage", want.App); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuses[want.App] {
		return &driver.RefusedError{Checker: "simulated -c", Output: "line 1: not this one", Err: errors.New("exit status 1")}
	}
	return nil
}

func (d *reach) Publish(ctx context.Context, want driver.Section) error {
	if err := d.begin(ctx, "publish", want.App); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, u := range want.Upstreams {
		if u.Mode == driver.Warm {
			d.w.fail("%s: a warm upstream is published: %v", d.host, want)
		}
	}
	want.Upstreams = slices.Clone(want.Upstreams)
	d.files[want.App] = want
	return nil
}

func (d *reach) Converge(ctx context.Context, want driver.Section) error {
	if err := d.begin(ctx, "converge", want.App); err != nil {
		return err
	}
	d.mu.Lock()
	before := d.able(want.App, 0)
	d.hold(want.App, want)
	if d.reloads {
		d.reload()
	}
	after := d.able(want.App, knowable)
	d.mu.Unlock()
	if before != "" && after == "" && !d.w.mayBeEmpty(want.App) {
		d.w.fail("NEVER-ZERO: %s takes %s from %s to nothing that can serve: %v", d.host, want.App, before, want.Upstreams)
	}
	return nil
}

// able names a serving upstream of the App that can serve, or could a moment ago, or is "".
func (p *proxy) able(app string, ago time.Duration) string {
	a := p.running[app]
	if a == nil {
		return ""
	}
	for _, n := range slices.Sorted(maps.Keys(a.ups)) {
		if u := a.ups[n]; u.Mode == driver.Serving {
			if ok, since := p.reaches(u.Address); ok || time.Since(since) < ago {
				return n
			}
		}
	}
	return ""
}

// knowable is how old a Host's knowledge of an upstream may be.
const knowable = 3 * time.Second

func (d *reach) Read(ctx context.Context, apps ...string) (driver.Reading, error) {
	if err := d.begin(ctx, "read", fmt.Sprint(apps)); err != nil {
		return driver.Reading{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	r := driver.Reading{Process: d.process(), At: now.Add(d.skew), Sections: map[string]driver.SectionReading{}}
	for app, a := range d.running {
		if len(apps) > 0 && !slices.Contains(apps, app) {
			continue
		}
		var rows []driver.Row
		for n, u := range a.ups {
			row := driver.Row{Name: n, Address: u.Address, Weight: u.Weight, Mode: u.Mode, Sessions: u.sessions(), Status: "checking"}
			ok, since := d.reaches(u.Address)
			if u.since.After(since) {
				since = u.since
			}
			switch {
			case ok && now.Sub(since) >= riseTime:
				row.Green, row.Status = true, "UP"
			case !ok && now.Sub(since) >= fallTime:
				row.Red, row.Status = true, "DOWN"
			}
			rows = append(rows, row)
		}
		r.Sections[app] = driver.NewSectionReading(app, a.routes, rows)
	}
	return r, nil
}

func (d *reach) Request(ctx context.Context, app, name, _ string) error {
	if err := d.begin(ctx, "request", app); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.running[app]
	if a == nil || a.ups[name].Name == "" {
		return fmt.Errorf("%s is not registered", name)
	}
	if ok, _ := d.reaches(a.ups[name].Address); !ok {
		return fmt.Errorf("%s does not answer", name)
	}
	return nil
}

func (d *reach) Cut(ctx context.Context, app, name string) error {
	if err := d.begin(ctx, "cut", app); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := d.running[app]; a != nil {
		if u, ok := a.ups[name]; ok {
			u.emptyAt = time.Time{}
			a.ups[name] = u
		}
	}
	return nil
}

func (p *proxy) process() driver.Process {
	return driver.Process{MasterPID: p.pid, WorkerPID: p.pid, StartedAt: p.started, Version: "simulated"}
}

func (d *reach) Process(ctx context.Context) (driver.Process, error) {
	if err := d.begin(ctx, "process", ""); err != nil {
		return driver.Process{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.process(), nil
}

func (d *reach) Apps(ctx context.Context) ([]string, error) {
	if err := d.begin(ctx, "apps", ""); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	set := map[string]bool{}
	for app := range d.running {
		set[app] = true
	}
	for app := range d.files {
		set[app] = true
	}
	return slices.Sorted(maps.Keys(set)), nil
}

func (d *reach) PublishedDigest(ctx context.Context, app string) (string, error) {
	if err := d.begin(ctx, "published", app); err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := driver.Digest(d.files[app]); s != "" {
		return "files:" + s, nil
	}
	return "", nil
}

func (d *reach) Close() error { return nil }
