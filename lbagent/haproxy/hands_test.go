package haproxy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// Hands implements drivertest.Proxy: commands on the runtime socket, and edits of the tree.
func (p *testProxy) Hands(s driver.Section, spare driver.Upstream) []drivertest.Hand {
	at := func() slot { return p.driver.tree.slotsOf(s.App)["h1"] }
	first := s.Upstreams[0].Name
	server := func(t testing.TB, name string) string {
		rows, err := p.driver.observe(testContext(t), []slot{at()})
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows.servers[at()] {
			if n, _ := row.upstream(); n == name && row.mode() != 0 {
				return at().backend() + "/" + row.name
			}
		}
		return at().backend() + "/" + name
	}
	command := func(name string, hurts bool, commands func(testing.TB) []string) drivertest.Hand {
		return drivertest.Hand{Name: name, Hurts: hurts, Do: func(t testing.TB) {
			for _, c := range commands(t) {
				answers, err := p.driver.worker.ask(testContext(t), c)
				if err != nil || !succeeded(c, answers[0]) {
					t.Fatalf("%s: %q, %v", c, answers, err)
				}
			}
		}}
	}
	routes := p.o.mapFile(routesMap)
	key := routeKey(s.Routes[0])
	edit := func(name string, path func() string, change func(string) string) drivertest.Hand {
		return drivertest.Hand{Name: name, Do: func(t testing.TB) { drivertest.Edit(t, path(), change) }}
	}
	slotPath := func() string { return p.o.mapFile(slotFile(at())) }
	reload := func(h drivertest.Hand) drivertest.Hand {
		do := h.Do
		h.Name += " and a reload"
		h.Reloads = true
		h.Do = func(t testing.TB) { do(t); p.OwnerReload(t) }
		return h
	}
	slower := edit("edited backend", slotPath, func(text string) string {
		return strings.Replace(text, "balance roundrobin", "balance leastconn", 1)
	})
	lighter := edit("edited server", slotPath, func(text string) string { return strings.ReplaceAll(text, "weight 100", "weight 7") })
	return []drivertest.Hand{
		command("weight", false, func(t testing.TB) []string { return []string{"set server " + server(t, first) + " weight 3"} }),
		command("weight zero", false, func(t testing.TB) []string { return []string{"set server " + server(t, first) + " weight 0"} }),
		command("drain", false, func(t testing.TB) []string { return []string{"set server " + server(t, first) + " state drain"} }),
		command("drain of all", true, func(t testing.TB) []string {
			var out []string
			for _, u := range s.Upstreams {
				out = append(out, "set server "+server(t, u.Name)+" state drain")
			}
			return out
		}),
		command("maint", false, func(t testing.TB) []string { return []string{"set server " + server(t, first) + " state maint"} }),
		command("checks off", false, func(t testing.TB) []string { return []string{"disable health " + server(t, first)} }),
		command("another server", false, func(t testing.TB) []string {
			return []string{fmt.Sprintf("add server %s/evil %s weight 10", at().backend(), spare.Address), "enable server " + at().backend() + "/evil"}
		}),
		command("server in a spare backend", false, func(t testing.TB) []string {
			return []string{fmt.Sprintf("add server cutover_t_0002/evil %s", spare.Address), "enable server cutover_t_0002/evil"}
		}),
		command("route gone", true, func(t testing.TB) []string { return []string{"del map " + routes + " " + escape(key)} }),
		command("route elsewhere", true, func(t testing.TB) []string { return []string{"set map " + routes + " " + escape(key) + " nowhere:0:0"} }),
		command("second entry of a route", false, func(t testing.TB) []string { return []string{"add map " + routes + " " + escape(key) + " nowhere:0:0"} }),
		command("route of nobody", false, func(t testing.TB) []string { return []string{"add map " + routes + " *|/evil/ elsewhere:0:0"} }),
		command("route to a spare backend", false, func(t testing.TB) []string { return []string{"add map " + routes + " *|/evil/ cutover_t_0002:0:0"} }),
		lighter, slower, reload(lighter), reload(slower),
		edit("unreadable backend", slotPath, func(string) string { return "# nothing\n" }),
		edit("edited routes", func() string { return routes }, func(text string) string { return text + "*|/evil/ nowhere:0:0\n" }),
		edit("edited frame", func() string { return p.o.mapFile(frameFile) }, func(text string) string {
			return strings.Replace(text, "No App has a route here.", "Nothing here.", 1)
		}),
		{Name: "file gone", Do: func(t testing.TB) {
			if err := os.Remove(slotPath()); err != nil {
				t.Fatal(err)
			}
		}},
		{Name: "foreign file", Do: func(t testing.TB) {
			if err := os.WriteFile(filepath.Join(p.o.currentDir(), "99-mine.cfg"), []byte("# mine\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	}
}
