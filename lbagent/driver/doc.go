// Package driver is the seam between a participant and the proxy on its Host: what every proxy driver must do, and the
// vocabulary that both sides share.
//
// A driver is declarative. The participant says what the proxy should hold for one App (a Section with a Mode for each
// upstream) and the driver makes it so, or says why not; nobody outside a driver knows a proxy command. The three
// implementations (HAProxy, nginx with Lua, nginx with reload) pass one conformance suite, lbagent/drivertest, on the
// real binaries.
//
// Invariants that a driver keeps:
//
//   - RUNNING = JOURNAL: Read tells only what the running proxy reported, and proves which process reported it
//     (Process is read before and after; the reader's own connection answers from the worker in between).
//   - Exit codes are never evidence. A reload has happened when the new worker says so.
//   - NEVER-ZERO: Converge makes new upstreams routable before it drains old ones.
//   - Prepare-time work (Stage, Converge to Warm) changes nothing that a client of the proxy can see, and no file that
//     a restart of the proxy loads.
//   - Publish comes before Converge, so a proxy that restarts at any moment comes back to the truth.
package driver
