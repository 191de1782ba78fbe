// Package resource does the arithmetic of unreserved Mesos resources: scalars
// in thousandths (as Mesos rounds them) and ranges. It is pure.
//
// A Set is a value: no operation changes its operands. The order of its
// entries is always ports, cpus, mem, disk, then the rest by name, which is the
// order in which a master offers them.
package resource
