package deploy

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func sample(wanted int, groups ...string) Deploy {
	return Deploy{
		ID: "d1", App: "shop", Kind: KindDeploy, Spec: 2, FromSpec: 1, Actor: "ana",
		Policy: Policy{
			Deadline: time.Minute, Drain: 30 * time.Second, KillGrace: 10 * time.Second,
			Check: "GET /healthz on port 0 every 500ms", Groups: groups,
		},
		Step: StepPending, State: Running, StartedAt: epoch, StepAt: epoch, Deadline: epoch.Add(time.Minute), Wanted: wanted,
	}
}

// TestStories runs readable scripts: each line is an input, the answer is where the Deploy is and what must be done.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		var d Deploy
		now := epoch
		datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
			var b strings.Builder
			if td.Cmd == "new" {
				wanted, kept := 2, 0
				td.MaybeScanArgs(t, "wanted", &wanted)
				td.MaybeScanArgs(t, "kept", &kept)
				groups := []string{"public"}
				if td.HasArg("worker") {
					groups = nil
				}
				d, now = sample(wanted, groups...), epoch
				for i := range kept {
					d.Members = append(d.Members, Member{Task: fmt.Sprintf("old%d", i), Instance: i, Kept: true, State: MemberHealthy})
				}
				td.MaybeScanArgs(t, "behind", &d.Behind)
				td.MaybeScanArgs(t, "lockstep", &d.Lockstep)
				return ""
			}
			for _, line := range strings.Split(td.Input, "\n") {
				in := parseInput(t, d, &now, line)
				before := d
				next, effects := Step(d, in, now)
				if !reflect.DeepEqual(before, d) {
					t.Fatalf("%s: Step changed its argument", line)
				}
				d = next
				fmt.Fprintf(&b, "%s -> %s %s %s: %s\n", line, d.Step, d.State, d.Code, strings.ReplaceAll(d.Reason, "\n", `\n`))
				if d.Next != "" {
					fmt.Fprintf(&b, "   next: %s\n", d.Next)
				}
				for _, e := range effects {
					fmt.Fprintf(&b, "   %s\n", showEffect(e))
				}
			}
			if wake := d.Wake(); !wake.IsZero() {
				fmt.Fprintf(&b, "wake in %s\n", wake.Sub(now))
			}
			return b.String()
		})
	})
}

func showEffect(e Effect) string {
	switch e := e.(type) {
	case Emit:
		parts := []string{e.Event.Type}
		for _, s := range []string{e.Event.Step, e.Event.Host, e.Event.Task} {
			if s != "" {
				parts = append(parts, s)
			}
		}
		return "event " + strings.Join(parts, " ") + ": " + strings.ReplaceAll(e.Event.Msg, "\n", `\n`)
	case LaunchTasks:
		var ids []string
		for _, m := range e.Members {
			ids = append(ids, m.Task)
		}
		return "LAUNCH " + strings.Join(ids, " ")
	case KillTasks:
		return "KILL " + strings.Join(e.Tasks, " ") + " (" + e.Why + ")"
	case BeginTxn:
		return "BEGIN " + e.ID
	case AbortTxn:
		return "ABORT " + e.ID + " " + e.Cause
	case FetchOutput:
		return "OUTPUT OF " + e.Task
	case Adopt:
		return "ADOPT"
	case End:
		return "END"
	}
	return fmt.Sprintf("%T", e)
}

// parseInput reads "running 0", "txn committed order=7", "tick 10s"; numbers name the member with that instance.
func parseInput(t *testing.T, d Deploy, now *time.Time, line string) Input {
	f := strings.Fields(line)
	rest := ""
	if i := strings.Index(line, ": "); i >= 0 {
		rest = line[i+2:]
	}
	opt := func(key string) string {
		for _, s := range f {
			if v, ok := strings.CutPrefix(s, key+"="); ok {
				return v
			}
		}
		return ""
	}
	task := func() string {
		n, err := strconv.Atoi(strings.TrimSuffix(f[1], ":"))
		if err != nil {
			t.Fatalf("%q: no instance", line)
		}
		for _, m := range d.Members {
			if m.Instance == n {
				return m.Task
			}
		}
		t.Fatalf("%q: no such member", line)
		return ""
	}
	switch strings.TrimSuffix(f[0], ":") {
	case "start":
		return Start{}
	case "cleared":
		return Cleared{}
	case "running":
		return TaskRunning{task()}
	case "healthy":
		return TaskHealthy{task()}
	case "unhealthy":
		return TaskUnhealthy{task(), rest}
	case "overdue":
		return TaskOverdue{task(), rest}
	case "ended":
		return TaskEnded{task(), rest}
	case "lost":
		return TaskLost{task(), rest}
	case "unplaced":
		return TaskUnplaced{task(), rest}
	case "txn":
		in := TxnChanged{
			ID: d.Txn, Phase: TxnPhase(f[1]), Cause: opt("cause"), Reason: rest, Passing: slices.Contains(f, "passing"), Order: 7,
		}
		for _, h := range strings.Split(opt("hosts"), ",") {
			if name, vote, ok := strings.Cut(h, "="); ok {
				in.Hosts = append(in.Hosts, HostView{Name: name, Group: "public", Vote: Vote(vote)})
			}
		}
		return in
	case "gathered":
		return Gathered{}
	case "peer":
		return PeerEnded{App: strings.TrimSuffix(f[1], ":"), Reason: rest, Outcome: RolledBack}
	case "unknown":
		return TxnUnknown{d.Txn}
	case "drained":
		in := TxnDrained{ID: d.Txn, Group: "public", Done: true}
		if w := opt("waiting"); w != "" {
			in.Done, in.Waiting = false, []string{w}
		}
		return in
	case "gone":
		return OldTasksGone{}
	case "abort":
		return AbortAsked{Ask{Actor: "ana", Reason: rest, Outcome: Aborted}}
	case "supersede":
		return AbortAsked{Ask{Actor: "d2", Reason: rest, Outcome: Superseded}}
	case "output":
		return OutputRead{d.Verdict.Culprit, rest}
	case "tick":
		by, err := time.ParseDuration(f[1])
		if err != nil {
			t.Fatal(err)
		}
		*now = now.Add(by)
		return Tick{}
	}
	t.Fatalf("unknown input %q", line)
	return nil
}

// drawInput makes any input, mostly about things that exist. Pick returns a number below its argument.
func drawInput(pick func(n int) int, d Deploy) Input {
	task := "nobody"
	if len(d.Members) > 0 {
		task = d.Members[pick(len(d.Members))].Task
	}
	switch pick(24) {
	case 0:
		return Cleared{}
	case 1, 2, 3:
		return TaskRunning{task}
	case 4, 5, 6, 7:
		return TaskHealthy{task}
	case 8:
		return TaskUnhealthy{task, "refused"}
	case 9:
		return TaskOverdue{task, "refused"}
	case 10:
		return TaskEnded{task, "exit 1"}
	case 11:
		return TaskLost{task, "agent gone"}
	case 12, 13, 14, 15:
		phases := []TxnPhase{
			TxnWaiting, TxnPreparing, TxnActivating, TxnDeciding, TxnCommitted, TxnRestoring, TxnRolledBack, TxnStuck,
		}
		causes := []string{"host-refused", "leader-restart", "task-died", "asked"}
		return TxnChanged{
			ID: d.Txn, Phase: phases[pick(len(phases))], Cause: causes[pick(len(causes))],
			Reason: "because", Passing: pick(2) == 0, Order: 3,
		}
	case 16:
		return TxnUnknown{d.Txn}
	case 17:
		return TxnDrained{ID: d.Txn, Group: "public", Done: pick(2) == 0}
	case 18:
		return OldTasksGone{}
	case 19:
		return AbortAsked{Ask{Actor: "ana", Outcome: []State{Aborted, Superseded}[pick(2)]}}
	case 20, 21:
		return Gathered{}
	case 22:
		return PeerEnded{App: "web", Reason: "boom", Outcome: []State{RolledBack, Aborted}[pick(2)]}
	}
	return OutputRead{task, "boom"}
}

// TestTransitions: every arrow of the diagram can be walked. The histories are random but always the same.
func TestTransitions(t *testing.T) {
	left := map[Transition]bool{}
	for _, tr := range Transitions() {
		left[tr] = true
	}
	for seed := uint64(0); len(left) > 0 && seed < 200_000; seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		d, now := sample(rng.IntN(3)), epoch
		if rng.IntN(2) == 0 {
			d.Policy.Groups = []string{"public"}
		}
		if rng.IntN(4) == 0 {
			d.Behind = "d0"
		} else if rng.IntN(2) == 0 {
			d.Lockstep = "l1"
		}
		d.OldGone = rng.IntN(2) == 0
		for i := range 40 {
			in := Input(Start{})
			switch {
			case i == 0 && rng.IntN(20) > 0:
			case rng.IntN(6) == 0:
				in, now = Tick{}, now.Add([]time.Duration{time.Second, 40 * time.Second, 12 * time.Minute}[rng.IntN(3)])
			default:
				in = drawInput(rng.IntN, d)
			}
			before := d
			d, _ = Step(d, in, now)
			for _, rec := range d.Steps[len(before.Steps):] {
				delete(left, Transition{From: before.Step, To: StepName(rec.Step), Input: inputName(in)})
			}
		}
	}
	for tr := range left {
		t.Errorf("%s -%s-> %s is in Transitions, but cannot be walked", tr.From, tr.Input, tr.To)
	}
}

func inputName(in Input) string { return reflect.TypeOf(in).Name() }

// TestLaws checks after every step of random histories what must hold, and that every move is in Transitions.
func TestLaws(t *testing.T) {
	known := map[Transition]bool{}
	for _, tr := range Transitions() {
		if known[tr] {
			t.Fatalf("%v is there twice", tr)
		}
		known[tr] = true
	}
	rapid.Check(t, func(t *rapid.T) {
		d := sample(rapid.IntRange(0, 3).Draw(t, "wanted"))
		if rapid.Bool().Draw(t, "routed") {
			d.Policy.Groups = []string{"public"}
		}
		if d.Wanted > 0 && rapid.Bool().Draw(t, "keeps") {
			d.Members = []Member{{Task: "old0", Instance: 0, Kept: true, State: MemberHealthy}}
		}
		if rapid.IntRange(0, 3).Draw(t, "behind") == 0 {
			d.Behind = "d0"
		} else if rapid.Bool().Draw(t, "lockstep") {
			d.Lockstep = "l1"
		}
		if rapid.Bool().Draw(t, "old") {
			d.OldGone = true
		}
		l := laws{t: t, now: epoch, d: d, txnOpen: map[string]bool{}, live: map[string]bool{}, known: known}
		l.step(Start{})
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			if rapid.IntRange(0, 5).Draw(t, "time") == 0 {
				l.now = l.now.Add(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 2 * time.Minute, 12 * time.Minute}).Draw(t, "pause"))
				l.step(Tick{})
				continue
			}
			l.step(drawInput(func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "pick") }, l.d))
		}
		l.settle()
	})
}

type laws struct {
	t         *rapid.T
	now       time.Time
	d         Deploy
	txnOpen   map[string]bool // begun and not known to be rolled back or committed
	live      map[string]bool // launched and not given up
	committed bool
	known     map[Transition]bool
}

func (l *laws) step(in Input) {
	// A coordinator has one end per transaction: do not invent a second one.
	if c, ok := in.(TxnChanged); ok && !l.txnOpen[c.ID] {
		return
	}
	before := l.d
	// RUNNING = JOURNAL for the orchestrator: what is stored is all there is.
	stored, err := json.Marshal(before)
	if err != nil {
		l.t.Fatal(err)
	}
	next, effects := Step(before, in, l.now)
	var loaded Deploy
	if err := json.Unmarshal(stored, &loaded); err != nil {
		l.t.Fatal(err)
	}
	again, effects2 := Step(loaded, in, l.now)
	if a, b := string(must(json.Marshal(next))), string(must(json.Marshal(again))); a != b || len(effects) != len(effects2) {
		l.t.Fatalf("after a restart the same input leads elsewhere:\n%s", cmp.Diff(a, b))
	}
	l.d = next
	if c, ok := in.(TxnChanged); ok {
		switch c.Phase {
		case TxnCommitted:
			l.committed, l.txnOpen[c.ID] = true, false
		case TxnRolledBack:
			l.txnOpen[c.ID] = false
		default:
		}
	}
	if u, ok := in.(TxnUnknown); ok && before.InTxn() {
		l.txnOpen[u.ID] = false
	}
	for _, e := range effects {
		l.effect(e)
	}
	l.moves(before, in)
	l.state(before)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (l *laws) effect(e Effect) {
	switch e := e.(type) {
	case LaunchTasks:
		for _, m := range e.Members {
			if l.live[m.Task] {
				l.t.Fatalf("task id %s is used twice", m.Task)
			}
			l.live[m.Task] = true
		}
	case KillTasks:
		for id, open := range l.txnOpen {
			if open {
				l.t.Fatalf("UNDO: %v given up while transaction %s is open", e.Tasks, id)
			}
		}
		for _, id := range e.Tasks {
			if strings.HasPrefix(id, "old") {
				l.t.Fatalf("kept task %s given up", id)
			}
			delete(l.live, id)
		}
	case BeginTxn:
		for id, open := range l.txnOpen {
			if open {
				l.t.Fatalf("transaction %s begun while %s is open", e.ID, id)
			}
		}
		l.txnOpen[e.ID] = true
		if l.d.Ask != nil {
			l.t.Fatal("begun after an abort was asked for")
		}
	case Adopt:
		if !l.committed {
			l.t.Fatal("ALL-OR-OLD: adopted without a Commit")
		}
	}
}

func (l *laws) moves(before Deploy, in Input) {
	// A step that is passed through at once is drawn as an arrow from the step before the input.
	for _, rec := range l.d.Steps[len(before.Steps):] {
		tr := Transition{From: before.Step, To: StepName(rec.Step), Input: inputName(in)}
		if !l.known[tr] {
			l.t.Fatalf("%s -%s-> %s is not in Transitions", tr.From, tr.Input, tr.To)
		}
	}
}

func (l *laws) state(before Deploy) {
	d := l.d
	if (d.State == Succeeded) != l.committed {
		l.t.Fatalf("ALL-OR-OLD: state %s, committed %v", d.State, l.committed)
	}
	if !before.Open() && d.Open() {
		l.t.Fatalf("reopened: %s to %s", before.Step, d.Step)
	}
	if d.Step == StepDone && before.Step == StepDone && d.State != before.State {
		l.t.Fatalf("done changed from %s to %s", before.State, d.State)
	}
	owed := d.InTxn() || d.Step == StepWaitStuck || d.Step == StepDrainStuck || d.Step == StepDone
	if d.Wake().IsZero() && !owed {
		l.t.Fatalf("EVERY-STATE-ENDS: %s waits for nothing", d.Step)
	}
	if (d.State == Stuck || d.Step == StepDrainStuck) && d.Next == "" {
		l.t.Fatalf("stuck in %s without the next command", d.Step)
	}
	if d.Step == StepDone && d.FinishedAt.IsZero() {
		l.t.Fatal("done without a time")
	}
	if d.Step != StepPending && d.Reason == "" {
		l.t.Fatalf("no reason in %s", d.Step)
	}
	if len(d.Steps) > 100 {
		l.t.Fatalf("%d steps", len(d.Steps))
	}
}

// settle lets time pass and the coordinator answer: every Deploy must end, and without a Commit no new task may be left.
func (l *laws) settle() {
	for range 200 {
		if l.d.Step == StepDone {
			break
		}
		switch {
		case l.d.Step == StepWaiting || l.d.Step == StepWaitStuck:
			l.step(Cleared{})
		case l.d.InTxn():
			l.step(TxnChanged{ID: l.d.Txn, Phase: TxnRolledBack, Cause: "host-refused", Reason: "no"})
		case l.d.Step == StepDrainStuck:
			l.step(TxnDrained{ID: l.d.Txn, Group: "public", Done: true})
		default:
			l.now = l.now.Add(time.Minute)
			l.step(Tick{})
		}
	}
	if l.d.Step != StepDone {
		l.t.Fatalf("EVERY-STATE-ENDS: still %s", l.d.Step)
	}
	if l.d.State != Succeeded {
		for _, m := range l.d.Members {
			if l.live[m.Task] && m.State != MemberEnded {
				l.t.Fatalf("task %s is left behind by a %s Deploy", m.Task, l.d.State)
			}
		}
	}
}

func TestUpstreamName(t *testing.T) {
	for _, app := range []string{"a", "shop", strings.Repeat("long-name-", 6) + "xyz"} {
		for _, spec := range []uint64{1, 99_999_999} {
			id := TaskID(app, spec, 999, MemberUnique("01j00000000000000000000000", 42))
			name := UpstreamName(id)
			if len(name) > 64 || !strings.HasSuffix(name, "01j00000000000000000000000-42") || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
				t.Errorf("%s: %s", id, name)
			}
		}
	}
	if got := UpstreamName("shop.1.0.x"); got != "shop.1.0.x" {
		t.Error(got)
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		name     string
		v        View
		wait     WaitFor
		code     int
		done     bool
		rollback int
	}{
		{"committed", View{State: Succeeded, Step: "draining", Drain: &DrainView{}}, WaitSucceeded, 0, true, 0},
		{"not drained", View{State: Succeeded, Step: "draining", Drain: &DrainView{}}, WaitDrained, 0, false, 0},
		{"drained", View{State: Succeeded, Step: "killing", Drain: &DrainView{Done: true}}, WaitDrained, 0, true, 0},
		{"unchanged", View{State: Succeeded, Step: "done"}, WaitDrained, 0, true, 0},
		{"drain stuck", View{State: Succeeded, Step: "drain-stuck", Drain: &DrainView{}}, WaitDrained, 4, true, 0},
		{"drain stuck, not asked", View{State: Succeeded, Step: "drain-stuck", Drain: &DrainView{}}, WaitSucceeded, 0, true, 0},
		{"rolled back", View{State: RolledBack}, WaitSucceeded, 3, true, 0},
		{"stuck", View{State: Stuck}, WaitDrained, 4, true, 4},
		{"aborted", View{State: Aborted}, WaitSucceeded, 6, true, 0},
		{"superseded", View{State: Superseded}, WaitSucceeded, 6, true, 0},
	} {
		if code, done := ExitCode(c.v, c.wait); code != c.code || done != c.done {
			t.Errorf("%s: %d %v", c.name, code, done)
		}
		if code, done := RollbackExitCode(c.v); code != c.rollback || !done {
			t.Errorf("%s as rollback: %d %v", c.name, code, done)
		}
	}
	if _, done := RollbackExitCode(View{State: Running}); done {
		t.Error("running is no end")
	}
	for kind, code := range map[RefusalKind]int{RefusedInvalid: 1, RefusedNotFound: 1, RefusedState: 1, RefusedLocked: 8, RefusedIdempotency: 8, RefusedUnavailable: 9, RefusedUnauthorized: 9} {
		if got := RefusalExitCode(kind); got != code {
			t.Errorf("%s: %d", kind, got)
		}
	}
}

// A Deploy that a Host did not prove never says that every Host did.
func TestUnprovenHostsAreNamed(t *testing.T) {
	hosts := []HostView{{Name: "lb1", Vote: VoteVerified}, {Name: "lb2", Vote: VoteNone, Standing: StandingUnproven}}
	if got := proved(hosts[:1]); got != "every host proved it" {
		t.Error(got)
	}
	if got := proved(hosts); !strings.Contains(got, "but lb2 (unproven") {
		t.Error(got)
	}
}
