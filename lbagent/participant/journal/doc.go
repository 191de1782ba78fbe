// Package journal is the memory of one Host: an append-only file of participant.Records, made durable one batch at a
// time, that gives back the participant.Durable after any crash.
//
// # Format
//
//	header   "CUTOVERJ", format version (4 bytes), sequence number of the file (8), CRC32C of these (4)
//	frame    length (4), CRC32C of the length (4), CRC32C of the payload (4), payload
//	payload  'S' and a Durable as JSON: the first frame, what the records before came to
//	         'R' and a list of Records as JSON: one Append
//
// All numbers are little endian. One Append is one frame, one write and one fsync, so a batch is there as a whole or
// not at all.
//
// # Invariants
//
//   - What Append acknowledged is there after any crash. After a failed write or fsync nothing more is acknowledged: the
//     Journal is dead until it is opened again, because nobody knows what the disk holds (a second fsync that succeeds
//     proves nothing of the first).
//   - A torn tail (the last frame is incomplete, or is wrong, or is zeros) was never acknowledged and is dropped.
//     Anything wrong before that is corruption: Open refuses and says what to do; it never guesses.
//   - Open and Install replace the file by a snapshot: written beside it, fsynced, renamed, directory fsynced. So what
//     was read from a page cache after a failed fsync is durable again before anyone relies on it. What is appended while
//     a snapshot is encoded is acknowledged in the old file, and comes behind the snapshot in the new one.
//   - The file that a snapshot replaces stays as journal.<sequence>, keepHistory of them: who changed what and why
//     (NO-SILENT-CHANGE) outlives the compaction.
//   - One process at a time: the directory is locked.
package journal
