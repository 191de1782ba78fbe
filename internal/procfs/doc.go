// Package procfs reads from Linux what a process will not say of itself: whether it still is the same one, who its children
// are, which sockets it holds, and who else listens where it does.
//
// What holds:
//   - A pid alone names nobody: it may be used again. A pid with its StartTicks does.
//   - Parsers take text and are pure; the functions that read /proc are thin.
//   - A row that is not understood is an error where skipping it could hide the one that matters.
package procfs
