package drivertest

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// rig is one proxy and the steps that a participant takes with it.
type rig struct {
	testing.TB
	Proxy
}

func newRig(t *testing.T, h Harness) *rig {
	t.Helper()
	return &rig{TB: t, Proxy: h.NewProxy(t)}
}

// section is a Section of app at "*"/app with the given upstreams.
func section(app string, ups ...driver.Upstream) driver.Section {
	return driver.Section{App: app, Routes: []driver.Route{{Host: "*", Path: "/" + app}}, Upstreams: ups}
}

// onlyWarm is the Section while only new upstreams exist: no routes.
func onlyWarm(app string, ups ...driver.Upstream) driver.Section {
	return driver.Section{App: app, Upstreams: ups}
}

// withMode returns the Section with the named upstreams in the given mode; others are left alone.
func withMode(s driver.Section, mode driver.Mode, names ...string) driver.Section {
	s.Upstreams = slices.Clone(s.Upstreams)
	for i, u := range s.Upstreams {
		if slices.Contains(names, u.Name) {
			s.Upstreams[i].Mode = mode
		}
	}
	return s
}

// join adds upstreams to a Section.
func join(s driver.Section, ups ...driver.Upstream) driver.Section {
	s.Upstreams = append(slices.Clone(s.Upstreams), ups...)
	return s
}

func (r *rig) stage(s driver.Section) {
	r.Helper()
	if err := r.Driver().Stage(deadline(r), s); err != nil {
		r.Fatalf("stage %s: %v", s.App, err)
	}
}

func (r *rig) publish(s driver.Section) {
	r.Helper()
	if err := r.Driver().Publish(deadline(r), s); err != nil {
		r.Fatalf("publish %s: %v", s.App, err)
	}
}

// converge converges as a participant does: ErrBusy is tried again within the deadline.
func (r *rig) converge(s driver.Section) {
	r.Helper()
	r.eventually("converge "+s.App, func() error {
		err := r.Driver().Converge(deadline(r), s)
		if err != nil && !errors.Is(err, driver.ErrBusy) {
			r.Fatalf("converge %s: %v", s.App, err)
		}
		return err
	})
}

func (r *rig) read(app string) driver.SectionReading {
	r.Helper()
	reading, err := r.Driver().Read(deadline(r), app)
	if err != nil {
		r.Fatalf("read %s: %v", app, err)
	}
	return reading.Sections[app]
}

func (r *rig) publishedDigest(app string) string {
	r.Helper()
	digest, err := r.Driver().PublishedDigest(deadline(r), app)
	if err != nil {
		r.Fatalf("published digest of %s: %v", app, err)
	}
	return digest
}

// eventually is Eventually of the rig.
func (r *rig) eventually(what string, check func() error) {
	r.Helper()
	Eventually(r, what, check)
}

// Eventually calls check until it returns nil, or fails the test with its last error at the Deadline.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	end := time.Now().Add(Deadline)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

// row returns the row of one upstream, or an error if it is not there.
func row(s driver.SectionReading, name string) (driver.Row, error) {
	for _, row := range s.Rows {
		if row.Name == name {
			return row, nil
		}
	}
	return driver.Row{}, fmt.Errorf("upstream %s is not registered: %+v", name, s.Rows)
}

func (r *rig) awaitGreen(app string, names ...string) {
	r.Helper()
	r.eventually("green", func() error {
		reading := r.read(app)
		for _, name := range names {
			row, err := row(reading, name)
			if err != nil {
				return err
			}
			if !row.Green || row.Red {
				return fmt.Errorf("%s is not green: %+v", name, row)
			}
		}
		return nil
	})
}

func (r *rig) awaitRed(app, name string) {
	r.Helper()
	r.eventually("red", func() error {
		row, err := row(r.read(app), name)
		if err != nil {
			return err
		}
		if row.Green || !row.Red {
			return fmt.Errorf("%s is not red: %+v", name, row)
		}
		return nil
	})
}

// holds fails the test unless the proxy holds exactly s.
func (r *rig) holds(s driver.Section) {
	r.Helper()
	got := r.read(s.App)
	if got.Digest != driver.Digest(s) {
		r.Fatalf("the proxy does not hold what was asked of it:\n got %+v\nwant %+v", got, s)
	}
}

// bring brings an App up as a participant does: stage, warm, green, publish, converge. It returns the Section with all
// upstreams Serving.
func (r *rig) bring(app string, backends ...*Backend) driver.Section {
	r.Helper()
	warm, serving := onlyWarm(app), section(app)
	var names []string
	for _, b := range backends {
		warm = join(warm, b.Upstream(driver.Warm))
		serving = join(serving, b.Upstream(driver.Serving))
		names = append(names, b.Name)
	}
	r.stage(serving)
	r.converge(warm)
	r.awaitGreen(app, names...)
	r.publish(serving)
	r.converge(serving)
	r.holds(serving)
	return serving
}

// answer is what a client of the proxy got.
type answer struct {
	Status  int
	Backend string
}

// get asks the frontend on a connection of its own.
func (r *rig) get(host, path string) (answer, error) {
	req, err := http.NewRequestWithContext(deadline(r), http.MethodGet, r.FrontendURL()+path, nil)
	if err != nil {
		return answer{}, err
	}
	req.Host = cmp.Or(host, req.Host)
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return answer{Status: resp.StatusCode, Backend: resp.Header.Get("X-Backend")}, nil
}

// expect asks the frontend and fails unless the answer is want.
func (r *rig) expect(host, path string, want answer) {
	r.Helper()
	got, err := r.get(host, path)
	if err != nil {
		r.Fatalf("GET %s%s: %v", host, path, err)
	}
	if got != want {
		r.Fatalf("GET %s%s: got %+v, want %+v", host, path, got, want)
	}
}
