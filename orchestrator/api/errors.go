package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/labstack/echo/v4"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// failure turns an error of the Service into what the asker sees. What is not the asker's fault is logged here, once, under the
// request's id, and its text stays inside.
func (h *Handler) failure(ctx context.Context, doing string, err error) error {
	var refusal *deploy.Refusal
	switch {
	case errors.As(err, &refusal):
		return wire.FromRefusal(refusal)
	case errors.Is(err, context.DeadlineExceeded):
		h.opts.Logger.WarnContext(ctx, "API request took too long", "request_id", requestID(ctx), "doing", doing, "limit", handleTimeout, "error", err)
		return wire.NewProblem(deploy.RefusedUnavailable, http.StatusGatewayTimeout,
			fmt.Sprintf("%s took longer than %s; what it started may still happen: look with status, or repeat it with the same idempotency key", doing, handleTimeout))
	case errors.Is(err, context.Canceled):
		// Nobody reads this answer.
		return wire.NewProblem(deploy.RefusedUnavailable, 0, "the request was given up")
	default:
		h.opts.Logger.ErrorContext(ctx, "API request failed", "request_id", requestID(ctx), "doing", doing, "error", err)
		return h.internal(ctx)
	}
}

func (h *Handler) internal(ctx context.Context) *wire.ProblemDetails {
	id := requestID(ctx)
	p := wire.NewProblem(wire.KindInternal, 0, "the orchestrator failed on this request; its log has the cause under request_id "+id)
	p.Instance = "urn:cutover:request:" + id
	return p
}

// writeError answers what no operation answered: unknown paths, wrong methods, panics, and what the middleware refused.
func (h *Handler) writeError(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	var problem *wire.ProblemDetails
	var httpErr *echo.HTTPError
	switch {
	case errors.As(err, &problem):
	case errors.As(err, &httpErr):
		problem = h.routerProblem(c, httpErr.Code)
	default:
		h.opts.Logger.Error("API request failed", "request_id", requestID(c.Request().Context()), "path", c.Path(), "error", err)
		problem = h.internal(c.Request().Context())
	}
	writeProblem(c.Response(), c.Request(), problem)
}

func (h *Handler) routerProblem(c echo.Context, status int) *wire.ProblemDetails {
	switch status {
	case http.StatusNotFound:
		return wire.NewProblem(deploy.RefusedNotFound, status, "this API has nothing at that path; /openapi.json lists what there is")
	case http.StatusMethodNotAllowed:
		return wire.NewProblem(deploy.RefusedInvalid, status, "that method is not possible at this path; the header Allow says which are")
	default:
		if kind := wire.KindOf(status); kind != wire.KindInternal {
			return wire.NewProblem(kind, status, http.StatusText(status))
		}
		return h.internal(c.Request().Context())
	}
}

func writeProblem(w http.ResponseWriter, r *http.Request, p *wire.ProblemDetails) {
	body, err := json.Marshal(p)
	if err != nil { // A struct of strings and numbers cannot fail.
		panic(err)
	}
	for name, values := range p.GetHeaders() {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Type", wire.ProblemContentType)
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		// An error means that the asker is gone.
		_, _ = w.Write(append(body, '\n'))
	}
}

// toProblem is the transformer that gives huma's own errors (validation of parameters and bodies) the shape of all others. It does
// so for this API only; replacing huma.NewError would do it for the whole process.
func toProblem(_ huma.Context, _ string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := wire.NewProblem(wire.KindOf(e.Status), e.Status, validationDetail(e))
	for _, d := range e.Errors {
		if d == nil {
			continue
		}
		p.Problems = append(p.Problems, deploy.Problem{Field: fieldOf(d.Location), Reason: d.Message})
	}
	return p, nil
}

func validationDetail(e *huma.ErrorModel) string {
	switch e.Status {
	case http.StatusUnsupportedMediaType:
		return "the body's Content-Type is not understood; send application/json, or application/yaml where a spec is asked for"
	case http.StatusNotAcceptable:
		return "this API answers application/json only"
	}
	if e.Status >= http.StatusInternalServerError {
		return "the orchestrator failed on this request"
	}
	return "the request is not valid"
}

// fieldOf turns "body.instances" and "query.limit" into the name that the sender used.
func fieldOf(location string) string {
	for _, prefix := range []string{"body.", "query.", "path.", "header."} {
		if rest, ok := strings.CutPrefix(location, prefix); ok {
			return rest
		}
	}
	return location
}

// logPanic logs what a handler panicked with.
func (h *Handler) logPanic(ctx context.Context, recovered any, stack []byte) {
	h.opts.Logger.ErrorContext(ctx, "API request panicked", "request_id", requestID(ctx), "panic", recovered, "stack", string(stack))
}
