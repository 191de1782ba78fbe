package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// This file rebuilds the engine's records from the decision log when they are behind it: their store went back, or is empty.
// What is committed is read from the log and the committed Sections. Tasks that only the lost records knew are never
// killed (NO-ORPHAN-KILL): Mesos reports them, and they are left alone.

// logged is what the decision log says of one App. Decision and note are those of its newest Commit.
type logged struct {
	txn.CommittedApp
	decision txn.Decision
	note     commitNote
}

// repair is what a rebuild changed in the state.
type repair struct {
	app     bool
	spec    uint64 // a revision that was put back, 0: none
	deploys map[string]bool
	tasks   map[string]bool
	amends  map[string]bool
}

// behind says what the state lacks of an App that the log has: the Commit itself, or tasks that are committed.
func (s *state) behind(c txn.CommittedApp) (commit, tasks bool) {
	for _, id := range routed(c) {
		tasks = tasks || s.task(id) == nil
	}
	if c.Txn == "" {
		return false, tasks
	}
	a := s.apps[c.App]
	if a != nil && a.CommittedTxn == c.Txn && s.deploys.has(a.CommittedBy) {
		return false, tasks // in nearly every case, and nothing had to be read for it
	}
	if d := s.deploys.get(deployOfTxn(c.Txn)); d != nil && d.Txn == c.Txn && (d.State == deploy.Succeeded || d.InTxn()) {
		if d.State == deploy.Succeeded {
			return false, tasks
		}
		// The Commit may be all that this record does not know yet: the coordinator tells it. But a committed task that the
		// Deploy did not have came later, by this engine's own doing.
		target := d.Tasks()
		for _, id := range routed(c) {
			if !slices.Contains(target, id) {
				return true, true
			}
		}
		for _, id := range target {
			tasks = tasks || s.task(id) == nil
		}
		return false, tasks
	}
	if a == nil {
		return true, true
	}
	by := s.deploys.get(a.CommittedBy)
	return by == nil || by.Generation < c.Order, tasks
}

// routed are the tasks that the committed Sections of an App name, sorted.
func routed(c txn.CommittedApp) []string {
	var out []string
	for _, section := range c.Sections {
		for _, u := range section.GetUpstreams() {
			if u.GetTaskId() != "" {
				out = append(out, u.GetTaskId())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// rebuild makes the state agree with what the log says of an App. commit: the newest Commit is missing; otherwise only
// tasks are.
func (s *state) rebuild(l logged, commit bool, now time.Time) (repair, error) {
	r := repair{deploys: map[string]bool{}, tasks: map[string]bool{}, amends: map[string]bool{}}
	if len(l.note.Source) > 0 {
		if _, ok := s.specs.get(l.App, l.note.Spec); !ok {
			var sp spec.Spec
			if err := json.Unmarshal(l.note.Source, &sp); err != nil {
				return r, fmt.Errorf("the spec in the commit record %s: %w", l.Txn, err)
			}
			s.specs.put(l.App, l.note.Spec, sp)
			r.spec = l.note.Spec
		}
	}
	if commit {
		if err := s.rebuildCommit(l, &r, now); err != nil {
			return r, err
		}
	}
	s.rebuildTasks(l, &r, now)
	return r, nil
}

// rebuildCommit makes the newest Commit the App's committed state, as if the coordinator had just told it. Every Deploy of
// the App that the state still believes under way is older than it and over.
func (s *state) rebuildCommit(l logged, r *repair, now time.Time) error {
	stopped := l.note.Kind == deploy.KindStop
	sp, ok := s.specs.get(l.App, l.note.Spec)
	if !ok && !stopped {
		return fmt.Errorf("the commit record %s has no spec", l.Txn)
	}
	a := s.apps[l.App]
	if a == nil {
		a = &appRecord{Name: l.App}
		s.apps[l.App] = a
	}
	r.app = true
	from := a.Committed
	a.Kind = cmp.Or(sp.Kind, a.Kind)
	a.LastSpec = max(a.LastSpec, l.note.Spec, l.note.LastSpec)
	a.Stopped, a.Committed = stopped, l.note.Spec
	if stopped {
		a.Committed = 0
	}
	a.CommittedBy, a.CommittedTxn, a.Open, a.Waiting, a.Backoff, a.UpdatedAt = l.decision.Deploy, l.Txn, "", "", nil, now
	a.History = append(a.History, a.Committed)
	if over := len(a.History) - keepHistory; over > 0 {
		a.History = slices.Clone(a.History[over:])
	}
	for _, id := range sortedKeys(s.active) {
		if d := s.deploys.get(id); d.App == l.App && id != l.decision.Deploy {
			s.overtaken(d, now)
			r.deploys[id] = true
		}
	}
	d := s.deploys.get(l.decision.Deploy)
	if d == nil {
		d = &deployRecord{Deploy: deploy.Deploy{
			ID: l.decision.Deploy, App: l.App, Kind: l.note.Kind, Spec: l.note.Spec, FromSpec: from, Version: sp.Version,
			Actor: l.decision.Actor, Why: l.decision.Reason, StartedAt: l.decision.CommittedAt, Deadline: l.decision.CommittedAt,
			Policy: deploy.Policy{
				Deadline: time.Duration(sp.Deploy.Deadline), Drain: time.Duration(sp.Deploy.Drain), KillGrace: time.Duration(sp.Kill.Grace),
				Check: sp.Health.String(),
			},
		}}
		s.deploys.put(d)
		a.Deploys = append(a.Deploys, d.ID)
	}
	r.deploys[d.ID] = true
	s.active[d.ID] = true
	d.Policy.Groups = slices.Compact(slices.Sorted(slices.Values(slices.Concat(d.Policy.Groups, sp.Groups(), sortedKeys(l.Sections)))))
	d.Txn, d.Generation = l.Txn, l.Order
	d.State, d.Code, d.Next = deploy.Succeeded, deploy.CodeCommitted, ""
	d.Reason = "its record was lost and is rebuilt from the commit record"
	d.Verdict, d.Ask, d.Drains, d.OldGone = nil, nil, nil, false
	d.CommittedAt, d.FinishedAt = l.decision.CommittedAt, l.decision.CommittedAt
	d.Step, d.StepAt = deploy.StepDraining, now
	d.Steps = append(d.Steps, deploy.StepRecord{Step: string(deploy.StepDraining), At: now})
	d.Members = nil
	for _, t := range l.note.Tasks {
		id, _ := parseTaskID(t.ID)
		d.Members = append(d.Members, deploy.Member{Task: t.ID, Instance: id.instance, State: deploy.MemberHealthy})
	}
	d.Wanted = len(d.Members)
	for _, id := range sortedKeys(s.amends) {
		// The coordinator knows what became of an insertion, and the Sections have it.
		if s.amends[id].App == l.App && len(s.amends[id].Insert) > 0 {
			delete(s.amends, id)
			r.amends[id] = true
		}
	}
	committed := map[string]bool{}
	for _, id := range l.tasks() {
		committed[id] = true
	}
	for _, t := range s.sorted(l.App) {
		if s.amends[t.Moving] == nil {
			t.Moving = ""
		}
		switch {
		case committed[t.TaskID]:
			t.Role, t.RetiredBy = roleCommitted, ""
			t.holdIn(d.Policy.Groups)
		case t.Role == roleRetiring:
			continue
		default:
			// Whoever knows it may route it: its holds end by the coordinator's word alone.
			t.Role, t.RetiredBy = roleRetiring, d.ID
			if !t.ended() {
				t.holdIn(d.Policy.Groups)
			}
		}
		r.tasks[t.TaskID] = true
	}
	return nil
}

// overtaken ends a Deploy that is older than the App's newest Commit.
func (s *state) overtaken(d *deployRecord, now time.Time) {
	delete(s.active, d.ID)
	d.Step, d.StepAt, d.Next = deploy.StepDone, now, ""
	d.Steps = append(d.Steps, deploy.StepRecord{Step: string(deploy.StepDone), At: now})
	if d.State == deploy.Succeeded {
		return // only how far the draining was is lost
	}
	d.State, d.Code = deploy.RolledBack, deploy.CodeLeader
	d.Reason = "how it ended was lost; a later deploy of the app is committed"
	if d.FinishedAt.IsZero() {
		d.FinishedAt = now
	}
}

// tasks are the committed ones: those of the Sections, which know of every replacement, or, for an App without Sections,
// those of the Commit record.
func (l logged) tasks() []string {
	if out := routed(l.CommittedApp); len(l.Sections) > 0 {
		return out
	}
	var out []string
	for _, t := range l.note.Tasks {
		out = append(out, t.ID)
	}
	return out
}

// rebuildTasks puts back the committed tasks that the state does not have. Each counts as running until Mesos says
// otherwise; a task that is committed in the state and whose instance the Sections give to one that was lost, was replaced.
func (s *state) rebuildTasks(l logged, r *repair, now time.Time) {
	a := s.apps[l.App]
	if a == nil {
		return
	}
	placed := map[string]commitTask{}
	for _, t := range l.note.Tasks {
		placed[t.ID] = t
	}
	found := map[int]bool{}
	for _, id := range l.tasks() {
		name, ok := parseTaskID(id)
		if s.task(id) != nil || !ok {
			continue
		}
		rev := name.spec
		sp, known := s.specs.get(l.App, rev)
		if !known { // kept from an older revision that asks for the same
			rev = l.note.Spec
			sp, known = s.specs.get(l.App, rev)
		}
		if !known {
			continue
		}
		t := &taskRecord{
			Placement: Placement{TaskID: id}, App: l.App, Spec: rev, Template: sp.TemplateDigest(), Instance: name.instance,
			Deploy: l.decision.Deploy, Upstream: deploy.UpstreamName(id), Role: roleCommitted, State: Running,
			CreatedAt: l.decision.CommittedAt, RunningAt: l.decision.CommittedAt, changed: now,
		}
		if at, ok := placed[id]; ok {
			t.AgentID, t.Host = at.Agent, at.Host
			for _, port := range at.Ports {
				t.Ports = append(t.Ports, uint16(port)) // #nosec G115: it was one
			}
		} else {
			t.Host, t.Ports = addressOf(l.Sections, sp, id)
		}
		t.holdIn(sortedKeys(l.Sections))
		s.addTask(t)
		r.tasks[id] = true
		found[t.Instance] = true
	}
	if len(l.Sections) == 0 {
		return
	}
	serving := map[string]bool{}
	for _, id := range routed(l.CommittedApp) {
		serving[id] = true
	}
	for _, t := range s.sorted(l.App) {
		if found[t.Instance] && t.Role == roleCommitted && !serving[t.TaskID] {
			t.Role, t.RetiredBy, t.Moving = roleRetiring, "", ""
			r.tasks[t.TaskID] = true
		}
	}
}

// addressOf reads from the Sections where a task is. Ports that no Section names are not known until Mesos says them.
func addressOf(sections map[string]*lbagentv1.Section, sp spec.Spec, task string) (host string, ports []uint16) {
	for _, group := range sortedKeys(sections) {
		for _, u := range sections[group].GetUpstreams() {
			if u.GetTaskId() != task {
				continue
			}
			h, p, err := net.SplitHostPort(u.GetAddress())
			n, perr := strconv.ParseUint(p, 10, 16)
			if err != nil || perr != nil {
				continue
			}
			index := sp.RoutePort(group)
			for len(ports) <= index {
				ports = append(ports, 0)
			}
			host, ports[index] = h, uint16(n)
		}
	}
	return host, ports
}

func (t *taskRecord) holdIn(groups []string) {
	if t.Holds == nil {
		t.Holds = map[string]bool{}
	}
	for _, g := range groups {
		t.Holds[g], t.PortHeld = true, true
	}
}

// deployOfTxn is the Deploy whose transaction it is, by its id: the Deploy's, a dot, and a number.
func deployOfTxn(id string) string {
	if i := strings.LastIndexByte(id, '.'); i >= 0 {
		return id[:i]
	}
	return ""
}

// appOfTask is the App that a task's id names (deploy.TaskID).
func appOfTask(id string) string {
	for range 3 {
		id = id[:max(strings.LastIndexByte(id, '.'), 0)]
	}
	return id
}

// taskName is what a task's id says (deploy.TaskID).
type taskName struct {
	spec     uint64
	instance int
}

func parseTaskID(id string) (taskName, bool) {
	parts := strings.Split(id, ".")
	if len(parts) < 4 {
		return taskName{}, false
	}
	rev, err1 := strconv.ParseUint(parts[len(parts)-3], 10, 64)
	instance, err2 := strconv.Atoi(parts[len(parts)-2])
	return taskName{rev, instance}, err1 == nil && err2 == nil
}

// rebuild compares every App with the decision log, before anything else is done in the term, and puts back what the
// engine's store has lost. In the normal case it reads nothing but what the coordinator has in memory.
func (e *Engine) rebuild(ctx context.Context) error {
	apps, err := e.ports.Coordinator.Committed(ctx)
	if err != nil {
		return fmt.Errorf("read what is committed: %w", err)
	}
	for _, c := range apps {
		commit, tasks := e.s.behind(c)
		if !commit && !tasks {
			continue
		}
		l := logged{CommittedApp: c}
		if c.Txn != "" {
			var found bool
			if l.decision, found, err = e.ports.Coordinator.Decision(ctx, c.Txn); err != nil {
				return err
			}
			if found && len(l.decision.Record) > 0 {
				if err := json.Unmarshal(l.decision.Record, &l.note); err != nil {
					return fmt.Errorf("commit record %s: %w", c.Txn, err)
				}
			}
			commit = commit && found
		}
		r, err := e.s.rebuild(l, commit, e.batch.now)
		if err != nil {
			e.log.Error("an app cannot be rebuilt from the decision log: what serves is left as it is", "app", c.App, "txn", c.Txn, "error", err)
			continue
		}
		if err := e.rebuilt(ctx, l, r, commit); err != nil {
			return err
		}
	}
	return nil
}

// rebuilt marks what was put back as changed, and tells.
func (e *Engine) rebuilt(ctx context.Context, l logged, r repair, commit bool) error {
	if r.app {
		e.batch.apps[l.App] = true
	}
	maps.Copy(e.batch.deploys, r.deploys)
	maps.Copy(e.batch.tasks, r.tasks)
	maps.Copy(e.batch.amends, r.amends)
	if r.spec != 0 {
		e.batch.early = append(e.batch.early, store.Op{Kind: store.Put, Key: keySpec(l.App, r.spec), Value: l.note.Source})
	}
	e.log.Warn("the engine's records were behind the decision log and are rebuilt", "app", l.App, "txn", l.Txn, "tasks", len(r.tasks))
	if !commit {
		return nil
	}
	d := e.s.deploys.get(l.decision.Deploy)
	st, found, err := e.ports.Coordinator.Outcome(ctx, l.Txn)
	if err != nil {
		return err
	}
	if found {
		d.Hosts = txnInput(d.Deploy, st).Hosts
	}
	e.emit(d, deploy.Event{Type: "note", Code: string(d.Code), Msg: d.Reason}, nil)
	return nil
}
