package nginx_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// publishedTree reads every file that nginx would load: below current, and with Lua below apps.
func (p *proxy) publishedTree(t testing.TB) map[string]string {
	t.Helper()
	files := map[string]string{}
	roots := []string{"current"}
	if p.kind.lua {
		roots = append(roots, "apps")
	}
	for _, root := range roots {
		dir, err := filepath.EvalSymlinks(filepath.Join(p.options.Dir, root))
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			rel, _ := filepath.Rel(dir, path)
			files[filepath.Join(root, rel)] = string(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// UNDO: a transaction that was activated and put back leaves every published file byte for byte as it was, whatever was
// published in between, by whichever agent, and whatever nginx did meanwhile.
func TestUndoRestoresEveryFileByteForByte(t *testing.T) {
	for _, k := range []kind{lua, reload} {
		t.Run(k.name, func(t *testing.T) {
			p := startProxy(t, k)
			a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
			shop := section("shop", a.Upstream(driver.Serving))
			p.serve(t, shop)
			p.serve(t, section("other", b.Upstream(driver.Serving)))
			before := p.publishedTree(t)
			if len(before) < 3 {
				t.Fatalf("published: %v", before)
			}
			unchanged := func(when string) {
				t.Helper()
				if diff := cmp.Diff(before, p.publishedTree(t)); diff != "" {
					t.Errorf("%s (-before +after):\n%s", when, diff)
				}
			}
			target := section("shop", b.Upstream(driver.Serving), a.Upstream(driver.Draining))

			warm := section("shop", a.Upstream(driver.Serving), b.Upstream(driver.Warm))
			if err := p.driver.Stage(within(t), target); err != nil {
				t.Fatal(err)
			}
			if err := p.driver.Converge(within(t), warm); err != nil {
				t.Fatal(err)
			}
			unchanged("prepared")
			p.serve(t, target)
			p.serve(t, section("shop", a.Upstream(driver.Serving), b.Upstream(driver.Draining)))
			p.serve(t, shop)
			unchanged("a change that was put back")

			p.serve(t, section("fresh", b.Upstream(driver.Serving)))
			p.serve(t, driver.Section{App: "fresh"})
			unchanged("a new App that was put back")

			p.serve(t, driver.Section{App: "shop"})
			p.serve(t, shop)
			unchanged("a removal that was put back")

			p.serve(t, target)
			p.Reopen(t)
			p.OwnerReload(t)
			p.serve(t, shop)
			unchanged("put back by the next agent")
			if got := p.status(t, "/shop"); got != 200 {
				t.Errorf("status %d", got)
			}
		})
	}
}
