// Package participant is the pure machine of one Host in the two-phase commit: what an lbagent decides, without doing
// any of it.
//
// Step takes the state, one event and the time, and returns the next state and the effects that the runner (package
// lbagent) must carry out, in order. The package imports no net, os, clock or logger; equal inputs give equal outputs.
//
// # How it works
//
// The state has a durable part (Durable: epoch, Sections, open transactions, outcomes) that changes only by a Record,
// which is also the first effect of the Step that made it; replaying the Records gives the durable part again. All the
// rest (what is running, the last readings, who waits for an answer) is rebuilt after a restart.
//
// The proxy is driven by level, not by edge. Want is a pure function of a Section and of the transaction open on it; a
// Section whose want differs from what was last published, converged or read gets one piece of Work, never two at once.
// A restart of the agent, a crash of the proxy, a reload by its owner, an Abort in the middle of an Activate and a
// retry are therefore the same case: the want is what the journal says, and the proxy is brought there and read again.
//
//	(new) --PREPARE--> PREPARING --all new green, journal WARM--> READY --ACTIVATE--> ACTIVATING --read, green, request--> VERIFIED <--> LAPSED
//	                       |                                        |                     |  \-- no --> FAILED                 |
//	                       | NO, deadline, ABORT                    | deadline, ABORT     | deadline, ABORT                    | ABORT      | COMMIT
//	                       +----------------------------------------+---------------------+------------> RESTORING <-----------+       COMMITTED
//	                                                                                                    |        \-- 30 s --> RESTORE_FAILED
//	                                                                                                 ABORTED <--- succeeds later ---/
//
// # Invariants
//
//   - FENCE: every message passes the same check first, once: cluster, group, epoch. Order numbers are per Section.
//   - UNDO: while a transaction is open the committed Section is not touched, except by removals of dead tasks. The
//     snapshot (digests of the running set and of the files) is in the record that precedes the first runtime command.
//   - RUNNING = JOURNAL: an answer holds only what a Reading told that began after the change it proves.
//   - NEVER-ZERO: no target is activated, no old upstream retired and no restore finished while that takes a route from
//     upstreams that can serve to none.
//   - EVERY-STATE-ENDS: each phase before VERIFIED has a deadline after which the Host restores by itself; after
//     VERIFIED the Host is in doubt and keeps both colours until it is told the decision.
//   - NO-SILENT-CHANGE: the Record, with its Origin, precedes the Work that it allows.
package participant
