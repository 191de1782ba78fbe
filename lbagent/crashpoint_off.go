//go:build !crashpoints

package lbagent

// crashpoint names a moment at which a test build can be made to die; in every other build it is nothing.
func crashpoint(string) {}
