package registry

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
	"github.com/cutover/cutover/orchestrator/txn"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func listing(hosts ...Host) Listing { return Listing{Source: FromConsul, At: noon, Hosts: hosts} }

func at(name, group, url string) Host { return Host{Name: name, Group: group, AgentURL: url} }

var testGroups = map[string]Group{"public": {Name: "public"}, "inner": {Name: "inner"}}

// What a catalog says of Hosts, and what becomes of it.
func TestWhatACatalogSays(t *testing.T) {
	const a, b = "https://10.0.0.1:8600", "https://10.0.0.2:8600"
	known := func(standing Standing, source Source) *Membership {
		return &Membership{Format: 1, Host: "lb", Group: "public", AgentURL: a, Source: source, Standing: standing}
	}
	file := known(Member, FromFile)
	file.Declared, file.Announced = true, true
	for name, c := range map[string]struct {
		old  *Membership
		said []Host
		// want is "standing group url source", with ! if it is announced and ? if it is ambiguous; "" if nothing is known of it.
		want   string
		notice string
	}{
		"a new host":                      {nil, []Host{at("lb", "public", a)}, "announced public " + a + " consul!", ""},
		"twice the same":                  {nil, []Host{at("lb", "public", a), at("lb", "public", a+"/")}, "announced public " + a + " consul!", ""},
		"at two addresses":                {nil, []Host{at("lb", "public", b), at("lb", "public", a)}, "announced public " + a + " consul!?", "say which with --group and --agent-url"},
		"in two groups":                   {nil, []Host{at("lb", "public", a), at("lb", "inner", a)}, "announced inner " + a + " consul!?", "in group inner, at " + a + " in group public"},
		"in an undeclared group":          {nil, []Host{at("lb", "nowhere", a)}, "", ""},
		"in the clear over the network":   {nil, []Host{at("lb", "public", "http://10.0.0.1:8600")}, "", ""},
		"announced, gone":                 {known(Announced, FromConsul), nil, "", ""},
		"announced, moved":                {known(Announced, FromConsul), []Host{at("lb", "public", b)}, "announced public " + b + " consul!", ""},
		"a member as before":              {known(Member, FromConsul), []Host{at("lb", "public", "https://10.0.0.1:8600")}, "member public " + a + " consul!", ""},
		"a member, gone":                  {known(Member, FromConsul), nil, "member public " + a + " consul", "no longer: it stays member"},
		"a joining one, gone":             {known(Joining, FromConsul), nil, "joining public " + a + " consul", "no longer: it stays joining"},
		"an excluded one, gone":           {known(Excluded, FromConsul), nil, "excluded public " + a + " consul", "no longer: it stays excluded"},
		"a member, moved":                 {known(Member, FromConsul), []Host{at("lb", "public", b)}, "member public " + a + " consul!", "at " + b + " in group public, which is not followed, since it is member: if it has moved, cutover lb remove lb"},
		"a joining one, moved":            {known(Joining, FromConsul), []Host{at("lb", "public", b)}, "joining public " + a + " consul!", "not followed"},
		"an excluded one, moved":          {known(Excluded, FromConsul), []Host{at("lb", "inner", a)}, "excluded public " + a + " consul!", "in group inner, which is not followed"},
		"a member, and an impostor":       {known(Member, FromConsul), []Host{at("lb", "public", a), at("lb", "public", b)}, "member public " + a + " consul!", "also at " + b},
		"a removed one":                   {known(Removed, FromConsul), []Host{at("lb", "inner", b)}, "removed inner " + b + " consul!", ""},
		"a removed one, gone":             {known(Removed, FromConsul), nil, "removed public " + a + " consul", ""},
		"admitted by hand, announced":     {known(Member, FromOperator), []Host{at("lb", "public", a)}, "member public " + a + " operator!", ""},
		"admitted by hand, elsewhere":     {known(Member, FromOperator), []Host{at("lb", "public", b)}, "member public " + a + " operator!", "not followed"},
		"admitted by hand, not there":     {known(Member, FromOperator), nil, "member public " + a + " operator", ""},
		"declared, announced":             {file, []Host{at("lb", "public", a)}, "member public " + a + " hosts-file!", ""},
		"declared, announced elsewhere":   {file, []Host{at("lb", "public", b)}, "member public " + a + " hosts-file!", "the hosts file decides"},
		"declared, not in the catalog":    {file, nil, "member public " + a + " hosts-file!", ""},
		"declared no longer, announced":   {known(Member, FromFile), []Host{at("lb", "public", a)}, "member public " + a + " hosts-file!", ""},
		"a name that is no name":          {nil, []Host{at("-", "public", a)}, "", ""},
		"an address that is no address":   {nil, []Host{at("lb", "public", "ftp://10.0.0.1")}, "", ""},
		"an address with other letters":   {known(Member, FromConsul), []Host{at("lb", "public", "https://10.0.0.1:8600/")}, "member public " + a + " consul!", ""},
		"another scheme is another place": {known(Member, FromConsul), []Host{at("lb", "public", "http://127.0.0.1:8600")}, "member public " + a + " consul!", "not followed"},
	} {
		t.Run(name, func(t *testing.T) {
			old := map[string]Membership{}
			if c.old != nil {
				old["lb"] = *c.old
			}
			cat := catalog{}.hear(testGroups, listing(c.said...))
			m, ok := cat.members(old)["lb"]
			got := ""
			if ok {
				got = fmt.Sprintf("%s %s %s %s", m.Standing, m.Group, m.AgentURL, m.Source)
				got += map[bool]string{true: "!"}[m.Announced] + map[bool]string{true: "?"}[m.Ambiguous]
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			if (c.notice == "") != (m.Notice == "") || !strings.Contains(m.Notice, c.notice) {
				t.Errorf("notice %q, want %q", m.Notice, c.notice)
			}
			if c.want == "" && c.old == nil && len(cat.refused) == 0 {
				t.Error("it was refused without a word")
			}
			// FAIL-STATIC: a catalog that cannot be read changes nothing.
			before := cat.members(old)
			away := cat.hear(testGroups, Listing{Source: FromConsul, At: noon.Add(time.Hour), Err: errors.New("away")})
			if diff := cmp.Diff(before, away.members(before)); diff != "" || away.problem != "away" || !away.since.Equal(noon.Add(time.Hour)) {
				t.Errorf("the catalog is away: %s %+v", diff, away)
			}
		})
	}
}

// A catalog that is unreadable from the start says nothing about anybody.
func TestACatalogThatWasNeverRead(t *testing.T) {
	m := Membership{Host: "lb", Group: "public", AgentURL: "https://10.0.0.1:8600", Source: FromConsul, Standing: Member}
	c := catalog{}.hear(testGroups, Listing{Source: FromConsul, At: noon, Err: errors.New("away")})
	if got := c.members(map[string]Membership{"lb": m})["lb"]; got.Notice != "" || got.Standing != Member {
		t.Errorf("%+v", got)
	}
}

func TestRefusedEntriesAreBounded(t *testing.T) {
	l := listing()
	l.Refused = []string{"a" + strings.Repeat("€", maxText)}
	for i := range 99 {
		l.Hosts = append(l.Hosts, at(fmt.Sprintf("lb-%d", i), "nowhere", "https://10.0.0.1:8600"))
	}
	c := catalog{}.hear(testGroups, l)
	if len(c.refused) != maxRefused+1 || c.refused[maxRefused] != "and 80 more" || len(c.refused[0]) > maxText+len("…") || !utf8.ValidString(c.refused[0]) {
		t.Errorf("%d: %v", len(c.refused), c.refused)
	}
	long := catalog{}.hear(testGroups, listing(at("lb", "public", "https://"+strings.Repeat("a", 2*maxURL))))
	if len(long.said) != 0 || len(long.refused) != 1 {
		t.Errorf("%+v", long)
	}
	var many []Host
	for i := range 50 {
		many = append(many, at("lb", "public", fmt.Sprintf("https://10.0.0.%d:8600", i+1)))
	}
	if n := (catalog{}).hear(testGroups, listing(many...)).members(nil)["lb"].Notice; !strings.Contains(n, "and 46 more") || len(n) > 500 {
		t.Errorf("notice %q", n)
	}
}

// house is a Registry, term after term, and what a random history does to it.
type house struct {
	t     *rapid.T
	store store.Store
	r     *Registry
	epoch uint64
}

func (h *house) begin() {
	h.epoch++
	r, err := New(h.t.Context(), Options{
		Cluster: "test", Catalog: true, Store: h.store, Fence: store.Fence{Epoch: h.epoch}, Logger: slog.New(slog.DiscardHandler),
		Groups: []Group{{Name: "open", Admit: AdmitAnnounced}, {Name: "closed", Admit: AdmitOperator}, {Name: "filed"}},
		Hosts:  []Host{at("filed-1", "filed", "https://10.0.0.9:8600")},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.r = r
}

func (h *house) install(m Membership, what string) {
	ops, install := h.r.Change(m, what)
	rev, err := h.store.Commit(h.t.Context(), store.Fence{Epoch: h.epoch}, ops...)
	if err != nil {
		h.t.Fatal(err)
	}
	install(rev)
}

func (h *house) state() (map[string]Membership, map[string]View, store.Revision) {
	rev, err := h.store.Revision(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return maps.Clone(h.r.members), maps.Clone(h.r.views), rev
}

// No catalog, whatever it says and when, takes a Host into a View, out of one, or to another address, and nothing that it
// says is written down; what was removed comes back by an operator only.
func TestNoCatalogChangesAView(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &house{t: t, store: memstore.New()}
		h.begin()
		names := rapid.SampledFrom([]string{"a", "b", "filed-1"})
		groups := rapid.SampledFrom([]string{"open", "closed", "filed", "nowhere"})
		urls := rapid.SampledFrom([]string{"https://10.0.0.1:8600", "https://10.0.0.2:8600", "https://10.0.0.9:8600", "http://10.0.0.1:1"})
		removed := map[string]bool{}
		hear := func(t *rapid.T) {
			l := Listing{Source: FromConsul, At: noon}
			if rapid.Bool().Draw(t, "away") {
				l.Err = errors.New("away")
			} else {
				for range rapid.IntRange(0, 3).Draw(t, "n") {
					l.Hosts = append(l.Hosts, at(names.Draw(t, "name"), groups.Draw(t, "group"), urls.Draw(t, "url")))
				}
			}
			members, views, rev := h.state()
			h.r.Hear(l)
			after, viewsAfter, revAfter := h.state()
			if diff := cmp.Diff(views, viewsAfter); diff != "" || rev != revAfter {
				t.Fatalf("a listing changed a view or wrote something: %s", diff)
			}
			for name, m := range members {
				now, ok := after[name]
				if m.Standing == Announced && !m.Declared {
					continue
				}
				if !ok || now.Standing != m.Standing || now.Drained != m.Drained || m.Standing.linked() && (now.AgentURL != m.AgentURL || now.Group != m.Group || now.Source != m.Source) {
					t.Fatalf("a listing changed %+v to %+v", m, now)
				}
				if l.Err != nil && cmp.Diff(m, now) != "" {
					t.Fatalf("a catalog that is away changed %s", cmp.Diff(m, now))
				}
			}
			for name, m := range after {
				if _, was := members[name]; !was && m.Standing != Announced {
					t.Fatalf("a listing made %+v", m)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"hear": hear,
			"policy": func(t *rapid.T) {
				for _, name := range h.r.Admissible() {
					m, ok := h.r.AdmitAnnounced(name, noon)
					if !ok || m.Group != "open" || removed[name] {
						t.Fatalf("%+v was let in (%t)", m, ok)
					}
					h.install(m, "admit")
				}
			},
			"ask": func(t *rapid.T) {
				ask := txn.MemberAsk{Verb: rapid.SampledFrom([]txn.MemberVerb{txn.Admit, txn.Exclude, txn.Readmit, txn.DrainHost, txn.Remove}).Draw(t, "verb"),
					Host: names.Draw(t, "host"), Sure: true, Actor: "kim", Reason: "test"}
				if ask.Verb == txn.Admit && rapid.Bool().Draw(t, "at an address") {
					ask.Group, ask.AgentURL = rapid.SampledFrom([]string{"open", "closed"}).Draw(t, "group"), urls.Draw(t, "url")
				}
				var old *Membership
				if m, ok := h.r.Member(ask.Host); ok {
					old = &m
				}
				m, changed, err := Decide(ask, old, Seen{}, noon)
				if err != nil || !changed {
					return
				}
				h.install(m, string(ask.Verb))
				removed[ask.Host] = m.Standing == Removed
			},
			"join": func(t *rapid.T) {
				if m, ok := h.r.Member(names.Draw(t, "host")); ok && m.Standing == Joining {
					m.Standing, m.Last.At = Member, noon
					h.install(m, "join")
				}
			},
			"next term": func(*rapid.T) { h.begin() },
			"": func(t *rapid.T) {
				for name, m := range h.r.members {
					if removed[name] && m.Standing != Removed {
						t.Fatalf("%s was removed and is %s", name, m.Standing)
					}
					in := slices.Contains(h.r.views[m.Group].Hosts, name)
					if in != (m.Standing == Member) {
						t.Fatalf("%+v, in its view: %t", m, in)
					}
					if (h.r.links[name] != nil) != m.Standing.linked() {
						t.Fatalf("%+v has a link: %t", m, h.r.links[name] != nil)
					}
					if l := h.r.links[name]; l != nil && (l.host.AgentURL != m.AgentURL || l.host.Group != m.Group) {
						t.Fatalf("%+v is reached at %+v", m, l.host)
					}
				}
				for name := range removed {
					if removed[name] && h.r.members[name].Standing != Removed {
						t.Fatalf("%s was removed and is forgotten", name)
					}
				}
				records, err := h.store.List(t.Context(), prefixView, "", 0)
				if err != nil {
					t.Fatal(err)
				}
				seen := map[string]bool{}
				for _, rec := range records {
					if _, host := splitKey(rec.Key); host != "" {
						if seen[host] {
							t.Fatalf("%s has two records", host)
						}
						seen[host] = true
					}
				}
			},
		})
	})
}

// A Host that was removed from one Group may be declared in another; it still waits for an operator.
func TestARemovedHostIsDeclaredElsewhere(t *testing.T) {
	s := memstore.New()
	epoch := uint64(0)
	begin := func(group string) *Registry {
		epoch++
		r, err := New(t.Context(), Options{Cluster: "test", Catalog: true, Store: s, Fence: store.Fence{Epoch: epoch}, Logger: slog.New(slog.DiscardHandler),
			Hosts: []Host{at("lb", group, "https://10.0.0.1:8600")}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := begin("a")
	m, _ := r.Member("lb")
	m, _, err := Decide(txn.MemberAsk{Verb: txn.Remove, Host: "lb", Sure: true, Actor: "kim", Reason: "test"}, &m, Seen{}, noon)
	if err != nil {
		t.Fatal(err)
	}
	ops, install := r.Change(m, "remove")
	rev, err := s.Commit(t.Context(), store.Fence{Epoch: epoch}, ops...)
	if err != nil {
		t.Fatal(err)
	}
	install(rev)
	for range 2 {
		r = begin("b")
		if m, _ := r.Member("lb"); m.Group != "b" || m.Standing != Removed {
			t.Errorf("%+v", m)
		}
	}
}
