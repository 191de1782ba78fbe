// Package engine runs the orchestrator: one goroutine owns all Apps, Deploys and tasks, and drives the pure machines of
// packages deploy and scheduler with what the framework, the prober, the coordinator and users tell it.
//
// The loop drains its bounded queue in batches. For each batch: change the state in memory, write everything that changed in
// one fenced Commit, and only then answer callers, carry out effects and show events. So a status update is acknowledged, a
// Deploy is accepted, and a transaction is begun only when it is durable. If a Commit fails, memory is ahead of the store
// and the term is over: the engine stops, its owner ends the process, and the next one loads what is durable.
//
// What holds:
//   - A restart at any moment resumes everything: effects are made again from the state (they are idempotent by id), the
//     coordinator is asked for the outcome of open transactions, tasks are reconciled and probed anew.
//   - NO-ORPHAN-KILL: a task carries holds, the Groups whose Hosts may know its upstream. A hold is written before a
//     Proposal or Amendment that names the task is given away, and ends only by what the coordinator heard from every Host.
//     A task with a hold is never ordered killed.
//   - ALL-OR-OLD: the committed Spec and set of an App change only when the coordinator reports the Commit record.
//   - FAIL-STATIC: losing the framework, the prober or the coordinator changes nothing by itself.
//
// Engine implements the API's Service, the coordinator's Listener, and the framework's journal and listener in its own types.
package engine
