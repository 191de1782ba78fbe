// Package actor runs functions one after the other on one goroutine, so that
// the state they touch needs no lock. The local master, each local agent and
// each task is one actor, as they are processes of their own in real Mesos.
//
// Invariants: functions run in the order in which they were posted; none runs
// after Stop returned; a queue is bounded, and a full one refuses.
package actor
