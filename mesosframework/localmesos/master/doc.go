// Package master is a local Mesos master: the scheduler API v1, allocation of
// offers, reconciliation, and the operator endpoints that a development cluster
// needs.
//
// All state lives in memory and belongs to one actor, as in a real master: a
// new master learns its agents and tasks from the agents that register again,
// and its frameworks from their tasks and from their SUBSCRIBE.
//
// Invariants:
//
//   - What a real master refuses is refused with the same status and text, and
//     the checks come in the same order.
//   - An update is forwarded only as the agent sent it; only the agent's
//     updates carry a uuid and are to be acknowledged. The master's own are sent
//     once and never repeated.
//   - Resources are offered to one framework at a time: total >= used + offered
//     holds for every agent at every moment.
//   - A slow client never slows the master: its stream is bounded and is cut
//     when it is full.
package master
