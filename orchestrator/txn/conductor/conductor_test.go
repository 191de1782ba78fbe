package conductor

import (
	"bytes"
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

func TestCommitOnAllHosts(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	first := cl.commit("t1", "a", "b")
	if len(first.Hosts) != 2 || first.CommittedAt.IsZero() {
		t.Fatalf("status %+v", first)
	}
	for _, h := range first.Hosts {
		e := txn.EvidenceOf(h.Evidence, "shop")
		if h.Vote != "verified" || e == nil || len(e.GetUpstreams()) != 2 || !h.SentActivate {
			t.Errorf("vote of %s: %+v", h.Host, h)
		}
	}
	cl.holds([]string{"a", "b"}, "lb1", "lb2")
	second := cl.commit("t2", "b", "c")
	if second.Order <= first.Order {
		t.Errorf("order number %d after %d", second.Order, first.Order)
	}
	cl.holds([]string{"b", "c"}, "lb1", "lb2")
	s, ok, err := cl.Section(t.Context(), "public", "shop")
	if err != nil || !ok || s.GetVersion().GetTxn() != second.Order {
		t.Errorf("committed section %v %t %v", s, ok, err)
	}

	// NO-ORPHAN-KILL: a drains on both hosts, and is released when both have said so.
	var waiting txn.Drained
	cl.heard.until(t, "the drain to begin", func() bool {
		for _, d := range cl.heard.drained {
			if d.Txn == "t2" && !d.Done {
				waiting = d
				return true
			}
		}
		return false
	})
	if len(waiting.Released) != 0 {
		t.Errorf("released %v before anybody drained", waiting.Released)
	}
	if got, err := cl.Released(t.Context(), []string{"a", "b", "c", "never"}); err != nil || !slices.Equal(got, []string{"never"}) {
		t.Errorf("Released = %v, %v", got, err)
	}
	cl.hosts["lb1"].Drain("shop")
	cl.heard.until(t, "lb2 to be waited for alone", func() bool {
		d := cl.heard.drained[len(cl.heard.drained)-1]
		return d.Txn == "t2" && slices.Equal(d.Waiting, []string{"lb2"}) && len(d.Released) == 0
	})
	cl.hosts["lb2"].Drain("shop")
	cl.heard.until(t, "a to be released", func() bool {
		d := cl.heard.drained[len(cl.heard.drained)-1]
		return d.Txn == "t2" && d.Done && slices.Equal(d.Released, []string{"a"})
	})
	if got, _ := cl.Released(t.Context(), []string{"a", "b"}); !slices.Equal(got, []string{"a"}) {
		t.Errorf("Released = %v, want a", got)
	}
	if app, ok := cl.RouteOwner("public", "*", "/shop/"); !ok || app != "shop" {
		t.Errorf("RouteOwner = %q %t", app, ok)
	}
	if _, ok := cl.RouteOwner("public", "*", "/shop/x"); ok {
		t.Error("a nested path is owned")
	}
}

func TestRemoveSection(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.commit("t1", "a")
	s := cl.commit("t2")
	got, ok, err := cl.Section(t.Context(), "public", "shop")
	if err != nil || !ok || !got.GetRemoved() || got.GetVersion().GetTxn() != s.Order {
		t.Fatalf("section after its removal: %v %t %v", got, ok, err)
	}
	if _, ok := cl.RouteOwner("public", "*", "/shop"); ok {
		t.Error("the path of a removed section is not free")
	}
	cl.commit("t3", "b")
	cl.holds([]string{"b"}, "lb1")
}

// TestHostRefuses: any NO before Activate rolls back without anybody having to restore.
func TestHostRefuses(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	cl.hosts["lb2"].Bend("prepare", func(int) *lbagentv1.Refusal {
		return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_INVALID_CONFIG, Message: "unknown keyword", Output: "[ALERT] line 3", App: "shop"}
	})
	cl.begin(proposal("t2", "b"))
	s := cl.heard.end(t, "t2", txn.RolledBack)
	if s.Cause != txn.CauseHostRefused || !strings.Contains(s.Reason, "lb2") || !strings.Contains(s.Reason, "invalid-config") {
		t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
	}
	at := slices.IndexFunc(s.Hosts, func(h txn.HostVote) bool { return h.Host == "lb2" })
	if s.Hosts[at].Vote != "failed" || s.Hosts[at].Refusal.GetOutput() != "[ALERT] line 3" {
		t.Errorf("vote of lb2: %+v", s.Hosts[at])
	}
	if n := cl.hosts["lb1"].Calls("activate"); n != 1 {
		t.Errorf("%d activates on lb1, want the one of t1", n)
	}
	cl.holds([]string{"a"}, "lb1", "lb2")
	eventually(t, "lb1 to forget t2", func() bool { return len(cl.hosts["lb1"].Open()) == 0 })
	// The next one goes through.
	cl.hosts["lb2"].Bend("prepare", nil)
	cl.commit("t3", "c")
}

func TestActivateFailsAndEverybodyRestores(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	cl.hosts["lb2"].Refuse("activate", lbagentv1.RefusalReason_REFUSAL_REASON_PROXY_MISMATCH, "the port belongs to pid 17")
	cl.begin(proposal("t2", "b"))
	s := cl.heard.end(t, "t2", txn.RolledBack)
	if s.Cause != txn.CauseHostRefused || !strings.Contains(s.Reason, "pid 17") {
		t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
	}
	for _, h := range s.Hosts {
		if h.SentActivate && cl.hosts[h.Host].Calls("abort") == 0 {
			t.Errorf("%s was sent Activate and no Abort", h.Host)
		}
	}
	cl.holds([]string{"a"}, "lb1", "lb2")
}

// TestBusyIsRetried: a Host's lock is only a check.
func TestBusyIsRetried(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.hosts["lb1"].Bend("prepare", func(n int) *lbagentv1.Refusal {
		if n < 4 {
			return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_BUSY}
		}
		return nil
	})
	cl.commit("t1", "a")
	if n := cl.hosts["lb1"].Calls("prepare"); n != 4 {
		t.Errorf("%d prepares, want 4", n)
	}
}

// TestLyingEvidence: a Verified whose evidence shows an unhealthy new upstream does not count (ALL-OR-OLD).
func TestLyingEvidence(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.hosts["lb1"].Lie()
	cl.begin(proposal("t1", "a"))
	s := cl.heard.end(t, "t1", txn.RolledBack)
	if !strings.Contains(s.Reason, "does not bear out") {
		t.Errorf("reason %q", s.Reason)
	}
}

func TestZeroHostsUnknownGroupAndNoGroup(t *testing.T) {
	cl := newCluster(t)
	cl.begin(proposal("t1", "a"))
	if s := cl.heard.end(t, "t1", txn.RolledBack); s.Cause != txn.CauseNoHosts {
		t.Errorf("zero hosts: cause %q", s.Cause)
	}
	p := proposal("t2", "a")
	p.Changes[0].Group = "nowhere"
	cl.begin(p)
	if s := cl.heard.end(t, "t2", txn.RolledBack); s.Cause != txn.CauseUnknownGroup || !strings.Contains(s.Reason, "nowhere") {
		t.Errorf("unknown group: cause %q, reason %q", s.Cause, s.Reason)
	}
	// A worker names no Group: it commits on its tasks' health alone, by the same record.
	cl.begin(txn.Proposal{ID: "t3", App: "worker", Deadline: time.Now().Add(time.Minute), Record: []byte("spec")})
	cl.heard.end(t, "t3", txn.Committed)
	if _, err := cl.store.Get(t.Context(), "decision/t3"); err != nil {
		t.Errorf("no record: %v", err)
	}
	cl.heard.until(t, "the drain of t3", func() bool {
		return slices.ContainsFunc(cl.heard.drained, func(d txn.Drained) bool { return d.Txn == "t3" && d.Done })
	})
}

func TestBadProposals(t *testing.T) {
	cl := newCluster(t)
	twice := proposal("t1", "a")
	twice.Changes = append(twice.Changes, twice.Changes[0])
	other := proposal("t1", "a")
	other.Changes[0].App = "cart"
	big := proposal("t1", "a")
	big.Record = bytes.Repeat([]byte("x"), maxRecordBytes)
	for name, p := range map[string]txn.Proposal{"no id": proposal(""), "slash": proposal("a/b"), "twice": twice, "other app": other, "big": big} {
		if err := cl.Begin(t.Context(), p); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

// TestRoutesBelongToOneApp: checked with the locks held, against committed and open transactions.
func TestRoutesBelongToOneApp(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.commit("t1", "a")
	thief := txn.Proposal{ID: "t2", App: "thief", Deadline: time.Now().Add(time.Minute), Changes: []txn.GroupChange{{Group: "public", App: "thief",
		Target: &lbagentv1.Section{App: "thief", Routes: []*lbagentv1.Route{{Host: "*", Path: "/shop/"}}}}}}
	cl.begin(thief)
	s := cl.heard.end(t, "t2", txn.RolledBack)
	if s.Cause != txn.CauseRouteConflict || !strings.Contains(s.Reason, "shop") || !strings.Contains(s.Reason, "thief") {
		t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
	}
}

// TestOneAtATime: two transactions of one Section follow each other; a rollback overtakes what waits.
func TestOneAtATime(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	release := make(chan struct{})
	cl.hosts["lb1"].Bend("prepare", func(n int) *lbagentv1.Refusal {
		select {
		case <-release:
			return nil
		default:
			return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_BUSY}
		}
	})
	cl.begin(proposal("t1", "a"))
	cl.heard.phase(t, "t1", txn.Preparing)
	cl.begin(proposal("t2", "b"))
	back := proposal("t3", "c")
	back.Rollback = true
	cl.begin(back)
	cl.heard.phase(t, "t3", txn.Waiting)
	close(release)
	one, two, three := cl.heard.end(t, "t1", txn.Committed), cl.heard.end(t, "t2", txn.Committed), cl.heard.end(t, "t3", txn.Committed)
	if !(one.Order < three.Order && three.Order < two.Order) {
		t.Errorf("orders %d, %d, %d: want t1, then the rollback t3, then t2", one.Order, two.Order, three.Order)
	}
	cl.holds([]string{"b"}, "lb1")
}

// TestReloadingHostSerialisesItsGroup: different Apps wait for each other where each change is a reload.
func TestReloadingHostSerialisesItsGroup(t *testing.T) {
	cl := newCluster(t, "lb1")
	cl.hosts["lb1"].ReloadPerChange()
	cl.restart()
	cl.up()
	cl.heard.until(t, "the capability", func() bool { return cl.Hosts()[0].State.GetReloadPerChange() })
	release := make(chan struct{})
	cl.hosts["lb1"].Bend("activate", func(int) *lbagentv1.Refusal {
		select {
		case <-release:
			return nil
		default:
			return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_BUSY}
		}
	})
	cl.begin(proposal("t1", "a"))
	cl.heard.phase(t, "t1", txn.Activating)
	other := txn.Proposal{ID: "t2", App: "cart", Deadline: time.Now().Add(time.Minute), Changes: []txn.GroupChange{{Group: "public", App: "cart", Target: target("cart", "x")}}}
	cl.begin(other)
	if s := cl.heard.phase(t, "t2", txn.Waiting, txn.Preparing); s.Phase != txn.Waiting {
		t.Errorf("t2 is %v while t1 is open", s.Phase)
	}
	close(release)
	cl.heard.end(t, "t1", txn.Committed)
	cl.heard.end(t, "t2", txn.Committed)
}

func TestAbort(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	if err := cl.Abort(t.Context(), "t1", txn.CauseAsked, "too late"); !errors.Is(err, ErrCommitted) {
		t.Errorf("abort after Commit: %v", err)
	}
	if err := cl.Abort(t.Context(), "never", txn.CauseAsked, ""); !errors.Is(err, ErrUnknown) {
		t.Errorf("abort of an unknown transaction: %v", err)
	}
	cl.hosts["lb2"].Refuse("activate", lbagentv1.RefusalReason_REFUSAL_REASON_BUSY, "")
	cl.begin(proposal("t2", "b"))
	cl.heard.phase(t, "t2", txn.Activating)
	if err := cl.Abort(t.Context(), "t2", txn.CauseAsked, "kim changed her mind"); err != nil {
		t.Fatal(err)
	}
	s := cl.heard.end(t, "t2", txn.RolledBack)
	if s.Cause != txn.CauseAsked || s.Reason != "kim changed her mind" {
		t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
	}
	cl.holds([]string{"a"}, "lb1", "lb2")
	// An abort while another one holds the Section ends it at once.
	cl.hosts["lb2"].Refuse("prepare", lbagentv1.RefusalReason_REFUSAL_REASON_BUSY, "")
	cl.begin(proposal("t3", "c"))
	cl.begin(proposal("t4", "d"))
	if err := cl.Abort(t.Context(), "t4", txn.CauseAsked, "superseded"); err != nil {
		t.Fatal(err)
	}
	cl.heard.end(t, "t4", txn.RolledBack)
	if err := cl.Abort(t.Context(), "t3", txn.CauseAsked, ""); err != nil {
		t.Fatal(err)
	}
	cl.heard.end(t, "t3", txn.RolledBack)
}

// TestAbortDuringTheDecision waits for what becomes of the write.
func TestAbortDuringTheDecision(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	entered, release := make(chan struct{}), make(chan struct{})
	cl.store.hook(func(ops []store.Op) error {
		if strings.HasPrefix(ops[0].Key, prefixDecision) {
			close(entered)
			<-release
		}
		return nil
	})
	cl.begin(proposal("t1", "a"))
	<-entered
	result := make(chan error)
	go func() { result <- cl.Abort(t.Context(), "t1", txn.CauseAsked, "") }()
	select {
	case err := <-result:
		t.Fatalf("the abort did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-result; !errors.Is(err, ErrCommitted) {
		t.Errorf("got %v, want ErrCommitted", err)
	}
	cl.heard.end(t, "t1", txn.Committed)
}

// TestRefusedDecision: the store says that the record was not written, so everything is put back.
func TestRefusedDecision(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.store.hook(func(ops []store.Op) error {
		if strings.HasPrefix(ops[0].Key, prefixDecision) {
			return errors.New("no space")
		}
		return nil
	})
	cl.begin(proposal("t1", "a"))
	s := cl.heard.end(t, "t1", txn.RolledBack)
	if s.Cause != txn.CauseStore || !strings.Contains(s.Reason, "no space") {
		t.Errorf("cause %q, reason %q", s.Cause, s.Reason)
	}
}

// TestUnknownOutcomeEndsTheTerm: nobody may guess; the next leader reads what really happened.
func TestUnknownOutcomeEndsTheTerm(t *testing.T) {
	for _, wrote := range []bool{false, true} {
		t.Run(fmt.Sprintf("wrote=%t", wrote), func(t *testing.T) {
			cl := newCluster(t, "lb1", "lb2").up()
			cl.commit("t1", "a")
			cl.store.hook(func(ops []store.Op) error {
				if !strings.HasPrefix(ops[0].Key, prefixDecision) {
					return nil
				}
				if wrote {
					if _, err := cl.store.Store.Commit(t.Context(), store.Fence{Epoch: cl.epoch}, ops...); err != nil {
						t.Error(err)
					}
				}
				return fmt.Errorf("disk: %w", store.ErrUnknown)
			})
			cl.begin(proposal("t2", "b"))
			select {
			case err := <-cl.fatal:
				if !errors.Is(err, store.ErrUnknown) {
					t.Errorf("fatal: %v", err)
				}
			case <-time.After(patience):
				t.Fatal("the term did not end")
			}
			if err := cl.Begin(t.Context(), proposal("t3", "c")); err == nil {
				t.Error("a transaction began after the term had ended")
			}
			cl.restart()
			if wrote {
				cl.heard.end(t, "t2", txn.Committed)
				cl.holds([]string{"b"}, "lb1", "lb2")
			} else {
				s := cl.heard.end(t, "t2", txn.RolledBack)
				if s.Cause != txn.CauseLeaderLost {
					t.Errorf("cause %q", s.Cause)
				}
				cl.holds([]string{"a"}, "lb1", "lb2")
			}
		})
	}
}

// TestLargeEvidence goes first, in chunks; the record holds its digest.
func TestLargeEvidence(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	var names []string
	for i := range 1200 {
		names = append(names, fmt.Sprintf("shop.1.%04d.%s", i, strings.Repeat("x", 40)))
	}
	cl.commit("t1", names...)
	rec, err := cl.store.Get(t.Context(), "decision/t1")
	if err != nil {
		t.Fatal(err)
	}
	var d decisionRecord
	if err := decode(rec.Key, rec.Value, &d); err != nil {
		t.Fatal(err)
	}
	for _, v := range d.Votes {
		if v.Evidence != nil || v.Chunks == 0 {
			t.Fatalf("evidence of %s is inline (%d chunks)", v.Host, v.Chunks)
		}
		var all []byte
		for i := range v.Chunks {
			chunk, err := cl.store.Get(t.Context(), fmt.Sprintf("evidence/t1/%s/%d", v.Host, i))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, chunk.Value...)
		}
		if digest(all) != v.Digest {
			t.Errorf("the chunks of %s do not have the digest of the record", v.Host)
		}
		if got := txn.EvidenceOf(decodeEvidence(all), "shop"); len(got.GetUpstreams()) != len(names) {
			t.Errorf("evidence of %s has %d upstreams", v.Host, len(got.GetUpstreams()))
		}
	}
}

func TestSeveralGroups(t *testing.T) {
	cl := newCluster(t, "lb1")
	cl.Stop()
	for _, name := range []string{"in1", "in2"} {
		h := newInternal(t, name)
		cl.hosts[name] = h
		cl.declare = append(cl.declare, registry.Host{Name: name, Group: "internal", AgentURL: h.URL})
	}
	cl.start()
	cl.up()
	p := proposal("t1", "a")
	p.Changes = append(p.Changes, txn.GroupChange{Group: "internal", App: "shop", Target: target("shop", "a")})
	cl.begin(p)
	if s := cl.heard.end(t, "t1", txn.Committed); len(s.Hosts) != 3 {
		t.Errorf("%d votes, want 3", len(s.Hosts))
	}
	cl.holds([]string{"a"}, "lb1", "in1", "in2")
	// One Host of one Group refuses: nobody keeps it.
	cl.hosts["in2"].Refuse("activate", lbagentv1.RefusalReason_REFUSAL_REASON_SET_DIFFERS, "")
	p = proposal("t2", "b")
	p.Changes = append(p.Changes, txn.GroupChange{Group: "internal", App: "shop", Target: target("shop", "b")})
	cl.begin(p)
	cl.heard.end(t, "t2", txn.RolledBack)
	cl.holds([]string{"a"}, "lb1", "in1", "in2")
}

func TestOutcomeIsKept(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.commit("t1", "a")
	cl.hosts["lb1"].Refuse("prepare", lbagentv1.RefusalReason_REFUSAL_REASON_INVALID_CONFIG, "no")
	cl.begin(proposal("t2", "b"))
	cl.heard.end(t, "t2", txn.RolledBack)
	check := func() {
		t.Helper()
		for id, want := range map[string]txn.Phase{"t1": txn.Committed, "t2": txn.RolledBack} {
			s, ok, err := cl.Outcome(t.Context(), id)
			if err != nil || !ok || s.Phase != want || len(s.Hosts) != 1 {
				t.Errorf("Outcome(%s) = %+v, %t, %v", id, s, ok, err)
			}
		}
		if _, ok, err := cl.Outcome(t.Context(), "never"); ok || err != nil {
			t.Errorf("Outcome of an unknown transaction: %t, %v", ok, err)
		}
	}
	check()
	eventually(t, "t2 to be told to everybody", func() bool {
		_, err := cl.store.Get(t.Context(), "ended/t2")
		return err == nil
	})
	cl.restart()
	check()
	// The draining of a committed one is told again, for an engine that missed it.
	cl.heard.until(t, "the drain of t1", func() bool {
		return slices.ContainsFunc(cl.heard.drained, func(d txn.Drained) bool { return d.Txn == "t1" && d.Done })
	})
	if err := cl.Begin(t.Context(), proposal("t1", "z")); !errors.Is(err, ErrExists) {
		t.Errorf("a used id: %v", err)
	}
}

// TestLargeProposalWithEvidence: a Spec of the largest size, and evidence that would be in the record for itself, commit together.
func TestLargeProposalWithEvidence(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("shop.1.%04d.%s", i, strings.Repeat("x", 60)))
	}
	p := proposal("t1", names...)
	p.Record = bytes.Repeat([]byte("x"), 227<<10)
	cl.begin(p)
	cl.heard.end(t, "t1", txn.Committed)
}

// The end of a transaction cannot be written for a while, and in that while very many others end: what was committed stays so for
// the next leader.
func TestEndThatIsNotRecordedForAWhile(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2")
	cl.Stop()
	cl.keep = 2
	cl.start()
	cl.up()
	cl.store.hook(func(ops []store.Op) error {
		if slices.ContainsFunc(ops, func(op store.Op) bool { return op.Kind == store.Put && op.Key == prefixEnded+"t1" }) {
			return errors.New("nothing was written: the store cannot be reached")
		}
		return nil
	})
	cl.commit("t1", "a")
	cl.commit("t2", "b")
	for _, h := range cl.hosts {
		h.Drain("shop")
	}
	for i := range 6 {
		id := fmt.Sprintf("x%d", i)
		cl.begin(of("other", id, "o"+id))
		cl.heard.end(t, id, txn.Committed)
		for _, h := range cl.hosts {
			h.Drain("other")
		}
	}
	eventually(t, "most of the past to be forgotten", func() bool {
		_, err := cl.store.Get(t.Context(), prefixDecision+"x0")
		return errors.Is(err, store.ErrNotFound)
	})
	cl.restart()
	cl.up()
	if s, ok, err := cl.Outcome(t.Context(), "t1"); err != nil || !ok || s.Phase != txn.Committed {
		t.Errorf("t1 was committed, and is %v (found: %v, %v)", s.Phase, ok, err)
	}
	cl.commit("t3", "c")
	for name, h := range cl.hosts {
		if slices.Contains(h.Log(), "abort t1") {
			t.Errorf("%s was told to abort t1, which was committed: %v", name, h.Log())
		}
	}
	eventually(t, "no open record to be left", func() bool {
		records, err := cl.store.List(t.Context(), prefixTxn, "", 10)
		return err == nil && len(records) == 0
	})
}

// Every Host of very many says at length why it cannot: how that ended is recorded all the same.
func TestEndWithLongRefusals(t *testing.T) {
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprintf("lb%02d", i))
	}
	s := txn.Status{ID: "t1", Phase: txn.RolledBack}
	for _, name := range names {
		s.Hosts = append(s.Hosts, txn.HostVote{Host: name, Group: "public", Vote: "failed", Refusal: &lbagentv1.Refusal{
			Reason: lbagentv1.RefusalReason_REFUSAL_REASON_INVALID_CONFIG, Message: "the proxy refuses it", Output: strings.Repeat("line\n", 3<<10)}})
	}
	b := encode(endedRecord{Format: recordFormat, Status: encodeStatus(s, maxInlineEvidence)})
	if len(b) > maxEnded {
		t.Errorf("the record has %d bytes", len(b))
	}
	got := decodeStatus(t, b)
	if len(got.Hosts) != len(names) || got.Hosts[0].Refusal.GetOutput() == "" || got.Hosts[39].Refusal.GetMessage() != "the proxy refuses it" {
		t.Errorf("the record says %d hosts, %v and %v", len(got.Hosts), got.Hosts[0].Refusal, got.Hosts[39].Refusal)
	}
}

func decodeStatus(t *testing.T, b []byte) txn.Status {
	t.Helper()
	var e endedRecord
	if err := decode("ended/t1", b, &e); err != nil {
		t.Fatal(err)
	}
	return e.Status.status()
}
