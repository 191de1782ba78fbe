package nginx_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// A published file that was damaged while no agent ran keeps neither the agent nor nginx from starting. What the journal says
// stands in for it: what runs serves on, also while another App changes, the difference is told, and Mend puts it right; an
// nginx that starts finds it right already.
func TestADamagedFileKeepsNobodyFromStarting(t *testing.T) {
	type damage struct {
		name string
		do   func(text []byte) []byte
	}
	damages := []damage{
		{"empty", func([]byte) []byte { return nil }},
		{"cut", func(text []byte) []byte { return text[:len(text)/2] }},
		{"zeros", func(text []byte) []byte { return make([]byte, len(text)) }},
	}
	for _, k := range []kind{lua, reload} {
		t.Run(k.name, func(t *testing.T) {
			p := startProxy(t, k)
			a, b := drivertest.NewBackend(t, "a-1"), drivertest.NewBackend(t, "b-1")
			shop, other := section("shop", a.Upstream(driver.Serving)), section("other", b.Upstream(driver.Serving))
			p.serve(t, shop)
			p.serve(t, other)
			p.options.Journaled = func(app string) (driver.Section, bool) {
				return map[string]driver.Section{"shop": shop, "other": other}[app], app == "shop" || app == "other"
			}
			good, err := p.driver.PublishedDigest(within(t), "shop")
			if err != nil {
				t.Fatal(err)
			}
			files := []string{"current/sections/shop.section", "current/load/app-shop.conf", "current/load/frame.conf", "current/cutover.conf", "current/FRAME"}
			if !k.lua {
				files = append(files, "current/sections/shop.section")
				damages = append(slices.Clone(damages), damages[0], damage{name: "gone"})
			}
			if k.lua {
				files = []string{"apps/shop.section", "current/cutover.conf", "current/cutover.lua"}
			}
			for i, file := range files {
				d := damages[i%len(damages)]
				t.Run(d.name+" "+filepath.Base(file), func(t *testing.T) {
					hurt := func() string {
						path, err := filepath.EvalSymlinks(filepath.Join(p.options.Dir, file))
						if err != nil {
							t.Fatal(err)
						}
						text, err := os.ReadFile(path)
						if d.do == nil {
							err = os.Remove(path)
						} else if err == nil {
							err = os.WriteFile(path, d.do(text), 0o600)
						}
						if err != nil {
							t.Fatal(err)
						}
						return path
					}
					if err := p.driver.Close(); err != nil {
						t.Fatal(err)
					}
					path := hurt()
					if err := p.kind.bootstrap(p.options); err != nil {
						t.Fatalf("bootstrap: %v", err)
					}
					if p.driver, err = p.kind.open(p.options); err != nil {
						t.Fatalf("open: %v", err)
					}
					if strings.HasSuffix(file, ".section") {
						if got, err := p.driver.PublishedDigest(within(t), "shop"); err != nil || got == good {
							t.Errorf("digest %q of a damaged file, %v", got, err)
						}
					}
					if filepath.Base(file) != "FRAME" { // with another Frame a whole generation is published anew
						found, err := p.driver.Survey(within(t))
						if err != nil || !slices.ContainsFunc(found, func(d driver.Difference) bool { return resolved(t, d.Place) == path && !d.Absent }) {
							t.Errorf("it is not told: %+v, %v", found, err)
						}
					}
					if strings.HasSuffix(file, ".section") {
						// Another App changes before anybody has put it right (NEVER-ZERO).
						p.serve(t, section("other", b.Upstream(driver.Serving), a.Upstream(driver.Draining)))
						p.serve(t, other)
						for range 4 {
							if got := p.status(t, "/shop"); got != 200 {
								t.Fatalf("status %d of the App with the damaged file", got)
							}
						}
					}
					drivertest.Eventually(t, "it is put right", func() error {
						if err := p.driver.Mend(within(t)); err != nil {
							return err
						}
						found, err := p.driver.Survey(within(t))
						if err == nil && len(found) > 0 {
							err = fmt.Errorf("still different: %+v", found)
						}
						return err
					})
					if got, err := p.driver.PublishedDigest(within(t), "shop"); err != nil || got != good {
						t.Errorf("digest %q, %v; before %q", got, err, good)
					}

					// The machine loses its power: agent and proxy start, and the file is damaged.
					if err := p.driver.Close(); err != nil {
						t.Fatal(err)
					}
					p.Kill(t)
					hurt()
					p.options.Restore = true
					if err := p.kind.bootstrap(p.options); err != nil {
						t.Fatalf("bootstrap: %v", err)
					}
					p.options.Restore = false
					if p.driver, err = p.kind.open(p.options); err != nil {
						t.Fatalf("open: %v", err)
					}
					p.Start(t)
					if got := p.status(t, "/shop"); got != 200 {
						t.Errorf("status %d after the start", got)
					}
					if found, err := p.driver.Survey(within(t)); err != nil || len(found) > 0 {
						t.Errorf("after the start: %+v, %v", found, err)
					}
					if got, err := p.driver.PublishedDigest(within(t), "shop"); err != nil || got != good {
						t.Errorf("digest %q, %v; before %q", got, err, good)
					}
				})
			}
		})
	}
}

func resolved(t *testing.T, path string) string {
	t.Helper()
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return path
	}
	return real
}
