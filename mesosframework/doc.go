// Package mesosframework runs tasks on Apache Mesos: it subscribes, takes
// offers, launches, kills, hears status updates and reconciles, over the v1
// scheduler HTTP API. No Mesos type leaves the package.
//
// mesos-go gives the types and the protobuf codec; the transport is ours: a
// RecordIO reader with a limit that can be raised, a heartbeat watchdog, the
// leader resolved before each subscription and all calls pinned to it, calls
// that must stay in order on one connection, acknowledgements on many, and
// errors told apart: what ends a subscription, what only fails a call, and what
// leaves the outcome unknown.
//
// # The parts
//
//	core        the decisions: pure, time is a parameter, effects are data
//	Framework   the shell: runs the effects, one subscription after another
//	session     one subscription: reader, ordered calls, their end
//	transport   HTTP, RecordIO, codec, leader resolution
//	placement   which task goes where (a package of its own, pure)
//
// # Invariants
//
//   - The framework id is durable before any ACCEPT (Journal.SaveFrameworkID).
//     A master that says the framework was removed ends the Framework with
//     ErrFrameworkRemoved; it never takes a new id by itself.
//   - A task is durable as launching, with its agent and ports, before the
//     ACCEPT that names it (Journal.SaveLaunching). No ACCEPT is ever sent
//     twice: the second would get the first one's tasks reported as dropped.
//   - An ACCEPT whose outcome is unknown ends the subscription. The next one has
//     another stream id, by which the master refuses a late copy of the call, so
//     the explicit reconciliation that follows tells the truth.
//   - A status update is acknowledged only after Listener.HandleUpdate returned
//     nil. What is not acknowledged comes again.
//   - The reader of the stream never waits for the store: every queue is
//     bounded, and a full one ends the subscription instead. All that was lost
//     comes back by redelivery and reconciliation.
//   - UNREACHABLE, LOST, UNKNOWN and GONE_BY_OPERATOR are not the end of a task
//     (TaskState.Terminal): each may come back as RUNNING.
//   - NO-ORPHAN-KILL: the framework kills nothing by its own decision except a
//     task whose launch nobody ever heard of again (a task without a single
//     status update was never a target of a proxy), and tells it (HandleLost).
//     A task it does not know is reported, never killed.
//   - A port goes to a new task only if it is in the offer, no task that is not
//     durably ended holds it, and Options.PortBlocked permits it.
//   - EVERY-STATE-ENDS: a launch without an answer is asked for, then killed and
//     reported; a kill is repeated until the task is terminal; an unanswered
//     reconciliation is repeated.
//
// # Offers
//
// With nothing to place, offers are suppressed and none are held. A Launch
// revives them at once; what comes is gathered for Options.Gather at most (not
// at all when every known agent is among it), placed, and the rest declined.
//
// # Not built
//
// Detection of the leading master through ZooKeeper (zk:// is refused by name;
// list the masters, or any of them), task groups, custom executors,
// reservations made by the framework, persistent volumes, offer constraints,
// answers to inverse offers (an agent with scheduled maintenance gets no tasks).
package mesosframework
