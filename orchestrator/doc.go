// Package orchestrator is the daemon that leads: it wires the store, the coordinator of transactions, the engine of
// Deploys, the Mesos framework, the prober and the HTTP API into one process with New, Start, Stop and Run. It decides
// nothing itself.
package orchestrator
