// Package probe checks upstreams through nginx's own workers. nginx OSS has no active checks: here the agent asks, a worker
// connects from its own address, and what counts is only what the worker answered.
//
// Invariants:
//
//   - A failure of the way to the worker (no socket, worker died, worker hangs) is not a failure of an upstream: it
//     changes no verdict (FAIL-STATIC).
//   - Green needs rise successes in a row, all seen by the present worker generation: a reload or restart starts again.
//   - Red needs fall failures in a row, and stays until rise successes, over reloads too.
//   - At most one check of an upstream is in flight, and at most Config.Concurrency in all; every check has a deadline.
//
// The verdict is pure (tally.go); the prober only keeps time and carries bytes.
package probe
