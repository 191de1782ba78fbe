package simulated

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Pace is how long the calls of a driver take.
type Pace struct {
	Stage, Publish, Converge, Request, Process time.Duration
	// PublishedDigest is a look at the files of one App.
	PublishedDigest time.Duration
	// Read is what every reading takes, ReadRow what each row adds.
	Read, ReadRow time.Duration
	// Check is what one health check takes, from the moment that it is due.
	Check time.Duration
}

// HAProxy is the pace of HAProxy 2.6 with its driver: about the medians that BenchmarkCalls of package haproxy prints, on a
// machine of two processors that was busy with other things too. Check is an estimate: nothing measures it apart.
func HAProxy() Pace {
	return Pace{
		Stage: 700 * time.Microsecond, Publish: 2500 * time.Microsecond, Converge: 2800 * time.Microsecond, Request: 3500 * time.Microsecond,
		Process: 230 * time.Microsecond, PublishedDigest: 280 * time.Microsecond,
		Read: time.Millisecond, ReadRow: 20 * time.Microsecond, Check: time.Millisecond,
	}
}

var _ driver.Driver = (*Driver)(nil)

// Driver drives one simulated proxy. Safe for concurrent use.
type Driver struct {
	pace    Pace
	process driver.Process

	mu      sync.Mutex
	running map[string]*section
	files   map[string]driver.Section
}

// section is what the proxy holds of one App.
type section struct {
	routes    []driver.Route
	upstreams map[string]upstream
	// read is the last reading, good until `until` (zero: as long as nothing changes).
	read  *driver.SectionReading
	until time.Time
}

type upstream struct {
	driver.Upstream
	green time.Time // when its checks have passed
}

// New returns a Driver of an empty proxy. The proxy's process is that of the caller, which lives as long as it does.
func New(pace Pace) *Driver {
	return &Driver{
		pace:    pace,
		process: driver.Process{MasterPID: os.Getpid(), WorkerPID: os.Getpid(), StartedAt: time.Now(), Version: "simulated"},
		running: map[string]*section{}, files: map[string]driver.Section{},
	}
}

// take lets the time of a call pass.
func take(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Check implements driver.Driver.
func (d *Driver) Check(ctx context.Context) (driver.Info, error) {
	return driver.Info{Proxy: "simulated", Version: d.process.Version}, take(ctx, d.pace.Stage)
}

// Stage implements driver.Driver.
func (d *Driver) Stage(ctx context.Context, _ driver.Section) error { return take(ctx, d.pace.Stage) }

// Publish implements driver.Driver.
func (d *Driver) Publish(ctx context.Context, want driver.Section) error {
	if err := take(ctx, d.pace.Publish); err != nil {
		return err
	}
	want.Upstreams = slices.DeleteFunc(slices.Clone(want.Upstreams), func(u driver.Upstream) bool { return u.Mode == driver.Warm })
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(want.Upstreams)+len(want.Routes) == 0 {
		delete(d.files, want.App)
	} else {
		d.files[want.App] = want
	}
	return nil
}

// PublishedDigest implements driver.Driver.
func (d *Driver) PublishedDigest(ctx context.Context, app string) (string, error) {
	if err := take(ctx, d.pace.PublishedDigest); err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return driver.Digest(d.files[app]), nil
}

// Converge implements driver.Driver. An upstream that enters is checked within its interval, and again until it has risen;
// one that is added as Serving is up from the start, as in HAProxy.
func (d *Driver) Converge(ctx context.Context, want driver.Section) error {
	if err := take(ctx, d.pace.Converge); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(want.Upstreams)+len(want.Routes) == 0 {
		delete(d.running, want.App)
		return nil
	}
	next := &section{routes: want.Routes, upstreams: make(map[string]upstream, len(want.Upstreams))}
	var old map[string]upstream
	if was := d.running[want.App]; was != nil {
		old = was.upstreams
	}
	for _, u := range want.Upstreams {
		green := time.Time{}
		if was, ok := old[u.Name]; ok && was.Address == u.Address {
			green = was.green
		} else if u.Mode == driver.Warm {
			first := time.Duration(rand.Int64N(int64(max(u.Health.Interval, 1))))
			green = time.Now().Add(first + time.Duration(max(u.Health.Rise, 1)-1)*u.Health.Interval + d.pace.Check)
		}
		next.upstreams[u.Name] = upstream{u, green}
	}
	d.running[want.App] = next
	return nil
}

// Read implements driver.Driver.
func (d *Driver) Read(ctx context.Context, apps ...string) (driver.Reading, error) {
	out := driver.Reading{Process: d.process, At: time.Now(), Sections: map[string]driver.SectionReading{}}
	rows := 0
	d.mu.Lock()
	if len(apps) == 0 {
		apps = slices.Collect(maps.Keys(d.running))
	}
	for _, app := range apps {
		if s := d.running[app]; s != nil {
			r := s.reading(app, out.At)
			rows += len(r.Rows)
			out.Sections[app] = *r
		}
	}
	d.mu.Unlock()
	return out, take(ctx, d.pace.Read+time.Duration(rows)*d.pace.ReadRow)
}

// reading is what the proxy reports at now.
func (s *section) reading(app string, now time.Time) *driver.SectionReading {
	if s.read != nil && (s.until.IsZero() || now.Before(s.until)) {
		return s.read
	}
	s.until = time.Time{}
	rows := make([]driver.Row, 0, len(s.upstreams))
	for _, u := range s.upstreams {
		row := driver.Row{Name: u.Name, Address: u.Address, Weight: u.Weight, Mode: u.Mode, Green: !now.Before(u.green), Status: "UP L7OK"}
		if u.Mode != driver.Serving {
			row.Status = "DRAIN L7OK"
		}
		if !row.Green {
			row.Status = "DRAIN INI"
			if s.until.IsZero() || u.green.Before(s.until) {
				s.until = u.green
			}
		}
		rows = append(rows, row)
	}
	r := driver.NewSectionReading(app, s.routes, rows)
	s.read = &r
	return s.read
}

// Request implements driver.Driver: only what is registered answers.
func (d *Driver) Request(ctx context.Context, app, name, _ string) error {
	if err := take(ctx, d.pace.Request); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.running[app]; s != nil {
		if u, ok := s.upstreams[name]; ok && !time.Now().Before(u.green) {
			return nil
		}
	}
	return fmt.Errorf("request to %s of %s: the simulated proxy does not route there", name, app)
}

// Cut implements driver.Driver. There are no sessions.
func (d *Driver) Cut(ctx context.Context, _, _ string) error { return take(ctx, d.pace.Process) }

// Process implements driver.Driver.
func (d *Driver) Process(ctx context.Context) (driver.Process, error) {
	return d.process, take(ctx, d.pace.Process)
}

// Apps implements driver.Driver.
func (d *Driver) Apps(context.Context) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[string]bool{}
	for app := range d.running {
		all[app] = true
	}
	for app := range d.files {
		all[app] = true
	}
	return slices.Sorted(maps.Keys(all)), nil
}

// Survey finds nothing: what is in memory only, nobody else can change.
func (d *Driver) Survey(context.Context) ([]driver.Difference, error) { return nil, nil }

// Mend has nothing to put right.
func (d *Driver) Mend(context.Context) error { return nil }

// Close implements driver.Driver.
func (d *Driver) Close() error { return nil }
