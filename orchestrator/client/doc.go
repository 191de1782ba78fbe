// Package client asks the orchestrator's HTTP API, for the command line and for programs.
//
// Invariants:
//   - A request that changes something always carries an idempotency key, its caller's or a fresh one. When its answer is lost it
//     is repeated under the same key, so it happens once.
//   - Following a Deploy survives restarts of the orchestrator: every reconnect resumes after the last event, nothing is lost or
//     doubled, and only the caller's context ends it.
//   - A token goes to the one address that it was given for: redirects are not followed.
//   - Every failure is a *wire.ProblemDetails (in it a *deploy.Refusal) when the orchestrator answered, or an *Unreachable when
//     nobody did.
//   - Every request has a deadline, and every answer a bound.
package client
