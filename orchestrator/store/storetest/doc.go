// Package storetest is the conformance suite of the store port: every implementation passes Run, so that what is built
// on one holds on all of them.
package storetest
