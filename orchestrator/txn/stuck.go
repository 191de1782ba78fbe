package txn

import (
	"fmt"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// Trouble says why a Host does not answer, as far as its connection tells.
type Trouble string

// The troubles.
const (
	TroubleNone   Trouble = ""
	TroubleAway   Trouble = "away"   // nothing listens there, or the machine is not reached
	TroubleSilent Trouble = "silent" // something takes the connection and says nothing: the lbagent hangs
)

// StuckHost is one Host that keeps a transaction from being undone: what is not back, why, and what to do.
type StuckHost struct {
	Host, Group string
	// Cause: away, silent, restore-failed or refused.
	Cause string
	// What is not back, and why, for people. Fix is what to do on the Host or about it; Next the one command to run then.
	What, Fix, Next string
	// Serves is what its proxy reported last.
	Serves []*lbagentv1.Evidence
}

// Resolution is what is left to settle on one Host.
type Resolution struct {
	Host string
	// Left is what is not settled, and why; empty: nothing is. Fix and Next are for the first of it.
	Left      []string
	Fix, Next string
	// Serves is what its proxy reported last about the Apps that are not settled.
	Serves []*lbagentv1.Evidence
}

// Stuck says why a Host keeps the transaction from being undone; false if it does not.
func (r Rules) Stuck(s State, host string) (StuckHost, bool) {
	for i := range s.Hosts {
		if h := &s.Hosts[i]; h.Name == host && h.owes() {
			return r.stuckHost(h), true
		}
	}
	return StuckHost{}, false
}

// Away says what to do about a Host that is not connected.
func (r Rules) Away(host, group string, trouble Trouble) StuckHost {
	return r.stuckHost(&Host{Name: host, Group: group, Trouble: trouble})
}

// stuckHosts are the Hosts that owe their Aborted (UNDO), with what resolves each by its cause.
func (r Rules) stuckHosts(s State) []StuckHost {
	var out []StuckHost
	for i := range s.Hosts {
		if h := &s.Hosts[i]; h.owes() {
			out = append(out, r.stuckHost(h))
		}
	}
	return out
}

func (r Rules) stuckHost(h *Host) StuckHost {
	out := StuckHost{Host: h.Name, Group: h.Group, Serves: h.Evidence}
	gone := fmt.Sprintf("; if the host is gone for good and gets no traffic: cutover lb exclude %s --i-know-it-gets-no-traffic --reason TEXT", h.Name)
	why := ""
	if h.Reason != "" {
		why = " (" + h.Reason + ")"
	}
	switch {
	case !h.Connected && h.Trouble == TroubleSilent:
		out.Cause = "silent"
		out.What = "its lbagent takes connections and says nothing" + why
		out.Fix = "the lbagent hangs or was stopped (ps -o pid,stat,cmd shows T for a stopped one): restart it" + gone
		out.Next = r.RestartCommand(h.Name)
	case !h.Connected:
		out.Cause = "away"
		out.What = "its lbagent cannot be reached" + why
		out.Fix = "start the lbagent, or bring its machine or network back" + gone
		out.Next = r.StartCommand(h.Name)
	case h.Unrestored.GetReason() == lbagentv1.RefusalReason_REFUSAL_REASON_RESTORE_FAILED:
		out.Cause = "restore-failed"
		out.What = "it could not put back what was before: " + h.Unrestored.GetMessage()
		out.Fix = "repair on the host what it says (cutover lb show " + h.Name + " tells more), then let it try again"
		out.Next = "cutover lb resolve " + h.Name
	default:
		out.Cause = "refused"
		out.What = "it has not proved that it is back" + why
		out.Fix = "see what keeps it with cutover lb show " + h.Name + ", then let it try again"
		out.Next = "cutover lb resolve " + h.Name
	}
	return out
}
