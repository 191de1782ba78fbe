// Package consulclient makes clients of Consul's HTTP API: with the token and the certificates that are configured as for
// Consul's own commands, and never with a token in the clear on a network.
package consulclient
