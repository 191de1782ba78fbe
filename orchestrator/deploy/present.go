package deploy

import "time"

// View is the Deploy as everyone outside sees it, with the tasks that its owner knows more about.
func (d Deploy) View(tasks []TaskView) View {
	v := View{
		DeployID: d.ID, App: d.App, Kind: string(d.Kind), Spec: d.Spec, FromSpec: d.FromSpec, Version: d.Version,
		State: d.State, Step: string(d.Step), Reason: d.Reason, ReasonCode: string(d.Code), NextCommand: d.Next,
		Actor: d.Actor, StartedAt: d.StartedAt, Deadline: d.Deadline,
		CommittedAt: optional(d.CommittedAt), FinishedAt: optional(d.FinishedAt), HealthyAt: optional(d.HealthyAt),
		Generation: d.Generation, Txn: d.Txn, Lockstep: d.Lockstep, Tasks: tasks, Hosts: d.Hosts, Steps: d.Steps, Stuck: d.Stuck,
	}
	if v.Tasks == nil {
		v.Tasks = []TaskView{}
	}
	if v.Hosts == nil {
		v.Hosts = []HostView{}
	}
	if v.Steps == nil {
		v.Steps = []StepRecord{}
	}
	if d.State == Succeeded && d.Code != CodeUnchanged {
		v.Drain = d.drainView()
	}
	return v
}

func (d Deploy) drainView() *DrainView {
	r := run{d: d}
	out := &DrainView{Deadline: r.drainDeadline(), Waiting: r.waiting()}
	out.Done = len(out.Waiting) == 0
	for _, g := range d.Drains {
		out.Forced = out.Forced || g.Forced
	}
	return out
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
