// Package consultest runs a real Consul server for a test: one server, durable, on loopback, ended with the test.
//
// The program is built by `make .bin/consul`. It is a test tool only: Consul is under the BUSL since 1.17 and is never
// linked or shipped.
package consultest
