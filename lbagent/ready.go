package lbagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// This file is the readiness endpoint for upstream balancers, which cannot show a client certificate. It says yes or no, and
// nothing that a stranger could use.

func (a *Agent) listenReady(ctx context.Context) (net.Listener, error) {
	if a.opts.ReadyListen == "" {
		return nil, nil
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", a.opts.ReadyListen)
	if err != nil {
		return nil, fmt.Errorf("lbagent %s: the readiness endpoint: %w", a.opts.Name, err)
	}
	return ln, nil
}

// serveReady serves until ctx ends.
func (a *Agent) serveReady(ctx context.Context, ln net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if len(a.state.Load().Unready()) > 0 {
			writeText(w, http.StatusServiceUnavailable, "not ready\n")
			return
		}
		writeText(w, http.StatusOK, "ready\n")
	})
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		a.failed <- fmt.Errorf("lbagent %s: serve the readiness endpoint: %w", a.opts.Name, err)
	}
	<-ended
}
