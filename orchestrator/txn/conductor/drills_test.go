package conductor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry/hosttest"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

func newInternal(t *testing.T, name string) *hosttest.Host {
	return hosttest.Start(t, name, "internal")
}

// hold makes a call on the Host answer NO{busy} until the returned function is called.
func hold(h *hosttest.Host, call string) (release func()) {
	h.Refuse(call, lbagentv1.RefusalReason_REFUSAL_REASON_BUSY, "held by the test")
	return func() { h.Bend(call, nil) }
}

// Drill 5 and 11: a Host that is away before Prepare, and stays away, is named with what to run, and nobody is touched.
func TestHostAwayBeforePrepare(t *testing.T) {
	cl := newImpatient(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	cl.hosts["lb2"].Kill()
	cl.begin(proposal("t2", "b"))
	s := cl.heard.end(t, "t2", txn.RolledBack)
	if s.Cause != txn.CauseHostMissing || !strings.Contains(s.Reason, "lb2") || !strings.Contains(s.Reason, "systemctl start cutover-lbagent") {
		t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
	}
	if n := cl.hosts["lb1"].Calls("activate"); n != 1 {
		t.Errorf("%d activates on lb1, want the one of t1", n)
	}
	cl.hosts["lb2"].Restart(t)
	cl.up()
	cl.commit("t3", "c")
	cl.holds([]string{"c"}, "lb1", "lb2")
}

// Drill 5: back in time. The transaction waits for the Host and commits with its evidence.
func TestHostBackBeforePrepare(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.hosts["lb2"].Kill()
	cl.missed("lb2")
	cl.begin(proposal("t1", "a"))
	cl.heard.phase(t, "t1", txn.Preparing)
	cl.hosts["lb2"].Restart(t)
	cl.heard.end(t, "t1", txn.Committed)
}

// Drill 5: killed after Ready. Back: it may have aborted by itself, so the answer is NO and everybody is at the old one.
func TestHostKilledAfterReady(t *testing.T) {
	for _, away := range []bool{false, true} {
		start := map[bool]func(*testing.T, ...string) *cluster{false: newCluster, true: newImpatient}[away]
		cl := start(t, "lb1", "lb2").up()
		cl.commit("t1", "a")
		release := hold(cl.hosts["lb1"], "prepare")
		cl.begin(proposal("t2", "b"))
		cl.heard.until(t, "lb2 to be ready", func() bool {
			return slices.ContainsFunc(cl.heard.last("t2").Hosts, func(h txn.HostVote) bool { return h.Host == "lb2" && h.Vote == "ready" })
		})
		cl.hosts["lb2"].Kill()
		cl.missed("lb2")
		if !away {
			cl.hosts["lb2"].Restart(t)
		}
		release()
		s := cl.heard.end(t, "t2", txn.RolledBack)
		if want := map[bool]txn.Cause{false: txn.CauseHostRefused, true: txn.CauseHostMissing}[away]; s.Cause != want {
			t.Errorf("away=%t: cause %q, reason %q", away, s.Cause, s.Reason)
		}
		if n := cl.hosts["lb1"].Calls("activate"); n != 1 {
			t.Errorf("away=%t: lb1 was sent Activate", away)
		}
	}
}

// Drill 5: killed after Activate before Verified, and away: stuck, naming the Host and how to start its lbagent; rolled
// back by itself on its return.
func TestHostKilledAfterActivate(t *testing.T) {
	cl := newImpatient(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	hold(cl.hosts["lb2"], "activate")
	cl.begin(proposal("t2", "b"))
	cl.heard.phase(t, "t2", txn.Activating)
	eventually(t, "lb2 to get Activate", func() bool { return cl.hosts["lb2"].Calls("activate") > 1 })
	cl.hosts["lb2"].Kill()
	s := cl.heard.end(t, "t2", txn.StuckRestoring)
	if s.Cause != txn.CauseHostMissing || !strings.Contains(s.Reason, "lb2") || !strings.Contains(s.Next, "lb2") {
		t.Errorf("cause %q, reason %q, next %q", s.Cause, s.Reason, s.Next)
	}
	cl.holds([]string{"a"}, "lb1")
	// Both colours stay alive meanwhile.
	if got, err := cl.Released(t.Context(), []string{"a", "b"}); err != nil || len(got) != 0 {
		t.Errorf("released %v (%v) while a host has not answered", got, err)
	}
	cl.hosts["lb2"].Bend("activate", nil)
	cl.hosts["lb2"].Restart(t)
	cl.heard.phase(t, "t2", txn.RolledBack)
	cl.holds([]string{"a"}, "lb1", "lb2")
	eventually(t, "b to be released", func() bool {
		got, _ := cl.Released(t.Context(), []string{"b"})
		return len(got) == 1
	})
	cl.commit("t3", "c")
}

// Drill 5: killed after Verified and back with everything journaled: asked again, and committed with fresh evidence.
func TestHostKilledAfterVerifiedAndBack(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	release := hold(cl.hosts["lb1"], "activate")
	cl.begin(proposal("t1", "a"))
	cl.heard.until(t, "lb2 to be verified", func() bool {
		return slices.ContainsFunc(cl.heard.last("t1").Hosts, func(h txn.HostVote) bool { return h.Host == "lb2" && h.Vote == "verified" })
	})
	cl.hosts["lb2"].Kill()
	cl.missed("lb2")
	cl.hosts["lb2"].Restart(t)
	cl.up()
	release()
	cl.heard.end(t, "t1", txn.Committed)
	if cl.hosts["lb2"].Calls("verify") == 0 {
		t.Error("lb2 was not verified again after its restart")
	}
}

// Drill 5: away after Verified with the record written: succeeded; the Host gets the decision when it is back.
func TestHostAwayAfterDecision(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	cl.store.hook(func(ops []store.Op) error {
		if strings.HasPrefix(ops[0].Key, prefixDecision) {
			cl.hosts["lb2"].Kill()
		}
		return nil
	})
	cl.begin(proposal("t2", "b"))
	cl.heard.end(t, "t2", txn.Committed)
	cl.store.hook(nil)
	if got, _ := cl.Released(t.Context(), []string{"a"}); len(got) != 0 {
		t.Error("a is released while lb2 is away")
	}
	cl.hosts["lb2"].Restart(t)
	cl.holds([]string{"b"}, "lb1", "lb2")
}

// Drill 6: a stopped agent keeps its connections. Before Prepare: 3, named. During Activate: 4, then by itself 3.
func TestHostFrozen(t *testing.T) {
	cl := newImpatient(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	cl.hosts["lb2"].Freeze()
	cl.begin(proposal("t2", "b"))
	if s := cl.heard.end(t, "t2", txn.RolledBack); s.Cause != txn.CauseHostMissing || !strings.Contains(s.Reason, "lb2") {
		t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
	}
	cl.hosts["lb2"].Thaw()
	cl.up()
	hold(cl.hosts["lb2"], "activate")
	cl.begin(proposal("t3", "c"))
	cl.heard.phase(t, "t3", txn.Activating)
	cl.hosts["lb2"].Freeze()
	s := cl.heard.end(t, "t3", txn.StuckRestoring)
	if !strings.Contains(s.Reason, "lb2") {
		t.Errorf("reason %q", s.Reason)
	}
	cl.hosts["lb2"].Thaw()
	cl.heard.phase(t, "t3", txn.RolledBack)
	cl.holds([]string{"a"}, "lb1", "lb2")
}

// Drill 7: the orchestrator dies at each of its writes; the next one ends the transaction.
func TestCoordinatorDiesAtEachWrite(t *testing.T) {
	for _, tc := range []struct {
		prefix  string
		written bool
		want    txn.Phase // 0: nobody knows of it
	}{
		{prefixTxn, false, 0},
		{prefixTxn, true, txn.RolledBack},
		{prefixMark, false, txn.RolledBack},
		{prefixMark, true, txn.RolledBack},
		{prefixDecision, false, txn.RolledBack},
		{prefixDecision, true, txn.Committed},
	} {
		t.Run(tc.prefix+map[bool]string{false: "before", true: "after"}[tc.written], func(t *testing.T) {
			cl := newCluster(t, "lb1", "lb2").up()
			cl.commit("t1", "a")
			reached, gone := make(chan struct{}), make(chan struct{})
			cl.store.hook(func(ops []store.Op) error {
				if !strings.HasPrefix(ops[0].Key, tc.prefix) || !strings.HasSuffix(ops[0].Key, "t2") {
					return nil
				}
				if tc.written {
					if _, err := cl.store.Store.Commit(t.Context(), store.Fence{Epoch: cl.epoch}, ops...); err != nil {
						t.Error(err)
					}
				}
				close(reached)
				<-gone
				return store.ErrClosed
			})
			cl.begin(proposal("t2", "b"))
			<-reached
			stopped := make(chan struct{})
			go func() { cl.Stop(); close(stopped) }()
			<-cl.ctx.Done()
			close(gone)
			<-stopped
			cl.restart()
			if tc.want == 0 {
				if _, ok, err := cl.Outcome(t.Context(), "t2"); ok || err != nil {
					t.Errorf("outcome of a transaction that was never recorded: %t %v", ok, err)
				}
			} else {
				cl.heard.end(t, "t2", tc.want)
			}
			want := []string{"a"}
			if tc.want == txn.Committed {
				want = []string{"b"}
			}
			cl.holds(want, "lb1", "lb2")
			cl.commit("t3", "c")
			eventually(t, "no open records", func() bool {
				left, err := cl.store.List(t.Context(), prefixTxn, "", 0)
				return err == nil && len(left) == 0
			})
		})
	}
}

// A new leader with a mark counts every Host as sent: it is stuck until the one that is away answers.
func TestRecoveredWithMarkWaitsForEveryHost(t *testing.T) {
	cl := newImpatient(t, "lb1", "lb2").up()
	hold(cl.hosts["lb2"], "activate")
	cl.begin(proposal("t1", "a"))
	cl.heard.phase(t, "t1", txn.Activating)
	eventually(t, "lb1 to be verified", func() bool { return cl.hosts["lb1"].Calls("activate") > 0 })
	cl.Stop()
	cl.hosts["lb1"].Kill()
	cl.restart()
	s := cl.heard.end(t, "t1", txn.StuckRestoring)
	if !strings.Contains(s.Reason, "lb1") || strings.Contains(s.Next, "lb2") {
		t.Errorf("reason %q, next %q: want lb1 alone", s.Reason, s.Next)
	}
	cl.hosts["lb1"].Restart(t)
	cl.heard.phase(t, "t1", txn.RolledBack)
}

// The cause of an abort survives the leader.
func TestCauseSurvivesTheLeader(t *testing.T) {
	cl := newImpatient(t, "lb1", "lb2").up()
	cl.hosts["lb1"].Refuse("abort", lbagentv1.RefusalReason_REFUSAL_REASON_RESTORE_FAILED, "disk full")
	cl.hosts["lb2"].Refuse("activate", lbagentv1.RefusalReason_REFUSAL_REASON_UPSTREAM_NOT_GREEN, "L4CON")
	cl.begin(proposal("t1", "a"))
	s := cl.heard.end(t, "t1", txn.StuckRestoring)
	if !strings.Contains(s.Reason, "disk full") {
		t.Errorf("reason %q does not say why lb1 has not restored", s.Reason)
	}
	cl.restart()
	cl.hosts["lb1"].Bend("abort", nil)
	s = cl.heard.phase(t, "t1", txn.RolledBack)
	if s.Cause != txn.CauseHostRefused || !strings.Contains(s.Reason, "L4CON") {
		t.Errorf("cause %q, reason %q after the restart", s.Cause, s.Reason)
	}
}

// Drill 8: the proxy is another process between Verified and Commit: its Host is verified again before the decision.
func TestProxyReplacedBetweenVerifiedAndCommit(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	release := hold(cl.hosts["lb1"], "activate")
	cl.begin(proposal("t1", "a"))
	cl.heard.until(t, "lb2 to be verified", func() bool {
		return slices.ContainsFunc(cl.heard.last("t1").Hosts, func(h txn.HostVote) bool { return h.Host == "lb2" && h.Vote == "verified" })
	})
	cl.hosts["lb2"].ReplaceProxy()
	eventually(t, "the report of the new process", func() bool {
		return cl.Hosts()[1].State.GetProcess().GetWorkerPid() == 1001
	})
	release()
	s := cl.heard.end(t, "t1", txn.Committed)
	for _, h := range s.Hosts {
		if e := txn.EvidenceOf(h.Evidence, "shop"); h.Host == "lb2" && e.GetProcess().GetWorkerPid() != 1001 {
			t.Errorf("committed with evidence of process %d", e.GetProcess().GetWorkerPid())
		}
	}
}

// Evidence that is too old is asked for again before the decision.
func TestStaleEvidenceIsAskedAgain(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2")
	cl.Stop()
	cl.rules.Fresh = 200 * time.Millisecond
	cl.start()
	cl.up()
	release := hold(cl.hosts["lb1"], "activate")
	cl.begin(proposal("t1", "a"))
	cl.heard.until(t, "lb2 to be verified", func() bool {
		return slices.ContainsFunc(cl.heard.last("t1").Hosts, func(h txn.HostVote) bool { return h.Host == "lb2" && h.Vote == "verified" })
	})
	time.Sleep(300 * time.Millisecond) // age is what this test is about
	release()
	cl.heard.end(t, "t1", txn.Committed)
	if cl.hosts["lb2"].Calls("verify") == 0 {
		t.Error("old evidence was counted")
	}
}

func TestLapseAndFallbackAbort(t *testing.T) {
	for what, tc := range map[string]struct {
		do   func(*hosttest.Host)
		want txn.Cause
	}{
		"lapsed":   {func(h *hosttest.Host) { h.Lapse("t2") }, txn.CauseHostLapsed},
		"fallback": {func(h *hosttest.Host) { h.FallBack("t2") }, txn.CauseHostFallback},
	} {
		t.Run(what, func(t *testing.T) {
			cl := newCluster(t, "lb1", "lb2").up()
			cl.commit("t1", "a")
			hold(cl.hosts["lb1"], "activate")
			cl.begin(proposal("t2", "b"))
			cl.heard.until(t, "lb2 to be verified", func() bool {
				return slices.ContainsFunc(cl.heard.last("t2").Hosts, func(h txn.HostVote) bool { return h.Host == "lb2" && h.Vote == "verified" })
			})
			tc.do(cl.hosts["lb2"])
			if s := cl.heard.end(t, "t2", txn.RolledBack); s.Cause != tc.want {
				t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
			}
			cl.holds([]string{"a"}, "lb1", "lb2")
		})
	}
}

// TestLapseBeforeTheDecisionIsTried: much evidence is written before the decision, and a Host takes its vote back meanwhile. What
// is not tried yet is not committed.
func TestLapseBeforeTheDecisionIsTried(t *testing.T) {
	var names []string
	for i := range 1200 {
		names = append(names, fmt.Sprintf("shop.1.%04d.%s", i, strings.Repeat("x", 40)))
	}
	for what, tc := range map[string]struct {
		do   func(*cluster)
		want txn.Cause
	}{
		"lapsed":   {func(cl *cluster) { cl.hosts["lb2"].Lapse("t2") }, txn.CauseHostLapsed},
		"fallback": {func(cl *cluster) { cl.hosts["lb2"].FallBack("t2") }, txn.CauseHostFallback},
		"aborted": {func(cl *cluster) {
			go func() { _ = cl.Abort(context.Background(), "t2", txn.CauseAsked, "it was a mistake") }()
		}, txn.CauseAsked},
	} {
		t.Run(what, func(t *testing.T) {
			cl := newCluster(t, "lb1", "lb2").up()
			cl.commit("t1", "a")
			entered, release := make(chan struct{}), make(chan struct{})
			var once sync.Once
			cl.store.hook(func(ops []store.Op) error {
				if strings.HasPrefix(ops[0].Key, prefixEvidence) {
					once.Do(func() { close(entered); <-release })
				}
				return nil
			})
			cl.begin(proposal("t2", names...))
			<-entered
			tc.do(cl)
			eventually(t, "the conductor to hear of it", func() bool {
				doubt := false
				if err := cl.ask(t.Context(), func() { doubt = cl.txns["t2"].state.Doubt.Cause == tc.want }); err != nil {
					t.Fatal(err)
				}
				return doubt
			})
			close(release)
			if s := cl.heard.end(t, "t2", txn.RolledBack); s.Cause != tc.want {
				t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
			}
			cl.holds([]string{"a"}, "lb1", "lb2")
		})
	}
}

func TestDeadline(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	hold(cl.hosts["lb1"], "prepare")
	for try, short := 1, 200*time.Millisecond; ; try, short = try+1, 3*short {
		p := proposal(fmt.Sprint("t", try), "a")
		p.Deadline = time.Now().Add(short)
		cl.begin(p)
		s := cl.heard.end(t, p.ID, txn.RolledBack)
		if s.Cause == txn.CauseDeadline && !strings.Contains(s.Reason, "held by the test") && short < patience/3 {
			continue // a machine on which the Host could not even refuse in that time
		}
		if s.Cause != txn.CauseDeadline || !strings.Contains(s.Reason, "held by the test") {
			t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
		}
		return
	}
}
