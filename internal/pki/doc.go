// Package pki makes the certificates with which the orchestrator and the lbagents know each other: one authority per
// cluster, a short name in a URI for each peer, TLS 1.3, client certificates required. Keys are P-256, files 0600.
//
// A peer is authorised by the URI in its certificate (cutover://CLUSTER/ROLE/NAME), never by its common name or address.
package pki
