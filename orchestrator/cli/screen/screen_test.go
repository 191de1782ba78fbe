package screen_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/orchestrator/api/apitest"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/cli/screen"
	"github.com/cutover/cutover/orchestrator/deploy"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files in the place of comparing them")

// golden compares lines with a file. A change of what people read is reviewed as a diff.
func golden(t *testing.T, name string, lines []string) {
	t.Helper()
	got := strings.ReplaceAll(strings.Join(lines, "\n")+"\n", "\x1b", "<ESC>")
	path := filepath.Join("testdata", name+".golden")
	if *rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (run with -rewrite if this is wanted):\n%s", path, diff)
	}
}

const id = "01J9X4"

func TestStories(t *testing.T) {
	for name, tell := range map[string]func(*apitest.Story) *apitest.Story{
		"committed":   (*apitest.Story).Committed,
		"drained":     (*apitest.Story).Drained,
		"drain-stuck": (*apitest.Story).DrainStuck,
		"rolled-back": (*apitest.Story).RolledBack,
		"stuck":       (*apitest.Story).Stuck,
		"task-failed": (*apitest.Story).TaskFailed,
		"aborted":     (*apitest.Story).Aborted,
		"unchanged":   (*apitest.Story).Unchanged,
	} {
		t.Run(name, func(t *testing.T) {
			story := tell(apitest.NewStory(id))
			var out []string
			for _, e := range story.Events {
				if line := screen.Event(e, story.Last.StartedAt, screen.Style{}); line != "" {
					out = append(out, line)
				}
			}
			v := story.Last
			out = append([]string{screen.Header(v, screen.Style{})}, append(out, screen.Outcome(v, apitest.At(time.Minute), screen.Style{})...)...)
			golden(t, "log-"+name, append(out, "next: "+screen.Next(v)))
			golden(t, "status-"+name, screen.Status(v, apitest.At(time.Minute), screen.Style{}))
		})
	}
}

func TestFrames(t *testing.T) {
	style := screen.Style{Color: true, Marks: true}
	for name, c := range map[string]struct {
		story         *apitest.Story
		width, height int
	}{
		"launching":        {apitest.NewStory(id), 120, 40},
		"preparing":        {apitest.NewStory(id).Healthy().Step(deploy.StepPreparing, "").Vote("lb1", deploy.VoteReady, "").Vote("lb2", deploy.VoteNone, ""), 160, 40},
		"activated":        {apitest.NewStory(id).Activated(), 160, 40},
		"activated-narrow": {apitest.NewStory(id).Activated(), 50, 40},
		"activated-low":    {apitest.NewStory(id).Activated(), 160, 14},
		"activated-tiny":   {apitest.NewStory(id).Activated(), 160, 6},
		"stuck":            {apitest.NewStory(id).Stuck(), 160, 40},
	} {
		t.Run(name, func(t *testing.T) {
			lines := screen.Frame(c.story.Last, []string{"reconnecting \x1b[2J"}, apitest.At(5*time.Second), c.width, c.height, "Ctrl-C detaches.", style)
			if len(lines) >= c.height {
				t.Errorf("%d lines on %d: redrawing would scroll", len(lines), c.height)
			}
			golden(t, "frame-"+name, lines)
		})
	}
}

func TestLists(t *testing.T) {
	s := screen.Style{}
	seen := apitest.At(-3 * time.Second)
	host := wire.Host{Name: "lb1", Group: "public", Proxy: "haproxy", ProxyVersion: "2.6.12", ProxyPID: 4242, AgentURL: "http://127.0.0.1:1", Connected: true, LastSeen: &seen,
		Sections: 2, OpenTxns: []string{"txn-1"}, Limits: []string{"a new backend needs a reload"}}
	away := wire.Host{Name: "lb2", Group: "public", Proxy: "nginx-lua", Problems: []string{"no answer for 12s; start its lbagent: systemctl start cutover-lbagent"}}
	up := func(name, address, mode, status string, healthy bool) deploy.UpstreamView {
		return deploy.UpstreamView{Name: name, Address: address, Registered: true, Healthy: healthy, Status: status, Mode: mode, Weight: 100, Sessions: 3}
	}
	golden(t, "list-apps", screen.Apps([]deploy.AppView{
		{Name: "blog", Kind: "service", State: "stopped"},
		{Name: "shop", Kind: "service", State: "running", Spec: 2, Version: "1.4.2", Instances: 4, Healthy: 3, OpenDeploy: id, Routes: []string{"public */shop"}, Problems: []string{"instance 1 restarts"}},
	}, s))
	golden(t, "list-no-apps", screen.Apps(nil, s))
	golden(t, "list-tasks", screen.Tasks(apitest.NewStory(id).TaskFailed().Last.Tasks, s))
	golden(t, "list-deploys", screen.Deploys([]deploy.View{apitest.NewStory("01B").RolledBack().Last, apitest.NewStory("01A").Drained().Last, apitest.NewStory("019").Last}, apitest.At(2*time.Hour), s))
	golden(t, "list-hosts", screen.LBHosts(wire.HostList{Hosts: []wire.Host{host, away}}, apitest.At(0), s))
	golden(t, "list-no-hosts", screen.LBHosts(wire.HostList{}, apitest.At(0), s))
	announced, lost := away, host
	announced.Name, announced.Proxy, announced.Membership = "lb3", "", wire.Membership{Standing: "announced", Source: "consul", Announced: true}
	announced.Problems = []string{"announced at https://10.0.1.13:8600, not admitted: cutover lb admit lb3"}
	lost.Membership = wire.Membership{Standing: "member", Source: "consul", Notice: "the Consul catalog announces it no longer: it stays member until an operator takes it out"}
	golden(t, "list-hosts-announced", screen.LBHosts(wire.HostList{Hosts: []wire.Host{lost, announced}, Sources: []wire.Source{
		{Source: "consul", Problem: "connection refused", Since: &seen, Refused: []string{`host lb4: group "publik" is not declared in the hosts file`}},
	}}, apitest.At(0), s))
	golden(t, "show-host", screen.LBShow(wire.HostShow{Host: host, Sections: []wire.SectionShow{
		{App: "shop", Spec: 2, Version: "7+1", Agrees: true, Routes: []string{"*/shop"}, Digest: "9c1e",
			Committed: []deploy.UpstreamView{up("shop.2.0", "127.0.0.1:31000", "", "", false)},
			Running:   []deploy.UpstreamView{up("shop.2.0", "127.0.0.1:31000", "ready", "UP", true)}},
		{App: "blog", Spec: 1, Version: "3", Difference: "upstream blog.1.0 is absent", Open: "preparing", Routes: []string{"*/blog"},
			Committed: []deploy.UpstreamView{up("blog.1.0", "127.0.0.1:31002", "", "", false), up("blog.1.1", "127.0.0.1:31003", "", "", false)},
			Running:   []deploy.UpstreamView{up("blog.1.1", "127.0.0.1:31009", "drain", "DOWN", false), up("foreign", "127.0.0.1:9", "ready", "UP", true)}},
		{App: "empty"},
		{App: "old", Spec: 1, Difference: "the proxy could not be read", ReadAt: &seen},
	}}, apitest.At(time.Minute), s))
	golden(t, "show-host-empty", screen.LBShow(wire.HostShow{Host: away}, apitest.At(0), s))
	repaired := apitest.At(-10 * time.Second)
	golden(t, "drift", screen.LBDrift([]wire.HostDrift{
		{Host: host, Policy: "report", Differences: []wire.Drift{
			{Cause: "edited-file", Since: seen, Place: "/d/current/00-frame.cfg", Summary: "the file was changed", Diff: "--- a\n+++ b\n@@ -1,1 +1,1 @@\n-x\n+y\n", Left: true},
			{App: "shop", Cause: "foreign-command", Since: seen, Place: "the running proxy", Summary: "a has weight 1, not 100", Diff: "-upstream a\n+upstream b\n"},
			{Cause: "changed-base", Since: seen, Place: "/etc/nginx/nginx.conf", Summary: "it has no include", Manual: true},
		}, LeftOut: 2, Repaired: []wire.Drift{{App: "shop", Since: apitest.At(-12 * time.Second), Place: "the running proxy", Summary: "a is missing", RepairedAt: &repaired}}},
		{Host: away, Policy: "repair"}, {Host: wire.Host{Name: "lb3", Group: "public"}, Policy: "repair"},
	}, []screen.HostError{{Host: "lb4", Error: "host lb4 does not answer"}}, apitest.At(0), s))
	golden(t, "app", screen.App(deploy.AppView{Name: "shop", Kind: "service", State: "running", Spec: 2, Instances: 2, Healthy: 2, Tasks: append(apitest.NewStory(id).Healthy().Last.Tasks, deploy.TaskView{ID: "shop.1.0.x", State: "killed"})}, s))
	golden(t, "problem-invalid", screen.Problem(wire.FromRefusal(&deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: "app.yaml is not a valid spec", Problems: []deploy.Problem{
		{Line: 3, Column: 9, Field: "health.port", Reason: "out of range"}, {Line: 4, Reason: "unknown key"}, {Field: "limit", Reason: "too large"}, {Reason: "empty"},
	}}), "app.yaml", s))
	golden(t, "problem-locked", screen.Problem(wire.FromRefusal(&deploy.Refusal{Kind: deploy.RefusedLocked, Detail: "shop has an open Deploy", OpenDeploy: id}), "", s))
	golden(t, "problem-unreachable", screen.Problem(wire.FromRefusal(&deploy.Refusal{Kind: deploy.RefusedUnavailable, Detail: "nobody answers"}), "", s))
}

func TestNow(t *testing.T) {
	fresh := apitest.NewStory(id).TaskFailed().Last
	fresh.FromSpec = 0
	stop := apitest.NewStory(id).Drained().Last
	stop.Kind, stop.Spec = "stop", 0
	worker := apitest.NewStory(id).Drained().Last
	worker.Hosts = nil
	forced := apitest.NewStory(id).Drained().Last
	forced.Drain = &deploy.DrainView{Done: true, Forced: true}
	for want, v := range map[string]deploy.View{
		"shop has no committed spec, as before, and no route; no host had been switched":             fresh,
		"shop is stopped; its routes are gone from 2 of 2 hosts; old upstreams are drained":          stop,
		"shop runs spec 2; old upstreams are drained":                                                worker,
		"shop serves spec 2, verified on 2 of 2 hosts; old upstreams were cut at the drain deadline": forced,
		"shop is on spec 1 as before; 2 hosts proved that they are back as before":                   apitest.NewStory(id).RolledBack().Last,
		"shop is committed on spec 1": apitest.NewStory(id).Last,
	} {
		if got := screen.Now(v); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0.00s", 1234 * time.Millisecond: "1.23s", 12345 * time.Millisecond: "12.3s",
		125 * time.Second: "2m05s", 3*time.Hour + 4*time.Minute: "3h04m",
	} {
		if got := screen.Duration(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("plain", 5)
	f.Add("\x1b[2J\x07\r\nü\xff\u202e", 3)
	f.Fuzz(func(t *testing.T, text string, width int) {
		for _, line := range append(screen.Lines(text, 5), screen.Clean(text), screen.Cut(screen.Clean(text), width)) {
			if strings.ContainsAny(line, "\x1b\x07\r\n\x00\u202e\u009b") || !utf8.ValidString(line) {
				t.Fatalf("%q became %q", text, line)
			}
		}
		if n := utf8.RuneCountInString(screen.Cut(screen.Clean(text), width)); width > 0 && n > width {
			t.Fatalf("%d wide, want at most %d", n, width)
		}
	})
}
