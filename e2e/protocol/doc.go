// Package protocol searches the two-phase commit exhaustively: it has tests only.
//
// The machines of production run here against each other, unchanged: the coordinator (orchestrator/txn: Rules.Step,
// Recover, the lock table, Commit.Plan, Regroup and the decisions about open transactions), the participant of every Host
// (lbagent/participant: Step, its journal records and their replay), the decision about a Host's membership (registry.Decide),
// and the store's rules of a Commit (fence, preconditions). Around them stands
// a small world: a network that loses, delays, repeats and reorders; proxies with running sets, files, sessions and health;
// processes that die at any write and any send; leaders that are replaced while they still act; tasks that die; time.
//
// The search goes breadth first through all orders of events that a scenario's budget of faults allows. A state is known
// again by a canonical key: times count by their order and their distance in seconds, Hosts are sorted (one Host is like
// the other), so that the number of states stays small. In every state and at every effect the invariants of
// docs/protocol.md are checked, and from every state a future without further faults must lead to a good end
// (EVERY-STATE-ENDS). The first violation is the one with the shortest way to it; it is printed as a story.
//
// A search that finds nothing proves little unless it can find something: every mutant in mutants_test.go is a patch of a
// production file, applied by `go test -overlay`, that must be found. The shortest stories are in testdata/mutants.
//
// What the network does is exact in one more way: an answer belongs to the process that asked. It is dropped when that
// process is gone or has replaced the call, as RPC does it; the request may still arrive, late, and in any later epoch.
package protocol
