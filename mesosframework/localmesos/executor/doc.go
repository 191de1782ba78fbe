// Package executor is the command executor of a local Mesos agent as pure
// machines: what a task's life says to the framework, and the stream that
// carries it. No clock, no process, no network: time comes in with the events,
// effects go out as data.
//
// Invariants:
//
//   - A terminal update is the last one, and there is exactly one.
//   - Only the head of a stream is in flight; the next goes out when the head
//     is acknowledged, and a head that is not is repeated for ever: after 10 s,
//     then doubling up to 10 min, always with the same uuid.
//   - What a task's end is called follows from why it ended: asked to (KILLED),
//     its health check (KILLED, healthy=false), its time (FAILED), itself
//     (FINISHED or FAILED).
package executor
