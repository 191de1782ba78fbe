package haproxy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/cutover/cutover/lbagent/driver"
)

// A route that is accepted comes back from the map exactly as it was written.
func TestRouteRoundTrip(t *testing.T) {
	host := rapid.OneOf(rapid.Just("*"), rapid.StringMatching(`[a-z0-9]{1,8}(\.[a-z0-9-]{1,5}[a-z0-9])?`))
	path := rapid.StringMatching(`(/[A-Za-z0-9._~!$&()*+=:@%-]{1,4}){0,14}/?`)
	rapid.Check(t, func(t *rapid.T) {
		r := driver.Route{Host: host.Draw(t, "host"), Path: path.Draw(t, "path"), Strip: rapid.Bool().Draw(t, "strip")}
		s := driver.Section{App: "shop", Routes: []driver.Route{r}}
		if err := validateSection(s); err != nil {
			if r.Path != "" && (!r.Strip || segments(r.Path) <= maxStrip) {
				t.Fatalf("%+v was refused: %v", r, err)
			}
			return
		}
		backends := rapid.SampledFrom([][]string{{"cutover_t_0001"}, {"cutover_h1_0001", "cutover_t_12345"}}).Draw(t, "backends")
		got, to, ok := parseRoute(routeKey(r), targetOf(r, backends).String())
		if !ok || got != r || cmp.Diff(backends, to.backends) != "" {
			t.Fatalf("%+v came back as %+v %+v (%t)", r, got, to, ok)
		}
	})
}

// A slot's file says what was published, in every detail.
func TestSlotFileRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := withoutWarm(drawSection(t, ""))
		p := published{App: "shop"}
		for _, u := range s.Upstreams {
			if classOf(u.Health).name == "h1" {
				p.Upstreams = append(p.Upstreams, u)
			}
		}
		text := renderSlot(planOptions, slot{"h1", 7}, p)
		got, err := parseSlotFile(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, got, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%s\n%s", diff, text)
		}
	})
}

func TestRenderSlot(t *testing.T) {
	health := driver.Health{Kind: driver.HealthHTTP, Path: "/healthz", Interval: 500 * time.Millisecond, Timeout: time.Second, Rise: 2, Fall: 3}
	text := string(renderSlot(planOptions, slot{"h1", 7}, published{App: "shop", Upstreams: []driver.Upstream{
		{Name: "b", Address: netip.MustParseAddrPort("[fd00::1]:8080"), Weight: 7, Mode: driver.Draining, Health: health},
		{Name: "a", Address: netip.MustParseAddrPort("10.0.0.1:8080"), Weight: 100, Mode: driver.Serving, Health: health},
	}}))
	for _, want := range []string{
		"backend cutover_h1_0007\n",
		"uri-lf %[srv_name,map(/var/lib/cutover/haproxy/current/health.map,/healthz)] ver HTTP/1.1",
		"\n    server a 10.0.0.1:8080 weight 100 check inter 500 fastinter 100 downinter 100 rise 2 fall 3\n",
		"\n    server b [fd00::1]:8080 weight 0 check inter",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Index(text, "server b") < strings.Index(text, "server a") {
		t.Error("upstreams are not sorted: two hosts would render different bytes")
	}
}

// Nothing that a Section holds can break out of its line, in a file or on the command line.
func TestValidateSectionRefuses(t *testing.T) {
	good := driver.Upstream{
		Name: "a", Address: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 1, Mode: driver.Serving,
		Health: driver.Health{Kind: driver.HealthHTTP, Path: "/", Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 1},
	}
	if err := validateSection(driver.Section{App: "shop", Upstreams: []driver.Upstream{good}}); err != nil {
		t.Fatalf("a good Section: %v", err)
	}
	for name, change := range map[string]func(*driver.Section){
		"App name":         func(s *driver.Section) { s.App = "a b" },
		"line break":       func(s *driver.Section) { s.Upstreams[0].Name = "a\nb" },
		"colon in a name":  func(s *driver.Section) { s.Upstreams[0].Name = "a:2" },
		"same name":        func(s *driver.Section) { s.Upstreams = append(s.Upstreams, good) },
		"no address":       func(s *driver.Section) { s.Upstreams[0].Address = netip.AddrPort{} },
		"weight 0":         func(s *driver.Section) { s.Upstreams[0].Weight = 0 },
		"weight 257":       func(s *driver.Section) { s.Upstreams[0].Weight = 257 },
		"no mode":          func(s *driver.Section) { s.Upstreams[0].Mode = 0 },
		"blank in health":  func(s *driver.Section) { s.Upstreams[0].Health.Path = "/a b" },
		"health timeout":   func(s *driver.Section) { s.Upstreams[0].Health.Timeout = time.Minute },
		"no interval":      func(s *driver.Section) { s.Upstreams[0].Health.Interval = 0 },
		"no rise":          func(s *driver.Section) { s.Upstreams[0].Health.Rise = 0 },
		"comma in a route": func(s *driver.Section) { s.Routes = []driver.Route{{Host: "*", Path: "/a,b"}} },
		"same route":       func(s *driver.Section) { s.Routes = []driver.Route{{Host: "*", Path: "/a"}, {Host: "*", Path: "/a/"}} },
		"bar in a host":    func(s *driver.Section) { s.Routes = []driver.Route{{Host: "a|b", Path: "/"}} },
		"deep strip": func(s *driver.Section) {
			s.Routes = []driver.Route{{Host: "*", Path: strings.Repeat("/a", maxStrip+1), Strip: true}}
		},
	} {
		s := driver.Section{App: "shop", Upstreams: []driver.Upstream{good}}
		change(&s)
		var refused *driver.RefusedError
		if err := validateSection(s); !errors.As(err, &refused) || !errors.Is(err, errUnrenderable) {
			t.Errorf("%s: %v; want a refusal", name, err)
		}
	}
}

func TestOptionsRefuse(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"relative Dir":  func(o *Options) { o.Dir = "x" },
		"blank in Dir":  func(o *Options) { o.Dir = "/a b" },
		"long Dir":      func(o *Options) { o.Dir = "/" + strings.Repeat("a", 90) },
		"no logger":     func(o *Options) { o.Logger = nil },
		"no frontend":   func(o *Options) { o.Frontends = nil },
		"no bind":       func(o *Options) { o.Frontends = []Frontend{{Name: "public"}} },
		"frontend name": func(o *Options) { o.Frontends = []Frontend{{Name: "a b", Binds: planOptions.Frontends[0].Binds}} },
		"port 0": func(o *Options) {
			o.Frontends = []Frontend{{Name: "a", Binds: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}}}
		},
		"pool": func(o *Options) { o.Pool = -1 },
	} {
		o := planOptions
		change(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzValidateSection(f *testing.F) {
	f.Add("shop", "*", "/shop", "task-1", "/healthz")
	f.Add("a\nb", "x|y", "/;", "a:2", "/#")
	f.Fuzz(func(t *testing.T, app, host, path, name, health string) {
		s := driver.Section{App: app, Routes: []driver.Route{{Host: host, Path: path}}, Upstreams: []driver.Upstream{{
			Name: name, Address: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 1, Mode: driver.Serving,
			Health: driver.Health{Kind: driver.HealthHTTP, Path: health, Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 1},
		}}}
		if validateSection(s) != nil {
			return
		}
		p := published{App: app, Upstreams: s.Upstreams}
		text := string(renderSlot(planOptions, slot{"h1", 1}, p))
		if got := strings.Count(text, "\n"); got != strings.Count(string(renderSlot(planOptions, slot{"h1", 1}, published{App: "a", Upstreams: []driver.Upstream{{Name: "b", Address: s.Upstreams[0].Address, Health: driver.Health{Kind: driver.HealthHTTP, Path: "/"}}}})), "\n") {
			t.Errorf("%+v breaks out of its line:\n%s", s, text)
		}
		plan := planner{o: planOptions, slots: map[string]slot{"h1": {"h1", 1}}}.plan(s, observation{routes: newRouteTable(nil)})
		for _, command := range plan.must {
			for i := 0; i < len(command); i++ {
				if c := command[i]; c == '\n' || c == ';' && command[i-1] != '\\' {
					t.Errorf("command %q is more than one", command)
				}
			}
		}
	})
}
