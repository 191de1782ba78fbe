package engine

import (
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/store"
)

// state is everything that the loop owns. It is the store's content plus indexes.
type state struct {
	apps    map[string]*appRecord
	specs   specs
	deploys keptDeploys
	tasks   map[string]*taskRecord // all but those in over
	over    keptTasks
	amends  map[string]*amendRecord
	idem    map[string]idemRecord
	// locksteps are Deploys of several Apps that commit together.
	locksteps map[string]*lockstepRecord

	tasksOf   map[string]map[string]*taskRecord // by App
	upstreams map[string]string                 // upstream name to task
	active    map[string]bool                   // Deploys that are not done

	// relaunch are tasks that the framework did not take, and when to ask again.
	relaunch map[string]time.Time

	// wake is when the loop must look again if nothing happens; zero: at the next safety look.
	wake time.Time
	// looked and repeated are when the safety net last ran.
	looked, repeated time.Time
}

func newState(log *slog.Logger) *state {
	return &state{
		apps: map[string]*appRecord{}, specs: specs{}, deploys: newKeptDeploys(log), tasks: map[string]*taskRecord{}, over: newKeptTasks(log),
		amends: map[string]*amendRecord{}, idem: map[string]idemRecord{}, locksteps: map[string]*lockstepRecord{}, tasksOf: map[string]map[string]*taskRecord{},
		upstreams: map[string]string{}, active: map[string]bool{}, relaunch: map[string]time.Time{},
	}
}

func (s *state) addTask(t *taskRecord) {
	s.tasks[t.TaskID] = t
	if s.tasksOf[t.App] == nil {
		s.tasksOf[t.App] = map[string]*taskRecord{}
	}
	s.tasksOf[t.App][t.TaskID] = t
	s.upstreams[t.Upstream] = t.TaskID
}

func (s *state) dropTask(t *taskRecord) {
	delete(s.tasks, t.TaskID)
	delete(s.tasksOf[t.App], t.TaskID)
	delete(s.upstreams, t.Upstream)
}

// task returns a task, nil if there is none. It stays the same one for as long as it is kept.
func (s *state) task(id string) *taskRecord {
	if t := s.tasks[id]; t != nil {
		return t
	}
	t := s.over.take(id)
	if t != nil {
		s.addTask(t)
	}
	return t
}

// readOver reads the App's tasks that are over, to be among the others.
func (s *state) readOver(app string) {
	for id := range s.over.of[app] {
		s.task(id)
	}
}

// sorted returns an App's tasks in order of instance and age, so that nothing depends on the order of a map. Those that are
// over are among them only if they have been read.
func (s *state) sorted(app string) []*taskRecord {
	return slices.SortedFunc(maps.Values(s.tasksOf[app]), func(a, b *taskRecord) int {
		if a.Instance != b.Instance {
			return a.Instance - b.Instance
		}
		if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.TaskID, b.TaskID)
	})
}

// batch collects what one turn of the loop changes and does.
type batch struct {
	now     time.Time
	apps    map[string]bool
	deploys map[string]bool
	tasks   map[string]bool
	amends  map[string]bool
	idem    map[string]bool
	// locksteps that changed; launches of this turn, which are one call.
	locksteps map[string]bool
	launches  []launch
	early     []store.Op // events, specs, deletions
	// after are the acts that follow the Commit.
	after []func()
	// look are the Apps that the scheduler must look at.
	look map[string]bool
}

func newBatch(now time.Time) *batch {
	return &batch{
		now: now, apps: map[string]bool{}, deploys: map[string]bool{}, tasks: map[string]bool{}, amends: map[string]bool{},
		idem: map[string]bool{}, locksteps: map[string]bool{}, look: map[string]bool{},
	}
}

// size is about how many records have changed.
func (b *batch) size() int {
	return len(b.apps) + len(b.deploys) + len(b.tasks) + len(b.amends) + len(b.idem) + len(b.locksteps) + len(b.early)
}

func (b *batch) do(act func()) { b.after = append(b.after, act) }

// ops makes the Commits of the batch: one if everything fits. Otherwise tasks, Amendments and events go first, and then what
// belongs to each App (late).
func (b *batch) ops(s *state) [][]store.Op {
	early := b.early
	for _, id := range slices.Sorted(maps.Keys(b.tasks)) {
		early = append(early, putOrDelete(prefixTask+id, s.tasks[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(b.amends)) {
		early = append(early, putOrDelete(prefixAmend+id, s.amends[id]))
	}
	return chunks(early, b.late(s))
}

// late are the records that only make sense together, by what they are of: an App with its Deploys and the idempotency keys
// that name them, or all Apps of a lock-step. In each, Deploys come before Apps: if even one App's do not fit a Commit and the
// term ends between two, the next one sees by the Deploy what the App lacks (heal, behind).
func (b *batch) late(s *state) [][]store.Op {
	of := families{}
	deploys := slices.Sorted(maps.Keys(b.deploys))
	for _, id := range deploys {
		if d := s.deploys.get(id); d != nil {
			of.join(prefixApp+d.App, id)
			if d.Lockstep != "" {
				of.join(d.Lockstep, id)
			}
		}
	}
	units := map[string][]store.Op{}
	var order []string
	add := func(member string, op store.Op) {
		f := of.find(member)
		if units[f] == nil {
			order = append(order, f)
		}
		units[f] = append(units[f], op)
	}
	for _, id := range slices.Sorted(maps.Keys(b.idem)) {
		if rec, ok := s.idem[id]; ok {
			add(rec.Deploy, putOrDelete(prefixIdem+id, &rec))
		} else {
			add(prefixIdem, store.Op{Kind: store.Delete, Key: prefixIdem + id})
		}
	}
	for _, id := range deploys {
		add(id, putOrDelete(prefixDeploy+id, s.deploys.get(id).stored()))
	}
	for _, id := range slices.Sorted(maps.Keys(b.locksteps)) {
		add(id, putOrDelete(prefixStep+id, s.locksteps[id]))
	}
	for _, name := range slices.Sorted(maps.Keys(b.apps)) {
		add(prefixApp+name, putOrDelete(prefixApp+name, s.apps[name]))
	}
	out := make([][]store.Op, 0, len(order))
	for _, f := range order {
		out = append(out, units[f])
	}
	return out
}

// families says what belongs together: each member leads to another one of its family, the last to itself.
type families map[string]string

func (f families) find(member string) string {
	for f[member] != "" {
		member = f[member]
	}
	return member
}

func (f families) join(a, b string) {
	if a, b = f.find(a), f.find(b); a != b {
		f[b] = a
	}
}

func putOrDelete[T any](key string, v *T) store.Op {
	if v == nil {
		return store.Op{Kind: store.Delete, Key: key}
	}
	b, err := json.Marshal(v)
	if err != nil {
		// Unreachable: records hold plain data.
		panic("engine: record " + key + ": " + err.Error())
	}
	return store.Op{Kind: store.Put, Key: key, Value: b}
}

// chunks cuts the operations to what one Commit can hold. What is late together stays together if it fits.
func chunks(early []store.Op, late [][]store.Op) [][]store.Op {
	all := slices.Clone(early)
	for _, unit := range late {
		all = append(all, unit...)
	}
	switch {
	case len(all) == 0:
		return nil
	case fits(all):
		return [][]store.Op{all}
	}
	single := make([][]store.Op, len(early))
	for i, op := range early {
		single[i] = []store.Op{op}
	}
	return append(pack(single), pack(late)...)
}

// pack fills one Commit after the other with units, in order; one that no Commit can hold is cut.
func pack(units [][]store.Op) (out [][]store.Op) {
	var part []store.Op
	for _, unit := range units {
		if !fits(unit) && len(unit) > 1 {
			single := make([][]store.Op, len(unit))
			for i, op := range unit {
				single[i] = []store.Op{op}
			}
			if len(part) > 0 {
				out, part = append(out, part), nil
			}
			out = append(out, pack(single)...)
			continue
		}
		if next := slices.Concat(part, unit); !fits(next) && len(part) > 0 {
			out, part = append(out, part), slices.Clone(unit)
		} else {
			part = next
		}
	}
	if len(part) > 0 {
		out = append(out, part)
	}
	return out
}

func fits(ops []store.Op) bool {
	if len(ops) > store.MaxOps {
		return false
	}
	size := 0
	for _, op := range ops {
		size += len(op.Key) + len(op.Value)
	}
	return size <= store.MaxCommitBytes
}
