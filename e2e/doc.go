// Package e2e drives the real binary as a user does: `cutover dev` with real HAProxy and nginx, real task processes, the
// command line, and a load that nobody retries. Nothing here knows a package of Cutover's inside but the shape of the
// final report; a drill holds a deploy at a step by stopping (SIGSTOP) the process that the step waits for.
package e2e
