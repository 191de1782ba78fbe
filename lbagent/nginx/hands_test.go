package nginx_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

// Hands implements drivertest.Proxy: writes on the agent's own socket, and edits of the tree.
func (p *proxy) Hands(s driver.Section, spare driver.Upstream) []drivertest.Hand {
	if p.kind.lua {
		return p.luaHands(s, spare)
	}
	return p.reloadHands(s, spare)
}

// reloaded is the same hand with a reload by the owner after it.
func (p *proxy) reloaded(h drivertest.Hand) drivertest.Hand {
	do := h.Do
	h.Name += " and a reload"
	h.Reloads = true
	h.Hurts = true // Debian's nginx resets some connections at each reload
	h.Do = func(t testing.TB) { do(t); p.OwnerReload(t) }
	return h
}

func edit(name string, path func() string, change func(string) string) drivertest.Hand {
	return drivertest.Hand{Name: name, Do: func(t testing.TB) { drivertest.Edit(t, path(), change) }}
}

// post gives the workers an order on the agent's socket, with a body that is made from the highest write number seen.
func (p *proxy) post(t testing.TB, path string, body func(write uint64) []byte) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(p.options.Dir, "run", "agent.sock"))
	}}}
	epoch, err := os.ReadFile(filepath.Join(p.options.Dir, "epoch"))
	if err != nil {
		t.Fatal(err)
	}
	var n uint64
	for _, c := range bytes.TrimSpace(epoch) {
		n = n*10 + uint64(c-'0')
	}
	req, err := http.NewRequestWithContext(within(t), http.MethodPost, "http://cutover"+path, bytes.NewReader(body(n<<32+1<<20+hands.Add(1000))))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s", path, resp.Status, text)
	}
}

func (p *proxy) luaHands(s driver.Section, spare driver.Upstream) []drivertest.Hand {
	write := func(name string, hurts bool, change func(*driver.Section)) drivertest.Hand {
		return drivertest.Hand{Name: name, Hurts: hurts, Do: func(t testing.TB) {
			next := s
			next.Upstreams, next.Routes = slices.Clone(s.Upstreams), slices.Clone(s.Routes)
			change(&next)
			p.post(t, "/section", func(n uint64) []byte { return sectionfile.Encode(next, n) })
		}}
	}
	file := func() string { return filepath.Join(p.options.Dir, "apps", s.App+".section") }
	other := s
	other.Upstreams = slices.Clone(s.Upstreams)
	other.Upstreams[0].Weight = 7
	lighter := edit("edited section", file, func(string) string { return string(sectionfile.File(other)) })
	frame := func() string { return filepath.Join(p.options.Dir, "current", "cutover.conf") }
	return []drivertest.Hand{
		write("weight", false, func(s *driver.Section) { s.Upstreams[0].Weight = 3 }),
		write("drain", false, func(s *driver.Section) { s.Upstreams[0].Mode = driver.Draining }),
		write("drain of all", true, func(s *driver.Section) {
			for i := range s.Upstreams {
				s.Upstreams[i].Mode = driver.Draining
			}
		}),
		write("address", false, func(s *driver.Section) { s.Upstreams[0].Address = spare.Address }),
		write("another server", false, func(s *driver.Section) { s.Upstreams = append(s.Upstreams, spare) }),
		write("route gone", true, func(s *driver.Section) { s.Routes = nil }),
		write("another route", false, func(s *driver.Section) { s.Routes = append(s.Routes, driver.Route{Host: "*", Path: "/evil"}) }),
		write("unknown App", false, func(s *driver.Section) {
			*s = driver.Section{App: "evil", Routes: []driver.Route{{Host: "*", Path: "/evil"}}, Upstreams: []driver.Upstream{spare}}
		}),
		lighter, p.reloaded(lighter),
		edit("damaged section", file, func(string) string { return "nonsense\n" }),
		edit("edited frame", frame, func(text string) string { return text + "# mine\n" }),
		edit("edited code", func() string { return filepath.Join(p.options.Dir, "current", "cutover.lua") }, func(text string) string { return text + "-- mine\n" }),
		gone("file gone", file),
		p.foreignFile(func() string { return filepath.Join(p.options.Dir, "current", "mine.conf") }),
		p.otherLink(),
	}
}

func (p *proxy) reloadHands(s driver.Section, spare driver.Upstream) []drivertest.Hand {
	file := func(name string) func() string {
		return func() string { return filepath.Join(p.options.Dir, "current", name) }
	}
	block := file(filepath.Join("load", "app-"+s.App+".conf"))
	lighter := edit("edited App", block, func(text string) string { return strings.Replace(text, "weight=100", "weight=7", 1) })
	another := edit("another server", block, func(text string) string {
		return strings.Replace(text, "}\n", "server "+spare.Address.String()+";\n}\n", 1)
	})
	frame := edit("edited frame", file(filepath.Join("load", "frame.conf")), func(text string) string { return text + "# mine\n" })
	return []drivertest.Hand{
		lighter, another, frame, p.reloaded(lighter), p.reloaded(another), p.reloaded(frame),
		edit("damaged section", file(filepath.Join("sections", s.App+".section")), func(string) string { return "nonsense\n" }),
		gone("file gone", block),
		p.foreignFile(file("mine.conf")),
		p.otherLink(),
	}
}

func gone(name string, path func() string) drivertest.Hand {
	return drivertest.Hand{Name: name, Do: func(t testing.TB) {
		if err := os.Remove(path()); err != nil {
			t.Fatal(err)
		}
	}}
}

func (p *proxy) foreignFile(path func() string) drivertest.Hand {
	return drivertest.Hand{Name: "foreign file", Do: func(t testing.TB) {
		if err := os.WriteFile(path(), []byte("# mine\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}}
}

func (p *proxy) otherLink() drivertest.Hand {
	return drivertest.Hand{Name: "link elsewhere", Do: func(t testing.TB) {
		link := filepath.Join(p.options.Dir, "current")
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("elsewhere", link); err != nil {
			t.Fatal(err)
		}
	}}
}
