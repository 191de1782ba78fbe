package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/apitest"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/auth"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// pair is a leader and a follower with the same tokens.
type pair struct {
	leader, follower *server
	service          *apitest.Service
	stored           *apitest.Service // what the follower reads from the stores
}

// follow serves an orchestrator that follows, with one token that both know.
func follow(t *testing.T, standing func() api.Standing) (s *server, tokens *auth.Tokens) {
	t.Helper()
	s = serve(t, nil, func(o *api.Options) {
		o.Standing = standing
		tokens = o.Auth.(*auth.Tokens)
	})
	return s, tokens
}

func newPair(t *testing.T, change func(*api.Standing)) pair {
	t.Helper()
	p := pair{service: &apitest.Service{}, stored: &apitest.Service{}}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	var tokens *auth.Tokens
	p.follower, tokens = follow(t, func() api.Standing {
		st := api.Standing{Name: "b", Service: p.stored, Leader: &wire.Leader{Name: "a", URL: p.leader.url}, Transport: transport, Why: "nobody leads"}
		if change != nil {
			change(&st)
		}
		return st
	})
	p.leader = serve(t, nil, func(o *api.Options) {
		o.Auth = tokens
		o.Standing = func() api.Standing {
			return api.Standing{Name: "a", Leads: true, Service: p.service, Leader: &wire.Leader{Name: "a", URL: "http://a"}}
		}
	})
	return p
}

func TestFollowerForwards(t *testing.T) {
	p := newPair(t, nil)
	var got []api.Meta
	p.service.OnScale = func(_ string, n int, meta api.Meta) (deploy.View, error) {
		got = append(got, meta)
		return deploy.View{DeployID: "01A", App: "shop"}, nil
	}
	const body = `{"instances":3,"reason":"more"}`
	for _, s := range []*server{p.follower, p.leader} {
		s.token = p.follower.token
		resp, text := s.request(http.MethodPost, "/v1/apps/shop/scale", "application/json", body, "Idempotency-Key", "k1", "X-Forwarded-User", "root", "X-Actor", "root")
		if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
			t.Fatalf("%s: %s", resp.Status, text)
		}
		if ids := resp.Header.Values("X-Request-Id"); len(ids) != 1 {
			t.Errorf("request ids %v", ids)
		}
	}
	if len(got) != 2 || got[0] != got[1] || got[0].Actor != "ci" || got[0].IdempotencyKey != "k1" || got[0].Reason != "more" {
		t.Errorf("through the follower and directly it is not the same: %+v", got)
	}
	resp, text := p.follower.request(http.MethodPost, "/v1/apps/none/stop", "application/json", `{}`)
	if resp.StatusCode != http.StatusNotFound || resp.Header.Get("Content-Type") != wire.ProblemContentType {
		t.Errorf("the leader's refusal came as %s %s", resp.Status, text)
	}
	p.follower.token = "cut_wrong"
	if resp, _ := p.follower.request(http.MethodGet, "/v1/apps", "application/json", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a wrong token: %s", resp.Status)
	}
}

func TestRoles(t *testing.T) {
	p := newPair(t, nil)
	for s, want := range map[*server]string{p.leader: wire.RoleLeader, p.follower: wire.RoleFollower} {
		s.token = p.follower.token
		resp, text := s.request(http.MethodGet, "/readyz", "application/json", "")
		var h wire.Health
		if err := json.Unmarshal([]byte(text), &h); err != nil || resp.StatusCode != http.StatusOK || h.Role != want || h.Leader == nil || h.Leader.Name != "a" {
			t.Errorf("%s: %s %s", want, resp.Status, text)
		}
		_, text = s.request(http.MethodGet, "/v1/version", "application/json", "")
		var v wire.Version
		if err := json.Unmarshal([]byte(text), &v); err != nil || v.Role != want || v.Leader.Name != "a" {
			t.Errorf("%s: %s", want, text)
		}
	}
}

// Where nobody leads, or the leader is gone, the stores answer what they know, and the rest says when to come back.
func TestNobodyLeads(t *testing.T) {
	const url = "http://127.0.0.1:1" // where nobody ever listens
	for name, leader := range map[string]*wire.Leader{"nobody": nil, "crashed": {Name: "a", URL: url}, "itself, not ready": {Name: "b", URL: url}} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, func(st *api.Standing) { st.Leader = leader })
			p.stored.AppViews = map[string]deploy.AppView{"shop": {Name: "shop"}}
			if resp, text := p.follower.request(http.MethodGet, "/v1/apps", "application/json", ""); resp.StatusCode != http.StatusOK || !strings.Contains(text, "shop") || resp.Header.Get("Warning") == "" {
				t.Errorf("apps: %s %s", resp.Status, text)
			}
			for path, method := range map[string]string{"/v1/hosts": http.MethodGet, "/v1/apps/shop/stop": http.MethodPost, "/v1/deploys/01A/events": http.MethodGet, "/v1/validate": http.MethodPost} {
				resp, text := p.follower.request(method, path, "application/json", `{}`)
				var problem wire.ProblemDetails
				if err := json.Unmarshal([]byte(text), &problem); err != nil || resp.StatusCode != http.StatusServiceUnavailable ||
					resp.Header.Get("Retry-After") != "1" || problem.RetryAfter != 1 || problem.Kind != deploy.RefusedUnavailable {
					t.Errorf("%s %s: %s %v %s", method, path, resp.Status, resp.Header, text)
				}
			}
			resp, text := p.follower.request(http.MethodGet, "/readyz", "application/json", "")
			if known := name == "crashed"; known != (resp.StatusCode == http.StatusOK) {
				t.Errorf("readyz: %s %s", resp.Status, text)
			}
		})
	}
}

// Two that take each other for the leader forward once, and no more.
func TestForwardingMakesNoLoop(t *testing.T) {
	hops := 0
	var a, b *server
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	counting := roundTripper(func(r *http.Request) (*http.Response, error) {
		hops++
		return transport.RoundTrip(r)
	})
	a, tokens := follow(t, func() api.Standing {
		return api.Standing{Name: "a", Leader: &wire.Leader{Name: "b", URL: b.url}, Transport: counting, Why: "nobody"}
	})
	b = serve(t, nil, func(o *api.Options) {
		o.Auth = tokens
		o.Standing = func() api.Standing {
			return api.Standing{Name: "b", Leader: &wire.Leader{Name: "a", URL: a.url}, Transport: counting, Why: "nobody"}
		}
	})
	resp, text := a.request(http.MethodPost, "/v1/apps/shop/stop", "application/json", `{}`)
	if resp.StatusCode != http.StatusServiceUnavailable || hops != 1 {
		t.Errorf("%s after %d hops: %s", resp.Status, hops, text)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A stream through a follower has the leader's events, and ends when another leads.
func TestStreamThroughFollower(t *testing.T) {
	changed := make(chan struct{})
	p := newPair(t, func(st *api.Standing) { st.Changed = changed })
	p.service.Emit(deploy.Event{Deploy: "01A", Type: "step"})
	ctx, cancel := context.WithTimeout(t.Context(), generous)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.follower.url+"/v1/deploys/01A/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+p.follower.token)
	resp, err := p.follower.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func(want string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), want) {
				return
			}
		}
		t.Fatalf("the stream ended without %q: %v", want, lines.Err())
	}
	next("id: 1")
	p.service.Emit(deploy.Event{Deploy: "01A", Type: "step"})
	next("id: 2")
	close(changed)
	for lines.Scan() {
		continue
	}
	if ctx.Err() != nil {
		t.Error("the stream did not end with the leader")
	}
}

// A leader that hangs is found out, and at once when another leads.
func TestLeaderHangs(t *testing.T) {
	changed, answer := make(chan struct{}), make(chan struct{})
	p := newPair(t, func(st *api.Standing) { st.Changed = changed })
	p.service.OnStop = func(string, api.Meta) (deploy.View, error) {
		close(changed)
		<-answer
		return deploy.View{}, nil
	}
	defer close(answer)
	resp, text := p.follower.request(http.MethodPost, "/v1/apps/shop/stop", "application/json", `{}`)
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(text, "same idempotency key") {
		t.Errorf("%s %s", resp.Status, text)
	}
}

// A follower says how old what it knows of the leader is; the leader knows it by itself.
func TestVersionSaysHowOldTheLeaderIs(t *testing.T) {
	p := newPair(t, func(st *api.Standing) { st.Heard = time.Now().Add(-time.Hour) })
	p.leader.token = p.follower.token
	for s, want := range map[*server]bool{p.follower: true, p.leader: false} {
		resp, text := s.request(http.MethodGet, "/v1/version", "", "")
		var v wire.Version
		if err := json.Unmarshal([]byte(text), &v); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %v", text, err)
		}
		if (v.LeaderHeardAgo != nil) != want || want && *v.LeaderHeardAgo < 3599 || v.Leader == nil {
			t.Errorf("%s", text)
		}
	}
}
