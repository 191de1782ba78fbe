package txn

// String returns the name of the phase as docs/protocol.md draws it.
func (p Phase) String() string {
	switch p {
	case Waiting:
		return "waiting"
	case Preparing:
		return "preparing"
	case Activating:
		return "activating"
	case Deciding:
		return "deciding"
	case Committed:
		return "committed"
	case Restoring:
		return "restoring"
	case RolledBack:
		return "rolled-back"
	case StuckRestoring:
		return "stuck"
	default:
		return "new"
	}
}

// Transition is one arrow of the state diagram. From "new" is what a new leader finds (Recover).
type Transition struct {
	From Phase
	On   string
	To   Phase
}

// Transitions is the machine's diagram, in the order of its phases. A test walks all reachable states and compares.
func Transitions() []Transition {
	return []Transition{
		{Waiting, "locks granted", Preparing},
		{Waiting, "locks granted, no Section", Deciding},
		{Waiting, "abort, deadline", RolledBack},
		{Preparing, "all Ready, mark durable", Activating},
		{Preparing, "NO, abort, timeout", Restoring},
		{Preparing, "NO, abort, timeout; no Host left to hear of it", RolledBack},
		{Activating, "all Verified and fresh", Deciding},
		{Activating, "FAILED, Lapsed, abort, timeout", Restoring},
		{Deciding, "record durable", Committed},
		{Deciding, "record refused", Restoring},
		{Deciding, "record refused, no Section", RolledBack},
		{Restoring, "every Host sent Activate is Aborted or excluded", RolledBack},
		{Restoring, "restore deadline", StuckRestoring},
		{StuckRestoring, "every Host sent Activate is Aborted or excluded", RolledBack},
		{0, "new leader finds the record", Committed},
		{0, "new leader finds no record", Restoring},
	}
}
