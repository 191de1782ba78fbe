package deploy

// WaitFor is what a command waits for.
type WaitFor string

// What can be waited for now.
const (
	WaitSucceeded WaitFor = "succeeded"
	WaitDrained   WaitFor = "drained"
)

// Exit codes of the command line (README, For CI).
const (
	ExitReached     = 0
	ExitUsage       = 1
	ExitDiffers     = 2
	ExitRolledBack  = 3
	ExitStuck       = 4
	ExitPaused      = 5
	ExitAborted     = 6
	ExitTimeout     = 7
	ExitLocked      = 8
	ExitUnreachable = 9
	ExitInterrupted = 130
)

// ExitCode is what a command that waits for the given end exits with, and whether it is time to exit. A stuck Deploy ends
// the wait, although it resolves itself later.
func ExitCode(v View, wait WaitFor) (code int, done bool) {
	switch v.State {
	case Succeeded:
		switch {
		case wait != WaitDrained:
			return ExitReached, true
		case v.Step == string(StepDrainStuck):
			return ExitStuck, true
		case v.Drain == nil && v.Step == string(StepDone), v.Drain != nil && v.Drain.Done:
			return ExitReached, true
		}
		return 0, false
	case RolledBack:
		return ExitRolledBack, true
	case Stuck:
		return ExitStuck, true
	case Aborted, Superseded:
		return ExitAborted, true
	case "paused":
		return ExitPaused, true
	default:
		return 0, false
	}
}

// RollbackExitCode is ExitCode for `rollback` when it became the abort of the open Deploy: back on the committed Spec is
// what was asked for, however that Deploy calls its end.
func RollbackExitCode(v View) (code int, done bool) {
	switch v.State {
	case RolledBack, Aborted, Superseded, Succeeded:
		return ExitReached, true
	default:
		return ExitCode(v, WaitSucceeded)
	}
}

// RefusalExitCode is what a command exits with when it was refused.
func RefusalExitCode(k RefusalKind) int {
	switch k {
	case RefusedLocked, RefusedIdempotency:
		return ExitLocked
	case RefusedUnavailable, RefusedUnauthorized:
		return ExitUnreachable
	default:
		return ExitUsage
	}
}
