// Package haproxy drives one HAProxy (2.6 to 3.x) for a participant: lbagent/driver on the runtime API, without a
// reload for any change of an App.
//
// # How a change costs no reload
//
// Before 3.4 a new backend needs a reload, so the Frame holds a pool of spare generic backends of a few classes
// (class.go). An App is given a slot of the pool; a map (host and path to backend) routes to it; servers are added and
// removed on the runtime API. When a class has no spare left it is doubled and HAProxy is reloaded, so n Apps cost
// O(log n) reloads. An App whose upstreams are checked in two ways holds a slot in each class; the map names both.
//
// # What is where
//
//	DIR/current/00-frame.cfg     frontends, the agent's own listener: changes with the Frame only
//	DIR/current/10-SLOT.cfg      one backend of the pool, with the published upstreams of its App, one file each
//	DIR/current/routes.map       "host|path/" -> "backend:strip:slash[:backend...]"
//	DIR/current/health.map       server -> health path, only where a backend has more than one
//	DIR/current/warm.map         always empty on disk; the running worker marks warm servers in it
//	DIR/slots/SLOT               the App that holds the slot: an App that is only warm is in no file of current/
//	DIR/servers.state            empty but during a reload of our own: servers that are down stay down
//	DIR/agent.sock               HAProxy's listener for the agent alone
//	DIR/lock                     held by the Driver that is open
//
// HAProxy's unit loads the owner's base configuration and then DIR/current/. The owner's file stays the owner's.
//
// # Invariants
//
//   - NEVER-ZERO: Converge adds and readies, then moves routes, then drains, then removes.
//   - RUNNING = JOURNAL: a Read is bracketed by the master's word on who the worker is, and everything in it comes over
//     one connection per batch that itself says which worker answers. Exit codes and replies to "reload" are not read.
//   - A warm server starts DOWN and in drain and has to rise; even a mistaken "ready" would send it nothing.
//   - A removed server is a tombstone (MAINT, checks off) where deleting is not safe. A name that comes back gets a
//     fresh row with a suffix (":2"), so nothing that HAProxy says of it can be about its former life.
//   - NO-ORPHAN-KILL: a worker that a reload replaced routes as it did then, and no command changes that. While clients are
//     connected to it, idle ones too, what it routes to is not drained (leaving.go).
//   - UNDO: files are written per Section, each atomically, in an order in which a reload between any two is right.
//
// # What 2.6 cannot do
//
// A reload forgets check results: servers in the files come up UP before any check has run. On our own reloads the
// state file keeps those that were down down; on an owner's reload nothing does (a stale state file would be worse:
// it could hold down what has recovered). Info.Limits says so to the owner.
package haproxy
