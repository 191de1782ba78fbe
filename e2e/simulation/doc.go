// Package simulation runs the production code of the orchestrator (engine, conductor, registry) and of N lbagents in one
// process on a virtual clock, with everything that they stand on simulated: network, disks, store, proxies, Mesos tasks
// and probes. It holds tests only.
//
// One seed decides everything that chance decides: what is deployed and when, how long a message or a disk takes, what is
// lost, sent twice or torn, who crashes and when. Every delivery has an instant of its own on the bubble's clock
// (testing/synctest), and its delay is drawn from the seed and the message, not from the order in which goroutines came
// to send: so a seed tells the same story again, and a failing one is a test. What is left to chance is which of several
// ready cases a select takes, and the order in which a map is walked; now and then a replay needs a second try for it.
//
// What holds, checked at every step or at the end of a run:
//   - ALL-OR-OLD: at the moment of the Commit record every Host of the view routes to every upstream of the target and
//     holds a Verified of this term; a Deploy that ended rolled back or aborted is routed to on no Host.
//   - NO-ORPHAN-KILL: no task is ordered killed while any proxy routes to it or has a session on it.
//   - NEVER-ZERO: no driver call takes an App from upstreams that can serve to none, unless a stop says so.
//   - EVERY-STATE-ENDS: when the faults end, every Deploy ends, nothing is stuck, and every proxy holds exactly the
//     committed upstreams, on disk too.
package simulation
