package conductor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// newReloading is a cluster in which every change is a reload. A first transaction holds the Frame lock until release.
func newReloading(t *testing.T, names ...string) (cl *cluster, release func()) {
	t.Helper()
	cl = newCluster(t, names...)
	for _, h := range cl.hosts {
		h.ReloadPerChange()
	}
	cl.restart()
	cl.up()
	free := hold(cl.hosts[names[0]], "prepare")
	cl.begin(of("first", "t0", "x"))
	cl.heard.phase(t, "t0", txn.Preparing)
	return cl, func() {
		t.Helper()
		free()
		cl.heard.end(t, "t0", txn.Committed)
	}
}

// of is a proposal that moves the App to the named upstreams.
func of(app, id string, names ...string) txn.Proposal {
	return txn.Proposal{ID: id, Deploy: "d-" + id, App: app, Deadline: time.Now().Add(4 * patience), Actor: "kim", Reason: "test " + id,
		Changes: []txn.GroupChange{{Group: "public", App: app, Target: target(app, names...)}}}
}

// queue begins one proposal for each of n Apps, which wait for the Frame lock.
func (cl *cluster) queue(n int) (ids []string) {
	cl.t.Helper()
	for i := range n {
		id := fmt.Sprintf("m%d", i)
		cl.begin(of(appOf(i), id, "new"+id))
		cl.heard.phase(cl.t, id, txn.Waiting)
		ids = append(ids, id)
	}
	return ids
}

func appOf(i int) string { return fmt.Sprintf("app%d", i) }

// prepared are the transactions that the Host was asked to prepare after the first, in order, repeats left out.
func (cl *cluster) prepared(host string) (ids []string) {
	for _, line := range cl.hosts[host].Log() {
		if id, ok := strings.CutPrefix(line, "prepare "); ok && id != "t0" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

func TestReloadsAreMerged(t *testing.T) {
	cl, release := newReloading(t, "lb1", "lb2")
	ids := cl.queue(20)
	release()
	orders := map[uint64]bool{}
	for i, id := range ids {
		s := cl.heard.end(t, id, txn.Committed)
		orders[s.Order] = true
		if s.Deploy != "d-"+id || len(s.Hosts) != 2 {
			t.Errorf("%s: told of deploy %q with %d hosts", id, s.Deploy, len(s.Hosts))
		}
		names, _ := cl.hosts["lb1"].Committed(appOf(i))
		if len(names) > 1 {
			t.Errorf("%s holds %v", appOf(i), names)
		}
	}
	if len(orders) != 1 || len(cl.prepared("lb1")) != 1 {
		t.Errorf("20 changes took the orders %v and the transactions %v: want one", orders, cl.prepared("lb1"))
	}
	// Each has a decision of its own, which holds after a restart and after it is forgotten here.
	joint := cl.prepared("lb1")[0]
	cl.restart()
	cl.up()
	for _, id := range ids {
		if s, ok, err := cl.Outcome(t.Context(), id); err != nil || !ok || s.Phase != txn.Committed {
			t.Errorf("outcome of %s after a restart: %v %v %v", id, s.Phase, ok, err)
		}
		rec, err := cl.store.Get(t.Context(), prefixDecision+id)
		if err != nil {
			t.Fatal(err)
		}
		var d decisionRecord
		if err := decode(rec.Key, rec.Value, &d); err != nil || d.Joint != joint || len(d.Changes) != 1 || d.Reason != "test "+id {
			t.Errorf("decision of %s: %+v, %v", id, d, err)
		}
	}
	eventually(t, "no open record to be left", func() bool {
		records, err := cl.store.List(t.Context(), prefixTxn, "", 10)
		return err == nil && len(records) == 0
	})
}

// The guilty one is found, named, and the only one that fails, whether or not a Host says which it is.
func TestMergedWithAGuiltyOne(t *testing.T) {
	for _, tt := range []struct {
		name, call string
		named      bool
		most       int // transactions
	}{
		{"named in prepare", "prepare", true, 3},
		{"unnamed in prepare", "prepare", false, 9},
		{"named in activate", "activate", true, 3},
		{"unnamed in activate", "activate", false, 9},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cl, release := newReloading(t, "lb1", "lb2")
			cl.hosts["lb2"].Blame("app13", tt.call, tt.named)
			ids := cl.queue(20)
			release()
			for i, id := range ids {
				if i == 13 {
					s := cl.heard.end(t, id, txn.RolledBack)
					if s.Cause != txn.CauseHostRefused || !strings.Contains(s.Reason, "lb2") || strings.Contains(s.Reason, "merged") {
						t.Errorf("the guilty one: cause %q, reason %q", s.Cause, s.Reason)
					}
					continue
				}
				if s := cl.heard.end(t, id, txn.Committed); s.Cause != "" {
					t.Errorf("%s committed with cause %q", id, s.Cause)
				}
			}
			if n := len(cl.prepared("lb1")); n > tt.most {
				t.Errorf("%d transactions to find one of 20: %v", n, cl.prepared("lb1"))
			}
			for i := range ids {
				for _, h := range []string{"lb1", "lb2"} {
					want := []string{"new" + ids[i]}
					if i == 13 {
						want = nil
					}
					eventually(t, "the committed Sections", func() bool {
						got, _ := cl.hosts[h].Committed(appOf(i))
						return slices.Equal(got, want)
					})
				}
			}
		})
	}
}

func TestLeavingAMergedTransaction(t *testing.T) {
	for _, call := range []string{"prepare", "activate"} {
		t.Run(call, func(t *testing.T) {
			cl, release := newReloading(t, "lb1", "lb2")
			ids := cl.queue(5)
			last := of("app9", "late", "z")
			last.Deadline = time.Now().Add(2 * time.Second)
			cl.begin(last)
			// What comes after the first transaction is held, before it can come.
			cl.hosts["lb2"].Bend(call, func(n int) *lbagentv1.Refusal {
				if n == 1 {
					return nil
				}
				return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_BUSY, Message: "held by the test"}
			})
			release()
			for _, id := range ids {
				cl.heard.phase(t, id, map[string]txn.Phase{"prepare": txn.Preparing, "activate": txn.Activating}[call])
			}
			if err := cl.Abort(t.Context(), "m2", txn.CauseAsked, "kim changed her mind"); err != nil {
				t.Fatal(err)
			}
			if s := cl.heard.end(t, "m2", txn.RolledBack); s.Cause != txn.CauseAsked || s.Reason != "kim changed her mind" {
				t.Errorf("the one that left: cause %q, reason %q", s.Cause, s.Reason)
			}
			if s := cl.heard.end(t, "late", txn.RolledBack); s.Cause != txn.CauseDeadline {
				t.Errorf("the one that was late: cause %q, reason %q", s.Cause, s.Reason)
			}
			cl.hosts["lb2"].Bend(call, nil)
			for _, id := range ids {
				if id != "m2" {
					cl.heard.end(t, id, txn.Committed)
				}
			}
			if err := cl.Abort(t.Context(), "m1", txn.CauseAsked, ""); !errors.Is(err, ErrCommitted) {
				t.Errorf("abort after Commit: %v", err)
			}
		})
	}
}

// A leader that dies in a round leaves each proposal undone or committed, never anything else.
func TestRestartOfAMergedTransaction(t *testing.T) {
	for _, tt := range []struct {
		name  string
		crash func(ops []store.Op) bool // the Commit that the term ends before
		after bool                      // or after
		want  txn.Phase
	}{
		{"before the record", func(ops []store.Op) bool { return strings.HasPrefix(ops[0].Key, prefixTxn+jointPrefix) }, false, 0},
		{"before the mark", func(ops []store.Op) bool { return strings.HasPrefix(ops[0].Key, prefixMark+jointPrefix) }, false, txn.RolledBack},
		{"before the decision", func(ops []store.Op) bool { return strings.HasPrefix(ops[0].Key, prefixDecision+jointPrefix) }, false, txn.RolledBack},
		{"after the decision", func(ops []store.Op) bool { return strings.HasPrefix(ops[0].Key, prefixDecision+jointPrefix) }, true, txn.Committed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cl, release := newReloading(t, "lb1", "lb2")
			ids := cl.queue(4)
			cl.store.hook(func(ops []store.Op) error {
				if !tt.crash(ops) {
					return nil
				}
				if tt.after {
					if _, err := cl.store.Store.Commit(t.Context(), store.Fence{Epoch: cl.epoch}, ops...); err != nil {
						t.Error(err)
					}
				}
				return store.ErrUnknown
			})
			release()
			select {
			case <-cl.fatal:
			case <-time.After(patience):
				t.Fatal("the term did not end")
			}
			cl.restart()
			cl.up()
			for _, id := range ids {
				if tt.want == 0 {
					if s, ok, err := cl.Outcome(t.Context(), id); ok || err != nil {
						t.Errorf("%s is known as %v, %v", id, s.Phase, err)
					}
					continue
				}
				s := cl.heard.end(t, id, tt.want)
				if tt.want == txn.RolledBack && s.Cause != txn.CauseLeaderLost {
					t.Errorf("%s: cause %q, reason %q", id, s.Cause, s.Reason)
				}
			}
			for i, id := range ids {
				want := []string(nil)
				if tt.want == txn.Committed {
					want = []string{"new" + id}
				}
				eventually(t, "the committed Sections", func() bool {
					got, _ := cl.hosts["lb2"].Committed(appOf(i))
					return slices.Equal(got, want) && len(cl.hosts["lb2"].Open()) == 0
				})
			}
		})
	}
}

// A leader that dies while a merged transaction is undone: the next one finishes that, and tries the innocent ones again.
func TestRestartWhileAMergedTransactionIsUndone(t *testing.T) {
	cl, release := newReloading(t, "lb1", "lb2")
	cl.hosts["lb1"].Blame("app1", "prepare", true)
	free := hold(cl.hosts["lb2"], "abort") // the first round stays unfinished there
	ids := cl.queue(3)
	release()
	for _, id := range ids {
		if s := cl.heard.phase(t, id, txn.Restoring); !strings.Contains(s.Reason, "merged with 2 other changes") {
			t.Errorf("%s is undone for the reason %q", id, s.Reason)
		}
	}
	eventually(t, "the cause to be recorded", func() bool {
		records, err := cl.store.List(t.Context(), prefixTxn+jointPrefix, "", 10)
		var rec txnRecord
		return err == nil && len(records) > 0 && decode(records[0].Key, records[0].Value, &rec) == nil && rec.Aborted != nil
	})
	cl.restart()
	cl.up()
	free()
	for i, id := range ids {
		// How far the abort was recorded decides whether the next leader knows who is to blame; without that it is the loss of
		// the leader for everybody, and their askers try again.
		s := cl.heard.phase(t, id, txn.Committed, txn.RolledBack, txn.StuckRestoring)
		upstreams := []string{"new" + id}
		switch {
		case s.Phase == txn.Committed && appOf(i) != "app1":
		case s.Phase == txn.RolledBack && (appOf(i) == "app1" || s.Cause == txn.CauseLeaderLost):
			upstreams = nil
		default:
			t.Errorf("%s ended %v: cause %q, reason %q", id, s.Phase, s.Cause, s.Reason)
		}
		for name, h := range cl.hosts {
			eventually(t, name+" to be done", func() bool {
				got, _ := h.Committed(appOf(i))
				return slices.Equal(got, upstreams) && len(h.Open()) == 0
			})
		}
	}
}

// Lock-step: several proposals, over several Groups, commit in one decision or not at all.
func TestLockStep(t *testing.T) {
	for _, guilty := range []string{"", "api", "web"} {
		t.Run("guilty "+guilty, func(t *testing.T) {
			cl := newCluster(t, "lb1", "lb2").up()
			cl.Stop()
			internal := newInternal(t, "in1")
			cl.hosts["in1"] = internal
			cl.groups = append(cl.groups, registry.Group{Name: "internal"})
			cl.declare = append(cl.declare, registry.Host{Name: "in1", Group: "internal", AgentURL: internal.URL})
			cl.start()
			cl.up()
			if guilty != "" {
				host := map[string]string{"web": "lb2", "api": "in1"}[guilty]
				cl.hosts[host].Blame(guilty, "activate", true)
			}
			web, api := of("web", "w1", "w"), of("api", "a1", "a")
			api.Changes[0].Group = "internal"
			if err := cl.Begin(t.Context(), web, api); err != nil {
				t.Fatal(err)
			}
			if err := cl.Begin(t.Context(), of("other", "w1", "x")); !errors.Is(err, ErrExists) {
				t.Errorf("the same id again: %v", err)
			}
			want := txn.RolledBack
			if guilty == "" {
				want = txn.Committed
			}
			w, a := cl.heard.end(t, "w1", want), cl.heard.end(t, "a1", want)
			if w.Order != a.Order || len(w.Hosts) != 2 || len(a.Hosts) != 1 {
				t.Errorf("orders %d and %d, hosts %v and %v", w.Order, a.Order, w.Hosts, a.Hosts)
			}
			for host, app := range map[string]string{"lb1": "web", "lb2": "web", "in1": "api"} {
				names := map[string][]string{"web": {"w"}, "api": {"a"}}[app]
				if guilty != "" {
					names = nil
					if w.Cause != txn.CauseHostRefused || a.Cause != txn.CauseHostRefused || !strings.Contains(a.Reason, guilty) || !strings.Contains(w.Reason, guilty) {
						t.Errorf("causes %q %q, reasons %q %q", w.Cause, a.Cause, w.Reason, a.Reason)
					}
				}
				eventually(t, "the committed Sections", func() bool {
					got, _ := cl.hosts[host].Committed(app)
					return slices.Equal(got, names)
				})
			}
			for _, id := range []string{"w1", "a1"} {
				if s, ok, err := cl.Outcome(t.Context(), id); err != nil || !ok || s.Phase != want {
					t.Errorf("outcome of %s: %v %v %v", id, s.Phase, ok, err)
				}
			}
		})
	}
}

// Two that want the same route are never in one batch: whoever comes second loses it, and nobody else does.
func TestSameRouteIsNotMerged(t *testing.T) {
	cl, release := newReloading(t, "lb1")
	one, two, three := of("a", "m1", "x"), of("b", "m2", "y"), of("c", "m3", "z")
	two.Changes[0].Target.Routes = []*lbagentv1.Route{{Host: "*", Path: "/a"}}
	for _, p := range []txn.Proposal{one, two, three} {
		cl.begin(p)
	}
	release()
	cl.heard.end(t, "m1", txn.Committed)
	if s := cl.heard.end(t, "m2", txn.RolledBack); s.Cause != txn.CauseRouteConflict {
		t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
	}
	cl.heard.end(t, "m3", txn.Committed)
}

// Many Apps at once, where no change is a reload: each has its own transaction, all commit, twice. (A hundred on real proxies:
// e2e.)
func TestManyAppsAtOnce(t *testing.T) {
	const apps = 40
	cl := newCluster(t, "lb1", "lb2")
	cl.Stop()
	cl.rules = txn.DefaultRules()
	cl.rules.HostWait = patience
	cl.start()
	cl.up()
	for _, round := range []string{"m", "n"} {
		start := time.Now()
		for i := range apps {
			cl.begin(of(appOf(i), fmt.Sprint(round, i), "x"+round))
		}
		for i := range apps {
			cl.heard.end(t, fmt.Sprint(round, i), txn.Committed)
		}
		t.Logf("%d transactions on 2 hosts: %v", apps, time.Since(start))
	}
}

// Each round of a merged transaction has its share of the time, once.
func TestTheTimeOfARound(t *testing.T) {
	cl, release := newReloading(t, "lb1")
	ids := cl.queue(4)
	free := hold(cl.hosts["lb1"], "commit") // its record stays until every Host was told
	before := time.Now()
	release()
	for _, id := range ids {
		cl.heard.end(t, id, txn.Committed)
	}
	after := time.Now()
	records, err := cl.store.List(t.Context(), prefixTxn+jointPrefix, "", 10)
	if err != nil || len(records) != 1 {
		t.Fatalf("%d open records, %v", len(records), err)
	}
	var rec txnRecord
	if err := decode(records[0].Key, records[0].Value, &rec); err != nil {
		t.Fatal(err)
	}
	first := rec.Parts[0].Deadline
	for _, p := range rec.Parts {
		first = sooner(first, p.Deadline)
	}
	const drift = time.Second // of the wall clock against the other
	end := func(begun time.Time) time.Time { return begun.Add(first.Sub(begun) / 4) }
	if rec.Deadline.Before(end(before).Add(-drift)) || rec.Deadline.After(end(after).Add(drift)) {
		t.Errorf("4 units with %v get a round until %v, want one that began between %v and %v and has a quarter", first, rec.Deadline, before, after)
	}
	free()
}

// An abort is not held up by many transactions that warm slowly on the same Host (ROLLBACK-IS-FREE).
func TestAbortPassesManyPrepares(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.begin(of("first", "t0", "x"))
	cl.heard.end(t, "t0", txn.Committed)
	cl.hosts["lb1"].Slow("prepare")
	for i := range callsPerHost + 8 {
		cl.begin(of(appOf(i), fmt.Sprint("m", i), "y"))
	}
	eventually(t, "the calls to be on their way", func() bool { return cl.hosts["lb1"].Calls("prepare") >= callsPerHost })
	for i := callsPerHost; i < callsPerHost+8; i++ { // the last ones, whose Prepare has probably no slot
		if err := cl.Abort(t.Context(), fmt.Sprint("m", i), txn.CauseAsked, "kim changed her mind"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the aborts to arrive", func() bool { return cl.hosts["lb1"].Calls("abort") >= 8 })
}

// What Hosts said of very many Apps at once is more than one Commit can hold, with the end of each App: it is recorded all the same.
func TestMergedWithMuchEvidence(t *testing.T) {
	cl, release := newReloading(t, "lb1")
	var ids []string
	for i := range 20 {
		var names []string
		for n := range 35 {
			names = append(names, fmt.Sprintf("%s.1.%04d.%s", appOf(i), n, strings.Repeat("x", 40)))
		}
		id := fmt.Sprintf("m%d", i)
		cl.begin(of(appOf(i), id, names...))
		cl.heard.phase(t, id, txn.Waiting)
		ids = append(ids, id)
	}
	release()
	for _, id := range ids {
		cl.heard.end(t, id, txn.Committed)
	}
	if n := len(cl.prepared("lb1")); n != 1 {
		t.Fatalf("they went as %d transactions: this shows nothing", n)
	}
	eventually(t, "no open record to be left", func() bool {
		records, err := cl.store.List(t.Context(), prefixTxn, "", 10)
		return err == nil && len(records) == 0
	})
	for _, id := range ids {
		if _, err := cl.store.Get(t.Context(), prefixEnded+id); err != nil {
			t.Errorf("how %s ended: %v", id, err)
		}
	}
}

func TestAway(t *testing.T) {
	for problem, want := range map[string]string{
		"":                  "it is not connected",
		"not connected yet": "it is not connected yet",
		"not connected: it has said nothing for 3s": "it is not connected: it has said nothing for 3s",
		"it has seen epoch 4":                       "it is not ready: it has seen epoch 4",
	} {
		if got := away(registry.Info{Problem: problem}); got != want {
			t.Errorf("%q: %q, want %q", problem, got, want)
		}
	}
}
