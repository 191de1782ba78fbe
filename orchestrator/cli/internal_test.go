package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/cutover/cutover/orchestrator/api/apitest"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
)

func TestGuessMode(t *testing.T) {
	for args, want := range map[string]outputMode{
		"deploy -o json": modeJSON, "deploy --output jsonl": modeJSONL, "deploy --output=json": modeJSON, "deploy -ojson": modeJSON, "deploy -o=jsonl": modeJSONL,
		"deploy": modeText, "deploy -o text": modeText, "deploy -o": modeText, "deploy -- -o json": modeText, "deploy -o yaml": modeText,
	} {
		if got := guessMode(strings.Fields(args)); got != want {
			t.Errorf("%s: %s, want %s", args, got, want)
		}
	}
}

func TestQuote(t *testing.T) {
	for word, want := range map[string]string{".cutover": ".cutover", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$HOME": "'$HOME'", "http://a:1/b": "http://a:1/b"} {
		if got := quote(word); got != want {
			t.Errorf("%s: %s, want %s", word, got, want)
		}
	}
}

func TestResolve(t *testing.T) {
	t.Chdir(t.TempDir())
	write := func(dir, text string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, devFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("named", `{"api_url":"http://named","token":"tn","hosts":[]}`)
	write("broken", `{`)
	write("empty", `{}`)
	for _, c := range []struct {
		name string
		conn connection
		env  map[string]string
		want address
		err  string
	}{
		{"flags", connection{api: "http://a", token: "t"}, nil, address{"http://a", "t"}, ""},
		{"flags before environment", connection{api: "http://a", token: "t"}, map[string]string{"CUTOVER_API": "http://b", "CUTOVER_TOKEN": "u"}, address{"http://a", "t"}, ""},
		{"directory's flag before environment", connection{dataDir: "named"}, map[string]string{"CUTOVER_API": "http://b", "CUTOVER_TOKEN": "u"}, address{"http://named", "tn"}, ""},
		{"environment's directory", connection{}, map[string]string{"CUTOVER_DATA_DIR": "named"}, address{"http://named", "tn"}, ""},
		{"address and named directory", connection{api: "http://a", dataDir: "named"}, nil, address{"http://a", "tn"}, ""},
		{"no directory", connection{dataDir: "none"}, nil, address{}, "no dev cluster in none"},
		{"broken file", connection{dataDir: "broken"}, nil, address{}, "dev.json"},
		{"file without address", connection{dataDir: "empty"}, nil, address{}, "api_url"},
		{"nothing", connection{}, nil, address{}, "no orchestrator is named"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.conn.resolve(func(key string) string { return c.env[key] })
			if c.err != "" {
				var refusal *deploy.Refusal
				if !errors.As(err, &refusal) || refusal.Kind != deploy.RefusedUnavailable || !strings.Contains(refusal.Detail, c.err) {
					t.Fatalf("%v, want %q", err, c.err)
				}
				return
			}
			if err != nil || got != c.want {
				t.Fatalf("%+v %v, want %+v", got, err, c.want)
			}
		})
	}
	write(defaultDataDir, `{"api_url":"http://here","token":"th"}`)
	none := func(string) string { return "" }
	if got, err := (&connection{}).resolve(none); err != nil || got != (address{"http://here", "th"}) {
		t.Errorf("the working directory's cluster: %+v %v", got, err)
	}
	// Its token must not travel elsewhere.
	if got, err := (&connection{api: "http://elsewhere"}).resolve(none); err != nil || got != (address{"http://elsewhere", ""}) {
		t.Errorf("another address: %+v %v", got, err)
	}
	if got, err := (&connection{api: "http://here/"}).resolve(none); err != nil || got.token != "th" {
		t.Errorf("the same address: %+v %v", got, err)
	}
}

func TestInClear(t *testing.T) {
	for url, want := range map[string]bool{"http://127.0.0.1:1": false, "http://[::1]:1": false, "http://localhost": false, "https://a": false, "http://10.0.0.1": true, "http://a": true} {
		if got := inClear(url); got != want {
			t.Errorf("%s: %v", url, got)
		}
	}
}

func TestStillWaiting(t *testing.T) {
	var out bytes.Buffer
	p := &linePrinter{app: &app{}, out: &out}
	v := apitest.NewStory("01D").Healthy().Step(deploy.StepPreparing, "").Vote("lb1", deploy.VoteReady, "").Vote("lb2", deploy.VoteNone, "").Last
	p.start(v)
	p.waiting(v, apitest.At(31*time.Second))
	want := "01D  deploy shop  spec 1 -> 2 (1.4.2)  by ci\n   +31.0s        still waiting for hosts to be ready: lb2\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	if p.tick() != 30*time.Second {
		t.Errorf("every %s", p.tick())
	}
}

func TestUndoing(t *testing.T) {
	for state, want := range map[deploy.State][2]any{
		deploy.Aborted: {0, true}, deploy.RolledBack: {0, true}, deploy.Superseded: {0, true},
		deploy.Stuck: {4, true}, deploy.Running: {0, false}, deploy.Succeeded: {1, true},
	} {
		code, done := undoing(deploy.View{State: state})
		if got := [2]any{code, done}; got != want {
			t.Errorf("%s: %v, want %v", state, got, want)
		}
	}
}

func TestProblemOfEveryError(t *testing.T) {
	for _, c := range []struct {
		err  error
		exit int
	}{
		{&usageError{errors.New("x")}, 1},
		{errors.New("x"), 1},
		{&client.Unreachable{URL: "http://a", Err: errors.New("refused")}, 9},
		{&deploy.Refusal{Kind: deploy.RefusedLocked}, 8},
		{&ExitError{Code: 5, Err: errors.New("x")}, 5},
	} {
		var out, errOut bytes.Buffer
		a := &app{Options: Options{Out: &out, Err: &errOut}, mode: modeJSON}
		if got := a.report(t.Context(), c.err); got != c.exit {
			t.Errorf("%v: exit %d, want %d", c.err, got, c.exit)
		}
		if !strings.Contains(out.String(), `"kind":`) || errOut.Len() > 0 {
			t.Errorf("%v: out %s err %s", c.err, &out, &errOut)
		}
	}
}

// Whoever calls a command wrongly is told what is wrong, and which command is the right one.
func TestWhatIsWrongWithACommand(t *testing.T) {
	for args, want := range map[string]string{
		"frob":               `unknown command "frob" for "cutover"; cutover --help lists them`,
		"statsu":             `did you mean: cutover status?`,
		"statsu --what":      `did you mean: cutover status?`,
		"lb frob":            `unknown command "frob" for "cutover lb"; cutover lb --help lists them`,
		"lb frob --what":     `unknown command "frob" for "cutover lb"`,
		"lb frob -o json":    `unknown command "frob" for "cutover lb"`,
		"lb host":            `did you mean: cutover lb hosts?`,
		"lb re":              `did you mean: cutover lb readmit, or cutover lb remove, or cutover lb resolve?`,
		"lb --what":          `unknown flag: --what; see cutover lb --help`,
		"completion bsah":    `did you mean: cutover completion bash, or`,
		"help frob":          `unknown command "frob" for "cutover"`,
		"help lb hots":       `did you mean: cutover lb hosts?`,
		"scale shop":         "cutover scale: an argument is missing: cutover scale APP INSTANCES [flags]",
		"scale shop 1 2":     `cutover scale: "2" is one argument too many`,
		"scale shop -3":      "-3: a number here cannot be negative",
		"scale shop 1001":    `INSTANCES "1001": want a number from 0 to 1000`,
		"apps shop":          `cutover apps: it takes no argument, and "shop" is one`,
		"lb drain":           "cutover lb drain: an argument is missing: cutover lb drain HOST --reason TEXT",
		"status a b":         `cutover status: "b" is one argument too many`,
		"deploy app.yaml":    `cutover deploy: it takes no argument, and "app.yaml" is one`,
		"lb resolve --frobx": "unknown flag: --frobx; see cutover lb resolve --help",
	} {
		var out, errOut bytes.Buffer
		code := Main(t.Context(), strings.Fields(args), Options{Out: &out, Err: &errOut, Env: func(string) string { return "" },
			Terminal: func() (int, int, bool) { return 0, 0, false }, Now: time.Now})
		if told := out.String() + errOut.String(); code != 1 || !strings.Contains(strings.ReplaceAll(told, `\"`, `"`), want) {
			t.Errorf("%s: exit %d, want 1 and %q: %s", args, code, want, told)
		}
	}
	for _, args := range []string{"", "lb", "help", "help lb", "help lb hosts", "lb --help", "completion", "completion bash"} {
		var out, errOut bytes.Buffer
		if code := Main(t.Context(), strings.Fields(args), Options{Out: &out, Err: &errOut, Env: func(string) string { return "" }}); code != 0 || out.Len() == 0 {
			t.Errorf("%s: exit %d, %s", args, code, &errOut)
		}
	}
}

func TestEmptySpec(t *testing.T) {
	for text, want := range map[string]bool{"": true, " \n\t\n": true, "# to come\n---\n": true, "{}": false, "name: shop": false, "# shop\nname: shop": false} {
		if got := isEmpty([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	file := filepath.Join(t.TempDir(), "app.yaml")
	if err := os.WriteFile(file, []byte("# nothing yet\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"validate", "deploy"} {
		var out, errOut bytes.Buffer
		code := Main(t.Context(), []string{command, "-f", file}, Options{Out: &out, Err: &errOut, Env: func(string) string { return "" }})
		if code != 1 || !strings.Contains(errOut.String(), "app.yaml is empty") || !strings.Contains(errOut.String(), "cutover validate --help") {
			t.Errorf("%s: exit %d, %s", command, code, &errOut)
		}
	}
}

// The spec that is shown to begin with is one that is accepted, as it is shown.
func TestExampleSpec(t *testing.T) {
	if _, problems := spec.Parse([]byte(exampleSpec)); len(problems) > 0 {
		t.Errorf("%v", problems)
	}
}

// What the API's document says of the number of instances is what is true.
func TestLimitOfInstances(t *testing.T) {
	field, _ := reflect.TypeFor[wire.ScaleBody]().FieldByName("Instances")
	if got := field.Tag.Get("maximum"); got != strconv.Itoa(spec.MaxInstances) {
		t.Errorf("the API allows %s, a spec %d", got, spec.MaxInstances)
	}
}

// The daemons' own commands get what the others get: usage errors, exit codes, reports.
func TestRegisteredCommands(t *testing.T) {
	daemon := func() *cobra.Command {
		return &cobra.Command{Use: "daemon", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return &ExitError{Code: 5} }}
	}
	for args, want := range map[string]int{"daemon": 5, "daemon extra": 1, "daemon --nope": 1} {
		var out, errOut bytes.Buffer
		got := Main(t.Context(), strings.Fields(args), Options{Commands: []func() *cobra.Command{daemon}, Out: &out, Err: &errOut, Env: func(string) string { return "" },
			Terminal: func() (int, int, bool) { return 0, 0, false }, Now: time.Now})
		if got != want {
			t.Errorf("%s: exit %d, want %d: %s", args, got, want, &errOut)
		}
	}
}

// What version says of several orchestrators: the leader that Consul names, how long ago, and none where that is too old.
func TestStanding(t *testing.T) {
	ago := func(seconds float64) *float64 { return &seconds }
	leader := &wire.Leader{Name: "orch-1", URL: "http://a"}
	for want, v := range map[string]wire.Version{
		"":                       {Role: wire.RoleLeader},
		", orch-1: leads":        {Name: "orch-1", Role: wire.RoleLeader, Leader: leader},
		", orch-2: nobody leads": {Name: "orch-2", Role: wire.RoleFollower, LeaderHeardAgo: ago(1)},
		", orch-2: follows orch-1 at http://a (Consul said so 3.00s ago)":                                  {Name: "orch-2", Role: wire.RoleFollower, Leader: leader, LeaderHeardAgo: ago(3)},
		", orch-2: follows orch-1 at http://a":                                                             {Name: "orch-2", Role: wire.RoleFollower, Leader: leader},
		", orch-2: who leads is not known: Consul has not answered for 40.0s; orch-1 at http://a led then": {Name: "orch-2", Role: wire.RoleFollower, Leader: leader, LeaderHeardAgo: ago(40)},
		", orch-1: who leads is not known: Consul has not answered for 40.0s":                              {Name: "orch-1", Role: wire.RoleFollower, LeaderHeardAgo: ago(40)},
	} {
		if got := standing(v); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
