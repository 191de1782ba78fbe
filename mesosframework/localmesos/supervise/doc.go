// Package supervise is the agent's side of a task's warden: it launches one,
// adopts one that survived, and learns of its end at once (pidfd, no polling).
//
// Invariants:
//
//   - A task is signalled only while the process at its pid has the start time
//     that its warden recorded.
//   - Adopt tells the truth about a task that ended meanwhile: its real wait
//     status when the warden wrote it, Lost when the warden died first.
//   - Release ends the watching and nothing else: the task lives on.
package supervise
