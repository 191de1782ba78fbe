// Package consulcatalog reads in Consul's catalog which Hosts announce themselves.
//
// Package announcement says what an entry is; lbagents register themselves, and an operator may do it for them. The lbagent is
// reached at the service's address (the node's, if it has none) and port. What checks say is not read: a Host that is ill is a
// Host, and whether it proves a change it says itself.
//
// Invariants:
//   - A Listing is complete or it is an error. What access control has filtered, a page that is too long and an answer from a
//     Consul without leader are errors: they must not look like Hosts that are gone.
//   - There is one query at a time; each waits in Consul for a change, and none follows the one before sooner than minPause.
//   - Whatever happens to Consul, Watch goes on until its context ends, and says what it sees at most once.
package consulcatalog
