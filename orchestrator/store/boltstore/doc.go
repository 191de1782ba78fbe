// Package boltstore keeps the orchestrator's state in one bbolt file on one machine.
//
// Layout of the file: bucket "meta" (format, revision, fence), bucket "records" (key to revision and value), and bucket
// "changes" (revision to the Batch of that Commit, the newest ones only), which Watch replays.
//
// Invariants:
//   - FENCE: the highest epoch is kept in the file and compared in the same transaction as the write.
//   - Every Commit that returned without an error is on the disk. Commits that wait at the same time share one fsync,
//     each with its own outcome; the failure of one changes nothing for the others.
//   - FAIL-STATIC: a file that lost its content is refused, never taken for a new one.
//   - When the file system fails a write, its outcome is unknown: the caller gets ErrUnknown and the Store takes no
//     further write, because what a reader sees now may not be what the next start finds.
package boltstore
