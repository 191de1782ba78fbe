package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/scheduler"
	"github.com/cutover/cutover/orchestrator/spec"
	"github.com/cutover/cutover/orchestrator/store"
)

// This file is the life of tasks: launched, placed, running, probed, ended, killed.

func lower(s string) string { return strings.ToLower(s) }

// dirty marks the task changed, and its App for the scheduler.
func (e *Engine) dirty(t *taskRecord) {
	e.batch.tasks[t.TaskID] = true
	e.batch.look[t.App] = true
}

// launch records a new task and asks the framework for it after the Commit.
func (e *Engine) launch(id, app string, rev uint64, instance int, r role, deployID string) {
	sp, ok := e.s.specs.get(app, rev)
	if !ok {
		e.log.Error("no such revision: the task is not launched", "app", app, "spec", rev)
		return
	}
	t := &taskRecord{
		Placement: Placement{TaskID: id}, App: app, Spec: rev, Template: sp.TemplateDigest(), Instance: instance, Deploy: deployID,
		Upstream: deploy.UpstreamName(id), Role: r, State: Queued, CreatedAt: e.batch.now, changed: e.batch.now,
	}
	e.s.addTask(t)
	e.dirty(t)
	e.sendLaunch(t, sp)
}

// launch is a task for the framework.
type launch struct {
	id   string
	spec TaskSpec
}

// sendLaunch asks for the task together with all others of this turn: each call makes the framework look for offers once.
func (e *Engine) sendLaunch(t *taskRecord, sp spec.Spec) {
	b := e.batch
	b.launches = append(b.launches, launch{t.TaskID, taskSpec(t, sp)})
	if len(b.launches) == 1 {
		b.do(func() { e.runner.push(func() { e.launchAll(b.launches) }) })
	}
}

// launchAll asks for all tasks at once. If the framework takes none, each is asked for by itself, so that one which it cannot
// run does not stand in the way of the others.
func (e *Engine) launchAll(launches []launch) {
	specs := make([]TaskSpec, len(launches))
	for i, l := range launches {
		specs[i] = l.spec
	}
	ctx, cancel := context.WithTimeout(e.ctx, e.opts.CallTimeout)
	defer cancel()
	err := e.ports.Runner.Launch(ctx, specs)
	switch {
	case err == nil || e.ctx.Err() != nil:
	case len(launches) > 1:
		for i := range launches {
			e.launchAll(launches[i : i+1])
		}
	default:
		id := launches[0].id
		e.log.Warn("the framework did not take a task", "task", id, "error", err)
		e.post(func() { e.notTaken(id, err) })
	}
}

// relaunchAfter is when the framework is asked again about a task that it did not take. It is also asked when it
// subscribes.
const relaunchAfter = time.Second

// notTaken handles a task that the framework does not know: one that it can never run ends, others are offered again.
func (e *Engine) notTaken(id string, err error) {
	t := e.s.task(id)
	switch {
	case t == nil || t.ended():
	case t.KillOrdered:
		e.taskEnded(id, Killed, "not launched")
	case errors.Is(err, ErrInvalidTask):
		e.taskEnded(id, Errored, "the framework refused it: "+err.Error())
	default:
		t.why, t.unplaced = "the framework did not take it: "+err.Error(), true
		e.s.relaunch[id] = e.batch.now.Add(relaunchAfter)
		e.feedApp(t.App, deploy.TaskUnplaced{Task: id, Why: t.why})
	}
}

// relaunch offers tasks again that are due, or all of them.
func (e *Engine) relaunch(all bool) {
	for _, id := range sortedKeys(e.s.relaunch) {
		if !all && e.s.relaunch[id].After(e.batch.now) {
			continue
		}
		delete(e.s.relaunch, id)
		if t := e.s.task(id); t != nil && t.State == Queued && !t.KillOrdered {
			if sp, ok := e.s.specs.get(t.App, t.Spec); ok {
				e.sendLaunch(t, sp)
			}
		}
	}
}

func taskSpec(t *taskRecord, sp spec.Spec) TaskSpec {
	ts := TaskSpec{
		ID: t.TaskID, App: t.App, Group: fmt.Sprintf("%s.%d", t.App, t.Spec), Command: sp.Command, Env: sp.Env,
		CPUs: sp.Resources.CPUs, MemoryMB: sp.Resources.Memory.MiB(), DiskMB: sp.Resources.Disk.MiB(), Ports: sp.Resources.Ports,
		KillGrace: time.Duration(sp.Kill.Grace),
		Labels: map[string]string{
			"app": t.App, "spec": fmt.Sprint(t.Spec), "version": sp.Version, "instance": fmt.Sprint(t.Instance), "deploy": t.Deploy,
		},
	}
	for _, a := range sp.Artifacts {
		ts.Artifacts = append(ts.Artifacts, Artifact{URI: a.URI, SHA256: a.SHA256, Extract: a.Extract, Executable: a.Executable})
	}
	for _, c := range sp.Constraints {
		ts.Constraints = append(ts.Constraints, Constraint(c))
	}
	return ts
}

// FrameworkID returns the saved framework id, "" if there is none.
func (e *Engine) FrameworkID(ctx context.Context) (string, error) {
	rec, err := e.opts.Store.Get(ctx, keyFramework)
	if err != nil {
		if isNotFound(err) {
			return "", nil
		}
		return "", err
	}
	return string(rec.Value), nil
}

// SaveFrameworkID saves the id that a master gave. It refuses to replace another one: the tasks belong to that one.
func (e *Engine) SaveFrameworkID(ctx context.Context, id string) error {
	if have, err := e.FrameworkID(ctx); err != nil || have == id {
		return err
	} else if have != "" {
		return fmt.Errorf("engine: the framework id is %s: a master that gives %s has lost its registry", have, id)
	}
	_, err := e.opts.Store.Commit(ctx, e.opts.Fence, store.Op{Kind: store.Create, Key: keyFramework, Value: []byte(id)})
	return err
}

// SaveLaunching records where tasks are about to be launched. It is durable when it returns nil.
func (e *Engine) SaveLaunching(ctx context.Context, placements []Placement) error {
	return e.do(ctx, func() error {
		for _, p := range placements {
			t := e.s.task(p.TaskID)
			if t == nil || t.ended() {
				return fmt.Errorf("engine: task %s is not wanted any longer", p.TaskID)
			}
		}
		for _, p := range placements {
			t := e.s.task(p.TaskID)
			t.Placement = p
			t.why, t.unplaced = "", false
			if t.State == Queued {
				t.State = Launching
			}
			e.dirty(t)
			if t.KillOrdered { // ordered while it was not known where
				e.sendKill(t)
			}
		}
		return nil
	})
}

// Unended returns all tasks that have not ended, for reconciliation after a subscription. Those that something waits for
// come first: very many others may follow them.
func (e *Engine) Unended(ctx context.Context) ([]TaskRef, error) {
	var awaited, settled []TaskRef
	err := e.do(ctx, func() error {
		e.relaunch(true)
		open := map[string]bool{}
		for id := range e.s.active {
			open[e.s.deploys.get(id).App] = true
		}
		for _, t := range e.s.tasks {
			switch {
			case t.ended() || t.State == Queued:
			case t.State == Running && !t.KillOrdered && !open[t.App]:
				settled = append(settled, ref(t))
			default:
				awaited = append(awaited, ref(t))
			}
		}
		return nil
	})
	byID := func(a, b TaskRef) int { return strings.Compare(a.TaskID, b.TaskID) }
	slices.SortFunc(awaited, byID)
	slices.SortFunc(settled, byID)
	return append(awaited, settled...), err
}

func ref(t *taskRecord) TaskRef {
	return TaskRef{
		Placement: t.Placement, App: t.App, Group: fmt.Sprintf("%s.%d", t.App, t.Spec), State: t.State, Kill: t.KillOrdered,
	}
}

// HandleUpdate takes a status update. What it means is durable when it returns nil: only then it may be acknowledged.
func (e *Engine) HandleUpdate(ctx context.Context, u TaskUpdate) error {
	return e.do(ctx, func() error {
		t := e.s.task(u.TaskID)
		if t == nil {
			// Never killed by itself: NO-ORPHAN-KILL, a Host may know what this store does not.
			e.log.Warn("status of an unknown task", "task", u.TaskID, "state", u.State, "agent", u.AgentID)
			e.metrics.unknown.Inc()
			return nil
		}
		if t.ended() {
			return nil
		}
		e.placed(t, u)
		why := message(u)
		switch {
		case u.State.Terminal():
			e.taskEnded(t.TaskID, u.State, why)
		case u.State.Away():
			e.taskAway(t, u.State, why)
		default:
			e.taskLives(t, u.State, why)
		}
		return nil
	})
}

// HandleLost takes the framework's word that a task will not run. Final: no update follows.
func (e *Engine) HandleLost(ctx context.Context, task, why string, final bool) error {
	return e.do(ctx, func() error {
		t := e.s.task(task)
		if t == nil || t.ended() {
			return nil
		}
		if final {
			state := Errored
			if t.KillOrdered {
				state = Killed
			}
			e.taskEnded(task, state, why)
			return nil
		}
		e.taskAway(t, Lost, why)
		return nil
	})
}

func message(u TaskUpdate) string {
	msg := strings.TrimSpace(u.Message)
	if msg == "" {
		msg = u.Reason
	}
	if len(msg) > 500 {
		msg = msg[:500] + "..."
	}
	if msg == "" {
		return string(u.State)
	}
	return string(u.State) + ": " + strings.ToValidUTF8(msg, "?")
}

// placed takes over what an update says about where the task is.
func (e *Engine) placed(t *taskRecord, u TaskUpdate) {
	if u.AgentID != "" && t.AgentID == "" {
		t.AgentID = u.AgentID
	}
	if u.Host != "" && t.Host != u.Host && len(u.Ports) > 0 {
		t.Host, t.Ports = u.Host, u.Ports
		e.dirty(t)
	}
}

func (e *Engine) taskLives(t *taskRecord, st TaskState, why string) {
	if t.State == st {
		return
	}
	wasAway := t.State.Away()
	t.State, t.Message = st, ""
	if wasAway {
		t.changed = e.batch.now
		e.tell(t, "is back: "+why)
	}
	e.dirty(t)
	if st != Running {
		return
	}
	if t.RunningAt.IsZero() {
		t.RunningAt, t.changed = e.batch.now, e.batch.now
	}
	e.probe(t, false)
	e.feedApp(t.App, deploy.TaskRunning{Task: t.TaskID})
}

func (e *Engine) taskAway(t *taskRecord, st TaskState, why string) {
	if t.State == st {
		return
	}
	if t.State == Queued {
		// The framework holds it, Mesos never heard of it: an answer about an unknown task says nothing.
		return
	}
	if !t.State.Away() {
		t.changed = e.batch.now
	}
	t.State, t.Message = st, why
	e.dirty(t)
	e.tell(t, why)
	e.feedApp(t.App, deploy.TaskLost{Task: t.TaskID, Why: why})
}

// taskEnded handles a terminal status. The upstream of a committed task leaves all proxies by the scheduler's plan.
func (e *Engine) taskEnded(id string, st TaskState, why string) {
	t := e.s.task(id)
	if t == nil || t.ended() {
		return
	}
	now := e.batch.now
	t.State, t.Message, t.EndedAt, t.changed = st, why, now, now
	t.health, t.why = scheduler.Unknown, ""
	e.dirty(t)
	e.batch.do(func() { e.ports.Prober.Remove(id) })
	if !t.KillOrdered && (t.Role == roleCommitted || t.Role == roleReplacement) {
		a := e.s.apps[t.App]
		if a.Backoff == nil {
			a.Backoff = map[int]scheduler.Backoff{}
		}
		var ran time.Duration
		if !t.RunningAt.IsZero() {
			ran = now.Sub(t.RunningAt)
		}
		a.Backoff[t.Instance] = a.Backoff[t.Instance].After(ran, now, e.opts.Scheduler)
		e.batch.apps[t.App] = true
		e.tell(t, why)
	}
	e.feedApp(t.App, deploy.TaskEnded{Task: id, Why: why})
}

// tell notes in the App's open Deploy what happened to a task that is not of its target.
func (e *Engine) tell(t *taskRecord, what string) {
	a := e.s.apps[t.App]
	if a == nil || a.Open == "" {
		return
	}
	d := e.s.deploys.get(a.Open)
	for _, m := range d.Members {
		if m.Task == t.TaskID {
			return // the machine tells it
		}
	}
	e.emit(d, deploy.Event{Type: "task", Task: t.TaskID, Msg: string(t.Role) + " task: " + what}, nil)
}

// probe starts probing a running task, once it is known where. settled: it was healthy in an earlier term, and nothing waits
// to hear so again.
func (e *Engine) probe(t *taskRecord, settled bool) {
	sp, ok := e.s.specs.get(t.App, t.Spec)
	if !ok || t.State != Running || t.KillOrdered || sp.Health == nil {
		return
	}
	h := sp.Health
	if h.Port() >= len(t.Ports) {
		e.log.Warn("a running task has no such port", "task", t.TaskID, "port", h.Port())
		return
	}
	target := ProbeTarget{
		Task: t.TaskID, Address: address(t.Host, t.Ports[h.Port()]), Interval: time.Duration(h.Interval), Timeout: time.Duration(h.Timeout),
		Grace: time.Duration(h.Grace), Rise: h.Rise, Fall: h.Fall, Settled: settled,
	}
	if h.HTTP != nil {
		target.HTTPPath = h.HTTP.Path
	}
	e.batch.do(func() {
		if err := e.ports.Prober.Add(target); err != nil && e.ctx.Err() == nil {
			e.log.Error("a task cannot be probed", "task", target.Task, "error", err)
		}
	})
}

// probed takes a change that the prober saw.
func (e *Engine) probed(p ProbeEvent) {
	t := e.s.task(p.Task)
	if t == nil || t.ended() || t.KillOrdered {
		return
	}
	health := scheduler.Failing
	if p.Verdict == ProbeHealthy {
		health = scheduler.Healthy
	}
	if t.health != health {
		t.health, t.changed = health, e.batch.now
	}
	t.why = p.Why
	e.batch.look[t.App] = true // health is not stored
	switch p.Verdict {
	case ProbeHealthy:
		t.why = ""
		e.feedApp(t.App, deploy.TaskHealthy{Task: t.TaskID})
	case ProbeUnhealthy:
		e.feedApp(t.App, deploy.TaskUnhealthy{Task: t.TaskID, Why: p.Why})
	case ProbeOverdue:
		e.feedApp(t.App, deploy.TaskOverdue{Task: t.TaskID, Why: p.Why})
	}
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}
