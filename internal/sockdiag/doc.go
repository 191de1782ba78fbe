// Package sockdiag hears from the kernel of every TCP connection of this network namespace that ends, however short it was.
//
// A look at /proc/net/tcp shows the connections of one moment; between two looks any number can come and go. Those that a look
// shows and those that this package tells are all there were.
//
// Invariant: what may have been missed is told as an error, never passed over.
package sockdiag
