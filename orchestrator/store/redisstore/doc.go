// Package redisstore keeps records in Redis: what can be rebuilt, when there are several orchestrators.
//
// Keys share the hash tag {cutover:<cluster>}, so that they live on one node of a cluster:
//
//	head     hash: format, newest revision, highest epoch, nonce of the newest Commit, bytes of the changes
//	values   hash: key to value
//	revs     hash: key to the revision of the Commit that wrote it
//	index    sorted set of the keys, for List
//	changes  stream: entry <revision>-0 is what that Commit changed; what Watch reads
//	refused:<nonce>  a Commit that was given up and must not happen when it comes late
//
// A Commit is one call of a script: fence, preconditions and writes are one step of Redis.
//
// Redis acknowledges before it is sure (appendfsync everysec; replication that runs behind), so it may go back. What is kept
// here must be what can be rebuilt, and a step back must be seen:
//
//   - FENCE: the highest epoch is compared in the same step as the write.
//   - Each call names the newest Commit that this Store has seen, by revision and nonce. If Redis does not have that very
//     one it has gone back, be it shorter or, after another leader wrote to it, as long as before: ErrWentBack, from then
//     on for every call. This says more than the replication id, which also changes when nothing is lost.
//   - A Commit whose answer is lost is settled: either it is found among the changes, or it is marked as refused in the
//     same step that did not find it, and then tried anew. Only if Redis stays away for Options.WriteTimeout the outcome
//     is unknown.
package redisstore
