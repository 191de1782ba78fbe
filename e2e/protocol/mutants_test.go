package protocol

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/orchestrator/txn"
)

var update = flag.Bool("update", false, "rewrite testdata/mutants with the stories of this run")

// mutant is a mistake in production code that the search must find: in file, old (which must be there exactly once) is
// replaced by patched, for one compilation of this test.
type mutant struct {
	name         string
	file         string
	old, patched string
	scenario     scenario
	// chance: with the mistake a Host does by chance one thing or another, so the story differs; what it ends with does not.
	chance bool
}

var mutants = []mutant{
	{
		name: "decision-sent-before-it-is-durable", file: "orchestrator/txn/step.go",
		old: "	s.emit(WriteDecision{})\n",
		patched: `	s.emit(WriteDecision{})
	for i := range s.Hosts {
		s.want(&s.Hosts[i], CallCommit)
	}
`,
		scenario: scenario{hosts: 2},
	},
	{
		name: "epoch-check-left-out", file: "lbagent/participant/step.go",
		old: "	if f.Epoch < d.Epoch {\n", patched: "	if false {\n",
		scenario: scenario{hosts: 2, budget: budget{depose: 1}},
	},
	{
		name: "answer-before-journal", file: "lbagent/participant/step.go",
		old: "append(m.journal, m.effects...)", patched: "append(m.effects, m.journal...)",
		scenario: scenario{hosts: 2, budget: budget{agent: 1}},
	},
	{
		name: "undo-snapshot-after-swap", file: "lbagent/participant/activate.go",
		old: "	next.Refusal = nil\n	m.enter(next, KindVerified, Verified, \"\")\n",
		patched: `	next.Refusal = nil
	for i := range next.Changes {
		l := m.wanted(next.Changes[i].App)
		next.Changes[i].Undo.Running, next.Changes[i].Undo.Published = l.wantSum, l.pub.digest
	}
	m.enter(next, KindVerified, Verified, "")
`,
		scenario: scenario{hosts: 2},
	},
	{
		name: "abort-after-verified-without-decision", file: "lbagent/participant/activate.go",
		old: "	state, why := m.watch(id, t)\n	switch {\n",
		patched: `	if !m.now.Before(m.s.deadline(t)) {
		return m.restoreSelf(t, refuse(DeadlinePassed, "", "the deadline of %s passed", id))
	}
	state, why := m.watch(id, t)
	switch {
`,
		scenario: scenario{hosts: 1, budget: budget{leader: 1, expire: 1}},
	},
	{
		name: "drain-skipped", file: "lbagent/participant/decide.go",
		old: "		case row == nil || row.Sessions == 0:\n", patched: "		case row == nil || row.Sessions >= 0:\n",
		scenario: scenario{hosts: 2, sessions: true},
	},
	{
		name: "stale-abort-obeyed", file: "lbagent/participant/step.go",
		old:      "		if no := m.fence(fence); no != nil {\n",
		patched:  "		_, abort := ev.(Abort)\n		if no := m.fence(fence); no != nil && !abort {\n",
		scenario: scenario{hosts: 2, budget: budget{depose: 1, abort: 1}},
	},
	{
		name: "votes-of-an-old-epoch-counted", file: "orchestrator/txn/recover.go",
		old: "	s.Phase, s.RestoreBy = Restoring, now.Add(r.Restore)\n",
		patched: `	if f.Marked && !f.Aborted {
		for i := range s.Hosts {
			s.Hosts[i].Vote, s.Hosts[i].FreshAt = VoteVerified, now
		}
		s.Phase = Activating
		return s
	}
	s.Phase, s.RestoreBy = Restoring, now.Add(r.Restore)
`,
		scenario: scenario{hosts: 2, budget: budget{leader: 1}},
	},
	{
		name: "undo-of-a-section-that-was-not-named", file: "lbagent/participant/restore.go",
		old: "	a := m.attempt(t.ID)\n	var sections []*SectionState\n",
		patched: `	a := m.attempt(t.ID)
	var sections []*SectionState
	for _, other := range m.s.Durable.Sections {
		if t.change(other.App) == nil {
			s := *other
			s.Committed.Upstreams = nil
			sections = append(sections, &s)
		}
	}
`,
		scenario: scenario{hosts: 2, budget: budget{abort: 1}},
	},
	{
		name: "lapsed-ignored", file: "orchestrator/txn/step.go",
		old: `	case r.Fallback:
		fail(CauseHostFallback, "serves the old upstreams again, since none of the new ones can serve there")
	case r.Phase == lbagentv1.TxnPhase_TXN_PHASE_LAPSED:
		fail(CauseHostLapsed, "was verified and is no longer")
`,
		patched:  "",
		scenario: scenario{hosts: 2, budget: budget{red: 1}},
	},
	{
		name: "kill-before-every-answer", file: "orchestrator/txn/open.go",
		old: "		return owed && in(target)\n", patched: "		return owed && in(target) && false\n",
		scenario: scenario{hosts: 2, budget: budget{slow: 1, abort: 1}},
	},
	{
		name: "no-activating-mark", file: "orchestrator/txn/step.go",
		old: "			s.Marking = true\n			s.emit(WriteMark{})\n", patched: "			s.becomeActivating()\n			s.advanceActivating()\n",
		scenario: scenario{hosts: 2},
	},
	{
		name: "fallback-dropped-by-commit", file: "lbagent/participant/decide.go",
		old: "m.replaced(&sec, &c.Target, drain, t.Fallback && !c.Stop)", patched: "m.replaced(&sec, &c.Target, drain, false)",
		scenario: scenario{hosts: 2, budget: budget{red: 1, slow: 1}},
	},
	{
		name: "amendment-passes-an-open-transaction", file: "lbagent/participant/amend.go",
		old: "	case inserts && open != nil:\n", patched: "	case inserts && open != nil && false:\n",
		scenario: scenario{hosts: 2, budget: budget{insert: 1, abort: 1, pause: 1}},
		chance:   true, // which of two open transactions on one Section is looked at first
	},
	{
		name: "restore-to-nothing", file: "lbagent/participant/restore.go",
		old: "	if serves && green+baseGreen == 0 {\n", patched: "	if serves && green+baseGreen < 0 {\n",
		scenario: scenario{hosts: 1, budget: budget{die: 1, abort: 1}},
	},
	{
		name: "old-evidence-counted", file: "orchestrator/txn/step.go",
		old: "return s.age(h) <= s.rules.Fresh })", patched: "return s.age(h) <= 10*s.rules.Fresh })",
		scenario: scenario{hosts: 2, budget: budget{pause: 1}},
	},
	{
		name: "insertion-does-not-wait-for-the-lock", file: "orchestrator/txn/locks.go",
		old: "		if slices.ContainsFunc(held, blocked) || slices.ContainsFunc(waiting, blocked) {\n", patched: "		if slices.ContainsFunc(held, blocked) && false {\n",
		scenario: scenario{hosts: 2, budget: budget{insert: 1}},
	},
	{
		name: "amendment-of-an-old-spec-behind-a-commit", file: "orchestrator/txn/committed.go",
		old: "	case a.Spec != 0 && is != a.Spec:\n", patched: "	case a.Spec != 0 && is != a.Spec && false:\n",
		scenario: scenario{hosts: 2, budget: budget{insert: 1}},
	},
	{
		name: "amendment-over-another-base", file: "lbagent/participant/amend.go",
		old: "	case inserts && (ev.Base.Txn != sec.Version.Txn || sec.Removed):\n", patched: "	case inserts && sec.Removed:\n",
		scenario: scenario{hosts: 2, policy: txn.Policy{AllBut: 1}, budget: budget{insert: 1, away: 1}},
	},
	{
		name: "joint-commit-leaves-out-a-section", file: "orchestrator/txn/commit.go",
		old: "	for _, ch := range c.Changes {\n", patched: "	for _, ch := range c.Changes[:1] {\n",
		scenario: scenario{hosts: 2, together: lockStep, split: true},
	},
	{
		name: "second-group-not-waited-for", file: "orchestrator/txn/step.go",
		old: "return h.Unproven || ok(h)", patched: "return h.Unproven || h.Group != s.Hosts[0].Group || ok(h)",
		scenario: scenario{hosts: 2, together: lockStep, split: true},
	},
	{
		name: "blame-put-on-the-innocent", file: "orchestrator/txn/merge.go",
		old: "	case len(rest) == 1:\n", patched: "	case len(rest) >= 1:\n",
		scenario: scenario{hosts: 1, together: merged, bad: true},
	},
	{
		name: "exclusion-without-proof", file: "orchestrator/registry/asks.go",
		old: "			if proof == nil {\n", patched: "			if proof == nil && missing == \"\" {\n",
		scenario: scenario{hosts: 2, budget: budget{exclude: 1}},
	},
	{
		name: "report-from-before-the-readmission-proves", file: "orchestrator/registry/asks.go",
		old: "	case inTraffic, t.GetOrder()", patched: "	case t.GetOrder()",
		scenario: scenario{hosts: 2, idle: true, budget: budget{drain: 1, exclude: 1}},
	},
	{
		name: "unproven-host-owes-nothing", file: "orchestrator/txn/step.go",
		old: "		if h.Done || h.Excluded {\n", patched: "		if h.Done || h.Excluded || h.Unproven {\n",
		scenario: scenario{hosts: 2, policy: txn.Policy{AllBut: 1}, budget: budget{away: 1, abort: 1}},
	},
	{
		name: "all-hosts-may-be-missing", file: "orchestrator/txn/policy.go",
		old: "min(spare, members-1)", patched: "min(spare, members)",
		scenario: scenario{hosts: 1, policy: txn.Policy{AllBut: 1}, budget: budget{away: 1}},
	},
	{
		name: "broken-journal-written-on", file: "lbagent/participant/step.go",
		old:      "	m.s.waits, m.s.verifies = nil, nil\n}\n",
		patched:  "	m.s.waits, m.s.verifies, m.s.Broken = nil, nil, nil\n}\n",
		scenario: scenario{hosts: 1, budget: budget{disk: 1}},
	},
}

// mutantEnv names the mutant that this process is compiled with; storyEnv is the file for its story.
const (
	mutantEnv = "SEARCH_MUTANT"
	storyEnv  = "SEARCH_STORY"
)

// mutantLimit is how many states the search for a mutant may visit.
const mutantLimit = 60_000

// tellMutant searches the scenario of a mutant and writes the story of what was found: the part of TestMutants that runs
// in a process of its own, compiled with the mutant.
func tellMutant(name, file string) error {
	for _, m := range mutants {
		if m.name != name {
			continue
		}
		s := explore(newWorld(m.scenario), mutantLimit)
		if s.broken == nil {
			return fmt.Errorf("%d states were visited, and the search has found nothing", len(s.seen))
		}
		return os.WriteFile(file, []byte(s.story()), 0o600)
	}
	return errors.New("no such mutant")
}

// TestMutants: every mutant is found, and its shortest story is the one in testdata/mutants.
func TestMutants(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel() // what takes the time is a compilation
			tryMutant(t, m)
		})
	}
}

func tryMutant(t *testing.T, m mutant) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, m.file)
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(src), m.old); n != 1 {
		t.Fatalf("the text that the mutant replaces is %d times in %s, not once: write the mutant anew for what is there now\n%s", n, m.file, m.old)
	}
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	patched := write("patched.go", []byte(strings.Replace(string(src), m.old, m.patched, 1)))
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: patched}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	begin := time.Now()
	binary := filepath.Join(dir, "mutant.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay", write("overlay.json", overlay), "-o", binary, "./e2e/protocol")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("compile the mutant: %v\n%s", err, out)
	}
	built := time.Since(begin)
	story := filepath.Join(dir, "story.txt")
	run := exec.CommandContext(ctx, binary)
	run.Env = append(os.Environ(), mutantEnv+"="+m.name, storyEnv+"="+story)
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("the mutant lives: %v\n%s", err, out)
	}
	got, err := os.ReadFile(story)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("compiled in %v, found in %v", built.Round(time.Millisecond), (time.Since(begin) - built).Round(time.Millisecond))
	golden := filepath.Join("testdata", "mutants", m.name+".txt")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("there is no story of this mutant: run go test ./e2e/protocol -run Mutants -update\n%s", got)
	} else if err != nil {
		t.Fatal(err)
	}
	if m.chance {
		want, _, _ = bytes.Cut(want, []byte("\n"))
		got, _, _ = bytes.Cut(got, []byte("\n"))
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("the mutant is found by another story (-want +got); if that is as it should be, run with -update:\n%s", diff)
	}
}
