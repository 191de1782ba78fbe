// Package leaktest fails the tests of a package that leave goroutines behind.
//
// A goroutine that has been told to end, and only waits for a processor to do so, is no leak, however busy the machine is:
// the search goes on until nothing is left, or for half a minute. Used by tests only.
package leaktest
