package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/auth"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// The paths that matter to the middleware.
const (
	pathMetrics = "/metrics"
	pathOpenAPI = "/openapi.json"
	pathHealthy = "/healthz"
	pathReady   = "/readyz"
	pathVersion = "/v1/version"
	// routeEvents is the event stream as the router names it.
	routeEvents = "/v1/deploys/:id/events"
)

// isOpen names the requests that need no token.
func isOpen(r *http.Request) bool {
	switch r.URL.Path {
	case pathHealthy, pathReady, pathOpenAPI:
		return true
	case pathMetrics:
		return auth.FromLoopback(r)
	default:
		return false
	}
}

func (h *Handler) guard() auth.Guard {
	return auth.Guard{
		Authenticator: h.opts.Auth,
		Open:          isOpen,
		Refuse: func(w http.ResponseWriter, r *http.Request, detail string) {
			h.metrics.unauthorized.Inc()
			writeProblem(w, r, wire.NewProblem(deploy.RefusedUnauthorized, 0, detail))
		},
	}
}

type requestIDKey struct{}

// requestID returns the name of the request in the log.
func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// observe names the request and measures it. It runs first, so that it also sees what the others refuse.
func (h *Handler) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		started := time.Now()
		id := rand.Text()
		c.Response().Header().Set("X-Request-Id", id)
		c.SetRequest(c.Request().WithContext(context.WithValue(c.Request().Context(), requestIDKey{}, id)))
		if err := next(c); err != nil {
			h.writeError(err, c)
		}
		route, method, status := routeLabel(c), methodLabel(c.Request().Method), c.Response().Status
		h.metrics.requests.WithLabelValues(route, method, fmt.Sprint(status)).Inc()
		if route != routeEvents { // A stream lasts as long as its Deploy: that is no latency.
			h.metrics.seconds.WithLabelValues(route, method).Observe(time.Since(started).Seconds())
		}
		h.opts.Logger.DebugContext(c.Request().Context(), "API request", "request_id", id, "method", method, "route", route, "status", status,
			"actor", auth.Actor(c.Request().Context()), "duration", time.Since(started))
		return nil
	}
}

// recoverPanic turns a panic into an internal problem. http.ErrAbortHandler goes on: it is how a handler hangs up.
func (h *Handler) recoverPanic(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			recovered := recover()
			if recovered == nil {
				return
			}
			if e, ok := recovered.(error); ok && errors.Is(e, http.ErrAbortHandler) {
				panic(recovered)
			}
			h.logPanic(c.Request().Context(), recovered, debug.Stack())
			err = h.internal(c.Request().Context())
		}()
		return next(c)
	}
}

// withDeadlines bounds the work and the answer of every request that is no event stream.
func (h *Handler) withDeadlines(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if c.Path() == routeEvents {
			return next(c)
		}
		ctx, cancel := context.WithTimeout(c.Request().Context(), handleTimeout)
		defer cancel()
		c.SetRequest(c.Request().WithContext(ctx))
		// A writer that cannot set a deadline is a test's recorder, or a wrapped one whose server sets its own.
		_ = http.NewResponseController(c.Response()).SetWriteDeadline(time.Now().Add(handleTimeout + writeTimeout))
		return next(c)
	}
}

type bodyDigestKey struct{}

// drainBytes bounds what is read and thrown away of a body that is too large: a sender that is cut off while it writes often
// never sees why.
const drainBytes = 16 << 20

// readBody reads the body of a POST whole, bounds it, and takes the digest that an idempotency key is bound to. A spec that is sent
// as YAML by itself (curl --data-binary @app.yaml) becomes the JSON body that the operations take.
func (h *Handler) readBody(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		if r.Method != http.MethodPost {
			return next(c)
		}
		body, err := h.readBounded(r)
		if err != nil {
			c.Response().Header().Set("Connection", "close")
			return err
		}
		sum := sha256.New()
		fmt.Fprintf(sum, "%s\n%s\n", r.Method, r.URL.EscapedPath())
		sum.Write(body)
		ctx := context.WithValue(r.Context(), bodyDigestKey{}, hex.EncodeToString(sum.Sum(nil)))

		if takesSpec(c.Path()) && isYAML(r.Header.Get("Content-Type")) && len(body) > 0 {
			if body, err = json.Marshal(wire.ValidateBody{Source: string(body)}); err != nil {
				return wire.NewProblem(deploy.RefusedInvalid, 0, "the spec is not text: "+err.Error())
			}
			r.Header.Set("Content-Type", "application/json")
		}
		r = r.WithContext(ctx)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		c.SetRequest(r)
		return next(c)
	}
}

func (h *Handler) readBounded(r *http.Request) ([]byte, error) {
	tooLarge := wire.NewProblem(deploy.RefusedInvalid, http.StatusRequestEntityTooLarge,
		fmt.Sprintf("the request's body is larger than %d bytes; a spec is a page of text, files belong into its artifacts", wire.MaxBodyBytes))
	if r.ContentLength > wire.MaxBodyBytes {
		// With Expect: 100-continue nothing has been sent yet, and reading would ask for it.
		if r.Header.Get("Expect") == "" {
			_, _ = io.CopyN(io.Discard, r.Body, drainBytes)
		}
		return nil, tooLarge
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, wire.MaxBodyBytes+1))
	if err != nil {
		return nil, wire.NewProblem(deploy.RefusedInvalid, http.StatusBadRequest, "the request's body could not be read to its end: "+err.Error())
	}
	if len(body) > wire.MaxBodyBytes {
		_, _ = io.CopyN(io.Discard, r.Body, drainBytes)
		return nil, tooLarge
	}
	return body, nil
}

func takesSpec(route string) bool { return route == "/v1/deploys" || route == "/v1/validate" }

func isYAML(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false
	}
	switch t {
	case "application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml":
		return true
	default:
		return false
	}
}
