// Package procfs reads from Linux what nginx will not say of itself: which process is the master, which are its workers,
// who holds a listening socket, and which connections a worker has.
//
// An exit code or a pid file proves nothing (facts of DESIGN section 5: RUNNING = JOURNAL); the kernel's own tables do.
// Parsers take text and are pure; the functions that read /proc are thin.
package procfs
