package wire

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// ProblemContentType is the media type of a ProblemDetails (RFC 9457).
const ProblemContentType = "application/problem+json"

// TypePrefix starts the type of every problem; the kind follows. It is a name, not an address.
const TypePrefix = "urn:cutover:problem:"

// KindInternal marks a failure that is the server's own, not the asker's. It is no deploy.RefusalKind: nobody was refused.
const KindInternal deploy.RefusalKind = "internal"

// ProblemDetails is the one shape of everything that goes wrong, on the wire and on the standard output of the CLI (RFC 9457).
type ProblemDetails struct {
	Type       string             `json:"type" format:"uri" doc:"names the kind of problem" example:"urn:cutover:problem:locked"`
	Title      string             `json:"title" doc:"the same for every problem of this type"`
	Status     int                `json:"status,omitempty" doc:"HTTP status; absent if no server answered"`
	Detail     string             `json:"detail" doc:"what is wrong here, and what to do"`
	Instance   string             `json:"instance,omitempty" format:"uri" doc:"names this one request, as the server's log does"`
	Kind       deploy.RefusalKind `json:"kind" enum:"invalid,not-found,wrong-state,locked,idempotency,unavailable,not-authorised,internal" doc:"closed vocabulary, for scripts"`
	Problems   []deploy.Problem   `json:"problems,omitempty" doc:"each thing that is wrong with the input"`
	OpenDeploy string             `json:"open_deploy,omitempty" doc:"the Deploy in the way"`
	RetryAfter int                `json:"retry_after,omitempty" doc:"seconds after which to ask again (also the header Retry-After): the cause is expected to pass"`
}

// kindFacts is what follows from a kind: one title, and one HTTP status (deploy.RefusalKind says so).
type kindFacts struct {
	title  string
	status int
}

func factsOf(kind deploy.RefusalKind) kindFacts {
	switch kind {
	case deploy.RefusedInvalid:
		return kindFacts{"The input is wrong", http.StatusUnprocessableEntity}
	case deploy.RefusedNotFound:
		return kindFacts{"There is no such thing", http.StatusNotFound}
	case deploy.RefusedState:
		return kindFacts{"Not possible in this state", http.StatusConflict}
	case deploy.RefusedLocked:
		return kindFacts{"Another Deploy of the App is open", http.StatusConflict}
	case deploy.RefusedIdempotency:
		return kindFacts{"The idempotency key was used for another request", http.StatusUnprocessableEntity}
	case deploy.RefusedUnavailable:
		return kindFacts{"The orchestrator cannot do this now", http.StatusServiceUnavailable}
	case deploy.RefusedUnauthorized:
		return kindFacts{"Not authorised", http.StatusUnauthorized}
	default:
		return kindFacts{"Internal error", http.StatusInternalServerError}
	}
}

// StatusOf returns the HTTP status of a kind.
func StatusOf(kind deploy.RefusalKind) int { return factsOf(kind).status }

// ExitOf returns the exit code of a kind (README, For CI).
func ExitOf(kind deploy.RefusalKind) int { return deploy.RefusalExitCode(kind) }

// KindOf returns the kind that fits an HTTP status whose answer names none, as one from a proxy in between.
func KindOf(status int) deploy.RefusalKind {
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return deploy.RefusedUnauthorized
	case status == http.StatusNotFound || status == http.StatusGone:
		return deploy.RefusedNotFound
	case status == http.StatusConflict:
		return deploy.RefusedState
	case status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout ||
		status == http.StatusTooManyRequests:
		return deploy.RefusedUnavailable
	case status >= 400 && status < 500:
		return deploy.RefusedInvalid
	default:
		return KindInternal
	}
}

// FromRefusal puts a Refusal into the shape that travels.
func FromRefusal(r *deploy.Refusal) *ProblemDetails {
	facts := factsOf(r.Kind)
	return &ProblemDetails{
		Type: TypePrefix + string(r.Kind), Title: facts.title, Status: facts.status, Detail: r.Detail,
		Kind: r.Kind, Problems: r.Problems, OpenDeploy: r.OpenDeploy, RetryAfter: int((r.RetryAfter + time.Second - 1) / time.Second),
	}
}

// NewProblem makes a problem of the kind, with a status of its own where the kind's is too coarse (405, 413). Status 0 takes the kind's.
func NewProblem(kind deploy.RefusalKind, status int, detail string) *ProblemDetails {
	p := FromRefusal(&deploy.Refusal{Kind: kind, Detail: detail})
	if status != 0 {
		p.Status = status
	}
	return p
}

// Refusal takes the Refusal out again.
func (p *ProblemDetails) Refusal() *deploy.Refusal {
	return &deploy.Refusal{Kind: p.Kind, Detail: p.Detail, Problems: p.Problems, OpenDeploy: p.OpenDeploy, RetryAfter: time.Duration(p.RetryAfter) * time.Second}
}

// Error returns the detail.
func (p *ProblemDetails) Error() string { return p.Detail }

// Unwrap returns the Refusal, so that errors.As finds it.
func (p *ProblemDetails) Unwrap() error { return p.Refusal() }

// GetStatus returns the HTTP status, as the API framework asks for it.
func (p *ProblemDetails) GetStatus() int { return p.Status }

// GetHeaders returns the headers that go with it, as the API framework asks for them.
func (p *ProblemDetails) GetHeaders() http.Header {
	h := http.Header{}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	return h
}

// ContentType replaces application/json, as the API framework asks for it.
func (p *ProblemDetails) ContentType(string) string { return ProblemContentType }

// maxForeignDetail bounds how much of an answer that is no problem is quoted.
const maxForeignDetail = 300

// DecodeProblem reads the answer of a failed request. It never fails: an answer that is no problem (a proxy's error page, a
// half-written one) becomes a problem of the kind that fits the status, and quotes the start of the answer.
func DecodeProblem(status int, contentType string, body []byte) *ProblemDetails {
	var p ProblemDetails
	if mediaType(contentType) == ProblemContentType && json.Unmarshal(body, &p) == nil && p.Kind != "" {
		// The status line is what happened; the field is what the server meant.
		if p.Status == 0 {
			p.Status = status
		}
		if len(p.Problems) == 0 {
			p.Problems = nil
		}
		facts := factsOf(p.Kind)
		if p.Type == "" {
			p.Type = TypePrefix + string(p.Kind)
		}
		if p.Title == "" {
			p.Title = facts.title
		}
		if p.Detail == "" {
			p.Detail = p.Title
		}
		return &p
	}
	kind := KindOf(status)
	detail := "the answer is HTTP " + http.StatusText(status) + ", not one of Cutover"
	if http.StatusText(status) == "" {
		detail = "the answer is not one of Cutover"
	}
	if text := printable(body, maxForeignDetail); text != "" {
		detail += ": " + text
	}
	return NewProblem(kind, status, detail+" (check that the API address is the orchestrator's)")
}

func mediaType(contentType string) string {
	t, _, _ := strings.Cut(contentType, ";")
	return strings.ToLower(strings.TrimSpace(t))
}

// printable returns the first n bytes as one line without control characters: it goes to a terminal.
func printable(b []byte, n int) string {
	if len(b) > n {
		b = b[:n]
	}
	return strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(b), ""))), " ")
}
