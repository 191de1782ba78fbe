// Package screen lays out what the command line shows to people: pure functions from Views and events to lines.
//
// Invariants:
//   - What a Host is said to serve is what its proxy reported (RUNNING = JOURNAL); nothing here is guessed from a step.
//   - Text from elsewhere (tasks, proxies, checkers, the server) cannot control the terminal: see Clean.
//   - After a failure the order is fixed: the cause in one line, the failing Host or task with its last lines, what serves now,
//     and the one command to run next.
//
// The package is pure: no clock, no files, no terminal. Time is a parameter.
package screen
