// Package announce lets a Host announce itself: it registers the lbagent as an instance of a service in the Consul agent of its
// machine, with what package announcement says and the readiness endpoint as a check, and sees to it that the entry stays.
//
// Announcing admits nobody and moves nobody: the orchestrator, and whoever operates it, decide. So nothing here is allowed to hold
// up or to end the lbagent, and an entry stays when the lbagent stops, unless its owner wants it otherwise: a Host that restarts is
// a Host (FAIL-STATIC). No check ever removes an entry.
package announce
