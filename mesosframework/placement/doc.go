// Package placement decides which task goes to which agent.
//
// It is pure: a snapshot of agents with their free resources, the population
// of tasks that already run, the tasks to place and a seed go in; assignments
// with concrete ports, and a typed reason for every agent that was refused,
// come out. The same input gives the same output. It imports no net, os, clock
// or logger, and it starts no goroutine.
//
// Invariants, each held by a property test:
//
//   - an agent is never over-committed: the sum of what is placed on it never
//     exceeds what it had free, in any resource;
//   - a port is given at most once, only out of the agent's own ranges, and
//     never while it is blocked;
//   - no task goes to an excluded or unavailable agent, nor where a hard
//     constraint forbids it;
//   - a task is left unplaced only when no agent of the snapshot can take it
//     at that moment of the pass.
//
// # Cost
//
// Tasks of equal shape (group, resources, constraints, exclusions) share one
// candidate list. Within one pass resources only shrink and counts only grow,
// so an agent that was refused once for a shape stays refused for it and leaves
// the list for good. A pass therefore costs O(shapes x agents + tasks x probes)
// where probes is about log2(agents), never O(tasks x agents). Static
// constraints (is, cluster=value, like, unlike) are judged once per attribute
// class, not once per agent: real clusters have tens of classes.
//
// # Choice
//
// Among the probed agents that can take a task the least crowded wins: first by
// the task's spread constraints, then by the number of tasks of the same group
// on the agent, then of the same App, then by the share of the agent's
// resources that would remain free. Tasks are thus spread over agents even
// without a constraint.
package placement
