package deploy

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Together is a lock-step as one View: the keys of a Deploy about the whole, and the Deploy of each App in Apps. The views are
// not empty, and keep their order.
func Together(id string, views []View) View {
	first := views[0]
	v := View{
		DeployID: id, Kind: first.Kind, State: together(views), Actor: first.Actor, StartedAt: first.StartedAt, Deadline: first.Deadline,
		Tasks: []TaskView{}, Hosts: []HostView{}, Apps: views,
	}
	var names []string
	for _, d := range views {
		names = append(names, d.App)
		v.Tasks = append(v.Tasks, d.Tasks...)
		v.Generation = max(v.Generation, d.Generation)
		if d.StartedAt.Before(v.StartedAt) {
			v.StartedAt = d.StartedAt
		}
		if d.Deadline.After(v.Deadline) {
			v.Deadline = d.Deadline
		}
		v.Hosts = joinHosts(v.Hosts, d.Hosts)
	}
	v.App = strings.Join(names, ",")
	v.CommittedAt = latest(views, func(d View) *time.Time { return d.CommittedAt })
	v.FinishedAt = latest(views, func(d View) *time.Time { return d.FinishedAt })
	v.HealthyAt = latest(views, func(d View) *time.Time { return d.HealthyAt })
	v.Steps = joinSteps(views)
	slowest := slices.MinFunc(views, func(a, b View) int { return cmp.Compare(progress(a), progress(b)) })
	v.Step = slowest.Step
	why := telling(views, v.State, slowest)
	v.Reason, v.ReasonCode, v.NextCommand = why.Reason, why.ReasonCode, why.NextCommand
	if v.State != Succeeded && v.State != Running {
		v.Reason = "App " + why.App + ": " + strings.TrimPrefix(why.Reason, "App "+why.App+": ")
	}
	if v.State == Succeeded {
		v.Drain = joinDrains(views)
	}
	return v
}

// together is the state of the whole. One that runs, or cannot be put back, keeps it from being at its end.
func together(views []View) State {
	for _, s := range []State{Stuck, Running, RolledBack, Superseded, Aborted} {
		if slices.ContainsFunc(views, func(v View) bool { return v.State == s }) {
			return s
		}
	}
	return Succeeded
}

// telling is the Deploy that explains the state: one that failed by itself before those that failed with it.
func telling(views []View, state State, slowest View) View {
	if state == Running {
		return slowest
	}
	found := -1
	for i, v := range views {
		if v.State == state && (found < 0 || views[found].ReasonCode == string(CodeLockstep)) {
			found = i
		}
	}
	if found < 0 || state == Succeeded {
		return slowest
	}
	return views[found]
}

// progress orders steps by how far a Deploy is.
func progress(v View) int {
	order := []StepName{
		StepPending, StepWaiting, StepWaitStuck, StepLaunching, StepChecking, StepRetrying, StepGathering, StepPreparing, StepActivating,
		StepCommitting, StepRestoring, StepRestoreStuck, StepExplaining, StepDrainStuck, StepDraining, StepKilling, StepDone,
	}
	return slices.Index(order, StepName(v.Step))
}

// latest is the last of the times if all have one.
func latest(views []View, of func(View) *time.Time) *time.Time {
	var last time.Time
	for _, v := range views {
		at := of(v)
		if at == nil {
			return nil
		}
		if at.After(last) {
			last = *at
		}
	}
	return optional(last)
}

// joinSteps are the steps of all in order of time; several that enter the same one are told once.
func joinSteps(views []View) []StepRecord {
	var all []StepRecord
	for _, v := range views {
		all = append(all, v.Steps...)
	}
	slices.SortStableFunc(all, func(a, b StepRecord) int { return a.At.Compare(b.At) })
	return slices.CompactFunc(all, func(a, b StepRecord) bool { return a.Step == b.Step })
}

// joinHosts adds the Hosts of one App: each Host once, with the vote that is furthest from Verified. The evidence is with the
// Apps.
func joinHosts(all, hosts []HostView) []HostView {
	worse := []Vote{VoteFailed, VoteNone, VoteAborted, VoteReady, VoteVerified}
	for _, h := range hosts {
		h.Evidence = nil
		i := slices.IndexFunc(all, func(have HostView) bool { return have.Group == h.Group && have.Name == h.Name })
		switch {
		case i < 0:
			all = append(all, h)
		case slices.Index(worse, h.Vote) < slices.Index(worse, all[i].Vote):
			all[i] = h
		}
	}
	return all
}

func joinDrains(views []View) *DrainView {
	out := &DrainView{Done: true}
	any := false
	for _, v := range views {
		d := v.Drain
		if d == nil {
			continue
		}
		any = true
		out.Done, out.Forced = out.Done && d.Done, out.Forced || d.Forced
		if d.Deadline.After(out.Deadline) {
			out.Deadline = d.Deadline
		}
		out.Waiting = append(out.Waiting, d.Waiting...)
	}
	if !any {
		return nil
	}
	slices.Sort(out.Waiting)
	out.Waiting = slices.Compact(out.Waiting)
	return out
}
