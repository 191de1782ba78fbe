package simulation

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
)

const (
	cluster = "sim"
	group   = "public"
)

// world is one run: everything that its seed decides, and everything that it must keep.
type world struct {
	*schedule
	t     *testing.T
	store *memstore.Store
	mesos *mesos
	hosts []*host
	apps  []string
	stops sync.WaitGroup // processes that are ending

	mu       sync.Mutex
	epoch    uint64
	now      *incarnation
	terms    []*incarnation
	ending   bool
	trouble  faults
	failures []string
	// empties are the Apps that a stop, or the undo of a first Deploy, may take to nothing.
	committed map[string]uint64 // Spec by App; 0 or absent: nothing was ever committed, or a stop was
	stopping  map[string]bool
	ended     map[string]deploy.State
	counts    map[string]int
}

// faults are the odds of trouble: one in so many; 0: never.
type faults struct {
	lose, twice, slow int // messages
	driver, store     int // calls
}

func newWorld(t *testing.T, seed uint64, hosts, apps int) *world {
	w := &world{schedule: newSchedule(seed), t: t, store: memstore.New(), committed: map[string]uint64{}, stopping: map[string]bool{},
		ended: map[string]deploy.State{}, counts: map[string]int{}}
	w.mesos = newMesos(w)
	for i := range hosts {
		w.hosts = append(w.hosts, newHost(w, fmt.Sprintf("lb%d", i+1), t.TempDir()))
	}
	for i := range apps {
		w.apps = append(w.apps, fmt.Sprintf("app%d", i+1))
	}
	return w
}

func (w *world) host(name string) *host {
	for _, h := range w.hosts {
		if h.name == name {
			return h
		}
	}
	return nil
}

func (w *world) leader() *incarnation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) faults() faults {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trouble
}

func (w *world) setFaults(f faults) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trouble = f
}

// latency is how long a message is under way.
func (w *world) latency(dice *rand.Rand) time.Duration {
	if oneIn(dice, w.faults().slow) {
		return between(dice, 20*time.Millisecond, 5*time.Second)
	}
	return between(dice, 50*time.Microsecond, 3*time.Millisecond)
}

// fail notes what must not be. The run goes on: what follows may explain it.
func (w *world) fail(format string, args ...any) {
	line := "VIOLATION: " + fmt.Sprintf(format, args...)
	w.tell("%s", line)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures = append(w.failures, line)
}

func (w *world) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

// mayBeEmpty: a stop was asked for, or nothing of the App was ever committed.
func (w *world) mayBeEmpty(app string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stopping[app] || w.committed[app] == 0
}

// checkKill holds NO-ORPHAN-KILL against every proxy.
func (w *world) checkKill(t *task) {
	for _, h := range w.hosts {
		routed, sessions := h.proxy.routes(t.app, upstreamOf(t.id))
		if routed || sessions > 0 {
			w.fail("NO-ORPHAN-KILL: %s is ordered killed, and the proxy of %s routes to it: %t, sessions: %d", t.id, h.name, routed, sessions)
		}
	}
}

func upstreamOf(task string) string { return deploy.UpstreamName(task) }

// commitRecord is what the checks need of a Commit record.
type commitRecord struct {
	ID    string `json:"id"`
	App   string `json:"app"`
	Joint string `json:"joint"` // the merged transaction that carried this one, and has its votes
	Parts []any  `json:"parts"`
	Views []struct {
		Hosts []string `json:"hosts"`
	} `json:"views"`
	Votes []struct {
		Host string `json:"host"`
		Vote string `json:"vote"`
	} `json:"votes"`
	Record []byte `json:"record"`
}

// commitNote is what the engine keeps in it.
type commitNote struct {
	Kind  deploy.Kind `json:"kind"`
	Spec  uint64      `json:"spec"`
	Tasks []struct {
		ID       string `json:"id"`
		Upstream string `json:"upstream"`
	} `json:"tasks"`
}

// decided looks at every Commit record at the moment when it comes to exist (ALL-OR-OLD).
func (w *world) decided(ops []store.Op, err error) {
	if err != nil {
		return
	}
	var records []commitRecord
	votes := map[string]map[string]string{} // by decision and Host
	for _, op := range ops {
		id, ok := strings.CutPrefix(op.Key, "decision/")
		if !ok || op.Kind != store.Create {
			continue
		}
		var r commitRecord
		if err := json.Unmarshal(op.Value, &r); err != nil || r.ID != id {
			w.fail("decision %s cannot be read: %v", id, err)
			continue
		}
		votes[id] = map[string]string{}
		for _, v := range r.Votes {
			votes[id][v.Host] = v.Vote
		}
		if len(r.Parts) == 0 {
			records = append(records, r)
		}
	}
	for _, r := range records {
		v := votes[r.ID]
		if r.Joint != "" {
			v = votes[r.Joint]
		}
		w.committedNow(r, v)
	}
}

func (w *world) committedNow(r commitRecord, votes map[string]string) {
	var note commitNote
	if err := json.Unmarshal(r.Record, &note); err != nil {
		w.fail("the note of decision %s cannot be read: %v", r.ID, err)
		return
	}
	w.tell("decision %s: %s is at spec %d (%s)", r.ID, r.App, note.Spec, note.Kind)
	w.count("commits")
	asked := 0
	for _, v := range r.Views {
		asked += len(v.Hosts)
	}
	if asked != len(w.hosts) {
		w.fail("ALL-OR-OLD: decision %s rests on %d Hosts of %d", r.ID, asked, len(w.hosts))
	}
	for _, v := range r.Views {
		for _, name := range v.Hosts {
			if votes[name] != "verified" {
				w.fail("ALL-OR-OLD: decision %s has %q from %s", r.ID, votes[name], name)
			}
			p := w.host(name).proxy
			p.mu.Lock()
			fresh := p.down || time.Since(p.started) < knowable // it restarted since it was verified
			p.mu.Unlock()
			for _, t := range note.Tasks {
				if routed, _ := p.routes(r.App, t.Upstream); !routed && !fresh && note.Kind != deploy.KindStop && !w.mesos.hasEnded(t.ID) {
					w.fail("ALL-OR-OLD: decision %s, and %s does not route to %s", r.ID, name, t.Upstream)
				}
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.committed[r.App] = note.Spec
	if note.Kind == deploy.KindStop {
		w.committed[r.App] = 0
	} else {
		w.stopping[r.App] = false
	}
}

// observe looks at every Deploy, as a user would.
func (w *world) observe() {
	inc := w.leader()
	e := inc.live()
	if e == nil {
		return
	}
	views, err := e.Deploys(context.Background(), "", 1000)
	if err != nil {
		return
	}
	steps := map[string]deploy.View{}
	for _, v := range views {
		if other, ok := steps[v.Lockstep]; ok && v.Lockstep != "" && (v.CommittedAt == nil) != (other.CommittedAt == nil) && v.ReasonCode != "unchanged" && other.ReasonCode != "unchanged" {
			w.fail("ALL-OR-OLD: lock-step %s: %s is %s and %s is %s", v.Lockstep, v.App, v.State, other.App, other.State)
		}
		steps[v.Lockstep] = v
		w.mu.Lock()
		before := w.ended[v.DeployID]
		w.ended[v.DeployID] = v.State
		w.mu.Unlock()
		if before == v.State {
			continue
		}
		w.tell("%s of %s to spec %d (%s): %s: %s", v.Kind, v.App, v.Spec, v.DeployID, v.State, v.Reason)
		w.count(string(v.State))
		switch before {
		case deploy.Succeeded, deploy.RolledBack, deploy.Aborted, deploy.Superseded:
			w.fail("%s was %s and is %s", v.DeployID, before, v.State)
		}
		switch v.State {
		case deploy.RolledBack, deploy.Aborted, deploy.Superseded:
			for _, t := range v.Tasks {
				if t.Role == "new" && !t.Kept {
					w.nowhere(v, t.ID)
				}
			}
		}
	}
}

// nowhere: no proxy routes to a task of a Deploy that did not succeed.
func (w *world) nowhere(v deploy.View, task string) {
	for _, h := range w.hosts {
		if routed, _ := h.proxy.routes(v.App, upstreamOf(task)); routed {
			w.fail("ALL-OR-OLD: %s is %s, and the proxy of %s routes to %s", v.DeployID, v.State, h.name, task)
		}
	}
}

// converged says what is not yet as it should be for good.
func (w *world) converged() string {
	e := w.leader().live()
	if e == nil {
		return "nobody leads"
	}
	ctx := context.Background()
	views, err := e.Deploys(ctx, "", 1000)
	if err != nil {
		return err.Error()
	}
	for _, v := range views {
		if v.State == deploy.Running || v.State == deploy.Stuck || (v.State == deploy.Succeeded && v.Step != string(deploy.StepDone)) {
			return fmt.Sprintf("%s of %s is %s, in step %s: %s", v.DeployID, v.App, v.State, v.Step, v.Reason)
		}
	}
	for _, app := range w.apps {
		var want []string
		if v, err := e.App(ctx, app); err == nil && v.State == "running" {
			for _, t := range v.Tasks {
				if t.State == "running" {
					want = append(want, upstreamOf(t.ID))
				}
			}
			if v.Healthy != v.Instances || len(want) != v.Instances {
				return fmt.Sprintf("%s has %d healthy of %d (%d tasks)", app, v.Healthy, v.Instances, len(want))
			}
		}
		slices.Sort(want)
		for _, h := range w.hosts {
			if have := h.proxy.serving(app); !slices.Equal(have, want) {
				return fmt.Sprintf("%s serves %v of %s, want %v", h.name, have, app, want)
			}
		}
		if left := w.mesos.running(app); len(left) != len(want) {
			return fmt.Sprintf("%s runs %v, want %d", app, left, len(want))
		}
	}
	for _, h := range w.hosts[1:] {
		if a, b := w.hosts[0].proxy.contents(), h.proxy.contents(); a != b {
			return fmt.Sprintf("%s and %s differ:\n%s\n%s", w.hosts[0].name, h.name, a, b)
		}
	}
	return ""
}
