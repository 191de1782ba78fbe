package deploy

import (
	"strings"
	"time"
)

// This file is the machine's side of the transaction: what the coordinator's reports do.

func (r *run) txnChanged(in TxnChanged) {
	if in.ID != r.d.Txn || !r.d.InTxn() {
		return
	}
	if in.Order != 0 {
		r.d.Generation = in.Order
	}
	r.hosts(in.Hosts)
	r.d.Stuck = in.Stuck
	r.taken(in)
	undoing := r.d.Step == StepRestoring || r.d.Step == StepRestoreStuck
	switch in.Phase {
	case TxnWaiting, TxnPreparing:
		if !undoing && in.Reason != "" {
			r.say(CodeRunning, in.Reason)
		}
	case TxnActivating:
		if !undoing {
			r.say(CodeRunning, "every host is ready; hosts switch and verify")
			r.to(StepActivating, r.d.Reason)
		}
	case TxnDeciding:
		if !undoing {
			r.say(CodeRunning, "every host verified; the Commit is being recorded")
			r.to(StepCommitting, r.d.Reason)
		}
	case TxnCommitted:
		r.committed(in)
	case TxnRestoring:
		if r.d.Step != StepRestoreStuck {
			r.because(in)
			r.to(StepRestoring, r.d.Reason)
		}
	case TxnStuck:
		r.because(in)
		next := in.Next
		if next == "" {
			next = "cutover lb hosts"
		}
		r.stuck(r.d.Code, r.d.Reason, next)
	case TxnRolledBack:
		r.because(in)
		r.undone(in)
	}
}

// taken goes back to preparing with a transaction that was undone only because it was merged with another that failed: the
// coordinator tries it again by itself, under the same id. An abort that the Deploy has asked for is on its way all the same.
func (r *run) taken(in TxnChanged) {
	switch in.Phase {
	case TxnWaiting, TxnPreparing, TxnActivating, TxnDeciding:
	default:
		return
	}
	if r.d.Step != StepRestoring || r.d.Leaving || r.d.Ask != nil || r.d.Verdict != nil {
		return
	}
	r.say(CodeRunning, "every task is ready; hosts prepare again")
	r.to(StepPreparing, r.d.Reason)
}

// because takes over the coordinator's reason, unless the Deploy itself asked for the abort and knows better.
func (r *run) because(in TxnChanged) {
	if in.Reason == "" {
		return
	}
	r.say(CodeOf(in.Cause), in.Reason)
}

// committed: the record exists, so the Deploy is succeeded, whatever was asked for meanwhile (ALL-OR-OLD).
func (r *run) committed(in TxnChanged) {
	if r.d.Ask != nil {
		r.note(CodeCommitted, "the Commit was faster than the abort: use rollback")
	}
	r.d.Verdict = nil
	r.d.State, r.d.Next = Succeeded, ""
	r.d.CommittedAt = in.CommittedAt
	if in.CommittedAt.IsZero() {
		r.d.CommittedAt = r.now
	}
	r.d.FinishedAt = r.d.CommittedAt
	why := proved(in.Hosts)
	if len(r.d.Policy.Groups) == 0 {
		why = r.groupless()
	}
	r.say(CodeCommitted, why)
	r.out = append(r.out, Adopt{})
	r.to(StepDraining, why)
	r.out = append(r.out, End{})
	r.drained()
}

// undone: every Host that was sent Activate proved that it is back. Only now may new tasks be given up, or tried again.
func (r *run) undone(in TxnChanged) {
	wasStuck := r.d.Step == StepRestoreStuck
	switch {
	case r.d.Verdict != nil: // a task is to blame, and it stays so
	case r.d.Ask != nil:
		asked := r.asked()
		r.d.Verdict = &asked
	case !wasStuck && r.mayRetry(in):
		r.d.Retries++
		r.say(CodeRunning, "trying again: "+r.d.Reason)
		r.d.State, r.d.Next = Running, ""
		r.to(StepRetrying, r.d.Reason)
		return
	default:
		r.d.Verdict = &Verdict{Outcome: RolledBack, Code: CodeOf(in.Cause), Reason: r.d.Reason, Next: r.nextFor(in)}
	}
	if v := r.d.Verdict; v.Asked && !v.Answered {
		r.to(StepExplaining, v.Reason)
		return
	}
	r.finish()
}

// mayRetry: the cause may have passed and there is time for another transaction with the same tasks.
func (r *run) mayRetry(in TxnChanged) bool {
	passing := in.Passing || CodeOf(in.Cause) == CodeTaskDied
	return passing && r.d.Retries < MaxRetries && r.now.Add(backoff(r.d.Retries+1)+leastTime).Before(r.d.Deadline)
}

func (r *run) nextFor(in TxnChanged) string {
	if in.Next != "" {
		return in.Next
	}
	for _, h := range r.d.Hosts {
		if h.Vote == VoteFailed || h.Reason != "" {
			return "cutover lb show " + h.Name
		}
	}
	switch CodeOf(in.Cause) {
	case CodeHostMissing, CodeNoHosts, CodeUnknownGroup:
		return "cutover lb hosts"
	default:
		return ""
	}
}

func (r *run) txnUnknown(in TxnUnknown) {
	if in.ID != r.d.Txn || !r.d.InTxn() {
		return
	}
	// Stored, but never given to the coordinator: no Host heard of it.
	never := TxnChanged{ID: in.ID, Cause: "leader-restart", Passing: true, Reason: "the orchestrator restarted before the transaction began"}
	r.because(never)
	r.undone(never)
}

func (r *run) stuck(code Code, reason, next string) {
	r.say(code, reason)
	r.d.Next = next
	if r.d.Step == StepRestoreStuck {
		return
	}
	r.d.State = Stuck
	r.to(StepRestoreStuck, reason)
	r.out = append(r.out, End{})
}

// hosts takes over how the Hosts stand and tells each change once.
func (r *run) hosts(now []HostView) {
	if now == nil {
		return
	}
	before := map[string]HostView{}
	for _, h := range r.d.Hosts {
		before[h.Group+"/"+h.Name] = h
	}
	for _, h := range now {
		was := before[h.Group+"/"+h.Name]
		if was.Vote == h.Vote && was.Reason == h.Reason || was.Vote == "" && h.Vote == VoteNone && h.Reason == "" {
			continue
		}
		msg := string(h.Vote)
		if h.Reason != "" {
			msg += ": " + h.Reason
		}
		r.emit(Event{Type: "host", Host: h.Name, Code: string(h.Vote), Msg: msg})
	}
	r.d.Hosts = now
}

func (r *run) txnDrained(in TxnDrained) {
	if in.ID != r.d.Txn || r.d.State != Succeeded || r.d.Step == StepDone {
		return
	}
	if r.d.Drains == nil {
		r.d.Drains = map[string]DrainView{}
	}
	was := r.d.Drains[in.Group]
	if was.Done {
		return
	}
	r.d.Drains[in.Group] = DrainView{Done: in.Done, Forced: in.Forced, Waiting: in.Waiting, Deadline: r.drainDeadline()}
	r.drained()
}

// groupless says why the Deploy of an App without a Group is committed: on its tasks' health alone, or on nothing when it
// has none any longer.
func (r *run) groupless() string {
	if r.d.Wanted == 0 {
		return "no task is wanted; the App names no group"
	}
	return "every task is healthy; the App names no group"
}

func (r *run) drainDeadline() time.Time { return r.d.CommittedAt.Add(r.d.Policy.Drain) }

// drained goes on when every Group has released what was replaced.
func (r *run) drained() {
	if r.d.Step != StepDraining && r.d.Step != StepDrainStuck || len(r.waiting()) > 0 {
		return
	}
	r.d.Next = ""
	r.say(CodeCommitted, proved(r.d.Hosts)+", and drained what it replaced")
	if len(r.d.Policy.Groups) == 0 {
		r.say(CodeCommitted, r.groupless())
	}
	r.to(StepKilling, "drained; old tasks are being killed")
	if r.d.OldGone {
		r.to(StepDone, "every old task has ended")
	}
}

// proved says which Hosts proved the Commit: one that was missing, as its Group's policy permits, proved nothing.
func proved(hosts []HostView) string {
	var missing []string
	for _, h := range hosts {
		if h.Standing == StandingUnproven {
			missing = append(missing, h.Name)
		}
	}
	if len(missing) == 0 {
		return "every host proved it"
	}
	return "every host proved it but " + strings.Join(missing, ", ") + " (unproven: missing, as its group's policy permits)"
}
