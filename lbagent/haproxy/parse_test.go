package haproxy

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cutover/cutover/internal/procfs"
)

// golden reads what a real HAProxy 2.6.12 answered.
func golden(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "haproxy-2.6", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(text), "\n") // the empty line that ends an answer
}

func TestParseRealAnswers(t *testing.T) {
	i, err := parseInfo(golden(t, "show-info.txt"))
	if err != nil || i.pid == 0 || i.stopping || i.name != "HAProxy" || i.version != "2.6.12-1+deb12u4" {
		t.Errorf("info: %+v, %v", i, err)
	}

	p, err := parseProcesses(golden(t, "show-proc.txt"))
	want := processes{master: 29296, version: "2.6.12-1+deb12u4", current: []int{29363}, leaving: []int{29316}}
	if diff := cmp.Diff(want, p, cmp.AllowUnexported(processes{})); err != nil || diff != "" {
		t.Errorf("processes: %v\n%s", err, diff)
	}
	p, err = parseProcesses(golden(t, "show-proc-failed.txt"))
	want.failed = 1
	if diff := cmp.Diff(want, p, cmp.AllowUnexported(processes{})); err != nil || diff != "" {
		t.Errorf("processes after a failed reload: %v\n%s", err, diff)
	}

	stats, err := parseStat(golden(t, "show-stat.txt"))
	if err != nil || len(stats) != 3 {
		t.Fatalf("stat: %+v, %v", stats, err)
	}
	if diff := cmp.Diff(statRow{backend: "cutover_h0001", server: "s2", status: stats[1].status, weight: 7, checkStatus: stats[1].checkStatus, rise: stats[1].rise, fall: stats[1].fall, health: stats[1].health},
		stats[1], cmp.AllowUnexported(statRow{})); diff != "" {
		t.Errorf("stat of s2: %s", diff)
	}

	header, states, err := parseServersState(golden(t, "show-state.txt"))
	if err != nil || len(states) != 3 || !strings.HasPrefix(header, "1\n# be_id") {
		t.Fatalf("state: %q %+v, %v", header, states, err)
	}
	if diff := cmp.Diff(stateRow{backend: "cutover_h0001", server: "s1", address: netip.MustParseAddrPort("127.0.0.1:18101"), weight: 7},
		states[0], cmp.AllowUnexported(stateRow{}), cmpopts.IgnoreFields(stateRow{}, "line", "checkState", "running"), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("state of s1: %s", diff)
	}

	entries, err := parseMap(golden(t, "show-map.txt"))
	if diff := cmp.Diff([]mapEntry{{"", "*|/shop/", "cutover_h0001:1"}, {"", "a.x|/shop/", "cutover_h0001:0"}, {"", "a.x|/shop/deep/", "cutover_h0001:2"}},
		entries, cmp.AllowUnexported(mapEntry{}), cmpopts.IgnoreFields(mapEntry{}, "id")); err != nil || diff != "" {
		t.Errorf("map: %v\n%s", err, diff)
	}
}

func TestParseStatWithQuotedFields(t *testing.T) {
	header, _, _ := strings.Cut(golden(t, "show-stat.txt"), "\n")
	names := strings.Split(strings.TrimPrefix(header, "# "), ",")
	values := make([]string, len(names))
	for name, v := range map[string]string{"pxname": "b", "svname": "s", "type": "2", "status": "UP", "check_status": "* L7OK", "scur": "2", "qcur": "3",
		"last_chk": "\"said \"\"no, not\nnow\"\"\""} {
		values[slices.Index(names, name)] = v
	}
	row := strings.Join(values, ",") + "\n"
	got, err := parseStat(header + "\n" + row + row)
	want := statRow{backend: "b", server: "s", status: "UP", checkStatus: "L7OK", checking: true, sessions: 5}
	if err != nil || len(got) != 2 || got[0] != want || got[1] != want {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := parseStat(header + "\n" + "b,s,1\n"); err == nil {
		t.Errorf("a torn row was taken for %+v", got)
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]version{
		"2.6.12-1+deb12u4": {2, 6, 12}, "3.0-dev13": {3, 0, 0}, "3.4.0": {3, 4, 0}, "2.8.5-abcdef": {2, 8, 5},
	} {
		if got, err := parseVersion(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "3", "x.y", "-1"} {
		if got, err := parseVersion(text); err == nil {
			t.Errorf("%q was taken for %+v", text, got)
		}
	}
	if (version{2, 8, 0}).atLeast(3, 0) || !(version{3, 0, 0}).atLeast(2, 9) {
		t.Error("atLeast")
	}
}

func TestSplitAnswers(t *testing.T) {
	got := splitAnswers("\nNew server registered.\n\n\n# a\nb\n\nproc.x: type=str value=<abc>\n")
	want := []string{"", "New server registered.\n", "", "# a\nb\n", "proc.x: type=str value=<abc>\n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if v := parseVar(got[4]); v != "abc" {
		t.Errorf("value %q", v)
	}
	if v := parseVar("Variable not found.\n"); v != "" {
		t.Errorf("value %q of a variable that is not set", v)
	}
}

func TestOwnedListeners(t *testing.T) {
	table := []procfs.Conn{
		{Local: netip.MustParseAddrPort("127.0.0.1:8080"), Listening: true, Inode: 111},
		{Local: netip.MustParseAddrPort("0.0.0.0:80"), Listening: true, Inode: 222},
	}
	foreign := map[uint64]bool{222: true}
	for _, tt := range []struct {
		bind string
		ok   bool
	}{
		{"127.0.0.1:8080", true},
		{"127.0.0.1:80", false}, // nobody listens there; the unspecified one is somebody else's business
		{"0.0.0.0:8080", true},  // the specific one is ours, so no connection goes astray
		{"0.0.0.0:80", false},
	} {
		if mine, err := owned(netip.MustParseAddrPort(tt.bind), table, foreign); (mine && err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.bind, err)
		}
	}
}

// The parsers say no or yes, and never panic, whatever a socket answers.
func FuzzParsers(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "haproxy-2.6", "*.txt"))
	if err != nil || len(files) == 0 {
		f.Fatalf("%v, %v", files, err)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add("1\n# be_name srv_name\n\n")
	f.Add("# pxname,svname,\n\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := parseProcesses(text); err == nil && p.master <= 0 {
			t.Errorf("accepted processes without a master: %+v", p)
		}
		if i, err := parseInfo(text); err == nil && i.pid <= 0 {
			t.Errorf("accepted info without a pid: %+v", i)
		}
		if rows, err := parseStat(text); err == nil {
			for _, r := range rows {
				if r.sessions < 0 {
					t.Errorf("accepted %+v", r)
				}
			}
		}
		if _, rows, err := parseServersState(text); err == nil {
			for _, r := range rows {
				row := serverRow{name: r.server, state: r}
				_, life := row.upstream()
				_, _, _ = row.mode(), row.green(false), row.red()
				if life < 1 {
					t.Errorf("life %d of %q", life, r.server)
				}
			}
		}
		if entries, err := parseMap(text); err == nil {
			for _, e := range entries {
				_, _, _ = parseRoute(e.key, e.value)
			}
		}
		_, _ = parseVersion(text)
		_ = parseVar(text)
		for _, s := range parseSessions(text) {
			if strings.ContainsAny(s.id, " ;\n") {
				t.Errorf("session id %q", s.id)
			}
		}
		if joined := strings.Join(splitAnswers(text), ""); len(joined) > len(text) {
			t.Error("splitting made text")
		}
	})
}

// What a published file says of itself is read back exactly or refused.
func FuzzParseSlotFile(f *testing.F) {
	f.Add(renderSlot(planOptions, slot{"h1", 1}, published{}))
	f.Add([]byte(slotHeader + "{\"app\":\"shop\"}\n" + upstreamHeader + "{}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := parseSlotFile(text)
		if err != nil {
			return
		}
		again, err := parseSlotFile(renderSlot(planOptions, slot{"h1", 1}, p))
		if err != nil || again.App != p.App || len(again.Upstreams) != len(p.Upstreams) {
			t.Errorf("%q: %v", p.App, err)
		}
	})
}
