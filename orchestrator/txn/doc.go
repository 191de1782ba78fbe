// Package txn is the coordinator of the two-phase commit, as pure decisions: the machine of one transaction, the table
// of locks, what evidence must show, and when an upstream is released. It imports no net, os, clock or logger: time is a
// parameter and effects are data. The subpackage conductor carries the effects out.
//
// One transaction moves all Sections that it names, on every Host of the pinned views, or none (docs/protocol.md):
//
//	Waiting --granted--> Preparing --all Ready, mark durable--> Activating --all Verified, fresh--> Deciding
//	Deciding --record written--> Committed
//	any earlier phase --no, timeout, asked--> Restoring --every Host that was sent Activate is Aborted--> RolledBack
//	Restoring --restore deadline--> StuckRestoring --the missing answer comes--> RolledBack
//
// Invariants that the machine keeps, and that its exhaustive test checks after every step:
//
//   - ALL-OR-OLD: the Commit record is asked for only when every Host is Verified in this epoch, with evidence that is
//     fresh: same proxy process, not followed by Lapsed, at most Rules.Fresh old counted from when its request was sent.
//     Once the record may exist, no Abort is sent unless the store said that it was not written.
//   - No Activate is sent before the mark is durable, so a new leader knows who may have been told.
//   - UNDO: RolledBack needs Aborted from every Host that was sent Activate; a timer never stands for an answer.
//   - EVERY-STATE-ENDS: NextWake is never zero while something is awaited that might not come.
//   - ROLLBACK-IS-FREE: an abort is taken in every phase before the decision.
package txn
