// Package replay plays recordings of a real Mesos against another master and
// compares what comes back, by the rules of testdata/traces/README.md.
//
// A recording is a list of calls, answers, events and outside actions. The
// player sends each call at the pace of the recording, waits for each event,
// and binds placeholders (<offer-1>, <agent-2>, ...) to the values of the
// master under test as they appear. What must match exactly and what only in
// kind is said there; how this package reads it:
//
//   - Updates are compared per task and in order; an update that the recording
//     has not is a fault, so is one that never comes.
//   - Offers are compared by agent, role and resources, whichever event carries
//     them.
//   - An event may be as late as the recording plus a tenth plus a slack for
//     busy machines, and, when the recording shows a deliberate wait, not much
//     earlier than it.
package replay
