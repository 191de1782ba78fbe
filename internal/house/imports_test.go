package house_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cutover/cutover"

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", "./...")
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		all = append(all, p)
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func under(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

// rule: packages under From may import, of our own, only what is under Allow (and under From).
type rule struct {
	From  string
	Allow []string
	Why   string
}

var rules = []rule{
	{"cmd", []string{"dev", "orchestrator", "lbagent", "mesosframework/localmesos", "proto/announcement", "internal"}, "a binary is flags and wiring; what it runs lives in dev, orchestrator and lbagent"},
	{"orchestrator", []string{"mesosframework", "healthcheck", "proto", "internal"}, "the orchestrator and the lbagents meet in proto only, on one machine too"},
	{"lbagent", []string{"proto", "internal"}, "the orchestrator and the lbagents meet in proto only, on one machine too"},
	{"mesosframework", []string{"proto", "internal"}, "the framework knows Mesos, and nothing of Deploys or proxies"},
	{"healthcheck", []string{"proto", "internal"}, "probes know addresses, and nothing of Deploys"},
	{"proto", nil, "a contract depends on nobody"},
	{"internal", nil, "plumbing without domain words imports nothing of ours"},
}

// forbidden: only packages under Only may import Path.
var forbidden = []struct{ Path, Only, Why string }{
	{"github.com/labstack/echo", "orchestrator/api", "echo is contained in one package, so that its end of support is one constructor"},
	{"github.com/mesos/mesos-go", "mesosframework", "nothing else may see a Mesos type"},
	{"go.etcd.io/bbolt", "orchestrator/store", "everyone else uses the store port"},
	{module + "/mesosframework/localmesos", "dev", "the framework must not know whether it talks to the local Mesos"},
}

// pure packages take time as a parameter and return effects as data.
var pure = []string{
	"orchestrator/deploy", "orchestrator/scheduler", "orchestrator/spec", "orchestrator/txn",
	"lbagent/participant", "mesosframework/placement",
}

var impure = []string{"net", "net/http", "os", "os/exec", "log", "log/slog", "math/rand", "math/rand/v2"}

func TestImportsFollowTheHousePlan(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range p.Imports {
			if own, ok := strings.CutPrefix(imp, module+"/"); ok {
				for _, r := range rules {
					if under(p.ImportPath, r.From) && !under(own, r.From) && !slices.ContainsFunc(r.Allow, func(a string) bool { return under(own, a) }) {
						t.Errorf("%s imports %s: %s", p.ImportPath, own, r.Why)
					}
				}
			}
			for _, f := range forbidden {
				only := under(p.ImportPath, f.Only) || (f.Only == "dev" && (under(p.ImportPath, "cmd") || under(p.ImportPath, "e2e") || under(p.ImportPath, "mesosframework/localmesos")))
				if under(imp, f.Path) && !only {
					t.Errorf("%s imports %s: %s", p.ImportPath, imp, f.Why)
				}
			}
			if slices.Contains(pure, p.ImportPath) && slices.Contains(impure, imp) {
				t.Errorf("%s imports %s: decisions are pure functions of (state, event, time)", p.ImportPath, imp)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 || under(p.ImportPath, "proto/gen") || slices.Contains(p.GoFiles, "main.go") {
			continue
		}
		if !slices.Contains(p.GoFiles, "doc.go") {
			t.Errorf("%s has no doc.go with its purpose and invariants", p.ImportPath)
		}
	}
}

func TestPureCodeReadsNoClock(t *testing.T) {
	for _, dir := range pure {
		files, err := filepath.Glob(filepath.Join(root(t), dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			src, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, call := range []string{"time.Now(", "time.Since(", "time.Until(", "time.After(", "time.Sleep("} {
				if strings.Contains(string(src), call) {
					t.Errorf("%s calls %s...): time is a parameter", strings.TrimPrefix(f, root(t)+"/"), call)
				}
			}
		}
	}
}
