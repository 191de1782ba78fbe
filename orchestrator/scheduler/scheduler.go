package scheduler

import (
	"slices"
	"strings"
	"time"
)

// Liveness is what Mesos says about a task.
type Liveness uint8

// The values.
const (
	Live Liveness = iota // queued to running
	Away                 // unreachable or lost: it may come back
	Dead                 // terminal
)

// Health is what the prober says about a task.
type Health uint8

// The values. Unknown is no verdict: nothing is replaced for it.
const (
	Unknown Health = iota
	Healthy
	Failing
)

// Task is one task of an App as it is observed: of the committed set, or a replacement that is not yet in it.
type Task struct {
	ID       string
	Instance int
	Liveness Liveness
	Health   Health
	// Since is when Liveness or Health last changed.
	Since time.Time
	// Replacement: started by an earlier Plan and not in the committed set.
	Replacement bool
	// Moving: an Amendment that names the task is under way.
	Moving bool
	// Removed: its removal was ordered.
	Removed bool
}

// App is what is desired and what is there.
type App struct {
	Name string
	// Desired is the number of instances of the committed Spec; 0 for a stopped App.
	Desired int
	// Frozen: a Deploy is open.
	Frozen bool
	// Undoing: that Deploy's transaction has reached the proxies and is being undone, for good. Hosts wait with it if
	// nothing of the committed set can serve.
	Undoing bool
	Tasks   []Task
	Backoff map[int]Backoff // by instance
}

// Options are the time constants; zero values take the defaults.
type Options struct {
	AwayAfter    time.Duration // 5 s: how long a task may be away before it is replaced
	FailingAfter time.Duration // 5 s: how long it may fail its checks
	FirstPause   time.Duration // 1 s: before the second restart of an instance
	MaxPause     time.Duration // 2 min
	StableAfter  time.Duration // 5 min: a longer run forgets earlier deaths
}

// WithDefaults fills in what is zero.
func (o Options) WithDefaults() Options {
	set := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	set(&o.AwayAfter, 5*time.Second)
	set(&o.FailingAfter, 5*time.Second)
	set(&o.FirstPause, time.Second)
	set(&o.MaxPause, 2*time.Minute)
	set(&o.StableAfter, 5*time.Minute)
	return o
}

// Backoff is the crash-loop state of one instance.
type Backoff struct {
	Deaths    int       `json:"deaths"`
	NotBefore time.Time `json:"not_before"`
}

// After is the Backoff once a task has died after running for the given time. The first death costs no pause.
func (b Backoff) After(ran time.Duration, now time.Time, o Options) Backoff {
	o = o.WithDefaults()
	if ran >= o.StableAfter {
		b.Deaths = 0
	}
	b.Deaths = min(b.Deaths+1, 30)
	b.NotBefore = now
	if b.Deaths > 1 {
		b.NotBefore = now.Add(min(o.FirstPause<<(b.Deaths-2), o.MaxPause))
	}
	return b
}

// Reason is why a replacement is started: a closed vocabulary.
type Reason string

// The reasons.
const (
	ReasonMissing Reason = "missing" // no task of the instance is left
	ReasonAway    Reason = "away"
	ReasonFailing Reason = "failing"
)

// Start is a replacement to start.
type Start struct {
	Instance int
	Reason   Reason
}

// Insert brings a replacement into the proxies; Retire, if not empty, leaves them once it is verified there.
type Insert struct {
	Task, Retire string
}

// Plan is what to do. Lists are in order of instance.
type Plan struct {
	// Remove: terminally dead, to leave all proxies at once, even the last one: it cannot serve.
	Remove []string
	Start  []Start
	// Insert: each by itself; while Undoing all at once, or none.
	Insert []Insert
	// Discard: replacements that nobody needs any longer, and that no Host was ever told of.
	Discard []string
	// Wake is when to ask again if nothing else happens; zero if never.
	Wake time.Time
}

// Empty reports whether there is nothing to do now.
func (p Plan) Empty() bool {
	return len(p.Remove)+len(p.Start)+len(p.Insert)+len(p.Discard) == 0
}

// instance is what there is of one instance.
type instance struct {
	committed, replacement *Task
}

// Reconcile makes the Plan. It depends on its arguments only.
func Reconcile(app App, now time.Time, o Options) Plan {
	o = o.WithDefaults()
	var p Plan
	by := map[int]*instance{}
	serving, repairing := 0, 0
	for i := range app.Tasks {
		t := &app.Tasks[i]
		in := by[t.Instance]
		if in == nil {
			in = &instance{}
			by[t.Instance] = in
		}
		switch {
		case t.Replacement && t.Liveness == Dead:
			if t.Moving && !t.Removed {
				p.Remove = append(p.Remove, t.ID) // Hosts must not wait for this one until its insertion's deadline
			}
		case t.Replacement && t.Instance >= app.Desired, t.Replacement && in.replacement != nil:
			if !t.Moving {
				p.Discard = append(p.Discard, t.ID)
			}
		case t.Replacement:
			in.replacement = t
		case t.Liveness == Dead:
			if !t.Removed {
				p.Remove = append(p.Remove, t.ID)
			}
		default:
			in.committed = t
			if t.Liveness == Live && t.Health != Failing {
				serving++
			}
		}
	}
	for _, in := range by {
		if in.committed != nil && in.replacement != nil {
			repairing++
		}
	}
	mayRepair := max(1, app.Desired/4) - repairing
	// The undo leads to nothing that can serve: a whole set of replacements comes first, and it may take as much as the
	// App does.
	undo := app.Frozen && app.Undoing && serving == 0
	whole := true
	if undo {
		mayRepair = app.Desired
	}
	for i := 0; i < app.Desired; i++ {
		in := by[i]
		if in == nil {
			in = &instance{}
		}
		reason, since := judge(in.committed, o)
		due := reason != "" && !since.After(now)
		if reason != "" && !due {
			p.wakeAt(since)
		}
		r := in.replacement
		ready := r != nil && r.Health == Healthy && r.Liveness == Live
		whole = whole && ready
		switch {
		case r != nil && reason == "":
			if !r.Moving {
				p.Discard = append(p.Discard, r.ID)
			}
		case r != nil:
			if ready && !r.Moving && (!app.Frozen || undo) {
				retire := ""
				if in.committed != nil {
					retire = in.committed.ID
				}
				p.Insert = append(p.Insert, Insert{Task: r.ID, Retire: retire})
			}
		case !due, app.Frozen && serving > 0:
		case app.Backoff[i].NotBefore.After(now):
			p.wakeAt(app.Backoff[i].NotBefore)
		case reason != ReasonMissing && mayRepair <= 0:
		default:
			if reason != ReasonMissing {
				mayRepair--
			}
			p.Start = append(p.Start, Start{Instance: i, Reason: reason})
		}
	}
	if undo && !whole {
		p.Insert = nil // one alone would get the traffic of all
	}
	slices.SortStableFunc(p.Remove, strings.Compare)
	slices.SortStableFunc(p.Discard, strings.Compare)
	return p
}

// judge says whether the instance needs a replacement, and from when on.
func judge(t *Task, o Options) (Reason, time.Time) {
	switch {
	case t == nil:
		return ReasonMissing, time.Time{}
	case t.Liveness == Away:
		return ReasonAway, t.Since.Add(o.AwayAfter)
	case t.Health == Failing:
		return ReasonFailing, t.Since.Add(o.FailingAfter)
	}
	return "", time.Time{}
}

func (p *Plan) wakeAt(t time.Time) {
	if p.Wake.IsZero() || t.Before(p.Wake) {
		p.Wake = t
	}
}
