// Package conductor carries out what the pure machine of package txn decides: it owns the open transactions, the locks,
// the committed Sections and what Hosts reported, writes the store, calls the Hosts, and keeps every Host at the
// committed state.
//
// One goroutine owns all of that state. Everything else (answers of Hosts, completed writes, requests of the engine)
// enters through one bounded queue as a function for that goroutine to run; calls and writes run outside of it and are
// bounded per Host. So a slow Host or disk delays only what waits for it.
//
// What is durable when:
//
//   - txn/<id> before the first Prepare: the proposal, its order number, the pinned views, the bases.
//   - mark/<id> before the first Activate: a new leader then counts every Host as sent.
//   - decision/<id> with the new Sections, checked against epoch, views and bases, in one write-once Commit: the commit
//     point (ALL-OR-OLD). A write of unknown outcome ends the term through Options.Fatal.
//   - section/<group>/<app> with an Amendment counted, before the Amendment is sent.
//   - ended/<id> when every Host was told; txn/<id> and mark/<id> go in the same Commit. A new leader takes up what
//     still has txn/<id>: with a decision it tells Commit again, without one Abort, for good.
//
// Order numbers come from one counter for all Groups, reserved in blocks so that taking one costs no write.
//
// Lost messages cost nothing: calls are repeated until answered, reports are level-triggered, and the reconciler compares
// what each Host reports with the committed Sections and sends Sync where they differ. An open transaction that a Host
// reports and nobody here knows is decided by the record: found = Commit, absent = Abort.
package conductor
