package spec

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestParseScripts shows what each input gives: the canonical form, or the problems with their lines.
func TestParseScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/parse", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s, problems := Parse([]byte(d.Input))
			if len(problems) == 0 {
				return string(s.Canonical()) + "\n"
			}
			var b strings.Builder
			for _, p := range problems {
				fmt.Fprintf(&b, "%d:%d %s: %s\n", p.Line, p.Column, p.Field, p.Reason)
			}
			return b.String()
		})
	})
}

const full = `
name: shop
version: "1.4.2"
instances: 4
command: ./server --port $PORT0
artifacts: [{uri: "file:///srv/shop.tgz", extract: true}]
env: {LOG: info, LEVEL: 3}
resources: {cpus: 0.25, memory: 64MiB, ports: 2}
constraints: [{attribute: rack, operator: spread}]
health: {http: {path: /healthz, port: 1}, interval: 200ms, rise: 1}
routes: [{group: public, host: Shop.Example, path: /shop/, port: 1}, {group: public, path: /shop/api, port: 1, strip: true}]
deploy: {deadline: 1m, drain: 5s}
`

func TestParseFull(t *testing.T) {
	got, problems := Parse([]byte(full))
	if problems != nil {
		t.Fatal(problems)
	}
	want := Spec{
		Name: "shop", Kind: "service", Version: "1.4.2", Instances: 4, Command: "./server --port $PORT0",
		Artifacts:   []Artifact{{URI: "file:///srv/shop.tgz", Extract: true}},
		Env:         map[string]string{"LOG": "info", "LEVEL": "3"},
		Resources:   Resources{CPUs: 0.25, Memory: 64 << 20, Ports: 2},
		Constraints: []Constraint{{Attribute: "rack", Operator: "spread"}},
		Health: &Health{
			HTTP: &HTTPCheck{Path: "/healthz", Port: 1}, Interval: Duration(200 * time.Millisecond),
			Timeout: Duration(time.Second), Rise: 1, Fall: 3, Grace: Duration(20 * time.Second),
		},
		Kill: Kill{Signal: "TERM", Grace: Duration(10 * time.Second)},
		Routes: []Route{
			{Group: "public", Host: "*", Path: "/shop/api", Port: 1, Strip: true},
			{Group: "public", Host: "shop.example", Path: "/shop", Port: 1},
		},
		Deploy: Deploy{Strategy: "blue-green", Deadline: Duration(time.Minute), Drain: Duration(5 * time.Second)},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	if g := got.Groups(); len(g) != 1 || g[0] != "public" || got.RoutePort("public") != 1 {
		t.Fatalf("groups %v, port %d", g, got.RoutePort("public"))
	}
}

func TestParseBounds(t *testing.T) {
	big := "name: x\ncommand: \"" + strings.Repeat("a", 10<<20) + "\"\n"
	started := time.Now()
	if _, problems := Parse([]byte(big)); len(problems) != 1 || !strings.Contains(problems[0].Reason, "at most 1048576") {
		t.Fatalf("10 MB: %v", problems)
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Fatalf("refusing 10 MB took %s: it must not be parsed", took)
	}
	var bomb strings.Builder
	bomb.WriteString("a0: &a0 [x]\n")
	for i := 1; i < 40; i++ {
		fmt.Fprintf(&bomb, "a%d: &a%d [*a%d, *a%d, *a%d]\n", i, i, i-1, i-1, i-1)
	}
	bomb.WriteString("env: {A: *a39}\nroutes: *a39\n")
	if _, problems := Parse([]byte(bomb.String())); len(problems) == 0 || len(problems) > maxProblems {
		t.Fatalf("bomb: %d problems", len(problems))
	}
	if _, problems := Parse([]byte(strings.Repeat("[", 300_000))); len(problems) == 0 {
		t.Fatal("deep nesting was accepted")
	}
	var env strings.Builder
	env.WriteString("name: x\nkind: worker\ncommand: sleep\nenv:\n")
	for i := range 3000 {
		fmt.Fprintf(&env, "  V%d: %q\n", i, strings.Repeat("v", 100))
	}
	if _, problems := Parse([]byte(env.String())); len(problems) != 1 || !strings.Contains(problems[0].Reason, "canonical form") {
		t.Fatalf("canonical size: %v", problems)
	}
}

func TestTemplateDigest(t *testing.T) {
	base, _ := Parse([]byte(full))
	same := base.WithInstances(9)
	same.Deploy.Drain = Duration(time.Second)
	same.Routes = same.Routes[:1]
	if base.TemplateDigest() != same.TemplateDigest() {
		t.Error("instances, deploy options and routes must not replace tasks")
	}
	if base.Digest() == same.Digest() {
		t.Error("they are another Spec, though")
	}
	for name, change := range map[string]func(*Spec){
		"command": func(s *Spec) { s.Command += " -v" },
		"version": func(s *Spec) { s.Version = "2" },
		"env":     func(s *Spec) { s.Env = map[string]string{"LOG": "debug"} },
		"health":  func(s *Spec) { h := *s.Health; h.Rise = 7; s.Health = &h },
		"kill":    func(s *Spec) { s.Kill.Grace++ },
		"memory":  func(s *Spec) { s.Resources.Memory++ },
		"port":    func(s *Spec) { s.Routes = []Route{{Group: "public", Host: "*", Path: "/", Port: 0}} },
	} {
		s := base
		change(&s)
		if s.TemplateDigest() == base.TemplateDigest() {
			t.Errorf("a change of %s must replace tasks", name)
		}
	}
}

// TestCanonicalRoundTrip: the canonical form of any Spec is a Spec with the same content.
func TestCanonicalRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSpec(t)
		got, problems := Parse(s.Canonical())
		if problems != nil {
			t.Fatalf("%s: %v", s.Canonical(), problems)
		}
		if !bytes.Equal(got.Canonical(), s.Canonical()) || got.Digest() != s.Digest() || got.TemplateDigest() != s.TemplateDigest() {
			t.Fatalf("got %s\nwant %s", got.Canonical(), s.Canonical())
		}
	})
}

func drawSpec(t *rapid.T) Spec {
	name := rapid.StringMatching(`[a-z]([a-z0-9-]{0,20}[a-z0-9])?`)
	duration := func(l string) Duration {
		return Duration(time.Duration(rapid.IntRange(1000, 60_000).Draw(t, l)) * time.Millisecond)
	}
	s := Spec{
		Name: name.Draw(t, "name"), Kind: KindWorker, Version: rapid.StringMatching(`[0-9.]{0,8}`).Draw(t, "version"),
		Instances: rapid.IntRange(0, MaxInstances).Draw(t, "instances"),
		Command:   "run " + rapid.StringMatching(`[ -~]{0,40}`).Draw(t, "command"),
		Resources: Resources{
			CPUs: rapid.Float64Range(0.01, 16).Draw(t, "cpus"), Memory: Bytes(rapid.Int64Range(1<<20, 1<<33).Draw(t, "memory")),
			Disk: Bytes(rapid.Int64Range(0, 1<<33).Draw(t, "disk")), Ports: rapid.IntRange(0, MaxPorts).Draw(t, "ports"),
		},
		Kill:   Kill{Signal: "TERM", Grace: duration("kill")},
		Deploy: Deploy{Strategy: "blue-green", Deadline: duration("deadline"), Drain: duration("drain")},
	}
	if env := rapid.MapOfN(rapid.StringMatching(`[A-Z]{1,3}_X`), rapid.String().Filter(func(s string) bool {
		return unreadable(s) == ""
	}), 0, 4).Draw(t, "env"); len(env) > 0 {
		s.Env = env
	}
	if s.Resources.Ports > 0 && rapid.Bool().Draw(t, "service") {
		s.Kind = KindService
		port := rapid.IntRange(0, s.Resources.Ports-1).Draw(t, "port")
		s.Health = &Health{
			Interval: duration("interval"), Timeout: duration("timeout"), Grace: duration("grace"),
			Rise: rapid.IntRange(1, 9).Draw(t, "rise"), Fall: rapid.IntRange(1, 9).Draw(t, "fall"),
		}
		if rapid.Bool().Draw(t, "http") {
			s.Health.HTTP = &HTTPCheck{Path: "/h?a=1", Port: port}
		} else {
			s.Health.TCP = &TCPCheck{Port: port}
		}
		s.Routes = []Route{{Group: "public", Host: "*", Path: "/" + name.Draw(t, "path"), Port: port}}
	}
	return s
}

// FuzzParse: any input ends, in a Spec whose canonical form is stable or in problems.
func FuzzParse(f *testing.F) {
	for _, file := range []string{"testdata/parse/good", "testdata/parse/bad"} {
		if b, err := os.ReadFile(file); err == nil {
			for _, part := range strings.Split(string(b), "\n\n") {
				f.Add([]byte(part))
			}
		}
	}
	f.Add([]byte(full))
	f.Fuzz(func(t *testing.T, source []byte) {
		s, problems := Parse(source)
		if len(problems) > 0 {
			for _, p := range problems {
				if p.Reason == "" {
					t.Fatal("a problem without a reason")
				}
			}
			return
		}
		again, problems := Parse(s.Canonical())
		if problems != nil || !bytes.Equal(again.Canonical(), s.Canonical()) {
			t.Fatalf("canonical form is not stable: %s: %v", s.Canonical(), problems)
		}
	})
}
