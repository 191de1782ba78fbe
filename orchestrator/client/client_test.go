package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/apitest"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// generous is how long a test waits for what must happen.
const generous = 30 * time.Second

func TestMain(m *testing.M) { leaktest.Main(m) }

func start(t *testing.T, service api.Service) *apitest.Server {
	t.Helper()
	s, err := apitest.NewServer(service)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func connect(t *testing.T, url string, note func(string)) *client.Client {
	t.Helper()
	c, err := client.New(client.Options{URL: url, Token: apitest.Token, UserAgent: "test", Note: note})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	t.Cleanup(cancel)
	return ctx
}

func TestAddress(t *testing.T) {
	for _, url := range []string{"", "localhost:80", "ftp://x", "http://", "http://user:pw@host", "http://host/?a=b", "http://host/#x", "::"} {
		if _, err := client.New(client.Options{URL: url}); err == nil {
			t.Errorf("%q was accepted", url)
		} else if strings.Contains(err.Error(), "pw@") {
			t.Errorf("%q: the error repeats a password: %v", url, err)
		}
	}
	c, err := client.New(client.Options{URL: "https://host:1/base/"})
	if err != nil || c.URL() != "https://host:1/base" {
		t.Errorf("%v %v", c, err)
	}
}

func TestOperations(t *testing.T) {
	var calls []string
	answer := func(format string, args ...any) (deploy.View, error) {
		calls = append(calls, fmt.Sprintf(format, args...))
		return deploy.View{DeployID: "01D", App: "shop", State: deploy.Succeeded}, nil
	}
	service := &apitest.Service{
		OnSubmit: func(source []byte, m api.Meta) (deploy.View, error) {
			return answer("submit %s %s %s %s", source, m.Actor, m.Reason, m.IdempotencyKey)
		},
		OnScale: func(app string, n int, m api.Meta) (deploy.View, error) {
			return answer("scale %s %d %s", app, n, m.Reason)
		},
		OnStop: func(app string, m api.Meta) (deploy.View, error) {
			return answer("stop %s %v", app, m.IdempotencyKey != "")
		},
		OnRollback: func(app string, to uint64, _ api.Meta) (deploy.View, error) { return answer("rollback %s %d", app, to) },
		OnAbort:    func(ref string, _ api.Meta) (deploy.View, error) { return answer("abort %s", ref) },
		OnLogs: func(task, file string, offset int64, limit int) (api.LogChunk, error) {
			return api.LogChunk{Data: fmt.Sprint(task, file, offset, limit), Next: 9}, nil
		},
		AppViews:  map[string]deploy.AppView{"shop": {Name: "shop"}},
		TaskViews: []deploy.TaskView{{ID: "a/b", App: "shop"}},
		HostViews: []api.HostShow{{Host: api.Host{Name: "lb1"}}},
	}
	ctx, c := within(t), connect(t, start(t, service).URL(), nil)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	must(c.Submit(ctx, []byte("name: shop"), client.Change{Reason: "why", Key: "k"}))
	must(c.Scale(ctx, "shop", 3, client.Change{Reason: "more"}))
	must(c.Stop(ctx, "shop", client.Change{}))
	must(c.Rollback(ctx, "shop", 2, client.Change{}))
	must(c.AbortApp(ctx, "shop", client.Change{}))
	must(c.Abort(ctx, "01D", client.Change{}))
	must(nil, c.Validate(ctx, []byte("name: shop")))
	want := []string{"submit name: shop ci why k", "scale shop 3 more", "stop shop true", "rollback shop 2", "abort shop", "abort 01D"}
	if diff := cmp.Diff(want, calls); diff != "" {
		t.Error(diff)
	}
	must(c.Deploy(ctx, "01D"))
	must(c.Deploys(ctx, "shop", 5))
	must(c.Apps(ctx))
	must(c.App(ctx, "shop"))
	must(c.Hosts(ctx))
	must(c.ShowHost(ctx, "lb1"))
	if tasks, err := c.Tasks(ctx, "shop"); err != nil || len(tasks) != 1 {
		t.Errorf("%v %v", tasks, err)
	}
	if chunk, err := c.Logs(ctx, "a.b", "stderr", 7, 8); err != nil || chunk.Data != "a.bstderr7 8" {
		t.Errorf("%+v %v", chunk, err)
	}
	if v, err := c.Version(ctx); err != nil || v.Version != "test" {
		t.Errorf("%+v %v", v, err)
	}
	var refusal *deploy.Refusal
	if _, err := c.App(ctx, "../v1/version"); !errors.As(err, &refusal) || refusal.Kind != deploy.RefusedNotFound {
		t.Errorf("a name with slashes: %v", err)
	}
}

func TestRefusalArrives(t *testing.T) {
	want := &deploy.Refusal{Kind: deploy.RefusedLocked, Detail: "shop has an open Deploy", OpenDeploy: "01C"}
	s := start(t, &apitest.Service{OnStop: func(string, api.Meta) (deploy.View, error) { return deploy.View{}, want }})
	_, err := connect(t, s.URL(), nil).Stop(within(t), "shop", client.Change{})
	var refusal *deploy.Refusal
	if !errors.As(err, &refusal) || cmp.Diff(want, refusal) != "" {
		t.Errorf("%v", err)
	}
	var problem *wire.ProblemDetails
	if !errors.As(err, &problem) || problem.Status != http.StatusConflict {
		t.Errorf("%v", err)
	}
}

func TestLargeBodyIsRefusedReadably(t *testing.T) {
	s := start(t, &apitest.Service{})
	_, err := connect(t, s.URL(), nil).Submit(within(t), []byte(strings.Repeat("x", 10<<20)), client.Change{})
	var problem *wire.ProblemDetails
	if !errors.As(err, &problem) || problem.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("%v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	const url = "http://127.0.0.1:1" // where nobody ever listens
	var notes []string
	_, err := connect(t, url, func(s string) { notes = append(notes, s) }).Stop(within(t), "shop", client.Change{})
	var unreachable *client.Unreachable
	if !errors.As(err, &unreachable) || unreachable.Sent || !strings.Contains(err.Error(), url) {
		t.Errorf("%v", err)
	}
	if len(notes) > 0 {
		t.Errorf("a request that cannot have arrived was repeated: %q", notes)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the token went elsewhere") }))
	defer elsewhere.Close()
	here := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer here.Close()
	if _, err := connect(t, here.URL, nil).Apps(within(t)); err == nil {
		t.Error("no error")
	}
}

// isSlow reports whether a note says only that an answer takes long: on a busy machine any may.
func isSlow(note string) bool { return strings.Contains(note, "no answer for") }

// A request whose answer is lost is repeated under the same key.
func TestLostAnswerIsAskedForAgain(t *testing.T) {
	var keys []string
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
		switch len(keys) {
		case 1:
			panic(http.ErrAbortHandler)
		case 2:
			w.Header().Set("Content-Type", wire.ProblemContentType)
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"kind":"unavailable","detail":"starting"}`)
		default:
			fmt.Fprint(w, `{"deploy_id":"01D"}`)
		}
	}))
	defer server.Close()
	notes := 0
	v, err := connect(t, server.URL, func(note string) {
		if !isSlow(note) {
			notes++
		}
	}).Stop(within(t), "shop", client.Change{})
	if err != nil || v.DeployID != "01D" {
		t.Fatalf("%+v %v", v, err)
	}
	if len(keys) != 3 || keys[0] == "" || keys[0] != keys[1] || keys[1] != keys[2] {
		t.Errorf("keys %q", keys)
	}
	if notes != 1 {
		t.Errorf("%d notes, want 1", notes)
	}
}

// watcher collects what Follow tells.
type watcher struct {
	events chan deploy.Event
	views  chan deploy.View
	enough func(deploy.Event) bool
}

func newWatcher() *watcher {
	return &watcher{events: make(chan deploy.Event, 100), views: make(chan deploy.View, 100)}
}

func (w *watcher) Event(e deploy.Event) bool {
	w.events <- e
	return w.enough == nil || !w.enough(e)
}

func (w *watcher) View(v deploy.View) bool {
	w.views <- v
	return v.State == deploy.Running
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(generous):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestFollowAcrossRestarts(t *testing.T) {
	for name, end := range map[string]func(*apitest.Server) error{"killed": (*apitest.Server).Kill, "stopped": (*apitest.Server).Stop} {
		t.Run(name, func(t *testing.T) {
			service := &apitest.Service{}
			service.Emit(deploy.Event{Deploy: "01D", Type: "step", Step: "launching"})
			s := start(t, service)
			notes := make(chan string, 100)
			c := connect(t, s.URL(), func(n string) {
				if !isSlow(n) {
					notes <- n
				}
			})
			w := newWatcher()
			done := make(chan error, 1)
			go func() { done <- c.Follow(within(t), "01D", 0, w) }()
			if e := receive(t, w.events); e.Seq != 1 {
				t.Fatalf("%+v", e)
			}
			if err := end(s); err != nil {
				t.Fatal(err)
			}
			// What happens while nobody serves must not be lost.
			service.Emit(deploy.Event{Deploy: "01D", Type: "step", Step: "preparing"})
			if n := receive(t, notes); !strings.Contains(n, "reconnecting") {
				t.Errorf("note %q", n)
			}
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			if e := receive(t, w.events); e.Seq != 2 {
				t.Fatalf("%+v", e)
			}
			if n := receive(t, notes); n != "connected again" {
				t.Errorf("note %q", n)
			}
			service.Emit(deploy.Event{Deploy: "01D", Type: "end"})
			if e := receive(t, w.events); e.Seq != 3 {
				t.Fatalf("%+v", e)
			}
			if err := receive(t, done); err != nil {
				t.Error(err)
			}
			if len(w.events) > 0 || len(w.views) > 0 {
				t.Errorf("%d events and %d views too many", len(w.events), len(w.views))
			}
		})
	}
}

func TestFollowEnds(t *testing.T) {
	service := &apitest.Service{}
	service.Emit(deploy.Event{Deploy: "01D", Type: "step"})
	service.Emit(deploy.Event{Deploy: "01D", Type: "end", View: &deploy.View{DeployID: "01D", State: deploy.RolledBack}})
	s := start(t, service)
	c := connect(t, s.URL(), nil)

	t.Run("when the watcher has enough", func(t *testing.T) {
		w := newWatcher()
		w.enough = func(e deploy.Event) bool { return e.Seq == 1 }
		if err := c.Follow(within(t), "01D", 0, w); err != nil || len(w.events) != 1 {
			t.Errorf("%v, %d events", err, len(w.events))
		}
	})
	t.Run("when its events are over", func(t *testing.T) {
		w := newWatcher()
		if err := c.Follow(within(t), "01D", 2, w); err != nil || len(w.events) != 0 || len(w.views) != 1 {
			t.Errorf("%v, %d events, %d views", err, len(w.events), len(w.views))
		}
	})
	t.Run("when the orchestrator refuses", func(t *testing.T) {
		var refusal *deploy.Refusal
		if err := c.Follow(within(t), "01X", 0, newWatcher()); !errors.As(err, &refusal) || refusal.Kind != deploy.RefusedNotFound {
			t.Errorf("%v", err)
		}
	})
	t.Run("when its time is over", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second) // it has to find out that nobody answers
		defer cancel()
		away, err := client.New(client.Options{URL: "http://127.0.0.1:1"})
		if err != nil {
			t.Fatal(err)
		}
		if err := away.Follow(ctx, "01D", 0, newWatcher()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		} else if unreachable := (*client.Unreachable)(nil); !errors.As(err, &unreachable) {
			t.Errorf("%v does not say that nobody answered", err)
		}
	})
}

// Where nobody leads, reads and changes are asked for again when the answer says, under the same key.
func TestWaitsForALeader(t *testing.T) {
	keys := map[string]bool{}
	tries := 0
	refusal := &deploy.Refusal{Kind: deploy.RefusedUnavailable, Detail: "nobody leads", RetryAfter: time.Millisecond}
	service := &apitest.Service{}
	service.OnStop = func(_ string, meta api.Meta) (deploy.View, error) {
		keys[meta.IdempotencyKey] = true
		if tries++; tries < 2 {
			return deploy.View{}, refusal
		}
		return deploy.View{DeployID: "01A"}, nil
	}
	s := start(t, service)
	var notes []string
	noted := func() {}
	c := connect(t, s.URL(), func(note string) {
		if !isSlow(note) {
			notes = append(notes, note)
			noted()
		}
	})
	if v, err := c.Stop(within(t), "shop", client.Change{}); err != nil || v.DeployID != "01A" {
		t.Fatalf("%+v %v", v, err)
	}
	if tries != 2 || len(keys) != 1 || len(notes) != 1 || !strings.Contains(notes[0], "nobody leads") {
		t.Errorf("%d tries under %v, notes %q", tries, keys, notes)
	}
	// Its caller's patience is shorter.
	service.Fail = &deploy.Refusal{Kind: refusal.Kind, Detail: refusal.Detail, RetryAfter: time.Minute}
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	noted = cancel // it was refused once, and waits
	var got *deploy.Refusal
	if _, err := c.Apps(ctx); !errors.As(err, &got) || got.Detail != refusal.Detail {
		t.Errorf("Apps: %v", err)
	}
}
