package api_test

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/apitest"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// follow opens an event stream and returns its lines.
func (s *server) follow(path string, header ...string) (*bufio.Scanner, func()) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	r, err := http.NewRequestWithContext(ctx, "GET", s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.token)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := s.http.Do(r)
	if err != nil {
		cancel()
		s.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		s.t.Errorf("%d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	return bufio.NewScanner(resp.Body), func() {
		resp.Body.Close()
		cancel()
	}
}

// until reads lines until one contains what is wanted, and returns them all.
func until(t *testing.T, lines *bufio.Scanner, want string) []string {
	t.Helper()
	var got []string
	for lines.Scan() {
		got = append(got, lines.Text())
		if strings.Contains(lines.Text(), want) {
			return got
		}
	}
	t.Fatalf("the stream ended (%v) before %q: %q", lines.Err(), want, got)
	return nil
}

func TestEvents(t *testing.T) {
	service := &apitest.Service{}
	service.Emit(deploy.Event{Deploy: "01D", Type: "step", Step: "launching"})
	service.Emit(deploy.Event{Deploy: "01D", Type: "note", Msg: "two\nlines"})
	s := serve(t, service, func(o *api.Options) { o.Heartbeat = 10 * time.Millisecond })

	lines, closeStream := s.follow("/v1/deploys/01D/events", "Last-Event-ID", "1")
	defer closeStream()
	got := until(t, lines, "data:")
	if joined := strings.Join(got, "\n"); strings.Contains(joined, "launching") || !strings.Contains(joined, "id: 2\nevent: note\n") || !strings.Contains(joined, `two\nlines`) {
		t.Errorf("resumed: %s", joined)
	}
	until(t, lines, ": still here")
	service.Emit(deploy.Event{Deploy: "01D", Type: "host", View: &deploy.View{DeployID: "01D"}})
	if got := until(t, lines, "id: 3"); len(got) == 0 {
		t.Error("no live event")
	}
	if got := until(t, lines, "data:"); !strings.Contains(got[len(got)-1], `"hosts":[]`) {
		t.Errorf("the View of an event is not complete: %s", got)
	}
	service.Emit(deploy.Event{Deploy: "01D", Type: "end"})
	until(t, lines, "event: end")
	for lines.Scan() {
	}
	if err := lines.Err(); err != nil {
		t.Errorf("the end is not clean: %v", err)
	}
}

func TestShutdownEndsStreams(t *testing.T) {
	service := &apitest.Service{}
	service.Put(deploy.View{DeployID: "01D"})
	s := serve(t, service, nil)
	lines, closeStream := s.follow("/v1/deploys/01D/events")
	defer closeStream()
	until(t, lines, ": cutover")
	s.shutdown()
	until(t, lines, "come back with the last id")
}

func TestStreamsAreBounded(t *testing.T) {
	service := &apitest.Service{}
	service.Put(deploy.View{DeployID: "01D"})
	s := serve(t, service, func(o *api.Options) { o.MaxStreams = 1 })
	lines, closeStream := s.follow("/v1/deploys/01D/events")
	until(t, lines, ": cutover")
	resp, text := s.request("GET", "/v1/deploys/01D/events", "", "")
	if p := s.problem(resp, text); p.Kind != deploy.RefusedUnavailable {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	closeStream()
	deadline := time.Now().Add(generous)
	for {
		r, err := http.NewRequest("GET", s.url+"/v1/deploys/01D/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+s.token)
		resp, err := s.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 200 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the slot of a stream that is gone was never given back")
		}
	}
}
