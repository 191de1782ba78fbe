// Package warden is the tiny process that stands between a local Mesos agent
// and one task: it starts the task in a session of its own, outlives the agent,
// and leaves the task's exit status on disk.
//
// A binary that imports this package turns into a warden when it is started
// with the environment variable of Env set. The dispatch happens in this
// package's init function on purpose: Go initialises a package as soon as what
// it imports is ready, so a warden never pays for the packages of the large
// binary that it lives in (memory and start time are per task). The package
// therefore imports almost nothing, and must stay so.
//
// Invariants:
//
//   - The warden holds the flock on the file Lock from before its first
//     instruction (the descriptor is inherited locked) to its end: whoever can
//     take that lock knows that no warden runs.
//   - Order on disk: Supervisor, then Started, then Exit. Each is written by
//     rename, Exit with fsync, before the process ends.
//   - The task inherits none of the warden's descriptors.
//   - When the task's first process ends, everything it left behind is killed.
//   - No Pdeathsig anywhere: losing the agent never ends a task.
package warden
