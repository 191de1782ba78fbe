// Package store is the port to the orchestrator's durable state.
//
// State is records under path-like keys ("deploy/01J...", "section/public/shop"). A Commit applies all of its operations
// or none, durably, and only if every precondition holds and the fence is not stale: that one step is what the protocol
// builds on (invariants FENCE and ALL-OR-OLD). Every Commit gets the next revision; Watch replays changes in order of
// revision, so a reader that kept its last revision misses nothing.
//
// boltstore keeps one file, for an orchestrator that is alone. Several share two stores behind one: splitstore gives what
// decides to consulstore (Consul KV, in one Txn with the check of the leader's session) and what can be rebuilt to redisstore
// (fenced compare-and-set in Lua, a stream as Watch). memstore is for tests of others. All pass the suite in storetest.
//
// The format of the stored values belongs to the packages that write them; the key space and FormatVersion belong here.
package store
