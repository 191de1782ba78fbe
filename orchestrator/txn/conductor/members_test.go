package conductor

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/registry/hosttest"
	"github.com/cutover/cutover/orchestrator/txn"
)

func ask(verb txn.MemberVerb, host string) txn.MemberAsk {
	return txn.MemberAsk{Verb: verb, Host: host, Actor: "kim", Reason: "test"}
}

func sure(verb txn.MemberVerb, host string) txn.MemberAsk {
	a := ask(verb, host)
	a.Sure = true
	return a
}

func (cl *cluster) change(a txn.MemberAsk) txn.HostInfo {
	cl.t.Helper()
	h, err := cl.ChangeMember(cl.t.Context(), a)
	if err != nil {
		cl.t.Fatalf("%s %s: %v", a.Verb, a.Host, err)
	}
	return h
}

func (cl *cluster) refused(a txn.MemberAsk, kind txn.MemberRefusalKind, want string) {
	cl.t.Helper()
	_, err := cl.ChangeMember(cl.t.Context(), a)
	var no *txn.MemberRefusal
	if !errors.As(err, &no) || no.Kind != kind || !strings.Contains(no.Text, want) {
		cl.t.Errorf("%s %s: %v, want refusal %d with %q", a.Verb, a.Host, err, kind, want)
	}
}

func (cl *cluster) standing(host string, want registry.Standing) {
	cl.t.Helper()
	eventually(cl.t, host+" to be "+string(want), func() bool {
		m, _ := cl.reg.Member(host)
		return m.Standing == want
	})
}

func (cl *cluster) ordered(host string, want lbagentv1.TrafficOrder) {
	cl.t.Helper()
	eventually(cl.t, host+" to be told "+want.String(), func() bool { return cl.hosts[host].Order() == want })
}

// changeWaits waits until one change of membership waits for its turn.
func (cl *cluster) changeWaits() {
	cl.t.Helper()
	eventually(cl.t, "the change to wait", func() bool {
		n := 0
		_ = cl.ask(cl.t.Context(), func() { n = len(cl.changes["public"]) })
		return n == 1
	})
}

// finished waits until every Host was told of the transaction.
func (cl *cluster) finished(id string) {
	cl.t.Helper()
	eventually(cl.t, id+" to be finished", func() bool {
		open := true
		_ = cl.ask(cl.t.Context(), func() { open = cl.txns[id] != nil })
		return !open
	})
}

const (
	in  = lbagentv1.TrafficOrder_TRAFFIC_ORDER_IN
	out = lbagentv1.TrafficOrder_TRAFFIC_ORDER_OUT
)

// A dead Host is excluded, deploys go on, and it comes back as a member only when it holds what is committed by then.
func TestADeadHostIsExcludedAndReadmitted(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	cl.ordered("lb2", in)
	cl.hosts["lb2"].Kill()
	cl.refused(ask(txn.Exclude, "lb2"), txn.MemberNoProof, "cutover lb drain lb2")
	if h := cl.change(sure(txn.Exclude, "lb2")); h.Membership.Standing != "excluded" || !strings.Contains(h.Membership.Proof, "kim knows") || h.Membership.View != 2 {
		t.Errorf("%+v", h.Membership)
	}
	s := cl.commit("t2", "b")
	if len(s.Hosts) != 1 || s.Hosts[0].Host != "lb1" {
		t.Errorf("hosts of t2: %+v", s.Hosts)
	}
	cl.holds([]string{"b"}, "lb1")
	cl.hosts["lb1"].Drain("shop")
	cl.heard.until(t, "t2 to be drained without lb2", func() bool {
		return slices.ContainsFunc(cl.heard.drained, func(d txn.Drained) bool { return d.Txn == "t2" && d.Done })
	})
	cl.hosts["lb2"].Restart(t)
	cl.ordered("lb2", out) // it comes back with the old state, and must not be ready
	if got, _ := cl.hosts["lb2"].Committed("shop"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("an excluded host was synced: %v", got)
	}
	cl.change(ask(txn.Readmit, "lb2"))
	cl.holds([]string{"b"}, "lb2")
	cl.standing("lb2", registry.Member)
	cl.ordered("lb2", in)
	if s := cl.commit("t3", "c"); len(s.Hosts) != 2 {
		t.Errorf("hosts of t3: %+v", s.Hosts)
	}
	history, err := cl.reg.History(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	var what []string
	for _, e := range slices.Backward(history) {
		what = append(what, e.What+" by "+e.Actor)
	}
	if got := strings.Join(what, ", "); got != "exclude by kim, readmit by kim, join by kim" {
		t.Errorf("audit: %s", got)
	}
}

// An exclusion stands for the Aborted of a Host that makes a transaction stuck, in this term and in the next.
func TestExclusionUnsticks(t *testing.T) {
	cl := newImpatient(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	hold(cl.hosts["lb2"], "activate")
	cl.begin(proposal("t2", "b"))
	cl.heard.phase(t, "t2", txn.Activating)
	cl.hosts["lb2"].Kill()
	cl.heard.phase(t, "t2", txn.StuckRestoring)
	cl.change(sure(txn.Exclude, "lb2")) // it waits for nothing: what is stuck is decided
	s := cl.heard.phase(t, "t2", txn.RolledBack)
	if !s.Hosts[1].Excluded {
		t.Errorf("%+v", s.Hosts)
	}
	cl.commit("t3", "c")
	cl.restart()
	cl.heard.phase(t, "t2", txn.RolledBack) // it is still told, since it is not gone for good
	cl.hosts["lb2"].Restart(t)
	eventually(t, "lb2 to be told of the abort", func() bool { return len(cl.hosts["lb2"].Open()) == 0 })
	cl.change(ask(txn.Readmit, "lb2"))
	cl.standing("lb2", registry.Member)
	cl.holds([]string{"c"}, "lb2")
}

// A drained Host that has no client is proven out of traffic by its own report.
func TestDrainProves(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.ordered("lb1", in)
	cl.hosts["lb1"].Clients(3)
	if h := cl.change(ask(txn.DrainHost, "lb1")); !h.Membership.Drained || h.Membership.Standing != "member" {
		t.Errorf("%+v", h.Membership)
	}
	cl.ordered("lb1", out)
	eventually(t, "the clients to be counted", func() bool { return cl.Hosts()[0].State.GetTraffic().GetSessions() == 3 })
	cl.refused(ask(txn.Exclude, "lb1"), txn.MemberNoProof, "3 client connections")
	cl.refused(ask(txn.DrainHost, "lb2"), txn.MemberState, "the last of group public in traffic")
	cl.hosts["lb1"].Clients(0)
	eventually(t, "no client to be left", func() bool { return cl.Hosts()[0].State.GetTraffic().GetQuietSince() != nil })
	if h := cl.change(ask(txn.Exclude, "lb1")); h.Membership.Standing != "excluded" || !strings.Contains(h.Membership.Proof, "no client connection since") {
		t.Errorf("%+v", h.Membership)
	}
	cl.change(ask(txn.Exclude, "lb1")) // so it is already
	cl.change(ask(txn.Readmit, "lb1"))
	cl.standing("lb1", registry.Member)
	cl.ordered("lb1", in)
}

// With all-but(1) a dead Host is recorded as unproven: the commit goes on, and nothing is killed before it is back.
func TestUnprovenHost(t *testing.T) {
	cl := newImpatient(t)
	cl.Stop()
	cl.groups = []registry.Group{{Name: "public", Policy: txn.Policy{AllBut: 1}}}
	for _, name := range []string{"lb1", "lb2"} {
		h := hosttest.Start(t, name, "public")
		cl.hosts[name] = h
		cl.declare = append(cl.declare, registry.Host{Name: name, Group: "public", AgentURL: h.URL})
	}
	cl.start()
	cl.up()
	cl.commit("t1", "a")
	cl.hosts["lb2"].Kill()
	s := cl.commit("t2", "b")
	if h := s.Hosts[1]; h.Host != "lb2" || !h.Unproven || h.Vote != "none" {
		t.Errorf("%+v", s.Hosts)
	}
	cl.holds([]string{"b"}, "lb1")
	cl.hosts["lb1"].Drain("shop")
	cl.heard.until(t, "lb2 to be waited for", func() bool {
		return slices.ContainsFunc(cl.heard.drained, func(d txn.Drained) bool { return d.Txn == "t2" && !d.Done && slices.Equal(d.Waiting, []string{"lb2"}) })
	})
	cl.restart() // the record says it too
	if got, ok, err := cl.Outcome(t.Context(), "t2"); err != nil || !ok || !got.Hosts[1].Unproven || got.Phase != txn.Committed {
		t.Errorf("after a restart: %+v %v %v", got, ok, err)
	}
	if got, _ := cl.Released(t.Context(), []string{"a"}); len(got) != 0 {
		t.Errorf("released although lb2 has not said so: %v", got)
	}
	cl.hosts["lb2"].Restart(t)
	cl.holds([]string{"b"}, "lb2")
	cl.hosts["lb2"].Drain("shop")
	cl.heard.until(t, "t2 to be drained", func() bool {
		return slices.ContainsFunc(cl.heard.drained, func(d txn.Drained) bool { return d.Txn == "t2" && d.Done })
	})
}

// A Host that joins at runtime gets everything, loses what is not committed, and is only then a member.
func TestJoinAtRuntime(t *testing.T) {
	cl := newCluster(t, "lb1").up()
	cl.commit("t1", "a")
	h := hosttest.Start(t, "lb2", "public")
	cl.hosts["lb2"] = h
	cl.refused(ask(txn.Admit, "lb2"), txn.MemberUnknown, "--agent-url")
	a := ask(txn.Admit, "lb2")
	a.Group, a.AgentURL = "public", h.URL
	h.Refuse("sync", lbagentv1.RefusalReason_REFUSAL_REASON_PROXY_DOWN, "as the test says")
	cl.change(a)
	eventually(t, "it to say what it lacks", func() bool { return strings.Contains(cl.Hosts()[1].Membership.Waiting, "shop") })
	cl.ordered("lb2", out)
	if s := cl.commit("t2", "b"); len(s.Hosts) != 1 {
		t.Errorf("a joining host votes: %+v", s.Hosts)
	}
	h.Bend("sync", nil)
	cl.standing("lb2", registry.Member)
	cl.holds([]string{"b"}, "lb2")
	cl.ordered("lb2", in)
	if s := cl.commit("t3", "c"); len(s.Hosts) != 2 {
		t.Errorf("hosts of t3: %+v", s.Hosts)
	}
	cl.restart() // it is a member in the next term too, although nobody declares it
	cl.up()
	if v, _ := cl.reg.View("public"); !slices.Equal(v.Hosts, []string{"lb1", "lb2"}) {
		t.Errorf("view %+v", v)
	}
}

// A change of the View waits for what is undecided, and holds back what comes after it.
func TestChangesWaitForTheUndecided(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	release := make(chan struct{})
	cl.hosts["lb1"].Bend("prepare", func(n int) *lbagentv1.Refusal {
		select {
		case <-release:
			return nil
		default:
			return &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_BUSY}
		}
	})
	cl.begin(proposal("t2", "b"))
	cl.heard.phase(t, "t2", txn.Preparing)
	done := make(chan error, 1)
	go func() {
		_, err := cl.ChangeMember(t.Context(), sure(txn.Exclude, "lb2"))
		done <- err
	}()
	cl.changeWaits()
	other := proposal("t3", "x")
	other.App, other.Changes[0].App, other.Changes[0].Target = "cart", "cart", target("cart", "x")
	cl.begin(other)
	if s := cl.heard.phase(t, "t3", txn.Waiting); s.Phase != txn.Waiting {
		t.Error(s)
	}
	close(release)
	if s := cl.heard.end(t, "t2", txn.Committed); len(s.Hosts) != 2 {
		t.Errorf("hosts of t2: %+v", s.Hosts)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := cl.heard.end(t, "t3", txn.Committed); len(s.Hosts) != 1 {
		t.Errorf("t3 was prepared in the view from before: %+v", s.Hosts)
	}
}

// One who gives up waiting changes nothing.
func TestAChangeThatIsGivenUp(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.hosts["lb1"].Refuse("prepare", lbagentv1.RefusalReason_REFUSAL_REASON_BUSY, "as the test says")
	cl.begin(proposal("t1", "a"))
	cl.heard.phase(t, "t1", txn.Preparing)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := cl.ChangeMember(ctx, sure(txn.Exclude, "lb2"))
		done <- err
	}()
	cl.changeWaits()
	cancel()
	err := <-done
	var no *txn.MemberRefusal
	if !errors.As(err, &no) || no.Kind != txn.MemberWaiting || !strings.Contains(no.Text, "t1") {
		t.Errorf("%v", err)
	}
	cl.hosts["lb1"].Bend("prepare", nil)
	if s := cl.heard.end(t, "t1", txn.Committed); len(s.Hosts) != 2 {
		t.Errorf("%+v", s.Hosts)
	}
}

// A Host that is removed releases what was kept for it.
func TestRemoveReleases(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	cl.finished("t1")
	cl.hosts["lb2"].Refuse("commit", lbagentv1.RefusalReason_REFUSAL_REASON_BUSY, "as the test says")
	cl.hosts["lb2"].Refuse("sync", lbagentv1.RefusalReason_REFUSAL_REASON_BUSY, "as the test says")
	cl.commit("t2", "b")
	cl.change(sure(txn.Remove, "lb2"))
	cl.finished("t2")
	hosts := cl.Hosts()
	if len(hosts) != 2 || hosts[1].Membership.Standing != "removed" {
		t.Errorf("it is declared, so it is remembered: %+v", hosts)
	}
	cl.restart() // it does not come back by itself
	if v, _ := cl.reg.View("public"); !slices.Equal(v.Hosts, []string{"lb1"}) {
		t.Errorf("view %+v", v)
	}
	cl.hosts["lb2"].Bend("sync", nil)
	cl.hosts["lb2"].Bend("commit", nil)
	cl.change(ask(txn.Admit, "lb2"))
	cl.standing("lb2", registry.Member)
	cl.holds([]string{"b"}, "lb2")
}

// What the link of a removed Host still had to say is not about the one that is admitted under its name.
func TestAWordOfARemovedHost(t *testing.T) {
	cl := newCluster(t, "lb1", "lb2").up()
	cl.commit("t1", "a")
	cl.finished("t1")
	lb2 := cl.hosts["lb2"]
	lb2.Freeze() // nothing is known of it once it is admitted again
	cl.change(sure(txn.Remove, "lb2"))
	cl.change(ask(txn.Admit, "lb2"))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	said := &lbagentv1.WatchResponse{
		Host: &lbagentv1.HostState{Name: "lb2", Group: "public"}, Complete: true, Sections: []*lbagentv1.SectionReport{{App: "shop"}},
	}
	cl.HostReported(ended, "lb2", said)
	cl.HostConnected(ended, "lb2", said)
	cl.HostReported(ended, "lb2", said)
	up := true
	if err := cl.ask(t.Context(), func() { up = cl.Conductor.hosts["lb2"].up }); err != nil || up {
		t.Errorf("lb2 is up: %t, %v", up, err)
	}
	lb2.Thaw()
	cl.standing("lb2", registry.Member)
	cl.commit("t2", "b")
	cl.holds([]string{"b"}, "lb1", "lb2")
}
