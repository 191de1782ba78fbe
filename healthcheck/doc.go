// Package healthcheck probes tasks and tells when their health changes.
//
// It has two halves. Step and Expire are a pure threshold machine: the state of
// one target, a probe's result and the time go in, the next state and at most
// one Transition come out. Prober is the shell around it: one scheduling
// goroutine with a heap of due times, and at most Options.MaxInFlight probes at
// once, for any number of targets.
//
// Probing is continuous, after the first success too: the first success tells
// readiness, what follows tells liveness. A failing probe here never takes an
// upstream out of a proxy (FAIL-STATIC): it only makes the owner start a
// replacement.
//
// Kinds: HTTP and TCP. A Check of another kind is refused by Validate.
//
// HTTP: a GET with a fresh connection each time (a reused connection would
// prove an old process), no proxy from the environment, no redirect followed:
// 200 to 399 is healthy, a redirect included, since following it would probe
// another server. At most 4 KiB of the body are read. TCP: a connect.
//
// Until a target is first healthy its probes run at least every FastInterval,
// whatever its interval: a deploy waits for exactly this. Afterwards the
// interval is stretched by a random part of up to a tenth, so that targets
// which started together do not stay together.
//
// Settled targets were healthy before the owner restarted. Their first probes
// are 2 ms apart, or closer if their interval has no room for that, so a restart
// with 20,000 tasks probes little more than before it, and the tasks of open
// deploys first.
//
// EVERY-STATE-ENDS: a probe ends at its timeout, Starting is followed by
// GraceExpired (once) when its grace passes without success; the probes go on,
// and what to do about it is the owner's decision.
package healthcheck
