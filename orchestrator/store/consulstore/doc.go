// Package consulstore keeps records in the key-value store of Consul: what decides, when there are several orchestrators.
//
// Layout below the prefix (by default cutover/<cluster>):
//
//	leader          the lock of the leader; its session is what a Fence names. Package lead owns it.
//	head            format, newest revision, highest epoch, number and nonce of the newest write
//	records/<key>   one record: the revision of the Commit that wrote it and the value, compressed when that is shorter
//	changes/<slot>  the newest writes, in a ring: what Watch replays
//
// A write is one transaction of Consul, which is one entry of its raft: the check that the session of the fence holds
// the lock, a compare-and-set of the head, the records, and the slot of the ring. Every write replaces the head, so that
// compare-and-set alone makes what was judged against an older head fail; preconditions are judged by the writer.
// Commits that wait at the same time share one transaction, each with its own outcome.
//
// Invariants:
//   - FENCE: the session is checked, and the epoch is in the head that is compared, in the same entry as the write.
//   - Every Commit that returned without an error is in the raft log of a majority.
//   - A write whose answer is lost is sent again as it was: the compare-and-set lets at most one of the copies in, and
//     the nonce in the head tells which writer it was. So a change of Consul's own leader costs time, not the term. Only
//     if Consul stays away for Options.WriteTimeout the outcome is unknown.
//   - Reads ask the leader of Consul, which asks a majority (consistent mode).
package consulstore
