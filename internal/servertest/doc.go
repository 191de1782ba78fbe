// Package servertest runs real servers for a test: on loopback, on ports of their own, on data of their own, and never
// longer than the test.
//
// A Process can be stopped, killed as by kill -9, frozen and started again with the same arguments, so that a test can
// put a server through what a production one goes through. Used by tests only.
package servertest
