package scheduler

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestReconcile(t *testing.T) {
	ago := func(d time.Duration) time.Time { return t0.Add(-d) }
	ok := func(i int) Task {
		return Task{ID: fmt.Sprintf("t%d", i), Instance: i, Health: Healthy, Since: ago(time.Hour)}
	}
	with := func(t Task, f func(*Task)) Task { f(&t); return t }
	dead := func(i int) Task { return with(ok(i), func(t *Task) { t.Liveness = Dead }) }
	gone := func(i int) Task { return with(dead(i), func(t *Task) { t.Removed = true }) }
	failing := func(i int, since time.Duration) Task {
		return with(ok(i), func(t *Task) { t.Health, t.Since = Failing, ago(since) })
	}
	away := func(i int, since time.Duration) Task {
		return with(ok(i), func(t *Task) { t.Liveness, t.Since = Away, ago(since) })
	}
	repl := func(i int, h Health) Task {
		return Task{ID: fmt.Sprintf("r%d", i), Instance: i, Health: h, Replacement: true}
	}
	moving := func(t Task) Task { t.Moving = true; return t }

	for _, c := range []struct {
		name string
		app  App
		want Plan
	}{
		{"all well", App{Desired: 2, Tasks: []Task{ok(0), ok(1)}}, Plan{}},
		{"unknown health is no verdict", App{Desired: 1, Tasks: []Task{{ID: "t0"}}}, Plan{}},
		{"dead: out at once and replaced", App{Desired: 2, Tasks: []Task{ok(0), dead(1)}},
			Plan{Remove: []string{"t1"}, Start: []Start{{1, ReasonMissing}}}},
		{"dead: even the last leaves", App{Desired: 1, Tasks: []Task{dead(0)}},
			Plan{Remove: []string{"t0"}, Start: []Start{{0, ReasonMissing}}}},
		{"dead during a Deploy: out, but no replacement while others serve", App{Desired: 2, Frozen: true, Tasks: []Task{ok(0), dead(1)}},
			Plan{Remove: []string{"t1"}}},
		{"all dead during a Deploy: replacements start, in case it fails", App{Desired: 2, Frozen: true, Tasks: []Task{gone(0), dead(1)}},
			Plan{Remove: []string{"t1"}, Start: []Start{{0, ReasonMissing}, {1, ReasonMissing}}}},
		{"removal is ordered once", App{Desired: 1, Tasks: []Task{gone(0), repl(0, Unknown)}}, Plan{}},
		{"replacement of a dead one enters when healthy", App{Desired: 1, Tasks: []Task{gone(0), repl(0, Healthy)}},
			Plan{Insert: []Insert{{Task: "r0"}}}},
		{"not while a Deploy is open", App{Desired: 1, Frozen: true, Tasks: []Task{gone(0), repl(0, Healthy)}}, Plan{}},
		{"not when a Deploy is undone and others serve", App{Desired: 2, Frozen: true, Undoing: true, Tasks: []Task{gone(0), repl(0, Healthy), ok(1)}}, Plan{}},
		{"a Deploy is undone to nothing: all replacements at once", App{Desired: 2, Frozen: true, Undoing: true,
			Tasks: []Task{gone(0), repl(0, Healthy), failing(1, time.Minute), repl(1, Healthy)}},
			Plan{Insert: []Insert{{Task: "r0"}, {Task: "r1", Retire: "t1"}}}},
		{"a Deploy is undone to nothing: not before all are healthy", App{Desired: 2, Frozen: true, Undoing: true,
			Tasks: []Task{gone(0), repl(0, Healthy), gone(1), repl(1, Unknown)}}, Plan{}},
		{"a Deploy is undone to nothing: everything is replaced", App{Desired: 3, Frozen: true, Undoing: true,
			Tasks: []Task{failing(0, time.Minute), away(1, time.Minute), gone(2)}},
			Plan{Start: []Start{{0, ReasonFailing}, {1, ReasonAway}, {2, ReasonMissing}}}},
		{"a Deploy is undone to nothing: a replacement that dies leaves and is replaced", App{Desired: 2, Frozen: true, Undoing: true,
			Tasks: []Task{gone(0), moving(with(repl(0, Healthy), func(t *Task) { t.Liveness = Dead })), gone(1), moving(repl(1, Healthy))}},
			Plan{Remove: []string{"r0"}, Start: []Start{{0, ReasonMissing}}}},
		{"a Deploy is undone to nothing: the next one follows those on their way", App{Desired: 2, Frozen: true, Undoing: true,
			Tasks: []Task{gone(0), repl(0, Healthy), gone(1), moving(repl(1, Healthy))}},
			Plan{Insert: []Insert{{Task: "r0"}}}},
		{"not twice", App{Desired: 1, Tasks: []Task{gone(0), moving(repl(0, Healthy))}}, Plan{}},
		{"failing for a moment", App{Desired: 1, Tasks: []Task{failing(0, time.Second)}}, Plan{Wake: t0.Add(4 * time.Second)}},
		{"failing for long", App{Desired: 1, Tasks: []Task{failing(0, 6*time.Second)}}, Plan{Start: []Start{{0, ReasonFailing}}}},
		{"failing: leaves only for a healthy replacement", App{Desired: 1, Tasks: []Task{failing(0, time.Minute), repl(0, Healthy)}},
			Plan{Insert: []Insert{{Task: "r0", Retire: "t0"}}}},
		{"recovered: the replacement is not needed", App{Desired: 1, Tasks: []Task{ok(0), repl(0, Healthy)}}, Plan{Discard: []string{"r0"}}},
		{"recovered too late", App{Desired: 1, Tasks: []Task{ok(0), moving(repl(0, Healthy))}}, Plan{}},
		{"everything fails: a quarter is replaced at a time", App{Desired: 8, Tasks: []Task{
			failing(0, time.Minute), failing(1, time.Minute), failing(2, time.Minute), failing(3, time.Minute),
			failing(4, time.Minute), failing(5, time.Minute), failing(6, time.Minute), failing(7, time.Minute), repl(7, Unknown),
		}}, Plan{Start: []Start{{0, ReasonFailing}}}},
		{"away", App{Desired: 1, Tasks: []Task{away(0, 5*time.Second)}}, Plan{Start: []Start{{0, ReasonAway}}}},
		{"away for a moment", App{Desired: 1, Tasks: []Task{away(0, 0)}}, Plan{Wake: t0.Add(5 * time.Second)}},
		{"crash loop", App{Desired: 1, Tasks: []Task{gone(0)}, Backoff: map[int]Backoff{0: {Deaths: 3, NotBefore: t0.Add(time.Second)}}},
			Plan{Wake: t0.Add(time.Second)}},
		{"stopped", App{Desired: 0, Tasks: []Task{repl(0, Healthy)}}, Plan{Discard: []string{"r0"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, Reconcile(c.app, t0, Options{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	var b Backoff
	var pauses []time.Duration
	for range 12 {
		b = b.After(time.Second, t0, Options{})
		pauses = append(pauses, b.NotBefore.Sub(t0))
	}
	s := time.Second
	want := []time.Duration{0, s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 120 * s, 120 * s, 120 * s, 120 * s}
	if diff := cmp.Diff(want, pauses); diff != "" {
		t.Error(diff)
	}
	for range 100 {
		b = b.After(0, t0, Options{})
	}
	if p := b.NotBefore.Sub(t0); p != 2*time.Minute {
		t.Errorf("after many deaths the pause is %s", p)
	}
	if b = b.After(10*time.Minute, t0, Options{}); b.Deaths != 1 || !b.NotBefore.Equal(t0) {
		t.Errorf("a stable run must forget: %+v", b)
	}
}

// world plays Mesos, the prober and the coordinator against the Plans.
type world struct {
	app  App
	now  time.Time
	next int
}

func (w *world) apply(t *rapid.T, p Plan) {
	inFlight := map[int]bool{}
	for _, x := range w.app.Tasks {
		if x.Replacement && x.Liveness != Dead {
			inFlight[x.Instance] = true
		}
	}
	for _, s := range p.Start {
		if inFlight[s.Instance] || s.Instance < 0 || s.Instance >= w.app.Desired {
			t.Fatalf("start of instance %d: not wanted", s.Instance)
		}
		w.next++
		w.app.Tasks = append(w.app.Tasks, Task{ID: fmt.Sprintf("n%d", w.next), Instance: s.Instance, Replacement: true, Since: w.now})
	}
	if w.app.Frozen && len(p.Insert) > 0 {
		if !w.app.Undoing {
			t.Fatal("insertion while a Deploy is open")
		}
		if len(p.Insert) != w.app.Desired {
			t.Fatalf("%d of %d inserted at an undo", len(p.Insert), w.app.Desired)
		}
	}
	for _, id := range p.Remove {
		if x := w.task(id); x.Liveness != Dead {
			t.Fatalf("NEVER-ZERO: %s removed and not dead", id)
		}
		w.task(id).Removed = true
	}
	for _, in := range p.Insert {
		if w.task(in.Task).Health != Healthy {
			t.Fatalf("%s inserted and not healthy", in.Task)
		}
		if in.Retire != "" {
			r := w.task(in.Retire)
			if r.Liveness == Live && r.Health != Failing {
				t.Fatalf("%s retired and well", in.Retire)
			}
			r.Liveness, r.Removed = Dead, true
		}
		w.task(in.Task).Replacement = false
	}
	for _, id := range p.Discard {
		if x := w.task(id); !x.Replacement || x.Moving {
			t.Fatalf("%s discarded, but a Host may know it", id)
		}
		w.task(id).Liveness = Dead
	}
	var kept []Task
	for _, x := range w.app.Tasks {
		if x.Liveness != Dead || !x.Removed && !x.Replacement {
			kept = append(kept, x)
		}
	}
	w.app.Tasks = kept
}

func (w *world) task(id string) *Task {
	for i := range w.app.Tasks {
		if w.app.Tasks[i].ID == id {
			return &w.app.Tasks[i]
		}
	}
	return &Task{}
}

// TestReconcileLaws: whatever happens to tasks, plans are lawful, and once it stops the App gets to what is desired.
func TestReconcileLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{now: t0, app: App{Name: "a", Desired: rapid.IntRange(0, 9).Draw(t, "desired"), Backoff: map[int]Backoff{}}}
		for range rapid.IntRange(0, 40).Draw(t, "events") {
			w.now = w.now.Add(time.Duration(rapid.IntRange(0, 4000).Draw(t, "ms")) * time.Millisecond)
			w.app.Frozen = rapid.Bool().Draw(t, "frozen")
			w.app.Undoing = w.app.Frozen && rapid.Bool().Draw(t, "undoing")
			if len(w.app.Tasks) > 0 {
				x := &w.app.Tasks[rapid.IntRange(0, len(w.app.Tasks)-1).Draw(t, "task")]
				if x.Liveness != Dead {
					x.Liveness = rapid.SampledFrom([]Liveness{Live, Live, Away, Dead}).Draw(t, "liveness")
					x.Health = rapid.SampledFrom([]Health{Unknown, Healthy, Failing}).Draw(t, "health")
					x.Since = w.now
					if x.Liveness == Dead {
						w.app.Backoff[x.Instance] = w.app.Backoff[x.Instance].After(time.Second, w.now, Options{})
					}
				}
			}
			p := Reconcile(w.app, w.now, Options{})
			if diff := cmp.Diff(p, Reconcile(w.app, w.now, Options{})); diff != "" {
				t.Fatalf("not a function: %s", diff)
			}
			w.apply(t, p)
		}
		w.app.Frozen, w.app.Undoing = false, false
		for range 100 {
			w.now = w.now.Add(time.Minute)
			for i := range w.app.Tasks {
				if x := &w.app.Tasks[i]; x.Replacement && x.Liveness != Dead {
					x.Liveness, x.Health = Live, Healthy
				}
			}
			w.apply(t, Reconcile(w.app, w.now, Options{}))
		}
		have := map[int]int{}
		for _, x := range w.app.Tasks {
			if x.Liveness != Live || x.Health == Failing || x.Replacement {
				t.Fatalf("left over: %+v", x)
			}
			have[x.Instance]++
		}
		for i := range w.app.Desired {
			if have[i] != 1 {
				t.Fatalf("instance %d has %d tasks", i, have[i])
			}
		}
	})
}
