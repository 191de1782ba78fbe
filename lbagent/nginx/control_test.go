package nginx

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/sectionfile"
)

func exampleReading() string {
	text := sectionfile.Encode(driver.Section{
		App:    "shop",
		Routes: []driver.Route{{Host: "*", Path: "/shop"}},
		Upstreams: []driver.Upstream{
			{Name: "a-1", Address: netip.MustParseAddrPort("127.0.0.1:1"), Weight: 1, Mode: driver.Serving},
		},
	}, 7)
	return "worker 42 0 17-41.1 f00d 1.22.1\nversion 9\napplied 42 9 12 17-41.1\n" +
		fmt.Sprintf("section shop %d\n%s.\nrow a-1 3 red\ndone\n", len(text), text)
}

func TestParseLuaReading(t *testing.T) {
	text := exampleReading()
	r, err := parseLuaReading([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if r.worker.pid != 42 || r.version != 9 || r.rows["shop"]["a-1"] != (luaRow{sessions: 3, red: true}) {
		t.Errorf("%+v", r)
	}
	if want := (applied{version: 9, age: 12 * time.Millisecond, generation: "17-41.1"}); r.applied[42] != want {
		t.Errorf("applied %+v, want %+v", r.applied[42], want)
	}
	// An answer of which the end is missing is never taken for one with less in it.
	for i := range text[:len(text)-1] {
		if _, err := parseLuaReading([]byte(text[:i])); err == nil {
			t.Fatalf("the first %d of %d bytes were accepted", i, len(text))
		}
	}
}

func FuzzParseLuaReading(f *testing.F) {
	f.Add([]byte(exampleReading()))
	f.Add([]byte("worker 1 0 a b c\nsection x 99999999\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseLuaReading(text)
		if err != nil {
			return
		}
		for app, s := range r.sections {
			if s.App != app || sectionfile.Check(s) != nil {
				t.Fatalf("section %q is %+v", app, s)
			}
		}
	})
}

// Every reason for which a reading is no evidence.
func TestJudge(t *testing.T) {
	at := func(pid int, ticks uint64) procfs.Stat { return procfs.Stat{PID: pid, StartTicks: ticks} }
	f := family{master: at(1, 5), current: []procfs.Stat{at(2, 6), at(3, 6)}}
	whole := func() luaReading {
		return luaReading{
			worker: workerLine{pid: 2, generation: "g"}, version: 9,
			applied: map[int]applied{2: {version: 9, generation: "g"}, 3: {version: 10, generation: "g"}},
		}
	}
	if err := judge(f, f, whole(), 9); err != nil {
		t.Errorf("a whole reading: %v", err)
	}
	for name, change := range map[string]func(before, after *family, r *luaReading, atLeast *uint64){
		"master replaced, same pid": func(b, _ *family, _ *luaReading, _ *uint64) { b.master.StartTicks++ },
		"worker replaced, same pid": func(b, _ *family, _ *luaReading, _ *uint64) {
			b.current = []procfs.Stat{at(2, 6), at(3, 7)}
		},
		"worker came":         func(b, _ *family, _ *luaReading, _ *uint64) { b.current = b.current[:1] },
		"leaving worker":      func(_, _ *family, r *luaReading, _ *uint64) { r.worker.leaving = true },
		"restarted meanwhile": func(_, _ *family, _ *luaReading, n *uint64) { *n = 10 },
		"a silent worker":     func(_, _ *family, r *luaReading, _ *uint64) { delete(r.applied, 3) },
		"a worker behind": func(_, _ *family, r *luaReading, _ *uint64) {
			r.applied[3] = applied{version: 8, generation: "g"}
		},
		"a worker of another generation": func(_, _ *family, r *luaReading, _ *uint64) {
			r.applied[3] = applied{version: 9, generation: "old"}
		},
		"a stopped worker": func(_, _ *family, r *luaReading, _ *uint64) {
			r.applied[3] = applied{version: 9, generation: "g", age: time.Minute}
		},
	} {
		before, after, r, atLeast := f, f, whole(), uint64(9)
		change(&before, &after, &r, &atLeast)
		if judge(before, after, r, atLeast) == nil {
			t.Errorf("%s: taken for evidence", name)
		}
	}
}

// Exact hosts before any host, longer paths before shorter ones, and the same order on every Host.
func TestRouteTable(t *testing.T) {
	up := []driver.Upstream{{Name: "u", Address: netip.MustParseAddrPort("127.0.0.1:1"), Weight: 1, Mode: driver.Serving}}
	sections := map[string]driver.Section{
		"root": {App: "root", Routes: []driver.Route{{Host: "*", Path: "/"}}, Upstreams: up},
		"cart": {App: "cart", Routes: []driver.Route{{Host: "*", Path: "/shop/cart/"}}, Upstreams: up},
		"api":  {App: "api", Routes: []driver.Route{{Host: "a.example", Path: "/"}, {Host: "a.example", Path: "/v1", Strip: true}}, Upstreams: up},
		"off":  {App: "off", Routes: []driver.Route{{Host: "*", Path: "/off"}}},
	}
	var got []string
	for _, r := range routeTable(sections) {
		got = append(got, fmt.Sprintf("%s -> %s", r.Match, r.Upstream))
	}
	want := []string{
		`a\.example\|/v1(?:[/?]|$) -> cutover_api`,
		`a\.example\|(?:[/?]|$) -> cutover_api`,
		`[^|]*\|/shop/cart(?:[/?]|$) -> cutover_cart`,
		`[^|]*\|/off(?:[/?]|$) -> none`,
		`[^|]*\|(?:[/?]|$) -> cutover_root`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("route table (-want +got):\n%s", diff)
	}
}

func TestEmergency(t *testing.T) {
	const before = "2026/01/01 00:00:00 [emerg] 7#7: unknown directive \"x\" in old:1\n"
	for _, tt := range []struct{ name, log, want string }{
		{"nothing", "", ""},
		{"a bind that is tried again", "2026/01/01 [emerg] 7#7: bind() to 127.0.0.1:80 failed (98: Address already in use)\n", ""},
		{
			"a bind given up",
			"2026/01/01 [emerg] 7#7: bind() to 127.0.0.1:80 failed (98: Address already in use)\n2026/01/01 [emerg] 7#7: still could not bind()\n",
			"still could not bind()",
		},
		{"another nginx in the same log", "2026/01/01 [emerg] 77#77: unknown directive \"y\"\n", ""},
		{"refused", "2026/01/01 [notice] 7#7: reconfiguring\n2026/01/01 [emerg] 7#7: unknown directive \"y\"\n", "unknown directive"},
	} {
		name := filepath.Join(t.TempDir(), "error.log")
		if err := os.WriteFile(name, []byte(before+tt.log), 0o600); err != nil {
			t.Fatal(err)
		}
		got := emergency(name, int64(len(before)), 7)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// The failures that every owner meets once say what to do.
func TestExplain(t *testing.T) {
	for output, want := range map[string]string{
		`dlopen() "/usr/lib/nginx/modules/ngx_http_lua_module.so" failed (undefined symbol: lua_setexdata)`: "libluajit2-5.1-2",
		`[emerg] unknown directive "lua_shared_dict" in cutover.conf:4`:                                     "libnginx-mod-http-lua",
		`module 'resty.core' not found`: "lua-resty-core",
	} {
		err := explain(output, errors.New("exit status 1"))
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want it to say %s", output, err, want)
		}
	}
}

func TestIncludes(t *testing.T) {
	got := includes("# include no.conf;\nhttp {\n include a.conf; include \"b/*.conf\" ;\n  include\tcutover/*.conf;}\n")
	if diff := cmp.Diff([]string{"a.conf", "b/*.conf", "cutover/*.conf"}, got); diff != "" {
		t.Error(diff)
	}
}
