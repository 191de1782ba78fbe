// Package statedoc prints resources, attributes and tasks in the form of the
// state endpoints of masters and agents.
//
// Invariant: it is pure, and master and agent print the same thing the same
// way.
package statedoc
