// Package dev runs a whole Cutover cluster on one machine: a local Mesos, the orchestrator, and load-balancer Hosts that
// are each a real proxy with its own lbagent, on a loopback address of its own, under a supervisor of its own.
//
// Only the orchestrator and the local Mesos's master live in the process of `cutover dev`. Tasks, lbagents, proxies and
// supervisors are processes of their own that serve on when it is killed; the next start on the same directory finds
// and adopts them. SIGTERM stops everything.
//
// Everything is remembered in the data directory: addresses, certificates, the token, and dev.json, which is output
// only: a start works without it.
package dev
