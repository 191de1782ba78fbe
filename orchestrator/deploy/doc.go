// Package deploy holds the vocabulary of Deploys and the pure machine that moves an App from one Spec to another.
//
// Step is the machine: it takes a Deploy, an Input and the time, and gives the next Deploy and the Effects that its owner
// must carry out after it stored the Deploy. It does no input or output and owns no clock, so every story of a Deploy is a
// table or a script in testdata.
//
// What holds:
//   - ALL-OR-OLD: State is Succeeded only after an Input that tells of a durable Commit record.
//   - EVERY-STATE-ENDS: for every Step but done, either Wake names the time of the next Input, or the coordinator owes one.
//   - ROLLBACK-IS-FREE: AbortAsked is taken in every Step before Commit, whatever else is going on.
//   - UNDO: tasks that a transaction named are given up (KillTasks) only after that transaction is rolled back.
//
// View, Event, AppView and Refusal are the stable contract with the API and the CLI; ExitCode maps a View to what a
// command exits with.
package deploy
