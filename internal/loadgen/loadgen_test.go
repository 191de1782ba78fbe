package loadgen_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/internal/loadgen"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen within 20 s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func TestGoodServerHasNoFailures(t *testing.T) {
	var answers atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("v1")) }))
	defer srv.Close()
	run, err := loadgen.Start(context.Background(), loadgen.Options{URLs: []string{srv.URL}, KeepAlive: 3, Close: 2, Slow: 1, SlowPath: "/slow",
		OnAnswer: func(_ string, body []byte) {
			if string(body) == "v1" {
				answers.Add(1)
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "100 requests", func() bool { return run.Result().Sent > 100 })
	res := run.Stop()
	if res.Failed != 0 || uint64(answers.Load()) != res.Sent {
		t.Fatalf("got %v, %d answers; want none failed and an answer each", res, answers.Load())
	}
}

// The detector must see what a careless proxy does: it closes an idle kept-alive connection without saying so.
func TestUnannouncedCloseIsAFailure(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			_, _ = conn.Read(buf)
			_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
			_ = conn.Close()
		}
	}()
	run, err := loadgen.Start(context.Background(), loadgen.Options{URLs: []string{"http://" + ln.Addr().String()}, KeepAlive: 1, Think: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a failure", func() bool { return run.Result().Failed > 0 })
	res := run.Stop()
	if len(res.Failures) == 0 || !strings.Contains(res.String(), "failed") {
		t.Fatalf("failures are not described: %v", res)
	}
}

func TestErrorStatusIsAFailure(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }))
	defer srv.Close()
	run, err := loadgen.Start(context.Background(), loadgen.Options{URLs: []string{srv.URL}, Close: 1})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a failure", func() bool { return run.Result().Failed > 0 })
	if f := run.Stop().Failures[0]; !strings.Contains(f.Err, "503") {
		t.Fatalf("got %q", f.Err)
	}
}

// A server that is out of traffic may end without costing a request; its connections are not used again.
func TestOutOfTraffic(t *testing.T) {
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) })
	first := httptest.NewServer(hello)
	// The address stays this test's while the server is away.
	kept, err := first.Listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	run, err := loadgen.Start(context.Background(), loadgen.Options{URLs: []string{first.URL}, KeepAlive: 4, Close: 2})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the load runs", func() bool { return run.Result().Sent > 50 })
	run.TakeOut(first.URL)
	first.CloseClientConnections()
	first.Close()
	ln, err := net.FileListener(kept)
	if err != nil {
		t.Fatal(err)
	}
	second := &httptest.Server{Listener: ln, Config: &http.Server{Handler: hello}}
	second.Start()
	defer second.Close()
	before := run.Result().Sent
	run.PutIn(first.URL)
	waitFor(t, "the load runs again", func() bool { return run.Result().Sent > before+50 })
	if res := run.Stop(); res.Failed != 0 {
		t.Fatalf("%v\n%v", res, res.Failures)
	}
}

func TestStopsWhileOutOfTraffic(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	run, err := loadgen.Start(context.Background(), loadgen.Options{URLs: []string{srv.URL}, Close: 2})
	if err != nil {
		t.Fatal(err)
	}
	run.TakeOut(srv.URL)
	run.Stop()
}
