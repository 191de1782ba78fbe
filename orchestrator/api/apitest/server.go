package apitest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cutover/cutover/internal/servertest"
	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/auth"
)

// Token is the one that a Server accepts, as the actor "ci".
const Token = "cut_0000000000000000000000000000000000000000001" + tokenCheck

// tokenCheck is the checksum of Token's digits.
const tokenCheck = "0HNUPx"

// Server serves the real API over a Service on a loopback address, and can go away and come back there.
type Server struct {
	service api.Service
	addr    string

	mu   sync.Mutex
	http *http.Server
	done chan error
}

// NewServer serves at once. The caller stops it.
func NewServer(service api.Service) (*Server, error) {
	s := &Server{service: service, addr: servertest.Loopback() + ":0"}
	if err := s.Start(); err != nil {
		return nil, err
	}
	return s, nil
}

// URL of the API.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return "http://" + s.addr
}

// Start serves, on the same address as before.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	tokens, err := auth.NewTokens(auth.Entry{Actor: "ci", Hash: auth.HashOf(Token)})
	if err != nil {
		return err
	}
	handler, err := api.New(api.Options{
		Service: s.service, Auth: tokens, Registry: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler), Version: "test",
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		return err
	}
	s.addr = listener.Addr().String()
	s.http, s.done = api.HTTPServer(handler), make(chan error, 1)
	go func(server *http.Server, done chan<- error) { done <- server.Serve(listener) }(s.http, s.done)
	return nil
}

// Kill cuts every connection, as the death of the process would.
func (s *Server) Kill() error { return s.end((*http.Server).Close) }

// Stop shuts down as the orchestrator does when it is asked to end.
func (s *Server) Stop() error {
	return s.end(func(server *http.Server) error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return server.Shutdown(ctx)
	})
}

func (s *Server) end(how func(*http.Server) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http == nil {
		return nil
	}
	err := how(s.http)
	if served := <-s.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	s.http = nil
	return err
}
