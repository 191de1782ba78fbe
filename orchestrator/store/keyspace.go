package store

import (
	"fmt"
	"slices"
	"strings"
)

// rebuildable are the first segments of the keys whose records can be made again from what decides, the Hosts and Mesos:
// the engine's own. Whoever adds a segment here adds how it is rebuilt (package engine, rebuild.go).
var rebuildable = []string{"app/", "spec/", "deploy/", "event/", "task/", "upkeep/", "idem/", "lockstep/"}

// Decides reports whether the record at key decides: it must never be lost, and with several orchestrators it is kept in
// Consul. Every key does that is not known to be rebuildable. Keys before the first slash are no segment: "task" decides.
func Decides(key string) bool {
	return !slices.ContainsFunc(rebuildable, func(segment string) bool { return strings.HasPrefix(key, segment) })
}

// Halves says which halves of the key space can hold keys that begin with prefix.
func Halves(prefix string) (deciding, rest bool) {
	if !Decides(prefix) {
		return false, true
	}
	rest = slices.ContainsFunc(rebuildable, func(segment string) bool { return strings.HasPrefix(segment, prefix) })
	return true, rest
}

// oneHalf refuses a Commit across the halves. No implementation that keeps them apart could do it in one step, so none does,
// and what works on one machine works on several.
func oneHalf(ops []Op) error {
	for _, op := range ops[1:] {
		if Decides(op.Key) != Decides(ops[0].Key) {
			return fmt.Errorf("%q and %q cannot be in one commit: one decides, the other is rebuildable: %w", ops[0].Key, op.Key, ErrLimit)
		}
	}
	return nil
}
