// Package apitest gives tests of the API, of its client and of the command line an orchestrator that does what a script says.
//
// [Service] keeps Deploys and their events as the real one promises to: events are numbered from 1 without a gap, are replayed
// after any number, then come live, and end after the one of type "end". It belongs in tests only.
package apitest
