// Package e2e drives the real binary as a user does: `cutover dev` with real HAProxy and nginx, real task processes, the
// command line, and a load that nobody retries. A drill knows nothing of Cutover's inside but the shape of the final report,
// and holds a deploy at a step by stopping (SIGSTOP) the process that the step waits for. Only the benchmarks reach
// inside, to measure one part alone.
package e2e
