// Package registry knows which load-balancer Hosts there are, and keeps one link to each.
//
// Membership is declared, never "who is connected now": each Group has a numbered View of its Hosts, which is durable
// before it is used, and its number grows with every change of the declaration. A link is a Connect client and one Watch
// stream: it says whether the agent answers, and delivers what the agent reports, in order.
//
// A catalog may announce Hosts too (Hear). It is never believed: it takes nobody into a View and nobody out, moves nobody that has a
// link, and nothing that it says is stored. An operator admits who is announced, or the Group's policy does (Admissible).
//
// Invariants and ordering:
//   - Each Host has a goroutine and connections of its own: a slow or dead Host delays no other.
//   - The Handler hears of one Host in order, from one goroutine: connected (with a complete report), reports,
//     disconnected. It may block: then the stream of that Host waits, and the agent coalesces.
//   - A stream that says nothing for Options.Heartbeat is dead (a stopped agent keeps its connections open).
//   - After a refused connection the next attempt comes within 250 ms, so an agent that was restarted is back at once.
package registry
