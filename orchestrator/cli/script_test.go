package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/apitest"
	"github.com/cutover/cutover/orchestrator/cli"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// generous is how long a test waits for what must happen.
const generous = 30 * time.Second

// TestMain makes `cutover` a command of the scripts, as a process of its own.
func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"cutover": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			opts := cli.OS("v1.2.3-test")
			// Times in what is printed are those of the scripted stories.
			opts.Now = func() time.Time { return apitest.At(time.Minute) }
			os.Exit(cli.Main(ctx, os.Args[1:], opts))
		},
	})
}

// leakChecked runs the tests, then looks for goroutines that they left.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int { return leaktest.Run(l.m) }

// world is the orchestrator of one script. Apps are the stories: deploying the App "stuck" tells apitest.Story.Stuck.
type world struct {
	service *apitest.Service
	server  *apitest.Server

	mu      sync.Mutex
	stories map[string]*apitest.Story // by deploy id
	keys    map[string]string         // idempotency key -> body digest and deploy id
	count   int
}

type worldKey struct{}

func stories() map[string]func(*apitest.Story) *apitest.Story {
	return map[string]func(*apitest.Story) *apitest.Story{
		"running": func(s *apitest.Story) *apitest.Story { return s }, "prepared": (*apitest.Story).Prepared,
		"good": (*apitest.Story).Committed, "drained": (*apitest.Story).Drained, "drain-stuck": (*apitest.Story).DrainStuck,
		"rolled-back": (*apitest.Story).RolledBack, "stuck": (*apitest.Story).Stuck, "task-failed": (*apitest.Story).TaskFailed,
		"aborted": (*apitest.Story).Aborted, "unchanged": (*apitest.Story).Unchanged,
		"rest": func(s *apitest.Story) *apitest.Story { // of "prepared", to the Commit
			s.Step(deploy.StepActivating, "").Vote("lb1", deploy.VoteVerified, "").Vote("lb2", deploy.VoteVerified, "")
			s.Last.State, s.Last.ReasonCode = deploy.Succeeded, string(deploy.CodeCommitted)
			return s.Step(deploy.StepDraining, "")
		},
		"superseded": func(s *apitest.Story) *apitest.Story {
			s.Last.State, s.Last.Reason, s.Last.ReasonCode = deploy.Superseded, "superseded by 01Z", string(deploy.CodeSuperseded)
			return s.Step(deploy.StepDone, "")
		},
		"paused": func(s *apitest.Story) *apitest.Story {
			s.Last.State = "paused"
			return s.Step("paused", "")
		},
	}
}

func (w *world) begin(kind, name string, meta api.Meta) (deploy.View, error) {
	tell, ok := stories()[name]
	if !ok {
		return deploy.View{}, apitest.NotFound("App", name)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if known, ok := w.keys[meta.IdempotencyKey]; ok {
		digest, id, _ := strings.Cut(known, " ")
		if digest != meta.BodyDigest {
			return deploy.View{}, &deploy.Refusal{Kind: deploy.RefusedIdempotency, Detail: "the key was used for another request"}
		}
		return w.stories[id].Last, nil
	}
	w.count++
	id := fmt.Sprintf("01D%d", w.count)
	w.keys[meta.IdempotencyKey] = meta.BodyDigest + " " + id
	story := apitest.NewStory(id)
	first := story.Last // what the answer shows is the state right after the request
	story.Last.Kind, first.Kind = kind, kind
	if name == "unchanged" {
		first = tell(story).Last
	} else {
		tell(story)
	}
	w.stories[id] = story
	story.Tell(w.service)
	return first, nil
}

func newWorld() *world {
	w := &world{stories: map[string]*apitest.Story{}, keys: map[string]string{}}
	w.service = &apitest.Service{
		OnSubmit: func(source []byte, meta api.Meta) (deploy.View, error) {
			name := strings.TrimSpace(strings.TrimPrefix(strings.SplitN(string(source), "\n", 2)[0], "name:"))
			switch name {
			case "invalid":
				return deploy.View{}, &deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: "the spec is not valid",
					Problems: []deploy.Problem{{Line: 2, Column: 1, Field: "knd", Reason: `unknown key, did you mean "kind"?`}}}
			case "locked":
				return deploy.View{}, &deploy.Refusal{Kind: deploy.RefusedLocked, Detail: "locked has an open Deploy", OpenDeploy: "01C"}
			case "starting":
				return deploy.View{}, &deploy.Refusal{Kind: deploy.RefusedUnavailable, Detail: "the orchestrator starts"}
			case "broken":
				return deploy.View{}, errors.New("disk on fire")
			}
			return w.begin("deploy", name, meta)
		},
		OnScale: func(app string, _ int, meta api.Meta) (deploy.View, error) { return w.begin("scale", app, meta) },
		OnStop:  func(app string, meta api.Meta) (deploy.View, error) { return w.begin("stop", app, meta) },
		OnRollback: func(app string, to uint64, meta api.Meta) (deploy.View, error) {
			if app == "first" {
				return deploy.View{}, &deploy.Refusal{Kind: deploy.RefusedState, Detail: "first has no earlier spec"}
			}
			if app == "aborted" || app == "stuck" || to == 99 {
				return w.begin("deploy", app, meta) // the open Deploy
			}
			return w.begin("rollback", app, meta)
		},
		OnAbort: func(ref string, meta api.Meta) (deploy.View, error) {
			if ref == "01C" {
				return deploy.View{}, &deploy.Refusal{Kind: deploy.RefusedState, Detail: "01C already succeeded, use rollback"}
			}
			return w.begin("deploy", ref, meta)
		},
		OnValidate: func(source []byte) error {
			if strings.Contains(string(source), "nowhere") {
				return &deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: "the spec is not valid", Problems: []deploy.Problem{{Line: 6, Reason: "unknown group nowhere"}}}
			}
			return nil
		},
		OnLogs: func(task, file string, offset int64, limit int) (api.LogChunk, error) {
			text := "first line\n" + file + " of " + task + "\n"
			if offset < 0 {
				offset = max(0, int64(len(text)-limit))
			}
			if offset > int64(len(text)) {
				offset = int64(len(text))
			}
			return api.LogChunk{Data: text[offset:], Offset: offset, Next: int64(len(text))}, nil
		},
		AppViews: map[string]deploy.AppView{
			"shop": {Name: "shop", Kind: "service", State: "running", Spec: 2, Version: "1.4.2", Instances: 2, Healthy: 2, LastDeploy: "01A", Routes: []string{"public */shop"}},
			"blog": {Name: "blog", Kind: "service", State: "stopped"},
		},
		TaskViews: []deploy.TaskView{
			{ID: "shop.2.0.x", App: "shop", Spec: 2, State: "running", Health: "healthy", Address: "127.0.0.1:31000"},
			{ID: "shop.2.1.x", App: "shop", Spec: 2, State: "running", Health: "healthy", Address: "127.0.0.1:31001"},
			{ID: "shop.1.0.x", App: "shop", Spec: 1, State: "killed", Health: "unknown"},
		},
		HostViews: []api.HostShow{
			{Host: api.Host{Name: "lb1", Group: "public", Proxy: "haproxy", ProxyVersion: "2.6.12", ProxyPID: 42, Connected: true},
				Sections: []api.SectionShow{{App: "shop", Spec: 2, Version: "7", Agrees: true}}},
			{Host: api.Host{Name: "lb2", Group: "public", Proxy: "nginx-lua"}},
		},
		Drifts: map[string]api.HostDrift{"lb1": {Policy: "repair", Differences: []api.Drift{{App: "shop", Cause: "foreign-command",
			Since: apitest.At(0), Place: "the running proxy", Summary: "a has weight 1, not 100", Diff: "-upstream a weight 100\n+upstream a weight 1\n"}}}},
	}
	w.service.Put(apitest.NewStory("01A").Drained().Last)
	return w
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			w := newWorld()
			var err error
			if w.server, err = apitest.NewServer(w.service); err != nil {
				return err
			}
			env.Values[worldKey{}] = w
			env.Defer(func() {
				if err := w.server.Kill(); err != nil {
					t.Error(err)
				}
			})
			env.Setenv("CUTOVER_API", w.server.URL())
			env.Setenv("CUTOVER_TOKEN", apitest.Token)
			env.Setenv("CUTOVER_DATA_DIR", "")
			env.Setenv("CI", "")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits, "last": last, "orchestrator": orchestrator, "story": story, "await": await, "interrupt": interrupt,
		},
		RequireExplicitExec: true,
	})
}

// exits runs a command that must exit with a code: exits 3 cutover deploy -f app.yaml.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code command...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// last checks fields of the JSON object that must be the last line of standard output: last state=succeeded hosts.0.vote=verified.
func last(ts *testscript.TestScript, neg bool, args []string) {
	lines := strings.Split(strings.TrimSuffix(ts.ReadFile("stdout"), "\n"), "\n")
	var object map[string]any
	dec := json.NewDecoder(strings.NewReader(lines[len(lines)-1]))
	if err := dec.Decode(&object); err != nil {
		ts.Fatalf("the last line of standard output is no JSON object: %v", err)
	}
	for _, arg := range args {
		path, want, _ := strings.Cut(arg, "=")
		var at any = object
		for _, step := range strings.Split(path, ".") {
			switch v := at.(type) {
			case map[string]any:
				at = v[step]
			case []any:
				i, err := strconv.Atoi(step)
				if err != nil || i >= len(v) {
					at = nil
					continue
				}
				at = v[i]
			default:
				at = nil
			}
		}
		if got := fmt.Sprint(at); (got == want) == neg {
			ts.Fatalf("%s is %q, want %q (not: %v)", path, got, want, neg)
		}
	}
}

// orchestrator ends or starts the orchestrator: orchestrator kill|stop|start.
func orchestrator(ts *testscript.TestScript, neg bool, args []string) {
	w := ts.Value(worldKey{}).(*world)
	do := map[string]func() error{"kill": w.server.Kill, "stop": w.server.Stop, "start": w.server.Start}[args[0]]
	ts.Check(do())
}

// story goes on with a Deploy: story 01D1 good.
func story(ts *testscript.TestScript, neg bool, args []string) {
	w := ts.Value(worldKey{}).(*world)
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stories[args[0]]
	told := len(s.Events)
	stories()[args[1]](s)
	for _, e := range s.Events[told:] {
		w.service.Emit(e)
	}
}

// await waits until a file that a background command writes holds a text: await err reconnecting.
func await(ts *testscript.TestScript, neg bool, args []string) {
	path, want := ts.MkAbs(args[0]), args[1]
	for deadline := time.Now().Add(generous); time.Now().Before(deadline); {
		data, err := os.ReadFile(path)
		if err == nil && bytes.Contains(data, []byte(want)) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s never held %q", args[0], want)
}

// interrupt sends SIGINT to the process whose id is in a file.
func interrupt(ts *testscript.TestScript, neg bool, args []string) {
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGINT))
}
