// Package manytasks is a Mesos for more tasks than one machine has processes, for benchmarks: the local master, and agents whose
// tasks are entries of a table. Each task answers its health check at its own loopback address and port, from this process.
// Tasks can be held back from running, from being healthy and from ending, so that a deploy is found in a given step.
package manytasks
