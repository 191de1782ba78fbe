// Package flock lets one process at a time hold a thing on disk, by a lock on a file.
//
// What holds:
//   - The kernel gives the lock back when the process ends, however it ends: there is no stale lock to remove, and the file
//     stays where it is.
//   - The lock belongs to the open file. Closing it unlocks; a child that inherits the descriptor holds it too.
//   - Nobody waits without a deadline.
package flock
