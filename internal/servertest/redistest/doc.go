// Package redistest runs a real Redis server for a test: on loopback, with an append-only file of its own, ended with
// the test. A test can make it lose what it acknowledged, and make a replica take over.
package redistest
