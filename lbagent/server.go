package lbagent

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cutover/cutover/internal/crashpoint"
	"github.com/cutover/cutover/proto/gen/cutover/lbagent/v1/lbagentv1connect"
)

// Limits on what a caller may send.
const (
	maxMessage     = 4 << 20
	maxSyncMessage = 16 << 20 // a Sync of 1,000 Apps fits
	bodyTimeout    = 30 * time.Second
)

// newServer serves the Connect service (HTTP/1.1 and HTTP/2, without TLS too), /healthz, /readyz and /metrics.
func (a *Agent) newServer() *http.Server {
	mux := http.NewServeMux()
	path, handler := lbagentv1connect.NewHostServiceHandler(service{a}, connect.WithReadMaxBytes(maxSyncMessage),
		connect.WithCompressMinBytes(1<<10))
	mux.Handle(path, limitBody(answering(handler)))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.opts.Registry, promhttp.HandlerOpts{}))
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(a.opts.TLS == nil)
	return &http.Server{
		Handler: mux, TLSConfig: a.opts.TLS, Protocols: protocols,
		ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: maxCalls + maxWatchers},
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
}

// limitBody bounds the size of a body and the time that it may take to arrive. The time ends with the body: the answer
// to a Prepare may rightly take minutes, and a Watch has no end.
func limitBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limit := int64(maxMessage)
		if strings.HasSuffix(r.URL.Path, "/Sync") {
			limit = maxSyncMessage
		}
		rc := http.NewResponseController(w)
		// Not every ResponseWriter has deadlines (tests); the size limit holds in any case.
		if rc.SetReadDeadline(time.Now().Add(bodyTimeout)) == nil {
			r.Body = &timedBody{ReadCloser: r.Body, end: func() { _ = rc.SetReadDeadline(time.Time{}) }}
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		next.ServeHTTP(w, r)
	})
}

// timedBody calls end once, when the body has been read or closed.
type timedBody struct {
	io.ReadCloser
	once sync.Once
	end  func()
}

// Read implements io.Reader.
func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.once.Do(b.end)
	}
	return n, err
}

// Close implements io.Closer.
func (b *timedBody) Close() error {
	b.once.Do(b.end)
	return b.ReadCloser.Close()
}

type answerKey struct{}

// answering runs the crash point that a handler asked for after its answer has been handed to the kernel.
func answering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		label := new(string)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), answerKey{}, label)))
		if *label != "" {
			_ = http.NewResponseController(w).Flush()
			crashpoint.At(*label)
		}
	})
}

// afterAnswer names the crash point for when the answer of this call is out.
func afterAnswer(ctx context.Context, label string) {
	if l, ok := ctx.Value(answerKey{}).(*string); ok {
		*l = label
	}
}

func writeText(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, s)
}
