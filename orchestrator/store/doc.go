// Package store is the port to the orchestrator's durable state, with its embedded implementation.
//
// State is records under path-like keys ("deploy/01J...", "section/public/shop"). A Commit applies all of its operations
// or none, durably, and only if every precondition holds and the fence is not stale: that one step is what the protocol
// builds on (invariants FENCE and ALL-OR-OLD). Every Commit gets the next revision; Watch replays changes in order of
// revision, so a reader that kept its last revision misses nothing.
//
// boltstore keeps one file on one machine; memstore is for tests of others. Both pass the suite in storetest. The
// format of the stored values belongs to the packages that write them; the key space and FormatVersion belong here.
package store
