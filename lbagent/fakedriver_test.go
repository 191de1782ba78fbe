package lbagent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// fakeProxy is a proxy and its driver in memory. It lives on when an agent on it is stopped, as a proxy does. Checks
// take checkTime from the moment an upstream is registered; a restart loads the published files and checks anew.
type fakeProxy struct {
	mu        sync.Mutex
	checkTime time.Duration
	pid       int
	started   time.Time
	down      bool
	checkErr  error
	checkGate chan struct{} // if set, Check waits for it to be closed
	running   map[string]*fakeSection
	files     map[string]driver.Section
	red       map[string]bool
	sessions  map[string]int
	stageErr  map[string]error
	reqErr    map[string]error
	busy      map[string]bool // driver calls under way, by app
	overlap   error
	calls     []string
	gate      chan struct{} // if set, Converge waits for it to be closed
	allGate   chan struct{} // if set, a Read of all waits for it to be closed
	allWaits  bool          // one does
	heldGate  chan struct{} // if set, a Read of all that has read waits for it to be closed before it tells
	heldWaits int           // how many have done so
	altered   []driver.Difference
	mended    int
}

type fakeSection struct {
	routes []driver.Route
	ups    map[string]fakeUpstream
}

type fakeUpstream struct {
	driver.Upstream
	since time.Time
}

func newFakeProxy() *fakeProxy {
	return &fakeProxy{checkTime: 15 * time.Millisecond, pid: 1000, started: time.Now(), running: map[string]*fakeSection{},
		files: map[string]driver.Section{}, red: map[string]bool{}, sessions: map[string]int{}, stageErr: map[string]error{},
		reqErr: map[string]error{}, busy: map[string]bool{}}
}

// with changes the proxy under its lock.
func (p *fakeProxy) with(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *fakeProxy) restart() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid++
	p.started = time.Now()
	p.running = map[string]*fakeSection{}
	for app, f := range p.files {
		p.converge(app, f)
	}
}

// modes tells what runs: name -> mode.
func (p *fakeProxy) modes(app string) map[string]driver.Mode {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]driver.Mode{}
	if s := p.running[app]; s != nil {
		for n, u := range s.ups {
			out[n] = u.Mode
		}
	}
	return out
}

// enter takes the App for one call, and notices a caller that makes two at once.
func (p *fakeProxy) enter(app, call string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, call+" "+app)
	if p.busy[app] {
		p.overlap = fmt.Errorf("%s of %s while another call runs", call, app)
	}
	p.busy[app] = true
	if p.down {
		return driver.ErrProxyDown
	}
	return nil
}

func (p *fakeProxy) leave(app string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy[app] = false
}

// fakeDriver is one agent's driver of the proxy.
type fakeDriver struct {
	*fakeProxy
	closed chan struct{}
}

func (p *fakeProxy) driver() *fakeDriver {
	return &fakeDriver{fakeProxy: p, closed: make(chan struct{})}
}

var _ driver.Driver = (*fakeDriver)(nil)

func (d *fakeDriver) Check(ctx context.Context) (driver.Info, error) {
	d.mu.Lock()
	gate := d.checkGate
	d.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return driver.Info{}, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return driver.Info{Proxy: "haproxy", Version: "fake", Limits: []string{"it is a fake"}}, d.checkErr
}

func (d *fakeDriver) Stage(_ context.Context, want driver.Section) error {
	defer d.leave(want.App)
	if err := d.enter(want.App, "stage"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stageErr[want.App]
}

func (d *fakeDriver) Publish(_ context.Context, want driver.Section) error {
	defer d.leave(want.App)
	if err := d.enter(want.App, "publish"); err != nil && !errors.Is(err, driver.ErrProxyDown) {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, u := range want.Upstreams {
		if u.Mode == driver.Warm {
			return errors.New("a warm upstream must not be published")
		}
	}
	d.files[want.App] = want
	return nil
}

func (d *fakeDriver) Converge(ctx context.Context, want driver.Section) error {
	defer d.leave(want.App)
	if err := d.enter(want.App, "converge"); err != nil {
		return err
	}
	d.mu.Lock()
	gate := d.gate
	d.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.converge(want.App, want)
	return nil
}

func (p *fakeProxy) converge(app string, want driver.Section) {
	if len(want.Routes) == 0 && len(want.Upstreams) == 0 {
		delete(p.running, app)
		return
	}
	old := p.running[app]
	s := &fakeSection{routes: want.Routes, ups: map[string]fakeUpstream{}}
	for _, u := range want.Upstreams {
		since := time.Now()
		if old != nil {
			if o, ok := old.ups[u.Name]; ok {
				since = o.since
			}
		}
		s.ups[u.Name] = fakeUpstream{u, since}
	}
	p.running[app] = s
}

func (d *fakeDriver) Read(ctx context.Context, apps ...string) (driver.Reading, error) {
	d.mu.Lock()
	gate := d.allGate
	d.allWaits = d.allWaits || gate != nil && len(apps) == 0
	d.mu.Unlock()
	if gate != nil && len(apps) == 0 {
		select {
		case <-gate:
		case <-ctx.Done():
			return driver.Reading{}, ctx.Err()
		}
	}
	r, err := d.read(apps)
	d.mu.Lock()
	gate = d.heldGate
	held := gate != nil && len(apps) == 0 && err == nil
	if held {
		d.heldWaits++
	}
	d.mu.Unlock()
	if held {
		select {
		case <-gate:
		case <-ctx.Done():
			return driver.Reading{}, ctx.Err()
		}
	}
	return r, err
}

func (d *fakeDriver) read(apps []string) (driver.Reading, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return driver.Reading{}, driver.ErrProxyDown
	}
	r := driver.Reading{Process: d.process(), At: time.Now(), Sections: map[string]driver.SectionReading{}}
	for app, s := range d.running {
		if len(apps) > 0 && !slices.Contains(apps, app) {
			continue
		}
		var rows []driver.Row
		for n, u := range s.ups {
			row := driver.Row{Name: n, Address: u.Address, Weight: u.Weight, Mode: u.Mode, Red: d.red[n], Sessions: d.sessions[n]}
			row.Green = !row.Red && time.Since(u.since) >= d.checkTime
			row.Status = map[bool]string{true: "UP", false: "checking"}[row.Green]
			if row.Red {
				row.Status = "DOWN L4CON"
			}
			rows = append(rows, row)
		}
		r.Sections[app] = driver.NewSectionReading(app, s.routes, rows)
	}
	return r, nil
}

func (d *fakeDriver) Request(_ context.Context, app, name, _ string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.running[app]; s == nil || s.ups[name].Name == "" {
		return fmt.Errorf("%s is not registered", name)
	}
	return d.reqErr[name]
}

func (d *fakeDriver) Cut(_ context.Context, app, name string) error {
	defer d.leave(app)
	if err := d.enter(app, "cut"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sessions[name] = 0
	return nil
}

func (p *fakeProxy) process() driver.Process {
	return driver.Process{MasterPID: 1, WorkerPID: p.pid, StartedAt: p.started, Version: "fake"}
}

func (d *fakeDriver) Process(context.Context) (driver.Process, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return driver.Process{}, driver.ErrProxyDown
	}
	return d.process(), nil
}

func (d *fakeDriver) Apps(context.Context) ([]string, error) {
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

func (d *fakeDriver) PublishedDigest(_ context.Context, app string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := driver.Digest(d.files[app]); s != "" {
		return "files:" + s, nil
	}
	return "", nil
}

func (d *fakeDriver) Survey(context.Context) ([]driver.Difference, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.altered), nil
}

func (d *fakeDriver) Mend(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mended++
	d.altered = nil
	return nil
}

func (d *fakeDriver) Close() error {
	close(d.closed)
	return nil
}
