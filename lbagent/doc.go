// Package lbagent is the daemon on a proxy host: it carries out what package participant decides, and answers the
// orchestrator over Connect.
//
// # Goroutines
//
//	server handlers --messages-->  actor  --Start-->  one goroutine per App with Work  --driver calls-->  proxy
//	reader          --readings-->    |    <--WorkDone--
//	contract        --found-------->  |   --Journal--> disk (in the actor: nothing overtakes an fsync)
//	                                  +--> Watch streams
//
// The actor owns the machine's state; everyone else reads the last state through an atomic pointer (a State is a value
// that never changes). The inbox is bounded; senders wait. The actor never waits for anything but the disk.
//
// # Invariants
//
//   - The Records of a Step are durable before any other effect of it begins. If that fails the Host answers JOURNAL to
//     everything, begins no Work, leaves the proxy as it is (FAIL-STATIC), and tries to open the journal again.
//   - A caller that goes away cancels nothing: work belongs to the transaction, and a repeated call joins it.
//   - Driver calls for one App never overlap; those for different Apps may.
//   - RUNNING = JOURNAL: every answer is made from readings of the running proxy.
package lbagent
