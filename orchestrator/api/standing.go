package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// HeaderForwarded marks a request that another orchestrator has forwarded, with that one's name. It is never forwarded
// again, so that two that take each other for the leader make no loop. It says nothing about who asks: only the token
// does, and the leader checks it itself.
const HeaderForwarded = "Cutover-Forwarded-By"

// retryAfter is when to come back where nobody leads: a hand-over takes less.
const retryAfter = time.Second

// How long the leader may take to begin its answer. One that hangs is found out before the asker gives up; where the stores
// can answer, sooner.
const (
	leaderTimeout      = 20 * time.Second
	leaderTimeoutReads = 3 * time.Second
)

// Standing is who answers at this moment.
type Standing struct {
	// Name is this orchestrator's; empty if it is the only one.
	Name string
	// Leads: this orchestrator does, and Service is its engine. Otherwise Service, if there is one, reads the stores; it is
	// asked only where leaderless allows.
	Leads   bool
	Service Service
	// Leader is who leads, this one or another; nil: nobody, as far as is known.
	Leader *wire.Leader
	// Heard is when the orchestrator was told last who leads; zero: it leads itself, or was never told.
	Heard time.Time
	// Transport reaches the leader.
	Transport http.RoundTripper
	// Changed is closed when another leads, or nobody.
	Changed <-chan struct{}
	// Why says why nobody leads, and what to do.
	Why string
}

type standingKey struct{}

// standingOf returns who answers the request that ctx belongs to.
func standingOf(ctx context.Context) Standing {
	s, _ := ctx.Value(standingKey{}).(Standing)
	return s
}

// service returns what answers the request that ctx belongs to. It stays the same for the whole request.
func (h *Handler) service(ctx context.Context) Service { return standingOf(ctx).Service }

// local names the requests that every orchestrator answers about itself.
func local(path string) bool {
	switch path {
	case pathHealthy, pathReady, pathMetrics, pathOpenAPI, pathVersion:
		return true
	default:
		return false
	}
}

// leaderless names the reads that the stores can answer while nobody leads.
func leaderless(c echo.Context) bool {
	if m := c.Request().Method; m != http.MethodGet && m != http.MethodHead {
		return false
	}
	switch c.Path() {
	case "/v1/deploys", "/v1/deploys/:id", "/v1/apps", "/v1/apps/:app", "/v1/tasks":
		return true
	default:
		return false
	}
}

// route lets the leader answer: this orchestrator, or the one that a request is forwarded to. What the stores know is
// answered from them while nobody leads.
func (h *Handler) route(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		s := h.opts.Standing()
		r = r.WithContext(context.WithValue(r.Context(), standingKey{}, s))
		c.SetRequest(r)
		if s.Leads || local(r.URL.Path) {
			return next(c)
		}
		why := s.Why
		if s.Leader != nil && s.Leader.Name != s.Name && r.Header.Get(HeaderForwarded) == "" {
			err := h.forward(c, s)
			if err == nil {
				return nil
			}
			h.opts.Logger.WarnContext(r.Context(), "the leader did not answer", "request_id", requestID(r.Context()), "leader", s.Leader.Name, "url", s.Leader.URL, "error", err)
			why = "the leader, " + s.Leader.Name + " at " + s.Leader.URL + ", does not answer: if it has crashed, another takes over in about 20 s; " +
				"what was asked for may have happened: repeat it with the same idempotency key, or look with status"
		}
		if leaderless(c) && s.Service != nil {
			c.Response().Header().Set("Warning", `199 cutover "nobody leads: from the stores"`)
			return next(c)
		}
		return wire.FromRefusal(&deploy.Refusal{Kind: deploy.RefusedUnavailable, Detail: why, RetryAfter: retryAfter})
	}
}

// forward lets the leader answer. An error means that nothing was answered yet.
func (h *Handler) forward(c echo.Context, s Standing) (failed error) {
	to, err := url.Parse(s.Leader.URL)
	if err != nil {
		return err
	}
	stream := c.Path() == routeEvents
	if stream {
		// The server's deadline for reading a request would end the stream.
		_ = http.NewResponseController(c.Response()).SetReadDeadline(time.Time{})
	}
	wait := leaderTimeout
	if leaderless(c) {
		wait = leaderTimeoutReads
	}
	ctx, cancel := context.WithCancelCause(c.Request().Context())
	defer cancel(nil)
	begun := make(chan struct{}) // closed when the answer begins
	go h.giveUp(ctx, cancel, s.Changed, begun, stream, wait)
	own := c.Response().Header().Get("X-Request-Id")
	c.Response().Header().Del("X-Request-Id") // the leader's log names the request
	proxy := &httputil.ReverseProxy{
		Transport:     s.Transport,
		FlushInterval: -1,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(to)
			p.Out.Host = ""
			p.Out.Header.Set(HeaderForwarded, s.Name)
		},
		ModifyResponse: func(*http.Response) error { close(begun); return nil },
		ErrorLog:       slog.NewLogLogger(h.opts.Logger.Handler(), slog.LevelDebug),
		ErrorHandler:   func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	proxy.ServeHTTP(c.Response(), c.Request().WithContext(ctx))
	if failed != nil {
		if cause := context.Cause(ctx); cause != nil {
			failed = cause
		}
		c.Response().Header().Set("X-Request-Id", own)
	} else {
		h.metrics.forwarded.Inc()
	}
	return failed
}

// giveUp ends a forwarded request that the leader does not begin to answer in time, or at all because another leads now. A
// stream also ends after it has begun: with this server, and when the leader changes, so that its reader comes back to the
// new one. It returns when there is nothing more to wait for.
func (h *Handler) giveUp(ctx context.Context, cancel context.CancelCauseFunc, changed <-chan struct{}, begun <-chan struct{}, stream bool, wait time.Duration) {
	silent := time.NewTimer(wait)
	defer silent.Stop()
	select {
	case <-begun:
	case <-silent.C:
		cancel(fmt.Errorf("it has said nothing for %s", wait))
		return
	case <-changed:
		cancel(errChanged)
		return
	case <-ctx.Done():
		return
	}
	if !stream {
		return
	}
	select {
	case <-changed:
		cancel(errChanged)
	case <-h.closing:
		cancel(errors.New("this orchestrator ends"))
	case <-ctx.Done():
	}
}

// errChanged is why a forwarded request is given up while the leader changes.
var errChanged = errors.New("it does not lead any more")
