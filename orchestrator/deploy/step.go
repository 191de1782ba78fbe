package deploy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// run is one Step: the Deploy being made and its effects so far.
type run struct {
	d   Deploy
	now time.Time
	out []Effect
}

// Step is the machine. It returns the Deploy after the input, and what must be done once that Deploy is stored. Inputs
// that do not fit the Deploy's step change nothing: they are late or doubled.
func Step(d Deploy, in Input, now time.Time) (Deploy, []Effect) {
	r := &run{d: d.clone(), now: now}
	switch in := in.(type) {
	case Start:
		r.start()
	case Cleared:
		r.cleared()
	case Gathered:
		if r.d.Step == StepGathering {
			r.begin()
		}
	case PeerEnded:
		r.peerEnded(in)
	case TaskRunning, TaskHealthy, TaskUnhealthy, TaskOverdue, TaskEnded, TaskLost, TaskUnplaced:
		r.task(in)
	case TxnChanged:
		r.txnChanged(in)
	case TxnUnknown:
		r.txnUnknown(in)
	case TxnDrained:
		r.txnDrained(in)
	case OldTasksGone:
		r.d.OldGone = true
		if r.d.Step == StepKilling {
			r.to(StepDone, "every old task has ended")
		}
	case AbortAsked:
		r.abort(in.Ask)
	case OutputRead:
		r.output(in)
	case Tick:
		r.tick()
	}
	return r.d, r.out
}

// Wake is when the next Tick is due; zero if time changes nothing.
func (d Deploy) Wake() time.Time {
	switch d.Step {
	case StepPending:
		return d.StepAt
	case StepWaiting, StepLaunching, StepChecking:
		return d.Deadline
	case StepGathering:
		return d.Deadline.Add(GatherSlack)
	case StepRetrying:
		return d.StepAt.Add(backoff(d.Retries))
	case StepPreparing, StepActivating:
		return d.Deadline.Add(AbortSlack)
	case StepCommitting:
		return d.StepAt.Add(UndecidedTimeout)
	case StepRestoring:
		return d.StepAt.Add(RestoreSlack)
	case StepExplaining:
		return d.StepAt.Add(OutputTimeout)
	case StepDraining:
		return d.CommittedAt.Add(d.Policy.Drain + DrainSlack)
	case StepKilling:
		return d.StepAt.Add(d.Policy.KillGrace + KillSlack)
	default:
		return time.Time{}
	}
}

func backoff(retries int) time.Duration { return firstBackoff << max(0, retries-1) }

func (r *run) emit(e Event) { r.out = append(r.out, Emit{e}) }

func (r *run) note(code Code, format string, args ...any) {
	r.emit(Event{Type: "note", Code: string(code), Msg: fmt.Sprintf(format, args...)})
}

// to enters a step. It is the only place that changes Step.
func (r *run) to(step StepName, why string) {
	if r.d.Step == step {
		return
	}
	r.d.Step, r.d.StepAt = step, r.now
	r.d.Steps = append(r.d.Steps, StepRecord{Step: string(step), At: r.now})
	kind := "step"
	if step == StepDone {
		kind = "end"
	}
	r.emit(Event{Type: kind, Step: string(step), Code: string(r.d.Code), Msg: why})
}

// say sets what people and scripts read as the present state.
func (r *run) say(code Code, reason string) { r.d.Code, r.d.Reason = code, reason }

func (r *run) start() {
	if r.d.Step != StepPending {
		return
	}
	if r.d.Behind != "" {
		r.say(CodeRunning, "waiting for "+r.d.Behind+" to be put back")
		r.to(StepWaiting, r.d.Reason)
		return
	}
	r.launch()
}

func (r *run) cleared() {
	if r.d.Step != StepWaiting && r.d.Step != StepWaitStuck {
		return
	}
	// The wait was not the Deploy's own: its time starts now.
	r.d.State, r.d.Next, r.d.Behind = Running, "", ""
	r.d.FinishedAt = time.Time{}
	r.d.Deadline = r.now.Add(r.d.Policy.Deadline)
	r.launch()
}

// launch starts a task for every instance of the target that has none, and goes on to checking or, if none is missing, to
// the transaction.
func (r *run) launch() {
	have := map[int]bool{}
	r.d.Members = slices.DeleteFunc(r.d.Members, func(m Member) bool { return m.State == MemberEnded })
	for _, m := range r.d.Members {
		have[m.Instance] = true
	}
	var fresh []Member
	for i := 0; i < r.d.Wanted; i++ {
		if have[i] {
			continue
		}
		r.d.Attempts++
		fresh = append(fresh, Member{
			Task:     TaskID(r.d.App, r.d.Spec, i, MemberUnique(r.d.ID, r.d.Attempts)),
			Instance: i, Attempt: r.d.Failures[i] + 1, State: MemberLaunching,
		})
	}
	if len(fresh) > 0 {
		r.d.Members = append(r.d.Members, fresh...)
		slices.SortFunc(r.d.Members, func(a, b Member) int { return a.Instance - b.Instance })
		r.out = append(r.out, LaunchTasks{Members: fresh})
	}
	r.evaluate()
}

// evaluate moves on when all new tasks are healthy. Kept ones that are red are reported and are no veto.
func (r *run) evaluate() {
	launching, sick := 0, 0
	for _, m := range r.d.Members {
		switch {
		case m.Kept, m.State == MemberHealthy:
		case m.State == MemberRunning:
			sick++
		default:
			launching++
		}
	}
	switch {
	case launching > 0:
		r.say(CodeRunning, fmt.Sprintf("waiting for %d of %d tasks to run", launching, r.d.Wanted))
		r.to(StepLaunching, r.d.Reason)
	case sick > 0:
		r.say(CodeRunning, fmt.Sprintf("waiting for %d of %d tasks to be healthy", sick, r.d.Wanted))
		r.to(StepChecking, r.d.Reason)
	case r.d.Lockstep != "":
		r.healthy()
		r.say(CodeRunning, "every task is ready; waiting for the other Apps of the lock-step")
		r.to(StepGathering, r.d.Reason)
	default:
		r.begin()
	}
}

func (r *run) healthy() {
	if r.d.HealthyAt.IsZero() {
		r.d.HealthyAt = r.now
	}
}

func (r *run) begin() {
	r.healthy()
	r.d.Txns++
	r.d.Txn = fmt.Sprintf("%s.%d", r.d.ID, r.d.Txns)
	r.d.Hosts, r.d.Leaving = nil, false
	r.say(CodeRunning, "every task is ready; hosts prepare")
	r.out = append(r.out, BeginTxn{ID: r.d.Txn})
	r.to(StepPreparing, r.d.Reason)
}

// preTxn reports whether the Deploy is before a transaction: nothing of it is known to any Host.
func (r *run) preTxn() bool {
	switch r.d.Step {
	case StepLaunching, StepChecking, StepGathering, StepRetrying:
		return true
	default:
		return false
	}
}

func (r *run) task(in Input) {
	id, why := taskOf(in)
	i := slices.IndexFunc(r.d.Members, func(m Member) bool { return m.Task == id })
	if i < 0 || !r.d.Open() {
		return
	}
	m := &r.d.Members[i]
	if m.State == MemberEnded {
		return
	}
	switch in.(type) {
	case TaskUnplaced:
		if m.State == MemberLaunching {
			m.Why = why
		}
		return
	case TaskRunning:
		if m.State != MemberLaunching {
			return
		}
		m.State, m.Why = MemberRunning, ""
	case TaskHealthy:
		if m.State == MemberHealthy {
			return
		}
		m.State, m.Why = MemberHealthy, ""
		r.emit(Event{Type: "task", Task: id, Msg: "healthy"})
	case TaskUnhealthy:
		if m.State == MemberHealthy {
			m.State = MemberRunning
			r.emit(Event{Type: "task", Task: id, Msg: "not healthy: " + why})
		}
		m.Why = why
	case TaskOverdue:
		m.Why = why
		if r.preTxn() && !m.Kept {
			r.fail(Verdict{
				Outcome: RolledBack, Code: CodeTaskSick, Culprit: id,
				Reason: fmt.Sprintf("task %s did not become healthy in time: %s: %s", id, r.d.Policy.Check, why),
			})
			return
		}
	case TaskLost:
		if m.Kept || !r.preTxn() {
			return // the Hosts' own checks decide about what they may know
		}
		r.emit(Event{Type: "task", Task: id, Msg: "lost: " + why})
		r.out = append(r.out, KillTasks{Tasks: []string{id}, Why: "lost: " + why})
		r.ended(m, "lost: "+why)
		return
	case TaskEnded:
		r.emit(Event{Type: "task", Task: id, Msg: "ended: " + why})
		r.ended(m, why)
		return
	}
	if r.d.Step == StepLaunching || r.d.Step == StepChecking || r.d.Step == StepGathering {
		r.evaluate()
	}
}

func taskOf(in Input) (id, why string) {
	switch in := in.(type) {
	case TaskRunning:
		return in.Task, ""
	case TaskHealthy:
		return in.Task, ""
	case TaskUnhealthy:
		return in.Task, in.Why
	case TaskOverdue:
		return in.Task, in.Why
	case TaskEnded:
		return in.Task, in.Why
	case TaskLost:
		return in.Task, in.Why
	case TaskUnplaced:
		return in.Task, in.Why
	}
	return "", ""
}

// ended handles the end of a task of the target.
func (r *run) ended(m *Member, why string) {
	m.State, m.Why = MemberEnded, why
	if !m.Kept {
		if r.d.Failures == nil {
			r.d.Failures = map[int]int{}
		}
		r.d.Failures[m.Instance]++
	}
	failures, id, instance := r.d.Failures[m.Instance], m.Task, m.Instance
	verdict := Verdict{
		Outcome: RolledBack, Code: CodeTaskExits, Culprit: id,
		Reason: fmt.Sprintf("instance %d ended %d times before it was in service, last as task %s: %s", instance, failures, id, why),
	}
	switch {
	case r.preTxn() && failures >= MaxFailures:
		r.fail(verdict)
	case r.d.Step == StepLaunching, r.d.Step == StepChecking, r.d.Step == StepGathering:
		if !m.Kept {
			r.note(CodeTaskExits, "instance %d is started once more", instance)
		}
		r.launch()
	case r.d.Step == StepRetrying:
		// launch replaces it when the pause is over.
	case m.Kept:
		// Removed from base and target by an Amendment; the scheduler replaces it after the Commit.
	case r.d.Step == StepPreparing, r.d.Step == StepActivating, r.d.Step == StepCommitting, r.d.Step == StepRestoring && !r.d.Leaving:
		// Restoring too: a transaction that is undone for another's fault would try again with this task.
		if failures >= MaxFailures {
			r.d.Verdict = &verdict
			r.askOutput()
		}
		r.abortTxn("task-died", fmt.Sprintf("task %s ended before the Commit: %s", id, why))
	}
}

// fail ends a Deploy that no Host is changed by. If a task is the culprit, its output is read first, while it is there.
func (r *run) fail(v Verdict) {
	r.d.Verdict = &v
	r.say(v.Code, v.Reason)
	if v.Culprit == "" {
		r.finish()
		return
	}
	r.askOutput()
	r.to(StepExplaining, v.Reason)
}

func (r *run) askOutput() {
	v := r.d.Verdict
	if v == nil || v.Culprit == "" || v.Asked {
		return
	}
	v.Asked = true
	r.out = append(r.out, FetchOutput{Task: v.Culprit})
}

func (r *run) output(in OutputRead) {
	v := r.d.Verdict
	if v == nil || v.Culprit != in.Task || v.Answered {
		return
	}
	v.Answered = true
	if text := strings.TrimSpace(in.Text); text != "" {
		v.Output = text
	}
	if r.d.Step == StepExplaining {
		r.finish()
	}
}

// finish ends a Deploy whose change is undone everywhere, or was never sent to anyone: its new tasks are given up (UNDO).
func (r *run) finish() {
	v := r.d.Verdict
	r.d.State = v.Outcome
	reason := v.Reason
	if v.Output != "" {
		reason += "\nlast output:\n" + v.Output
	}
	r.say(v.Code, reason)
	r.d.Next = v.Next
	if v.Culprit != "" && r.d.Next == "" {
		r.d.Next = "cutover logs --file stderr " + v.Culprit
	}
	r.d.FinishedAt = r.now
	var give []string
	for _, m := range r.d.Members {
		if !m.Kept && m.State != MemberEnded {
			give = append(give, m.Task)
		}
	}
	if len(give) > 0 {
		r.out = append(r.out, KillTasks{Tasks: give, Why: string(v.Outcome) + ": " + string(v.Code)})
	}
	r.to(StepDone, reason)
	r.out = append(r.out, End{})
}

func (r *run) tick() {
	d := r.d
	if wake := d.Wake(); wake.IsZero() || r.now.Before(wake) {
		return
	}
	switch d.Step {
	case StepPending:
		r.start()
	case StepWaiting:
		r.d.State = Stuck
		r.say(CodeInTheWay, "the rollback is recorded and runs by itself as soon as "+d.Behind+" is put back on every host")
		r.d.Next = "cutover status " + d.Behind
		r.to(StepWaitStuck, r.d.Reason)
		r.out = append(r.out, End{})
	case StepLaunching, StepChecking:
		r.fail(r.late())
	case StepGathering:
		r.fail(Verdict{Outcome: RolledBack, Code: CodeLockstep, Reason: "the other Apps of the lock-step were not ready in time", Next: "cutover status " + d.Lockstep})
	case StepRetrying:
		r.launch()
	case StepPreparing, StepActivating:
		r.abortTxn("deadline", "the deadline of the Deploy passed")
	case StepCommitting:
		r.stuck(CodeUndecided, "it is not known whether the Commit was recorded; both colours stay", "cutover status "+d.ID)
	case StepRestoring:
		r.stuck(d.Code, d.Reason+"; the restore is overdue, both colours stay", "cutover lb hosts")
	case StepExplaining:
		r.finish()
	case StepDraining:
		waiting := r.waiting()
		r.say(CodeDrainStuck, "committed, but not drained on "+strings.Join(waiting, ", ")+"; old tasks stay alive")
		if len(waiting) > 0 {
			r.d.Next = "cutover lb show " + waiting[0]
		}
		r.to(StepDrainStuck, r.d.Reason)
	case StepKilling:
		r.note(CodeCommitted, "old tasks are still being killed; the scheduler goes on with it")
		r.to(StepDone, "old tasks are released")
	default: // Wake is zero there
	}
}

// late is the verdict on a Deploy whose tasks are not healthy at the deadline.
func (r *run) late() Verdict {
	var notes []string
	v := Verdict{Outcome: RolledBack, Code: CodeNotInTime}
	for _, m := range r.d.Members {
		if m.Kept || m.State == MemberHealthy {
			continue
		}
		why := m.Why
		switch {
		case m.State == MemberLaunching && why == "":
			why = "not running yet"
		case m.State == MemberRunning && why == "":
			why = "no answer yet to " + r.d.Policy.Check
		case m.State == MemberRunning:
			why = r.d.Policy.Check + ": " + why
		}
		if m.State == MemberRunning && v.Culprit == "" {
			v.Culprit = m.Task
		}
		if len(notes) < 3 {
			notes = append(notes, "task "+m.Task+": "+why)
		}
	}
	if v.Culprit == "" {
		v.Code, v.Next = CodeNotPlaced, "cutover tasks "+r.d.App
	}
	v.Reason = fmt.Sprintf("not every task was healthy after %s: %s", r.d.Policy.Deadline, strings.Join(notes, "; "))
	return v
}

func (r *run) waiting() []string {
	var out []string
	for _, g := range r.d.Policy.Groups {
		dr, ok := r.d.Drains[g]
		switch {
		case !ok:
			out = append(out, "group "+g)
		case !dr.Done && len(dr.Waiting) == 0:
			out = append(out, "group "+g)
		case !dr.Done:
			out = append(out, dr.Waiting...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
