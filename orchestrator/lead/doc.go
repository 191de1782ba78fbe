// Package lead makes this process the one that leads, and numbers its term.
//
// The embedded leadership of one machine: a lock on a file shuts out a second process, and a counter in the store
// numbers the terms. The epoch is durable, with the fence of the store raised to it, before anybody gets to use it.
//
// Invariants:
//   - FENCE: an epoch is greater than each one used before on this store; once it is taken, the store refuses the writes
//     of every older one.
//   - A term ends once and for good: by Release, or by Fatal with the first error. A write whose outcome is unknown ends
//     it: the process ends as if by kill -9, tasks, agents and proxies stay, and its supervisor starts
//     it again into a new term, which reads what really happened.
package lead
