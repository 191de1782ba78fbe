package conductor

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/registry/hosttest"
	"github.com/cutover/cutover/orchestrator/txn"
)

// catalog is a Source that says what the test tells it to, over several terms.
type catalog struct{ said chan registry.Listing }

func (c catalog) Watch(ctx context.Context, hear func(registry.Listing)) {
	for {
		select {
		case l := <-c.said:
			hear(l)
		case <-ctx.Done():
			return
		}
	}
}

func (c catalog) say(hosts ...*hosttest.Host) {
	l := registry.Listing{Source: registry.FromConsul, At: time.Now()}
	for _, h := range hosts {
		l.Hosts = append(l.Hosts, registry.Host{Name: h.Name, Group: h.Group, AgentURL: h.URL})
	}
	c.said <- l
}

func (c catalog) away() {
	c.said <- registry.Listing{Source: registry.FromConsul, At: time.Now(), Err: errors.New("connection refused")}
}

// newAnnounced is a cluster with one declared Host, whose Group admits as said.
func newAnnounced(t *testing.T, admit registry.Admit) (*cluster, catalog) {
	cl := newCluster(t, "lb1").up()
	cl.commit("t1", "a")
	cl.Stop()
	c := catalog{make(chan registry.Listing)}
	cl.rules.HostWait = shortHostWait
	cl.source, cl.groups = c, []registry.Group{{Name: "public", Admit: admit}}
	cl.start()
	return cl.up(), c
}

// known waits until a Host is listed, or not, as ok says.
func (cl *cluster) known(host, what string, ok func(h txn.HostInfo, known bool) bool) {
	cl.t.Helper()
	eventually(cl.t, host+": "+what, func() bool {
		hosts := cl.Hosts()
		i := slices.IndexFunc(hosts, func(h txn.HostInfo) bool { return h.Name == host })
		if i < 0 {
			return ok(txn.HostInfo{}, false)
		}
		return ok(hosts[i], true)
	})
}

// A Host that a catalog announces waits for an operator; once it is a member, the catalog's loss takes it out of nothing.
func TestAnnouncedHostWaitsForAnOperator(t *testing.T) {
	cl, catalog := newAnnounced(t, registry.AdmitDeclared)
	lb2 := hosttest.Start(t, "lb2", "public")
	cl.hosts["lb2"] = lb2
	catalog.say(lb2)
	cl.known("lb2", "announced", func(h txn.HostInfo, known bool) bool {
		return known && h.Membership.Standing == "announced" && h.Membership.Source == "consul" && h.Membership.Announced && strings.Contains(h.Problem, "cutover lb admit lb2")
	})
	if s := cl.commit("t2", "b"); len(s.Hosts) != 1 {
		t.Errorf("a host that is only announced votes: %+v", s.Hosts)
	}
	if n := lb2.Calls("watch"); n != 0 {
		t.Errorf("somebody talked to it %d times", n)
	}
	cl.change(ask(txn.Admit, "lb2"))
	cl.standing("lb2", registry.Member)
	cl.holds([]string{"b"}, "lb2")
	cl.ordered("lb2", in)

	catalog.away()
	eventually(t, "the catalog to be away", func() bool { return cl.Sources()[0].Problem == "connection refused" })
	if s := cl.commit("t3", "c"); len(s.Hosts) != 2 {
		t.Errorf("hosts of t3: %+v", s.Hosts)
	}
	catalog.say()
	cl.known("lb2", "announced no longer, and a member", func(h txn.HostInfo, known bool) bool {
		return known && h.Membership.Standing == "member" && !h.Membership.Announced && strings.Contains(h.Membership.Notice, "announces it no longer")
	})
	lb2.Kill()
	cl.begin(proposal("t4", "d"))
	if s := cl.heard.end(t, "t4", txn.RolledBack); len(s.Hosts) != 2 {
		t.Errorf("hosts of t4: %+v", s.Hosts)
	}
	lb2.Restart(t)

	cl.restart() // also in a term that has never read the catalog
	cl.up()
	if v, _ := cl.reg.View("public"); !slices.Equal(v.Hosts, []string{"lb1", "lb2"}) {
		t.Errorf("view %+v", v)
	}
	if s := cl.commit("t5", "e"); len(s.Hosts) != 2 {
		t.Errorf("hosts of t5: %+v", s.Hosts)
	}
	if src := cl.Sources(); len(src) != 1 || src[0].Problem == "" || !src[0].HeardAt.IsZero() {
		t.Errorf("%+v", src)
	}
}

// Under admit: announced whoever is announced joins, synced first; what an operator has removed does not come back.
func TestPolicyAdmitsTheAnnounced(t *testing.T) {
	cl, catalog := newAnnounced(t, registry.AdmitAnnounced)
	lb2 := hosttest.Start(t, "lb2", "public")
	cl.hosts["lb2"] = lb2
	catalog.say(lb2)
	cl.standing("lb2", registry.Member)
	cl.holds([]string{"a"}, "lb2")
	history, err := cl.reg.History(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	if last := history[len(history)-1]; last.What != "admit" || last.Actor != "cutover" || !strings.Contains(last.Reason, "Consul catalog") || last.AgentURL != lb2.URL {
		t.Errorf("audit: %+v", last)
	}
	cl.change(sure(txn.Remove, "lb2"))
	catalog.say(lb2)
	catalog.say()
	catalog.say(lb2)
	cl.known("lb2", "removed", func(h txn.HostInfo, known bool) bool { return known && h.Membership.Standing == "removed" })
	catalog.say()
	cl.known("lb2", "not shown", func(_ txn.HostInfo, known bool) bool { return !known })
	cl.restart()
	cl.up()
	catalog.say(lb2)
	cl.known("lb2", "removed", func(h txn.HostInfo, known bool) bool { return known && h.Membership.Standing == "removed" })
	if s := cl.commit("t2", "b"); len(s.Hosts) != 1 {
		t.Errorf("hosts of t2: %+v", s.Hosts)
	}
	cl.change(ask(txn.Admit, "lb2"))
	cl.standing("lb2", registry.Member)
	cl.holds([]string{"b"}, "lb2")
}

// A catalog moves nobody that somebody talks to; an operator does, by removing the Host, with proof, and admitting it again.
func TestACatalogMovesNobody(t *testing.T) {
	cl, catalog := newAnnounced(t, registry.AdmitAnnounced)
	lb2 := hosttest.Start(t, "lb2", "public")
	cl.hosts["lb2"] = lb2
	catalog.say(lb2)
	cl.standing("lb2", registry.Member)
	impostor := hosttest.Start(t, "lb2", "public")
	catalog.say(impostor)
	cl.known("lb2", "reported as announced elsewhere", func(h txn.HostInfo, known bool) bool {
		return known && h.AgentURL == lb2.URL && strings.Contains(h.Membership.Notice, impostor.URL) && h.Membership.Standing == "member"
	})
	if s := cl.commit("t2", "b"); len(s.Hosts) != 2 {
		t.Errorf("hosts of t2: %+v", s.Hosts)
	}
	if n := impostor.Calls("watch"); n != 0 {
		t.Errorf("somebody talked to the impostor %d times", n)
	}
	a := ask(txn.Admit, "lb2")
	a.AgentURL = impostor.URL
	cl.refused(a, txn.MemberState, "remove it first")
	cl.change(sure(txn.Remove, "lb2"))
	cl.known("lb2", "at its new address", func(h txn.HostInfo, known bool) bool {
		return known && h.AgentURL == impostor.URL && h.Membership.Standing == "removed"
	})
	lb2.Kill()
	cl.hosts["lb2"] = impostor
	cl.change(ask(txn.Admit, "lb2"))
	cl.standing("lb2", registry.Member)
	cl.holds([]string{"b"}, "lb2")

	// Two entries for one name: nobody is let in before an operator says which.
	x, y := hosttest.Start(t, "lb3", "public"), hosttest.Start(t, "lb3", "public")
	catalog.say(impostor, x, y)
	cl.known("lb3", "ambiguous", func(h txn.HostInfo, known bool) bool {
		return known && h.Membership.Standing == "announced" && strings.Contains(h.Membership.Notice, "more than once")
	})
	cl.refused(ask(txn.Admit, "lb3"), txn.MemberState, "--agent-url")
	b := ask(txn.Admit, "lb3")
	b.Group, b.AgentURL = "public", y.URL
	cl.hosts["lb3"] = y
	cl.change(b)
	cl.standing("lb3", registry.Member)
	if n := x.Calls("watch"); n != 0 {
		t.Errorf("somebody talked to the other one %d times", n)
	}
}
