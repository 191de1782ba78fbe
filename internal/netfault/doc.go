// Package netfault is a TCP proxy between two processes that a test tells how the network between them behaves: passing,
// cut, silent in both directions or in one, slow. It is for tests of whole processes, which must see a real network's
// faults without anybody touching the machine's network.
//
// TCP loses no byte of a connection that lives on, and neither does this proxy: what it holds back while it is silent is
// delivered when it passes again. That is how old messages arrive after a partition has healed.
package netfault
