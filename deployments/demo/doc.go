// Command demo shows Cutover's main job on this machine: two HAProxy and two nginx Hosts, an App that moves from v1 to v2
// under a load that nobody retries, and a broken v3 that is refused and leaves no trace. It drives the same binary and
// commands that a user has.
//
// With DEMO_EXIT=1 it stops everything at the end, and exits with 0 only if all of that held.
package main
