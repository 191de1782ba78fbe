// Package simulated is a driver of a proxy that exists in memory only and answers as slowly as HAProxy does, so that many
// Hosts fit into one process: benchmarks measure what Cutover adds to fifty proxies without needing the machines of fifty.
//
// It keeps the contract of driver.Driver for a proxy that is never restarted: a warm upstream turns green by a check that
// comes within its interval, what was converged is what is read, published files are kept apart from what runs. It proves
// nothing about real proxies; package drivertest does that on the real binaries.
package simulated
