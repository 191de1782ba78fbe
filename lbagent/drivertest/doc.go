// Package drivertest is the conformance suite of proxy drivers: what lbagent/driver promises, asked of a real proxy
// through a real driver with real upstreams and real traffic. Every driver runs the same suite, so a participant may
// treat them alike.
//
// A driver's test gives a Harness that starts its proxy; Run does the rest. Nothing here knows a proxy: what differs
// between them (how an owner reloads, how a port is stolen, how a base configuration is broken) is behind Proxy.
//
// What the suite holds drivers to, by the names of the invariants (docs/protocol.md):
//
//   - ALL-OR-OLD: a warm upstream gets no request; green only after the proxy's own checks; a dead upstream is red.
//   - NEVER-ZERO: a flip under keep-alive POST load loses no request. A control run (a naive swap) must lose some, which
//     proves that the load generator sees losses.
//   - UNDO: converging back to the Section from before gives the digests from before, running and on disk.
//   - RUNNING = JOURNAL: a killed proxy, a stolen port and a broken base configuration are told, never papered over.
//   - Converge works from any state (a property over random Sections), a freshly restarted proxy included.
//
// Tests wait on what the proxy reports with generous deadlines and assert no times: two cores may be shared by many.
package drivertest
