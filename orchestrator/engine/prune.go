package engine

import (
	"slices"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/store"
)

// This file bounds what is kept.

// prune forgets the oldest Deploys of an App with their events, and revisions that nothing needs.
func (e *Engine) prune(a *appRecord) {
	if !e.batch.apps[a.Name] {
		return // all that is kept or not is counted by its record
	}
	for len(a.Deploys) > keepDeploys {
		i := slices.IndexFunc(a.Deploys, func(id string) bool {
			d := e.s.deploys.get(id)
			return id != a.CommittedBy && (d == nil || d.Step == deploy.StepDone) // what proves the committed state is kept
		})
		if i < 0 {
			return
		}
		id := a.Deploys[i]
		a.Deploys = slices.Delete(slices.Clone(a.Deploys), i, i+1)
		e.batch.apps[a.Name] = true
		d := e.s.deploys.get(id)
		if d == nil {
			continue
		}
		for seq := uint64(1); seq <= d.Seq; seq++ {
			e.batch.early = append(e.batch.early, store.Op{Kind: store.Delete, Key: keyEvent(id, seq)})
		}
		e.s.deploys.drop(id)
		e.batch.deploys[id] = true
		e.pruneLockstep(d.Lockstep)
	}
	e.pruneSpecs(a)
}

func (e *Engine) pruneSpecs(a *appRecord) {
	if len(e.s.specs[a.Name]) <= keepDeploys {
		return
	}
	needed := map[uint64]bool{a.Committed: true, a.LastSpec: true}
	for _, rev := range a.History {
		needed[rev] = true
	}
	for _, id := range a.Deploys {
		if d := e.s.deploys.get(id); d != nil {
			needed[d.Spec], needed[d.FromSpec] = true, true
		}
	}
	for _, t := range e.s.tasksOf[a.Name] {
		needed[t.Spec] = true
	}
	for id := range e.s.over.of[a.Name] {
		name, _ := parseTaskID(id)
		needed[name.spec] = true
	}
	for rev := range e.s.specs[a.Name] {
		if !needed[rev] {
			delete(e.s.specs[a.Name], rev)
			e.batch.early = append(e.batch.early, store.Op{Kind: store.Delete, Key: keySpec(a.Name, rev)})
		}
	}
}

// pruneTasks forgets ended tasks that nothing needs, oldest first.
func (e *Engine) pruneTasks(app string) {
	var old []*taskRecord
	for _, t := range e.s.tasksOf[app] {
		if t.ended() && len(t.Holds) == 0 && !t.PortHeld && (t.Role == roleRetiring || t.Role == roleReplacement || t.Removed) {
			old = append(old, t)
		}
	}
	over := len(e.s.over.of[app])
	if len(old)+over <= keepEnded {
		return
	}
	if over > 0 {
		e.s.readOver(app)
		e.pruneTasks(app)
		return
	}
	slices.SortFunc(old, func(x, y *taskRecord) int { return x.EndedAt.Compare(y.EndedAt) })
	for _, t := range old[:len(old)-keepEnded] {
		e.s.dropTask(t)
		e.batch.tasks[t.TaskID] = true
	}
}
