package deploy

import (
	"strings"
	"time"
)

// RefusalKind is why a request was refused, with one exit code and one HTTP status each.
type RefusalKind string

// The kinds.
const (
	RefusedInvalid      RefusalKind = "invalid"        // exit 1, HTTP 422: the input is wrong
	RefusedNotFound     RefusalKind = "not-found"      // exit 1, HTTP 404
	RefusedState        RefusalKind = "wrong-state"    // exit 1, HTTP 409: for example abort after Commit
	RefusedLocked       RefusalKind = "locked"         // exit 8, HTTP 409: another Deploy of the App is open
	RefusedIdempotency  RefusalKind = "idempotency"    // exit 8, HTTP 422: same key, other body
	RefusedUnavailable  RefusalKind = "unavailable"    // exit 9, HTTP 503
	RefusedUnauthorized RefusalKind = "not-authorised" // exit 9, HTTP 401
)

// Problem is one thing that is wrong with an input. Line and Column count from 1; 0 means unknown.
type Problem struct {
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Field  string `json:"field,omitempty"`
	Reason string `json:"reason"`
}

// Refusal is a request that changed nothing, with everything its sender needs to mend it.
type Refusal struct {
	Kind     RefusalKind
	Detail   string // one sentence: what is wrong and what to do
	Problems []Problem
	// OpenDeploy is the Deploy in the way, for RefusedLocked.
	OpenDeploy string
	// RetryAfter says that the cause is expected to pass, and when to ask again; 0: it is not.
	RetryAfter time.Duration
}

// Error returns the detail and the reasons.
func (r *Refusal) Error() string {
	var b strings.Builder
	b.WriteString(r.Detail)
	for _, p := range r.Problems {
		b.WriteString("; ")
		b.WriteString(p.Reason)
	}
	return b.String()
}
