package participant

import "time"

// Times that bound every wait of the machine (EVERY-STATE-ENDS). They are counted from the start of the phase that
// waits, on the clock of the events.
const (
	// DefaultDeadline bounds a transaction whose message names none, MaxDeadline any transaction.
	DefaultDeadline = 2 * time.Minute
	MaxDeadline     = time.Hour
	// snapshotPatience bounds the wait for a running set that equals the committed one, before STAGED.
	snapshotPatience = 5 * time.Second
	// warmPatience is what a candidate gets to become green, on top of its own check times.
	warmPatience = 10 * time.Second
	// redPatience is how long a candidate that was green may be red right after a change before that is a no.
	redPatience = time.Second
	// proxyPatience bounds retries against a proxy that does not answer: a supervisor brings it back within a second.
	proxyPatience = 10 * time.Second
	// lapsePatience is how long a Verified transaction survives readings that fail.
	lapsePatience = time.Second
	// fallbackPatience is how long no target upstream may be green, none of them being plainly red, before fallback.
	fallbackPatience = 5 * time.Second
	// verifyPatience bounds one Verify.
	verifyPatience = 5 * time.Second
	// restorePatience is when a restore that does not succeed is called RESTORE_FAILED; it goes on being tried.
	restorePatience = 30 * time.Second
	// undoDrain is what requests to a target get to end when it is restored away.
	undoDrain = 5 * time.Second
	// readbackPatience bounds the wait for a reading that answers a message (Abort of the unknown, Sync).
	readbackPatience = 30 * time.Second
	// cutRetry is the pause between two attempts to close the sessions of an upstream whose drain deadline passed.
	cutRetry = time.Second
	// openTick is how often an open transaction or a waiting caller is looked at when nothing else happens.
	openTick = 100 * time.Millisecond
)

// Bounds on what is kept and accepted.
const (
	maxSetAttempts     = 5 // attempts to make the running set equal before a transaction is refused
	maxRequestAttempts = 3
	maxOutcomes        = 1024
	maxTombstones      = 4096
	maxDrained         = 1024
	// MaxUpstreams, MaxRoutes and MaxChanges bound one Section and one transaction.
	MaxUpstreams = 2048
	MaxRoutes    = 256
	MaxChanges   = 256
	// MaxSections bounds what one Sync may install.
	MaxSections = 10000
)

// backoff is the pause before attempt n (1, 2, ...) at the same change: 50 ms doubled up to 3 s.
func backoff(n int) time.Duration {
	if n > 6 {
		return 3 * time.Second
	}
	return min(50*time.Millisecond<<n, 3*time.Second)
}
