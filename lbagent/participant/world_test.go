package participant

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// world runs the machine against a model of a proxy, in virtual time: Works take effect when the test lets them, a
// reading tells what the model holds, and the journal is a list.
type world struct {
	t       testing.TB
	s       State
	now     time.Time
	journal []Record
	base    Durable
	works   []Work
	trace   []string
	answers map[Token]Answer
	token   Token

	rows     map[string]map[string]driver.Upstream // running, by app and name
	routes   map[string][]driver.Route
	files    map[string]driver.Section
	health   map[string]string // by name: green (default), red, pending
	sessions map[string]int
	process  driver.Process
	stageErr map[string]error
	workErr  error
	reqErr   map[string]error
	down     bool
	brokenAt int // journal writes until one fails; <0: never
	// onConverge sees how many upstreams could serve before and after a Converge.
	onConverge func(job Work, before, after int)
}

// canServe counts the upstreams that a client of the proxy can reach now.
func (w *world) canServe(app string) int {
	n := 0
	if len(w.routes[app]) == 0 {
		return 0
	}
	for name, u := range w.rows[app] {
		if u.Mode == driver.Serving && w.health[name] == "" {
			n++
		}
	}
	return n
}

var epochStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newWorld(t testing.TB) *world {
	w := &world{
		t: t, now: epochStart, answers: map[Token]Answer{}, rows: map[string]map[string]driver.Upstream{},
		routes: map[string][]driver.Route{}, files: map[string]driver.Section{}, health: map[string]string{},
		sessions: map[string]int{}, stageErr: map[string]error{}, reqErr: map[string]error{}, brokenAt: -1,
	}
	w.newProcess(100)
	w.s = Recover(self, Durable{}, w.now)
	w.step(Tick{})
	w.readAll()
	return w
}

var self = Identity{Cluster: "c", Group: "g"}

func fenced(epoch uint64) Fence { return Fence{Cluster: "c", Group: "g", Epoch: epoch, View: 1} }

func (w *world) newProcess(pid int) {
	w.process = driver.Process{MasterPID: 1, WorkerPID: pid, StartedAt: w.now, Version: "model"}
}

// restIsKnown: the index of the Apps that are not at rest is what a look at all of them says.
func (w *world) restIsKnown() {
	if _, bench := w.t.(*testing.B); bench {
		return
	}
	for _, app := range w.s.Apps() {
		if _, restless := w.s.restless[app]; restless == w.s.atRest(app) && w.s.Broken == nil {
			w.t.Fatalf("%s is listed as restless: %t", app, restless)
		}
	}
	for app := range w.s.restless {
		if w.s.atRest(app) {
			w.t.Fatalf("%s is at rest and listed as restless", app)
		}
	}
}

// step runs one event and carries out its effects, Works excepted.
func (w *world) step(ev Event) {
	next, effects := Step(w.s, ev, w.now)
	w.s = next
	w.restIsKnown()
	failed := false
	for _, e := range effects {
		switch e := e.(type) {
		case Journal:
			if w.brokenAt == 0 {
				failed = true
				continue
			}
			if failed {
				continue
			}
			if w.brokenAt > 0 {
				w.brokenAt--
			}
			w.journal = append(w.journal, e.Record)
			w.tracef("  journal %s", describeRecord(e.Record))
		case Start:
			if !failed {
				for _, other := range w.works {
					if other.App == e.Work.App {
						w.t.Fatalf("two Works for %s at once", e.Work.App)
					}
				}
				w.works = append(w.works, e.Work)
			}
		case Reply:
			a := e.Answer
			if failed {
				a = Answer{Refusal: refuse(JournalBroken, "", "disk")}
			}
			if _, twice := w.answers[e.To]; twice {
				w.t.Fatalf("caller %d answered twice", e.To)
			}
			w.answers[e.To] = a
			w.tracef("  reply %d: %s", e.To, describeAnswer(a))
		case Cancel:
			w.tracef("  cancel %s", e.App)
		case Mend:
			w.tracef("  mend")
		}
	}
	if failed {
		w.step(JournalFailed{Err: errors.New("no space left on device")})
	}
}

func (w *world) tracef(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (w *world) takeTrace() string {
	out := strings.Join(w.trace, "\n")
	w.trace = nil
	if out == "" {
		return "  (nothing)\n"
	}
	return out + "\n"
}

// work carries out the first pending Work in the model and reports its end.
func (w *world) work() bool {
	if len(w.works) == 0 {
		return false
	}
	job := w.works[0]
	w.works = w.works[1:]
	done := WorkDone{App: job.App, Seq: job.Seq}
	fail := func(err error) { done.Err = err }
	switch {
	case w.down:
		fail(driver.ErrProxyDown)
	case w.workErr != nil && job.changes():
		fail(w.workErr)
	case job.Stage != nil && w.stageErr[job.App] != nil:
		done.Published, done.PublishedKnown = w.digestOfFiles(job.App), true
		fail(w.stageErr[job.App])
	default:
		if job.Publish != nil {
			for _, u := range job.Publish.Upstreams {
				if u.Mode == driver.Warm {
					w.t.Fatalf("%s is warm and published", u.Name)
				}
			}
			w.files[job.App] = *job.Publish
		}
		if job.Publish != nil || job.ReadPublished {
			done.Published, done.PublishedKnown = w.digestOfFiles(job.App), true
		}
		if job.Converge != nil {
			before := w.canServe(job.App)
			w.converge(*job.Converge)
			if w.onConverge != nil {
				w.onConverge(job, before, w.canServe(job.App))
			}
		}
		for _, name := range job.Cut {
			w.sessions[name] = 0
		}
		for _, r := range job.Requests {
			if err := w.reqErr[r.Upstream]; err != nil {
				fail(err)
			}
		}
	}
	w.tracef("  work %s%s", describeWork(job), map[bool]string{true: fmt.Sprintf(" -> %v", done.Err)}[done.Err != nil])
	w.now = w.now.Add(time.Millisecond)
	w.step(done)
	return true
}

func (w *world) digestOfFiles(app string) string {
	if d := driver.Digest(w.files[app]); d != "" {
		return "files:" + d
	}
	return ""
}

func (w *world) converge(want driver.Section) {
	old := w.rows[want.App]
	rows := map[string]driver.Upstream{}
	for _, u := range want.Upstreams {
		rows[u.Name] = u
	}
	for name := range old {
		if _, stays := rows[name]; !stays {
			delete(w.sessions, name)
		}
	}
	w.rows[want.App], w.routes[want.App] = rows, want.Routes
	if len(rows) == 0 && len(want.Routes) == 0 {
		delete(w.rows, want.App)
		delete(w.routes, want.App)
	}
}

// restart is a crash of the proxy: it comes back with what its files say.
func (w *world) restart() {
	w.newProcess(w.process.WorkerPID + 1)
	w.rows, w.routes = map[string]map[string]driver.Upstream{}, map[string][]driver.Route{}
	for _, f := range w.files {
		w.converge(f)
	}
}

func (w *world) reading(apps ...string) driver.Reading {
	r := driver.Reading{Process: w.process, At: w.now, Sections: map[string]driver.SectionReading{}}
	for app, ups := range w.rows {
		if len(apps) > 0 && !slices.Contains(apps, app) {
			continue
		}
		var rows []driver.Row
		for _, u := range ups {
			h := w.health[u.Name]
			rows = append(rows, driver.Row{Name: u.Name, Address: u.Address, Weight: u.Weight, Mode: u.Mode,
				Green: h == "", Red: h == "red", Status: map[string]string{"": "UP", "red": "DOWN", "pending": "UP 1/3"}[h],
				Sessions: w.sessions[u.Name]})
		}
		r.Sections[app] = driver.NewSectionReading(app, w.routes[app], rows)
	}
	return r
}

func (w *world) readAll() {
	if w.down {
		w.step(ReadFailed{Started: w.now, Err: driver.ErrProxyDown})
		return
	}
	w.step(Reading{Started: w.now, All: true, Reading: w.reading()})
}

// read lets the machine have the reading that it plans for.
func (w *world) read() bool {
	plan := w.s.ReadPlan()
	w.now = w.now.Add(20 * time.Millisecond)
	switch apps := append(plan.Urgent, plan.Watched...); {
	case plan.All:
		w.readAll()
	case len(apps) == 0:
		return false
	case w.down:
		w.step(ReadFailed{Started: w.now, Err: driver.ErrProxyDown})
	default:
		w.step(Reading{Started: w.now, Apps: apps, Reading: w.reading(apps...)})
	}
	return true
}

// run lets Works and readings go on until nothing moves, for at most the given virtual time.
func (w *world) run(limit time.Duration) {
	end := w.now.Add(limit)
	for quiet := 0; quiet < 4 && w.now.Before(end); {
		before := len(w.journal) + len(w.answers)
		worked := w.work()
		w.read()
		w.step(Tick{})
		if worked || len(w.journal)+len(w.answers) != before {
			quiet = 0
		} else {
			quiet++
		}
	}
}

// pass lets virtual time go by, with readings twice a second or as planned.
func (w *world) pass(d time.Duration) {
	end := w.now.Add(d)
	for w.now.Before(end) {
		for w.work() {
		}
		w.now = w.now.Add(180 * time.Millisecond)
		w.read()
		w.step(Tick{})
	}
}

// crash is kill -9 of the agent and a new start from the journal.
func (w *world) crash() {
	w.works = nil
	d := w.base
	for _, r := range w.journal {
		d = d.Apply(roundTrip(w.t, r))
	}
	w.s = Recover(self, d, w.now)
	w.publishedByTheJournal(d)
	w.step(Tick{})
}

// publishedByTheJournal: what the journal alone says of the files is what the machine that starts with it wants there.
func (w *world) publishedByTheJournal(d Durable) {
	for _, app := range w.s.Apps() {
		m := &stepper{s: w.s, now: w.now, ownLive: map[string]bool{}, ownAttempt: map[string]bool{}, reports: map[string]bool{}, lives: w.s.live.own()}
		sum := m.wanted(app).pubSum
		if p, ok := d.Published(app); ok && driver.Digest(p) != sum {
			w.t.Fatalf("%s: the journal says %+v, the machine wants %+v", app, p, *m.wanted(app).want)
		} else if sec := d.Sections[app]; !ok && sec != nil && !sec.Stray {
			w.t.Fatal("the journal does not say what " + app + " publishes")
		}
	}
}

func roundTrip(t interface{ Fatal(...any) }, r Record) Record {
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var out Record
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (w *world) next() Token {
	w.token++
	return w.token
}

func up(name string) Upstream {
	sum := 0
	for _, c := range name {
		sum = sum*31 + int(c)
	}
	return Upstream{Name: name, Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(sum >> 8), byte(sum)}), 80),
		Weight: 100, TaskID: "task-" + name, Health: driver.Health{Kind: driver.HealthHTTP, Path: "/", Interval: 100 * time.Millisecond,
			Timeout: 100 * time.Millisecond, Rise: 1, Fall: 1}}
}

func section(app string, names ...string) *Section {
	s := &Section{App: app, Spec: 1, Routes: []driver.Route{{Host: "*", Path: "/" + app}}, Drain: 10 * time.Second}
	for _, n := range names {
		s.Upstreams = append(s.Upstreams, up(n))
	}
	return s
}

// show prints what the model proxy holds.
func (w *world) show() string {
	var apps []string
	for app := range w.rows {
		apps = append(apps, app)
	}
	sort.Strings(apps)
	var b strings.Builder
	for _, app := range apps {
		fmt.Fprintf(&b, "  %s:", app)
		for _, u := range driver.SortedUpstreams(slices.Collect(mapValues(w.rows[app]))) {
			fmt.Fprintf(&b, " %s=%s", u.Name, u.Mode)
		}
		if len(w.routes[app]) == 0 {
			b.WriteString(" (no routes)")
		}
		b.WriteString("\n")
	}
	if b.Len() == 0 {
		return "  (empty)\n"
	}
	return b.String()
}

func mapValues[K comparable, V any](m map[K]V) func(func(V) bool) {
	return func(yield func(V) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

func describeRecord(r Record) string {
	var b strings.Builder
	b.WriteString(strings.ToUpper(string(r.Kind)))
	if r.TxnID != "" {
		fmt.Fprintf(&b, " %s", r.TxnID)
	}
	if r.Kind == KindEpoch {
		fmt.Fprintf(&b, " %d", r.Epoch)
	}
	if r.Note != "" && r.Kind != KindSettled {
		fmt.Fprintf(&b, " (%s)", r.Note)
	}
	return b.String()
}

func describeWork(w Work) string {
	out := []string{w.App}
	names := func(s *driver.Section) string {
		var n []string
		for _, u := range s.Upstreams {
			n = append(n, u.Name+"="+u.Mode.String())
		}
		return "[" + strings.Join(n, " ") + "]"
	}
	if w.Stage != nil {
		out = append(out, "stage"+names(w.Stage))
	} else if w.ReadPublished {
		out = append(out, "read-files")
	}
	if w.Publish != nil {
		out = append(out, "publish"+names(w.Publish))
	}
	if w.Converge != nil {
		out = append(out, "converge"+names(w.Converge))
	}
	if len(w.Cut) > 0 {
		out = append(out, fmt.Sprintf("cut%v", w.Cut))
	}
	for _, r := range w.Requests {
		out = append(out, "request("+r.Upstream+")")
	}
	return strings.Join(out, " ")
}

func describeAnswer(a Answer) string {
	var out []string
	if a.Refusal != nil {
		out = append(out, "NO{"+a.Refusal.Reason.String()+": "+a.Refusal.Message+"}")
	} else {
		out = append(out, "ok")
	}
	if a.NeverActivated {
		out = append(out, "never-activated")
	}
	for _, e := range a.Evidence {
		var rows []string
		for _, r := range e.Rows {
			s := r.Name + "=" + r.Mode.String()
			if !r.Healthy && r.Registered {
				s += "(" + r.Status + ")"
			}
			if r.Drained {
				s += "/drained"
			}
			if r.Forced {
				s += "/forced"
			}
			rows = append(rows, s)
		}
		out = append(out, fmt.Sprintf("%s@%d.%d[%s]", e.App, e.Version.Txn, e.Version.Amendments, strings.Join(rows, " ")))
	}
	for _, v := range a.Verifies {
		if v.Refusal != nil {
			out = append(out, v.TxnID+": NO{"+v.Refusal.Reason.String()+"}")
		} else {
			out = append(out, v.TxnID+": verified")
		}
	}
	if len(a.Deleted) > 0 {
		out = append(out, fmt.Sprintf("deleted%v", a.Deleted))
	}
	if len(a.Open) > 0 {
		out = append(out, fmt.Sprintf("open%v", a.Open))
	}
	return strings.Join(out, " ")
}
