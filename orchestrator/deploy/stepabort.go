package deploy

import "fmt"

// This file is the machine's side of giving up: because somebody asked, or another Deploy of the lock-step has ended.

// abortTxn asks the coordinator to give the transaction up, and waits for its answer in restoring. If the Commit was
// faster, that answer is Committed.
func (r *run) abortTxn(cause, reason string) {
	r.d.Leaving = true
	r.out = append(r.out, AbortTxn{ID: r.d.Txn, Cause: cause, Reason: reason})
	r.say(CodeOf(cause), reason)
	r.to(StepRestoring, reason)
}

func (r *run) abort(ask Ask) {
	if !r.d.Open() {
		return
	}
	if r.d.Ask == nil {
		r.d.Ask = &ask
		r.note(CodeAborted, "abort asked by %s: %s", ask.Actor, ask.Reason)
	}
	verdict := r.asked()
	switch r.d.Step {
	case StepExplaining:
		r.finish()
	case StepPreparing, StepActivating, StepCommitting:
		r.abortTxn("asked", verdict.Reason)
	case StepRestoring, StepRestoreStuck:
		// On its way already; the ask keeps it from trying again.
	default:
		r.d.Verdict = &verdict
		r.finish()
	}
}

// peerEnded gives up with another Deploy of the lock-step: all or none.
func (r *run) peerEnded(in PeerEnded) {
	if r.d.Lockstep == "" || !r.d.Open() || r.d.Verdict != nil {
		return
	}
	v := Verdict{Outcome: in.Outcome, Code: CodeLockstep, Reason: fmt.Sprintf("App %s of the same lock-step: %s", in.App, in.Reason), Next: "cutover status " + r.d.Lockstep}
	r.d.Verdict = &v
	switch r.d.Step {
	case StepPreparing, StepActivating, StepCommitting:
		r.abortTxn("asked", v.Reason)
	case StepRestoring, StepRestoreStuck, StepExplaining:
		// On its way already.
	default:
		r.finish()
	}
}

// asked is the verdict of an abort that was asked for.
func (r *run) asked() Verdict {
	v := Verdict{Outcome: r.d.Ask.Outcome, Code: CodeAborted, Reason: "aborted by " + r.d.Ask.Actor}
	if v.Outcome == Superseded {
		v.Code, v.Reason = CodeSuperseded, "superseded by "+r.d.Ask.Actor
	}
	if r.d.Ask.Reason != "" {
		v.Reason += ": " + r.d.Ask.Reason
	}
	return v
}
