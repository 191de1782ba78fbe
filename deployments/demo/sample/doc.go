// Command sample is the App that the demo, the tests and the benchmarks deploy: it answers requests, says which version
// it is, and can be told to be ill in the ways that real Apps are.
package main
