// Package memstore is a store in memory, for the tests of packages that need a store.Store.
//
// It passes the same suite (storetest) as the durable ones, and forgets everything when the process ends: a restart is
// played by opening another user on the same Store.
package memstore
