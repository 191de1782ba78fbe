package conductor

import (
	"errors"
	"slices"
	"testing"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/txn"
)

// deadUndo brings transaction t2 to where every Host is Verified but the last, which is held, and all that t1 committed
// has died; then it is aborted. The last Host never took its Activate.
func (cl *cluster) deadUndo(held string, old ...string) {
	cl.t.Helper()
	cl.commit("t1", old...)
	release := hold(cl.hosts[held], "activate")
	cl.begin(proposal("t2", "new"))
	cl.heard.until(cl.t, "the other hosts to be verified", func() bool {
		s := cl.heard.last("t2")
		return s.Phase == txn.Activating && !slices.ContainsFunc(s.Hosts, func(h txn.HostVote) bool { return h.Host != held && h.Vote != "verified" })
	})
	for _, name := range old {
		cl.remove(name)
	}
	cl.askAbort("t2")
	eventually(cl.t, held+" to be asked", func() bool { return cl.hosts[held].Calls("abort") > 0 })
	release()
}

func (cl *cluster) askAbort(id string) {
	cl.t.Helper()
	if err := cl.Abort(cl.t.Context(), id, txn.CauseAsked, "asked"); err != nil {
		cl.t.Fatal(err)
	}
}

func (cl *cluster) remove(name string) {
	cl.t.Helper()
	if err := cl.Amend(cl.t.Context(), txn.Amendment{ID: "dead-" + name, Group: "public", App: "shop", Remove: []string{name}}); err != nil {
		cl.t.Fatal(err)
	}
	cl.heard.until(cl.t, name+" to be removed", func() bool { a, ok := cl.heard.amend("dead-" + name); return ok && a.Done })
}

func (cl *cluster) replace(id, undo string, names ...string) error {
	cl.t.Helper()
	a := txn.Amendment{ID: id, Group: "public", App: "shop", Undo: undo, Actor: "scheduler", Reason: "replaces the dead"}
	for _, n := range names {
		a.Insert = append(a.Insert, upstream(n))
	}
	return cl.Amend(cl.t.Context(), a)
}

func (cl *cluster) done(id string) {
	cl.t.Helper()
	cl.heard.until(cl.t, id+" to be done", func() bool { a, ok := cl.heard.amend(id); return ok && a.Done })
}

func (cl *cluster) quiet(hosts ...string) {
	cl.t.Helper()
	s, _, _ := cl.Section(cl.t.Context(), "public", "shop")
	for _, h := range hosts {
		if n := cl.hosts[h].Calls("sync"); n != 0 {
			cl.t.Errorf("%d needless Syncs of %s", n, h)
		}
		if _, v := cl.hosts[h].Committed("shop"); txn.CompareVersions(v, s.GetVersion()) != 0 {
			cl.t.Errorf("%s is at %v, committed is %v", h, v, s.GetVersion())
		}
	}
}

// An undo to nothing that can serve: Hosts stay at the target until Abort carries replacements, and then all have them.
func TestAbortCarriesReplacements(t *testing.T) {
	cl := newImpatient(t, "lb1", "lb2").up()
	cl.deadUndo("lb2", "a", "b")
	eventually(t, "the hosts to be asked", func() bool { return cl.hosts["lb1"].Calls("abort") > 0 && cl.hosts["lb2"].Calls("abort") > 0 })
	// lb2 was sent Activate and never took it: it has nothing to keep, and answers.
	cl.heard.until(t, "lb2 to be aborted", func() bool {
		return slices.ContainsFunc(cl.heard.last("t2").Hosts, func(h txn.HostVote) bool { return h.Host == "lb2" && h.Vote == "aborted" })
	})
	cl.heard.end(t, "t2", txn.StuckRestoring)
	if got := cl.hosts["lb1"].Open(); !slices.Equal(got, []string{"t2"}) {
		t.Fatalf("lb1 went back to nothing: open %v", got)
	}
	if err := cl.replace("am", "t2", "c", "d"); err != nil {
		t.Fatal(err)
	}
	cl.done("am")
	cl.heard.phase(t, "t2", txn.RolledBack)
	cl.holds([]string{"c", "d"}, "lb1", "lb2")
	if n := cl.hosts["lb1"].Calls("amend"); n != 2 {
		t.Errorf("%d Amends on lb1, want the two removals: it got the replacements with Abort", n)
	}
	cl.quiet("lb1", "lb2")
	if got, _ := cl.Released(t.Context(), []string{"new", "c", "a"}); !slices.Equal(got, []string{"new", "a"}) {
		t.Errorf("released %v", got)
	}
	cl.commit("t3", "e") // the Section is free
}

// A replacement that dies on its way leaves, and a further one follows the others.
func TestReplacementDiesDuringTheUndo(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.deadUndo("lb2", "a")
	stay := hold(cl.hosts["lb1"], "abort")
	if err := cl.replace("am1", "t2", "c", "d"); err != nil {
		t.Fatal(err)
	}
	cl.holds([]string{"c", "d"}, "lb2") // it owes nothing and gets Amend
	cl.remove("c")
	if err := cl.replace("am2", "t2", "e"); err != nil {
		t.Fatal(err)
	}
	cl.holds([]string{"d", "e"}, "lb2")
	if _, ok := cl.heard.toldOf("am1"); ok {
		t.Error("am1 ended before lb1 has it")
	}
	stay()
	cl.done("am1")
	cl.done("am2")
	cl.heard.phase(t, "t2", txn.RolledBack)
	cl.holds([]string{"d", "e"}, "lb1", "lb2")
	cl.commit("t3", "f")
	cl.holds([]string{"f"}, "lb1", "lb2")
}

// A Host that is away gets the replacements when it is back, from the next leader too, and is waited for until then.
func TestReplacementsSurviveTheLeader(t *testing.T) {
	cl := newImpatient(t, "lb1", "lb2").up()
	cl.deadUndo("lb2", "a")
	cl.heard.until(t, "lb2 to be aborted", func() bool {
		return slices.ContainsFunc(cl.heard.last("t2").Hosts, func(h txn.HostVote) bool { return h.Host == "lb2" && h.Vote == "aborted" })
	})
	cl.hosts["lb1"].Freeze()
	if err := cl.replace("am", "t2", "c"); err != nil {
		t.Fatal(err)
	}
	cl.holds([]string{"c"}, "lb2")
	cl.heard.end(t, "t2", txn.StuckRestoring)
	cl.restart()
	cl.heard.end(t, "t2", txn.StuckRestoring)
	if _, ok := cl.heard.toldOf("am"); ok {
		t.Error("the insertion ended without lb1")
	}
	if got, _ := cl.Released(t.Context(), []string{"new", "c"}); len(got) != 0 {
		t.Errorf("released %v while lb1 may serve it", got)
	}
	cl.hosts["lb1"].Thaw()
	cl.done("am")
	cl.heard.phase(t, "t2", txn.RolledBack)
	cl.holds([]string{"c"}, "lb1", "lb2")
	cl.commit("t3", "d")
}

// What one Host refuses is left to the reconciler: to take it back would lead to nothing.
func TestRefusedReplacementStays(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.deadUndo("lb2", "a")
	cl.heard.until(t, "lb2 to be aborted", func() bool {
		return slices.ContainsFunc(cl.heard.last("t2").Hosts, func(h txn.HostVote) bool { return h.Host == "lb2" && h.Vote == "aborted" })
	})
	cl.hosts["lb2"].Refuse("amend", lbagentv1.RefusalReason_REFUSAL_REASON_UPSTREAM_NOT_GREEN, "L4TOUT")
	if err := cl.replace("am", "t2", "c"); err != nil {
		t.Fatal(err)
	}
	cl.done("am")
	cl.heard.phase(t, "t2", txn.RolledBack)
	cl.holds([]string{"c"}, "lb1", "lb2")
}

// Replacements belong to an undo: before it they are refused, after it they are an insertion as any other.
func TestReplacementsBelongToAnUndo(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.commit("t1", "a")
	for undo, want := range map[string]error{"t1": ErrInvalid, "nobody": ErrUnknown} {
		if err := cl.replace("am-"+undo, undo, "c"); !errors.Is(err, want) {
			t.Errorf("undo of %s: %v, want %v", undo, err, want)
		}
	}
	release := hold(cl.hosts["lb1"], "activate")
	cl.begin(proposal("t2", "b"))
	cl.heard.phase(t, "t2", txn.Activating)
	if err := cl.replace("early", "t2", "c"); !errors.Is(err, ErrInvalid) {
		t.Errorf("before the abort: %v", err)
	}
	cl.askAbort("t2")
	release()
	cl.heard.end(t, "t2", txn.RolledBack)
	if err := cl.replace("late", "t2", "c"); err != nil {
		t.Fatal(err)
	}
	cl.done("late")
	cl.holds([]string{"a", "c"}, "lb1")
	// So it may find another Spec committed.
	next := proposal("t3", "d")
	next.Changes[0].Target.Spec = 2
	cl.begin(next)
	cl.heard.end(t, "t3", txn.Committed)
	later := txn.Amendment{ID: "later", Group: "public", App: "shop", Undo: "t2", Spec: 1, Insert: []*lbagentv1.Upstream{upstream("e")}}
	if err := cl.Amend(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	cl.heard.until(t, "the insertion to be refused", func() bool { a, ok := cl.heard.amend("later"); return ok && !a.Done })
	cl.holds([]string{"d"}, "lb1")
}
