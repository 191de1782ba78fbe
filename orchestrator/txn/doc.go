// Package txn is the coordinator of the two-phase commit: a pure machine, and the conductor that carries out its effects.
package txn
