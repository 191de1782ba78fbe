package conductor

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/registry/hosttest"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
	"github.com/cutover/cutover/orchestrator/txn"
)

// A Host that was installed anew, or differs in any way, is brought to the committed state.
func TestReconcile(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a", "b")
	cl.holds([]string{"a", "b"}, "lb1", "lb2")
	lb2 := cl.hosts["lb2"]

	lb2.Wipe()
	cl.holds([]string{"a", "b"}, "lb2")

	lb2.Tamper("shop", func(s *lbagentv1.CommittedSection) { s.Section.Upstreams = s.GetSection().GetUpstreams()[:1] })
	cl.holds([]string{"a", "b"}, "lb2")

	lb2.Tamper("stray", func(s *lbagentv1.CommittedSection) {
		s.Section, s.Removed = target("stray", "x"), false
	})
	eventually(t, "the stray section to go", func() bool { n, _ := lb2.Committed("stray"); return len(n) == 0 })

	cl.settled("lb2")
	before := lb2.Calls("sync")
	cl.commit("t2", "c")
	cl.holds([]string{"c"}, "lb1", "lb2")
	if got := lb2.Calls("sync") - before; got != 0 {
		t.Errorf("%d needless Syncs", got)
	}
	if n := cl.hosts["lb1"].Calls("sync"); n != 0 {
		t.Errorf("%d needless Syncs on lb1", n)
	}
}

// A report that was made before a Section came to the Host, and arrives after what the Host answered since, takes nothing back.
func TestAReportThatComesLate(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	late := &lbagentv1.WatchResponse{Complete: true, SentAt: timestamppb.Now()}
	cl.commit("t1", "a")
	cl.holds([]string{"a"}, "lb1")
	cl.settled("lb1")
	cl.HostReported(t.Context(), "lb1", late)
	cl.settled("lb1")
	if n := cl.hosts["lb1"].Calls("sync"); n != 0 {
		t.Errorf("%d needless Syncs", n)
	}
}

// A store that lost its content, or is an older copy, takes no route from a Host (FAIL-STATIC), however much is deployed
// meanwhile, and says why it does not repair the Host.
func TestForgottenSectionsStay(t *testing.T) {
	for name, forget := range map[string]func(cl *cluster, old *memstore.Store){
		"lost":          func(cl *cluster, _ *memstore.Store) { cl.store = &crashStore{Store: memstore.New()} },
		"an older copy": func(cl *cluster, old *memstore.Store) { cl.store = &crashStore{Store: old} },
	} {
		t.Run(name, func(t *testing.T) {
			cl := newImpatient(t, "lb1", "lb2").up()
			cl.commit("t1", "a")
			old := copyOf(t, cl.store, cl.epoch)
			cl.commit("t2", "b")
			cl.commit("t3", "c")
			cl.holds([]string{"c"}, "lb1", "lb2")
			cl.Stop()
			forget(cl, old)
			cl.start()
			cl.up()
			eventually(t, "the hosts to say what is wrong", func() bool {
				for _, h := range cl.Hosts() {
					if !strings.Contains(h.Problem, "shop") || !strings.Contains(h.Problem, "put the newest copy of it back") {
						return false
					}
				}
				return true
			})
			for i := range 8 {
				p := proposal(fmt.Sprint("u", i))
				p.App, p.Changes = "blog", []txn.GroupChange{{Group: "public", App: "blog", Target: target("blog", fmt.Sprint("x", i))}}
				cl.begin(p)
				cl.heard.phase(t, p.ID, txn.Committed, txn.RolledBack)
			}
			p := proposal("v1", "d")
			cl.begin(p)
			if s := cl.heard.end(t, "v1", txn.RolledBack); !strings.Contains(s.Reason, "store") {
				t.Errorf("a deploy of the forgotten App ends with %q", s.Reason)
			}
			cl.holds([]string{"c"}, "lb1", "lb2")
			for _, h := range cl.hosts {
				if n := h.Calls("sync"); n != 0 {
					t.Errorf("%d Syncs", n)
				}
			}
		})
	}
}

// copyOf is a copy of the store as it is now.
func copyOf(t *testing.T, from store.Store, epoch uint64) *memstore.Store {
	t.Helper()
	records, err := from.List(t.Context(), "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	to := memstore.New()
	for _, r := range records {
		if _, err := to.Commit(t.Context(), store.Fence{Epoch: epoch}, store.Op{Kind: store.Put, Key: r.Key, Value: r.Value}); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// A removed Section leaves its order number behind, also on a Host that was not there.
func TestReconcileTellsRemovals(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.commit("t1", "a")
	s := cl.commit("t2")
	cl.hosts["lb1"].Wipe()
	eventually(t, "the tombstone", func() bool { _, v := cl.hosts["lb1"].Committed("shop"); return v.GetTxn() == s.Order })
	cl.commit("t3", "b")
}

// A Host that missed the Commit and lost its journal is synced past it, and the record is let go.
func TestSyncedPastACommit(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.store.hook(func(ops []store.Op) error {
		if strings.HasPrefix(ops[0].Key, prefixDecision) {
			cl.hosts["lb2"].Kill()
			cl.hosts["lb2"].Wipe()
		}
		return nil
	})
	cl.begin(proposal("t1", "a"))
	cl.heard.end(t, "t1", txn.Committed)
	cl.store.hook(nil)
	cl.hosts["lb2"].Restart(t)
	cl.holds([]string{"a"}, "lb1", "lb2")
	eventually(t, "t1 to be finished", func() bool {
		_, err := cl.store.Get(t.Context(), "ended/t1")
		return err == nil
	})
}

// A Host in doubt about a transaction that nobody has open learns the decision from the record.
func TestInDoubtHosts(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.commit("t1", "a")
	// Play another leader that prepared and activated t9, and died with all its records.
	client := cl.reg.Link("lb1").Client()
	fence := cl.reg.FenceOf("public")
	s, _, err := cl.Section(t.Context(), "public", "shop")
	if err != nil {
		t.Fatal(err)
	}
	order := s.GetVersion().GetTxn() + 1
	if _, err := client.Prepare(t.Context(), request(&lbagentv1.PrepareRequest{Fence: fence, TxnId: "t9", Order: order,
		Changes: []*lbagentv1.Change{{App: "shop", Base: s.GetVersion(), Target: target("shop", "z")}}})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "t9 to be aborted", func() bool { return len(cl.hosts["lb1"].Open()) == 0 })
	cl.holds([]string{"a"}, "lb1")

	// And one whose record exists.
	if _, err := cl.store.Store.Commit(t.Context(), store.Fence{Epoch: cl.epoch}, store.Op{Kind: store.Create, Key: "decision/t10", Value: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Prepare(t.Context(), request(&lbagentv1.PrepareRequest{Fence: fence, TxnId: "t10", Order: order + 1,
		Changes: []*lbagentv1.Change{{App: "other", Target: target("other", "y")}}})); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Activate(t.Context(), request(&lbagentv1.ActivateRequest{Fence: fence, TxnId: "t10", Order: order + 1})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "t10 to be committed", func() bool {
		return slices.Contains(cl.hosts["lb1"].Log(), "commit t10") && len(cl.hosts["lb1"].Open()) == 0
	})
}

// Drill 9: a task that is terminally dead leaves every Host at once, the last one too.
func TestAmendRemove(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a", "b")
	cl.holds([]string{"a", "b"}, "lb1", "lb2")
	for i, rest := range [][]string{{"b"}, nil} {
		dead := []string{"a", "b"}[i]
		if err := cl.Amend(t.Context(), txn.Amendment{ID: "am-" + dead, Group: "public", App: "shop", Remove: []string{dead}}); err != nil {
			t.Fatal(err)
		}
		cl.heard.until(t, dead+" to be released", func() bool {
			a, ok := cl.heard.amend("am-" + dead)
			return ok && a.Done && slices.Equal(a.Released, []string{dead})
		})
		cl.holds(rest, "lb1", "lb2")
	}
	s, _, _ := cl.Section(t.Context(), "public", "shop")
	if s.GetVersion().GetAmendments() != 2 {
		t.Errorf("version %v, want two amendments", s.GetVersion())
	}
	eventually(t, "the amendments to be forgotten", func() bool {
		left, err := cl.store.List(t.Context(), prefixAmend, "", 0)
		return err == nil && len(left) == 0
	})
	if n := cl.hosts["lb1"].Calls("sync") + cl.hosts["lb2"].Calls("sync"); n != 0 {
		t.Errorf("%d needless Syncs", n)
	}
}

// Drill 9: an old task dies while the deploy of the next Spec is under way: it leaves, and the transaction goes on.
func TestAmendRemoveDuringATransaction(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a", "b")
	release := hold(cl.hosts["lb2"], "activate")
	cl.begin(proposal("t2", "b", "c"))
	cl.heard.phase(t, "t2", txn.Activating)
	for _, dead := range []string{"a", "b"} { // one of the base alone, one that the target keeps
		if err := cl.Amend(t.Context(), txn.Amendment{ID: "am-" + dead, Group: "public", App: "shop", Remove: []string{dead}}); err != nil {
			t.Fatal(err)
		}
		cl.heard.until(t, "the amendment", func() bool { a, ok := cl.heard.amend("am-" + dead); return ok && a.Done })
	}
	release()
	cl.heard.end(t, "t2", txn.Committed)
	cl.holds([]string{"c"}, "lb1", "lb2")
	s, _, _ := cl.Section(t.Context(), "public", "shop")
	if len(s.GetSection().GetUpstreams()) != 1 || s.GetVersion().GetAmendments() != 0 {
		t.Errorf("committed %v", s)
	}
	cl.heard.until(t, "both to be released", func() bool {
		a, _ := cl.heard.amend("am-a")
		b, _ := cl.heard.amend("am-b")
		return len(a.Released) == 1 && len(b.Released) == 1
	})
}

// A removal is repeated until a Host that was away has it.
func TestAmendRemoveWaitsForAHost(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a", "b")
	cl.holds([]string{"a", "b"}, "lb1", "lb2")
	cl.hosts["lb2"].Kill()
	if err := cl.Amend(t.Context(), txn.Amendment{ID: "am", Group: "public", App: "shop", Remove: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	cl.holds([]string{"b"}, "lb1")
	cl.restart() // it also survives the leader
	if got, _ := cl.Released(t.Context(), []string{"a"}); len(got) != 0 {
		t.Error("a is released while lb2 has not answered")
	}
	cl.hosts["lb2"].Restart(t)
	cl.heard.until(t, "the amendment", func() bool { a, ok := cl.heard.amend("am"); return ok && a.Done && len(a.Released) == 1 })
	cl.holds([]string{"b"}, "lb1", "lb2")
}

func TestAmendInsertAndRetire(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a", "b")
	if err := cl.Amend(t.Context(), txn.Amendment{ID: "am", Group: "public", App: "shop", Insert: []*lbagentv1.Upstream{upstream("c")}, Retire: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	cl.heard.until(t, "the amendment", func() bool { a, ok := cl.heard.amend("am"); return ok && a.Done })
	cl.holds([]string{"b", "c"}, "lb1", "lb2")
	if a, _ := cl.heard.toldOf("am"); len(a.Released) != 0 {
		t.Errorf("released %v while it drains", a.Released)
	}
	cl.hosts["lb1"].Drain("shop")
	cl.hosts["lb2"].Drain("shop")
	cl.heard.until(t, "a to be released", func() bool { a, _ := cl.heard.amend("am"); return a.Done && slices.Equal(a.Released, []string{"a"}) })
	cl.commit("t2", "b")
}

// One dead Host must not keep the others from getting a replacement; it gets it when it is back.
func TestAmendInsertWithoutAHostThatIsAway(t *testing.T) {
	cl := newImpatient(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	cl.holds([]string{"a"}, "lb1", "lb2")
	cl.hosts["lb2"].Freeze()
	if err := cl.Amend(t.Context(), txn.Amendment{ID: "am", Group: "public", App: "shop", Insert: []*lbagentv1.Upstream{upstream("b")}, Retire: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	cl.heard.until(t, "the amendment", func() bool { a, ok := cl.heard.amend("am"); return ok && a.Done })
	cl.holds([]string{"b"}, "lb1")
	cl.hosts["lb1"].Drain("shop")
	if got, _ := cl.Released(t.Context(), []string{"a"}); len(got) != 0 {
		t.Error("a is released although lb2 still serves it")
	}
	cl.hosts["lb2"].Thaw()
	cl.holds([]string{"b"}, "lb2")
	cl.hosts["lb2"].Drain("shop")
	cl.heard.until(t, "a to be released", func() bool { a, _ := cl.heard.amend("am"); return slices.Equal(a.Released, []string{"a"}) })
}

// An insertion that one Host refuses is taken back everywhere, and what was to retire stays.
func TestAmendInsertRefused(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	cl.hosts["lb2"].Refuse("amend", lbagentv1.RefusalReason_REFUSAL_REASON_UPSTREAM_NOT_GREEN, "L4TOUT")
	if err := cl.Amend(t.Context(), txn.Amendment{ID: "am", Group: "public", App: "shop", Insert: []*lbagentv1.Upstream{upstream("b")}, Retire: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	var a txn.Amended
	cl.heard.until(t, "the amendment", func() (ok bool) { a, ok = cl.heard.amend("am"); return ok })
	if a.Done || !strings.Contains(a.Reason, "lb2") || !strings.Contains(a.Reason, "L4TOUT") {
		t.Errorf("amended %+v", a)
	}
	cl.holds([]string{"a"}, "lb1", "lb2")
	eventually(t, "b to be released", func() bool {
		cl.hosts["lb1"].Drain("shop") // the Host may only now have begun to drain it
		a, _ := cl.heard.toldOf("am")
		return slices.Equal(a.Released, []string{"b"})
	})
	cl.hosts["lb2"].Bend("amend", nil)
	cl.commit("t2", "c")
}

// An insertion whose task ends is given up at once, before any Host knows that it will never be green there: a transaction that
// waits for the Section goes on.
func TestAmendInsertOfTheDead(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	hold(cl.hosts["lb2"], "amend")
	insert := txn.Amendment{ID: "am", Group: "public", App: "shop", Insert: []*lbagentv1.Upstream{upstream("b")}, Retire: []string{"a"}, Deadline: time.Now().Add(time.Hour)}
	if err := cl.Amend(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the insertion to be sent", func() bool { return cl.hosts["lb2"].Calls("amend") > 0 })
	cl.begin(proposal("t2", "c"))
	cl.heard.phase(t, "t2", txn.Waiting)
	if err := cl.Amend(t.Context(), txn.Amendment{ID: "gone", Group: "public", App: "shop", Remove: []string{"b"}}); err != nil {
		t.Fatal(err)
	}
	cl.heard.end(t, "t2", txn.Committed)
	if a, ok := cl.heard.toldOf("am"); !ok || a.Done || a.Reason != "every replacement has ended" {
		t.Errorf("the insertion: %t %+v", ok, a)
	}
	cl.holds([]string{"c"}, "lb1", "lb2")
}

// Insertions wait while a transaction is open; a rollback does not wait for them.
func TestAmendInsertAndTransactions(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.commit("t1", "a")
	release := hold(cl.hosts["lb1"], "prepare")
	cl.begin(proposal("t2", "a", "b"))
	cl.heard.phase(t, "t2", txn.Preparing)
	insert := func(id, name string) {
		t.Helper()
		if err := cl.Amend(t.Context(), txn.Amendment{ID: id, Group: "public", App: "shop", Insert: []*lbagentv1.Upstream{upstream(name)}}); err != nil {
			t.Fatal(err)
		}
	}
	insert("am1", "c")
	if n := cl.hosts["lb1"].Calls("amend"); n != 0 {
		t.Error("an insertion was sent while a transaction is open")
	}
	release()
	cl.heard.end(t, "t2", txn.Committed)
	cl.heard.until(t, "the insertion", func() bool { a, ok := cl.heard.amend("am1"); return ok && a.Done })
	cl.holds([]string{"a", "b", "c"}, "lb1")

	hold(cl.hosts["lb1"], "amend")
	insert("am2", "d")
	eventually(t, "the second insertion to be sent", func() bool { return cl.hosts["lb1"].Calls("amend") > 1 })
	back := proposal("t3", "a")
	back.Rollback = true
	cl.begin(back)
	cl.heard.end(t, "t3", txn.Committed)
	cl.heard.until(t, "am2 to be given up", func() bool { a, ok := cl.heard.amend("am2"); return ok && !a.Done })
	cl.holds([]string{"a"}, "lb1")
}

// A replacement that was asked for before a Commit does not bring the old Spec back behind it.
func TestAmendInsertOfAnotherSpec(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		cl := newCluster(t, "lb1").up()
		at := func(id string, spec uint64, names ...string) txn.Proposal {
			p := proposal(id, names...)
			p.Changes[0].Target.Spec = spec
			return p
		}
		cl.begin(at("t1", 1, "a"))
		cl.heard.end(t, "t1", txn.Committed)
		release := hold(cl.hosts["lb1"], "prepare")
		cl.begin(at("t2", 2, "b"))
		cl.heard.phase(t, "t2", txn.Preparing)
		insert := txn.Amendment{ID: "am", Group: "public", App: "shop", Insert: []*lbagentv1.Upstream{upstream("c")}, Spec: 1, Deadline: time.Now().Add(time.Hour)}
		if err := cl.Amend(t.Context(), insert); err != nil {
			t.Fatal(err)
		}
		release()
		cl.heard.end(t, "t2", txn.Committed)
		cl.heard.until(t, "the insertion to be refused", func() bool {
			a, ok := cl.heard.amend("am")
			return ok && !a.Done && strings.Contains(a.Reason, "spec 2")
		})
		cl.holds([]string{"b"}, "lb1")
		if restarted { // what was refused stays so
			cl.restart()
			cl.up()
		}
		// One of the Spec that is committed is taken.
		insert.ID, insert.Spec, insert.Insert = "am2", 2, []*lbagentv1.Upstream{upstream("d")}
		if err := cl.Amend(t.Context(), insert); err != nil {
			t.Fatal(err)
		}
		cl.holds([]string{"b", "d"}, "lb1")
	}
}

// A pending insertion survives the leader; so does its deadline.
func TestAmendInsertSurvivesTheLeader(t *testing.T) {
	for _, late := range []bool{false, true} {
		cl := newCluster(t, "lb1").up()
		cl.commit("t1", "a")
		hold(cl.hosts["lb1"], "amend")
		deadline := time.Now().Add(patience)
		if late {
			deadline = time.Now().Add(300 * time.Millisecond)
		}
		if err := cl.Amend(t.Context(), txn.Amendment{ID: "am", Group: "public", App: "shop", Insert: []*lbagentv1.Upstream{upstream("b")}, Deadline: deadline}); err != nil {
			t.Fatal(err)
		}
		before := cl.heard
		givenUp := func() bool { a, ok := before.toldOf("am"); return ok && !a.Done }
		eventually(t, "the insertion to be sent", func() bool { return cl.hosts["lb1"].Calls("amend") > 0 || late && givenUp() })
		cl.restart()
		want := []string{"a"}
		if late {
			if givenUp() {
				continue // this machine was so slow that the first term saw the deadline
			}
		} else {
			cl.hosts["lb1"].Bend("amend", nil)
			want = []string{"a", "b"}
		}
		cl.heard.until(t, "the amendment", func() bool { a, ok := cl.heard.amend("am"); return ok && a.Done != late })
		cl.holds(want, "lb1")
	}
}

// A Host that was taken down, and is no longer declared, holds nothing up.
func TestHostRemovedFromTheDeclaration(t *testing.T) {
	cl := newImpatient(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	hold(cl.hosts["lb2"], "activate")
	cl.begin(proposal("t2", "b"))
	cl.heard.phase(t, "t2", txn.Activating)
	cl.hosts["lb2"].Kill()
	cl.heard.phase(t, "t2", txn.StuckRestoring)
	cl.Stop()
	cl.declare = slices.DeleteFunc(cl.declare, func(h registry.Host) bool { return h.Name == "lb2" })
	cl.exact = true
	cl.start()
	cl.heard.phase(t, "t2", txn.RolledBack)
	cl.commit("t3", "c")
}

// A Host that follows a later leader takes nothing from this one.
func TestHigherEpoch(t *testing.T) {
	cl := newImpatient(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	cl.holds([]string{"a"}, "lb1", "lb2")
	later := proto.CloneOf(cl.reg.FenceOf("public"))
	later.Epoch = 99
	if _, err := cl.reg.Link("lb2").Client().Verify(t.Context(), request(&lbagentv1.VerifyRequest{Fence: later})); err != nil {
		t.Fatal(err)
	}
	cl.begin(proposal("t2", "b"))
	s := cl.heard.end(t, "t2", txn.RolledBack)
	if s.Cause != txn.CauseHostRefused || !strings.Contains(s.Reason, "stale-epoch") {
		t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
	}
	cl.holds([]string{"a"}, "lb1", "lb2")
	// Whoever owns the term hears of it, once; and again in the next term, also when nothing is sent.
	if seen := <-cl.ahead; seen != 99 {
		t.Errorf("told of epoch %d", seen)
	}
	if len(cl.ahead) != 0 {
		t.Errorf("told again of epoch %d", <-cl.ahead)
	}
	cl.Stop()
	cl.start()
	if seen := <-cl.ahead; seen != 99 {
		t.Errorf("the next term was told of epoch %d", seen)
	}
}

// A slow Host delays only its own transactions.
func TestASlowHostDelaysNobodyElse(t *testing.T) {
	cl := newCluster(t, "lb1")
	cl.Stop()
	h := hosttest.Start(t, "in1", "internal")
	cl.hosts["in1"] = h
	cl.declare = append(cl.declare, registry.Host{Name: "in1", Group: "internal", AgentURL: h.URL})
	cl.start()
	cl.up()
	h.Freeze()
	slow := txn.Proposal{ID: "slow", App: "cart", Deadline: time.Now().Add(time.Minute), Changes: []txn.GroupChange{{Group: "internal", App: "cart", Target: target("cart", "x")}}}
	cl.begin(slow)
	for _, id := range []string{"t1", "t2", "t3"} {
		cl.commit(id, id)
	}
	if s := cl.heard.phase(t, "slow", txn.Preparing, txn.RolledBack); s.Phase == txn.Committed {
		t.Error("a frozen host prepared")
	}
}
