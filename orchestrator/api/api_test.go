package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/apitest"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/auth"
	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// generous is how long a test waits for what must happen.
const generous = 30 * time.Second

// server is a served API with one token, of the actor "ci".
type server struct {
	t        *testing.T
	url      string
	token    string
	registry *prometheus.Registry
	log      *bytes.Buffer
	http     *http.Client
	handler  *api.Handler
	shutdown func()
}

func serve(t *testing.T, service api.Service, change func(*api.Options)) *server {
	t.Helper()
	token, err := auth.NewToken()
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := auth.NewTokens(auth.Entry{Actor: "ci", Hash: auth.HashOf(token)})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, token: token, registry: prometheus.NewPedanticRegistry(), log: &bytes.Buffer{}}
	opts := api.Options{Service: service, Auth: tokens, Registry: s.registry, Logger: slog.New(slog.NewTextHandler(s.log, nil)), Version: "1.2.3"}
	if change != nil {
		change(&opts)
	}
	s.handler, err = api.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	httpServer := api.HTTPServer(s.handler)
	done := make(chan error, 1)
	go func() { done <- httpServer.Serve(listener) }()
	transport := &http.Transport{}
	s.http = &http.Client{Transport: transport, Timeout: generous}
	stopped := false
	s.shutdown = func() {
		if stopped {
			return
		}
		stopped = true
		ctx, cancel := context.WithTimeout(context.Background(), generous)
		defer cancel()
		if err := httpServer.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
		transport.CloseIdleConnections()
	}
	t.Cleanup(s.shutdown)
	s.url = "http://" + listener.Addr().String()
	return s
}

func (s *server) request(method, path, contentType, body string, header ...string) (*http.Response, string) {
	s.t.Helper()
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.token)
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i+1] == "" {
			r.Header.Del(header[i])
			continue
		}
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := s.http.Do(r)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp, string(text)
}

func (s *server) problem(resp *http.Response, text string) wire.ProblemDetails {
	s.t.Helper()
	if got := resp.Header.Get("Content-Type"); got != wire.ProblemContentType {
		s.t.Fatalf("Content-Type %q of %d: %s", got, resp.StatusCode, text)
	}
	var p wire.ProblemDetails
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		s.t.Fatalf("%v: %s", err, text)
	}
	if p.Status != resp.StatusCode {
		s.t.Errorf("status %d in the body, %d in the answer", p.Status, resp.StatusCode)
	}
	if p.Type != wire.TypePrefix+string(p.Kind) || p.Title == "" || p.Detail == "" {
		s.t.Errorf("incomplete problem: %s", text)
	}
	return p
}

func TestSubmit(t *testing.T) {
	type call struct {
		Source string
		Meta   api.Meta
	}
	var calls []call
	service := &apitest.Service{OnSubmit: func(source []byte, meta api.Meta) (deploy.View, error) {
		calls = append(calls, call{string(source), meta})
		return deploy.View{DeployID: "01D", App: "shop", State: deploy.Running}, nil
	}}
	s := serve(t, service, nil)

	resp, text := s.request("POST", "/v1/deploys", "application/json", `{"source":"name: shop\n","reason":"release 12"}`, "Idempotency-Key", "run-1")
	if resp.StatusCode != http.StatusAccepted || resp.Header.Get("Location") != "/v1/deploys/01D" {
		t.Fatalf("%d, Location %q: %s", resp.StatusCode, resp.Header.Get("Location"), text)
	}
	var raw map[string]any
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		t.Fatal(err)
	}
	for _, list := range []string{"tasks", "hosts", "steps"} {
		if _, ok := raw[list].([]any); !ok {
			t.Errorf("%s is %v, want a list", list, raw[list])
		}
	}

	for _, contentType := range []string{"application/yaml", "text/yaml; charset=utf-8"} {
		if resp, text := s.request("POST", "/v1/deploys", contentType, "name: shop\n"); resp.StatusCode != http.StatusAccepted {
			t.Fatalf("%s: %d %s", contentType, resp.StatusCode, text)
		}
	}
	if resp, text := s.request("POST", "/v1/deploys", "application/json", `{"source":"name: shop\n","reason":"other"}`, "Idempotency-Key", "run-1"); resp.StatusCode != http.StatusAccepted {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	if len(calls) != 4 {
		t.Fatalf("%d calls, want 4", len(calls))
	}
	if diff := cmp.Diff(call{"name: shop\n", api.Meta{Actor: "ci", Reason: "release 12", IdempotencyKey: "run-1", BodyDigest: calls[0].Meta.BodyDigest}}, calls[0]); diff != "" {
		t.Error(diff)
	}
	if calls[1].Source != "name: shop\n" || calls[1].Meta.BodyDigest != calls[2].Meta.BodyDigest {
		t.Errorf("raw YAML: %+v, %+v", calls[1], calls[2])
	}
	if len(calls[0].Meta.BodyDigest) != 64 || calls[0].Meta.BodyDigest == calls[3].Meta.BodyDigest {
		t.Errorf("digests %q and %q of different bodies", calls[0].Meta.BodyDigest, calls[3].Meta.BodyDigest)
	}
}

func TestRefusalsTravel(t *testing.T) {
	for kind, status := range map[deploy.RefusalKind]int{
		deploy.RefusedInvalid: 422, deploy.RefusedNotFound: 404, deploy.RefusedState: 409, deploy.RefusedLocked: 409,
		deploy.RefusedIdempotency: 422, deploy.RefusedUnavailable: 503, deploy.RefusedUnauthorized: 401,
	} {
		t.Run(string(kind), func(t *testing.T) {
			want := &deploy.Refusal{Kind: kind, Detail: "because", OpenDeploy: "01D", Problems: []deploy.Problem{{Line: 3, Column: 4, Field: "health.port", Reason: "out of range"}}}
			s := serve(t, &apitest.Service{OnStop: func(string, api.Meta) (deploy.View, error) { return deploy.View{}, fmt.Errorf("engine: %w", want) }}, nil)
			resp, text := s.request("POST", "/v1/apps/shop/stop", "", "")
			if resp.StatusCode != status {
				t.Errorf("status %d, want %d", resp.StatusCode, status)
			}
			p := s.problem(resp, text)
			if diff := cmp.Diff(want, p.Refusal()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRequestsThatAreWrong(t *testing.T) {
	s := serve(t, &apitest.Service{}, nil)
	for _, c := range []struct {
		name, method, path, contentType, body string
		status                                int
		kind                                  deploy.RefusalKind
		want                                  string
	}{
		{"unknown path", "GET", "/v1/nothing", "", "", 404, deploy.RefusedNotFound, "openapi.json"},
		{"wrong method", "DELETE", "/v1/apps", "", "", 405, deploy.RefusedInvalid, "Allow"},
		{"unknown query parameter", "GET", "/v1/deploys?limt=1", "", "", 422, deploy.RefusedInvalid, "limt"},
		{"limit", "GET", "/v1/deploys?limit=100000", "", "", 422, deploy.RefusedInvalid, "limit"},
		{"unknown key", "POST", "/v1/deploys", "application/json", `{"source":"x","sauce":1}`, 422, deploy.RefusedInvalid, "sauce"},
		{"missing key", "POST", "/v1/apps/shop/scale", "application/json", `{}`, 422, deploy.RefusedInvalid, "instances"},
		{"wrong type", "POST", "/v1/apps/shop/scale", "application/json", `{"instances":"four"}`, 422, deploy.RefusedInvalid, "instances"},
		{"negative", "POST", "/v1/apps/shop/scale", "application/json", `{"instances":-1}`, 422, deploy.RefusedInvalid, "instances"},
		{"no JSON", "POST", "/v1/apps/shop/scale", "application/json", `{`, 400, deploy.RefusedInvalid, ""},
		{"no body", "POST", "/v1/deploys", "application/json", ``, 400, deploy.RefusedInvalid, ""},
		{"empty YAML", "POST", "/v1/deploys", "application/yaml", ``, 400, deploy.RefusedInvalid, ""},
		{"content type", "POST", "/v1/deploys", "text/html", `<p>`, 415, deploy.RefusedInvalid, "application/json"},
		{"file", "GET", "/v1/tasks/x/logs?file=/etc/passwd", "", "", 422, deploy.RefusedInvalid, "file"},
		{"no such App", "GET", "/v1/apps/shop", "", "", 404, deploy.RefusedNotFound, "shop"},
		{"no such Deploy to follow", "GET", "/v1/deploys/01D/events", "", "", 404, deploy.RefusedNotFound, "01D"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.t = t
			resp, text := s.request(c.method, c.path, c.contentType, c.body)
			p := s.problem(resp, text)
			if resp.StatusCode != c.status || p.Kind != c.kind {
				t.Errorf("%d %s, want %d %s: %s", resp.StatusCode, p.Kind, c.status, c.kind, text)
			}
			if !strings.Contains(text, c.want) {
				t.Errorf("does not name %q: %s", c.want, text)
			}
			if strings.Contains(text, "huma") || strings.Contains(text, `"errors"`) {
				t.Errorf("another shape: %s", text)
			}
		})
	}
}

func TestKeyAndLastEventID(t *testing.T) {
	s := serve(t, &apitest.Service{}, nil)
	resp, text := s.request("POST", "/v1/apps/shop/stop", "", "", "Idempotency-Key", strings.Repeat("k", 256))
	if p := s.problem(resp, text); p.Kind != deploy.RefusedInvalid || !strings.Contains(text, "Idempotency-Key") {
		t.Errorf("long key: %s", text)
	}
	resp, text = s.request("GET", "/v1/deploys/01D/events", "", "", "Last-Event-ID", "seven")
	if p := s.problem(resp, text); p.Kind != deploy.RefusedInvalid || !strings.Contains(text, "Last-Event-ID") {
		t.Errorf("Last-Event-ID: %s", text)
	}
}

func TestBodyTooLarge(t *testing.T) {
	s := serve(t, &apitest.Service{OnSubmit: func([]byte, api.Meta) (deploy.View, error) {
		t.Error("the Service was asked")
		return deploy.View{}, nil
	}}, nil)
	big := strings.Repeat("x", 10<<20)
	resp, text := s.request("POST", "/v1/deploys", "application/yaml", big)
	if p := s.problem(resp, text); resp.StatusCode != http.StatusRequestEntityTooLarge || p.Kind != deploy.RefusedInvalid {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	// Without a Content-Length the limit is found while reading.
	r, err := http.NewRequest("POST", s.url+"/v1/deploys", struct{ io.Reader }{strings.NewReader(big)})
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.token)
	resp, err = s.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("chunked: %d", resp.StatusCode)
	}
}

func TestWhoMayAsk(t *testing.T) {
	s := serve(t, &apitest.Service{NotReady: errors.New("the term has not begun")}, nil)
	for _, c := range []struct {
		path   string
		status int
	}{
		{"/healthz", 200}, {"/readyz", 503}, {"/openapi.json", 200}, {"/metrics", 200},
		{"/v1/apps", 401}, {"/v1/version", 401}, {"/v1/nothing", 401}, {"/", 401},
	} {
		resp, text := s.request("GET", c.path, "", "", "Authorization", "")
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d, want %d: %s", c.path, resp.StatusCode, c.status, text)
		}
		if c.status == 401 {
			if p := s.problem(resp, text); p.Kind != deploy.RefusedUnauthorized {
				t.Errorf("%s: kind %s", c.path, p.Kind)
			}
			if resp.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: no WWW-Authenticate", c.path)
			}
		}
		if c.status == 503 && !strings.Contains(text, "the term has not begun") {
			t.Errorf("%s does not say why: %s", c.path, text)
		}
	}
}

func TestInternalErrorsStayInside(t *testing.T) {
	s := serve(t, &apitest.Service{Fail: errors.New("secret path /var/lib/x")}, nil)
	resp, text := s.request("GET", "/v1/apps", "", "")
	p := s.problem(resp, text)
	if resp.StatusCode != 500 || p.Kind != wire.KindInternal || strings.Contains(text, "secret") {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	id := resp.Header.Get("X-Request-Id")
	if id == "" || !strings.Contains(p.Detail, id) || p.Instance != "urn:cutover:request:"+id {
		t.Errorf("request id %q, problem %+v", id, p)
	}
	s.shutdown() // nobody writes the log any more
	if log := s.log.String(); !strings.Contains(log, "secret path") || !strings.Contains(log, id) {
		t.Errorf("log: %s", log)
	}
}

// panicker panics on every question about Apps.
type panicker struct{ apitest.Service }

func (*panicker) Apps(context.Context) ([]deploy.AppView, error) { panic("out of range") }

func TestPanicIsAProblem(t *testing.T) {
	s := serve(t, &panicker{}, nil)
	resp, text := s.request("GET", "/v1/apps", "", "")
	if p := s.problem(resp, text); resp.StatusCode != 500 || p.Kind != wire.KindInternal || strings.Contains(text, "out of range") {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	if resp, _ := s.request("GET", "/healthz", "", ""); resp.StatusCode != 200 {
		t.Errorf("after a panic: %d", resp.StatusCode)
	}
}

func TestReads(t *testing.T) {
	service := &apitest.Service{
		AppViews:  map[string]deploy.AppView{"shop": {Name: "shop", State: "running"}},
		TaskViews: []deploy.TaskView{{ID: "t1", App: "shop"}, {ID: "t2", App: "blog"}},
		HostViews: []api.HostShow{{Host: api.Host{Name: "lb1"}, Sections: []api.SectionShow{{App: "shop"}}}},
		OnLogs: func(task, file string, offset int64, limit int) (api.LogChunk, error) {
			return api.LogChunk{Data: fmt.Sprintf("%s %s %d %d", task, file, offset, limit), Offset: 1, Next: 2}, nil
		},
	}
	service.Put(deploy.View{DeployID: "01A", App: "shop", State: deploy.Succeeded})
	service.Put(deploy.View{DeployID: "01B", App: "blog", State: deploy.Running})
	s := serve(t, service, nil)
	for path, want := range map[string]string{
		"/v1/apps":           `"name":"shop"`,
		"/v1/apps/shop":      `"routes":[]`,
		"/v1/tasks?app=shop": `"id":"t1"`,
		"/v1/tasks/t1/logs":  `t1 stdout -1 65536`,
		"/v1/tasks/t1/logs?file=stderr&offset=5&limit=10": `t1 stderr 5 10`,
		"/v1/hosts":            `"open_txns":[]`,
		"/v1/hosts/lb1":        `"committed":[],"running":[]`,
		"/v1/deploys?app=shop": `"deploy_id":"01A"`,
		"/v1/deploys?limit=1":  `"deploy_id":"01B"`,
		"/v1/deploys/01A":      `"state":"succeeded"`,
		"/v1/version":          `"version":"1.2.3"`,
	} {
		resp, text := s.request("GET", path, "", "")
		if resp.StatusCode != 200 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s, want %s", path, resp.StatusCode, text, want)
		}
		// Lists are never null; the two times of a Deploy are, as long as there is nothing to tell.
		if rest := strings.NewReplacer(`"committed_at":null`, "", `"finished_at":null`, "").Replace(text); strings.Contains(rest, "null") {
			t.Errorf("%s has a null: %s", path, text)
		}
	}
	if _, text := s.request("GET", "/v1/tasks?app=shop", "", ""); strings.Contains(text, "t2") {
		t.Errorf("another App's task: %s", text)
	}
}

func TestChanges(t *testing.T) {
	var got []string
	note := func(format string, args ...any) (deploy.View, error) {
		got = append(got, fmt.Sprintf(format, args...))
		return deploy.View{DeployID: "01D", State: deploy.Succeeded}, nil
	}
	s := serve(t, &apitest.Service{
		OnScale: func(app string, n int, m api.Meta) (deploy.View, error) {
			return note("scale %s %d %s", app, n, m.Reason)
		},
		OnStop: func(app string, m api.Meta) (deploy.View, error) { return note("stop %s %s", app, m.Reason) },
		OnRollback: func(app string, to uint64, m api.Meta) (deploy.View, error) {
			return note("rollback %s %d %s", app, to, m.Reason)
		},
		OnAbort: func(ref string, m api.Meta) (deploy.View, error) { return note("abort %s %s", ref, m.Actor) },
	}, nil)
	for _, c := range [][2]string{
		{"/v1/apps/shop/scale", `{"instances":0,"reason":"night"}`},
		{"/v1/apps/shop/stop", ``},
		{"/v1/apps/shop/stop", `{"reason":"gone"}`},
		{"/v1/apps/shop/rollback", ``},
		{"/v1/apps/shop/rollback", `{"to":3,"reason":"bad"}`},
		{"/v1/apps/shop/abort", ``},
		{"/v1/deploys/01D/abort", ``},
	} {
		if resp, text := s.request("POST", c[0], "application/json", c[1]); resp.StatusCode != 200 {
			t.Errorf("%s: %d %s", c[0], resp.StatusCode, text)
		}
	}
	want := []string{"scale shop 0 night", "stop shop ", "stop shop gone", "rollback shop 0 ", "rollback shop 3 bad", "abort shop ci", "abort 01D ci"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestMetrics(t *testing.T) {
	s := serve(t, &apitest.Service{}, nil)
	s.request("GET", "/v1/apps/a", "", "")
	s.request("GET", "/v1/apps/b", "", "")
	s.request("GET", "/junk", "", "", "Authorization", "")
	_, text := s.request("GET", "/metrics", "", "")
	for _, want := range []string{
		`cutover_api_requests_total{method="GET",route="/v1/apps/:app",status="404"} 2`,
		`cutover_api_unauthorised_total 1`,
		`cutover_api_event_streams 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in:\n%s", want, text)
		}
	}
	if strings.Contains(text, "junk") {
		t.Error("a path became a label")
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", err, problems)
	}
}

func TestOptionsAreRequired(t *testing.T) {
	if _, err := api.New(api.Options{}); err == nil || !strings.Contains(err.Error(), "Service") {
		t.Errorf("%v", err)
	}
}

// A request about a Host names the Host, the asker, the reason and the key.
func TestHostChangesReachTheService(t *testing.T) {
	var asked []string
	service := &apitest.Service{
		OnHost: func(ask api.HostAsk, meta api.Meta) (api.Host, error) {
			asked = append(asked, fmt.Sprintf("%s %s %s %s %t by %s: %s (%t)", ask.Verb, ask.Host, ask.Group, ask.AgentURL, ask.Sure, meta.Actor, meta.Reason, meta.IdempotencyKey != ""))
			return api.Host{Name: ask.Host}, nil
		},
		OnResolve: func(ref string, meta api.Meta) (api.Resolution, error) {
			asked = append(asked, "resolve "+ref+" by "+meta.Actor)
			return api.Resolution{Hosts: []wire.HostResolution{{Name: ref}}}, nil
		},
	}
	server, err := apitest.NewServer(service)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	}()
	c, err := client.New(client.Options{URL: server.URL(), Token: apitest.Token})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	why := client.Change{Reason: "why"}
	for _, ask := range []func() error{
		func() error {
			_, err := c.Admit(t.Context(), "lb-9", "public", "https://10.0.0.9:8600", why)
			return err
		},
		func() error { _, err := c.Readmit(t.Context(), "lb-1", why); return err },
		func() error { _, err := c.DrainHost(t.Context(), "lb-1", false, why); return err },
		func() error { _, err := c.Exclude(t.Context(), "lb-1", true, why); return err },
		func() error { _, err := c.RemoveHost(t.Context(), "lb-1", true, why); return err },
		func() error { _, err := c.Resolve(t.Context(), "lb-1", client.Change{}); return err },
	} {
		if err := ask(); err != nil {
			t.Error(err)
		}
	}
	const actor = "ci"
	want := []string{
		"admit lb-9 public https://10.0.0.9:8600 false by " + actor + ": why (true)", "readmit lb-1   false by " + actor + ": why (true)",
		"drain lb-1   false by " + actor + ": why (true)", "exclude lb-1   true by " + actor + ": why (true)",
		"remove lb-1   true by " + actor + ": why (true)", "resolve lb-1 by " + actor,
	}
	if d := cmp.Diff(want, asked); d != "" {
		t.Error(d)
	}
	if _, err := c.Exclude(t.Context(), "lb-1", true, client.Change{}); err == nil {
		t.Error("excluded without a reason")
	}
}
