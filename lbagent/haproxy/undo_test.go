package haproxy

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// treeFiles reads every file that HAProxy would load, and who holds which backend.
func treeFiles(t testing.TB, o Options) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, dir := range []string{o.currentDir(), o.slotsDir()} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			files[path] = string(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// UNDO: a transaction that was activated and put back leaves every published file byte for byte as it was: upstreams,
// routes, health paths, and the backend that the App holds, also when the target needed one of another class.
func TestUndoRestoresEveryFileByteForByte(t *testing.T) {
	p := startProxy(t, 4)
	a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
	other := func(u driver.Upstream, mode driver.Mode) driver.Upstream {
		u.Mode, u.Health = mode, driver.Health{Kind: driver.HealthTCP, Interval: u.Health.Interval, Timeout: u.Health.Timeout, Rise: 1, Fall: 1}
		return u
	}
	shop := app("shop", a.Upstream(driver.Serving))
	p.put(t, shop)
	p.put(t, app("other", other(b.Upstream(driver.Serving), driver.Serving)))
	before := treeFiles(t, p.o)
	unchanged := func(when string) {
		t.Helper()
		if diff := cmp.Diff(before, treeFiles(t, p.o)); diff != "" {
			t.Errorf("%s (-before +after):\n%s", when, diff)
		}
	}
	converge := func(s driver.Section) {
		t.Helper()
		if err := p.driver.Converge(testContext(t), s); err != nil {
			t.Fatal(err)
		}
	}

	target := app("shop", b.Upstream(driver.Serving), a.Upstream(driver.Draining))
	if err := p.driver.Stage(testContext(t), target); err != nil {
		t.Fatal(err)
	}
	converge(app("shop", a.Upstream(driver.Serving), b.Upstream(driver.Warm)))
	unchanged("prepared")
	p.put(t, target)
	p.put(t, app("shop", a.Upstream(driver.Serving), b.Upstream(driver.Draining)))
	p.put(t, shop)
	unchanged("a change that was put back")

	moved := target
	moved.Routes = []driver.Route{{Host: "shop.example.com", Path: "/x", Strip: true}}
	moved.Upstreams = []driver.Upstream{other(b.Upstream(driver.Serving), driver.Serving), a.Upstream(driver.Draining)}
	p.put(t, moved)
	p.put(t, shop)
	unchanged("another way to check and another route, put back")

	converge(driver.Section{App: "fresh", Upstreams: []driver.Upstream{b.Upstream(driver.Warm)}})
	p.put(t, app("fresh", b.Upstream(driver.Serving)))
	p.put(t, driver.Section{App: "fresh"})
	unchanged("a new App that was put back")

	p.put(t, driver.Section{App: "shop"})
	p.put(t, shop)
	unchanged("a removal that was put back")
}
