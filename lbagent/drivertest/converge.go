package drivertest

import (
	"cmp"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/cutover/cutover/lbagent/driver"
)

// change is one random step of the property test. Published and running are drawn apart, so the starting points of the
// next step include every mixture.
type change struct {
	Publish driver.Section
	Want    driver.Section
	Reload  bool // the owner reloads between Publish and Converge
}

// changes generates steps for the given Apps.
func changes(pool map[string][]*Backend, apps []string) *rapid.Generator[change] {
	section := func(t *rapid.T, app string) driver.Section {
		s := driver.Section{App: app}
		for _, b := range pool[app] {
			mode := rapid.SampledFrom([]driver.Mode{0, 0, driver.Warm, driver.Serving, driver.Serving, driver.Draining}).Draw(t, b.Name)
			if mode == 0 {
				continue
			}
			up := b.Upstream(mode)
			up.Weight = rapid.IntRange(1, 256).Draw(t, "weight")
			s.Upstreams = append(s.Upstreams, up)
		}
		for _, route := range []driver.Route{
			{Host: "*", Path: "/" + app},
			{Host: app + ".example", Path: "/", Strip: rapid.Bool().Draw(t, "strip")},
		} {
			if len(s.Upstreams) > 0 && rapid.Bool().Draw(t, "route") {
				s.Routes = append(s.Routes, route)
			}
		}
		return s
	}
	return rapid.Custom(func(t *rapid.T) change {
		app := rapid.SampledFrom(apps).Draw(t, "app")
		c := change{Want: section(t, app)}
		c.Publish = c.Want
		if rapid.IntRange(0, 3).Draw(t, "publish another") == 0 {
			c.Publish = section(t, app)
		}
		c.Reload = rapid.IntRange(0, 14).Draw(t, "owner reloads") == 0
		return c
	})
}

// The law of Converge: from whatever the proxy holds, Converge(want) makes it hold exactly want for this App, and leaves
// every other App alone. Each step starts where the last one ended, which is why this is a walk by seeds and not a
// rapid.Check: a proxy's state cannot be shrunk.
func testConvergeFromAnyState(t *testing.T, h Harness) {
	r := newRig(t, h)
	apps := []string{"red", "green", "blue"}
	pool := map[string][]*Backend{}
	wanted := map[string]driver.Section{}
	for _, app := range apps {
		for i := range 4 {
			pool[app] = append(pool[app], NewBackend(t, fmt.Sprintf("%s-%d", app, i)))
		}
		wanted[app] = driver.Section{App: app}
	}
	steps := changes(pool, apps)
	for seed := range cmp.Or(h.Checks, 60) {
		c := steps.Example(seed)
		app := c.Want.App
		r.publish(c.Publish)
		if c.Reload {
			r.OwnerReload(t)
			for _, other := range apps {
				if other != app {
					r.converge(wanted[other])
				}
			}
		}
		r.converge(c.Want)
		wanted[app] = c.Want
		reading, err := r.Driver().Read(deadline(t))
		if err != nil {
			t.Fatalf("step %d: read: %v", seed, err)
		}
		for name, s := range wanted {
			if got := reading.Sections[name]; got.Digest != driver.Digest(s) {
				t.Fatalf("step %d (%+v): %s:\n got %+v\nwant %+v", seed, c, name, got, s)
			}
		}
		for name := range reading.Sections {
			if _, known := wanted[name]; !known {
				t.Fatalf("step %d: read tells of an App %q that nobody made", seed, name)
			}
		}
	}
}
