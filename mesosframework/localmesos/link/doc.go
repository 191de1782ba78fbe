// Package link is the wire between the local master and one local agent: what
// they tell each other, in order, and the faults that a network has.
//
// Invariants: messages of one direction keep their order; a frozen pipe holds
// them (a partition), a closed one loses them (a dead process); nothing blocks.
package link
