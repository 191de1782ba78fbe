package txn

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

func TestCommitPlan(t *testing.T) {
	section := func(app string, order uint64, names ...string) *lbagentv1.CommittedSection {
		s := &lbagentv1.Section{App: app}
		for _, n := range names {
			s.Upstreams = append(s.Upstreams, &lbagentv1.Upstream{Name: n})
		}
		return &lbagentv1.CommittedSection{Section: s, Version: &lbagentv1.Version{Txn: order}}
	}
	shop, cart := SectionKey{"g", "shop"}, SectionKey{"h", "cart"}
	now := map[SectionKey]*lbagentv1.CommittedSection{shop: section("shop", 1, "a", "a2"), cart: section("cart", 1, "c")}
	good := func() Commit {
		return Commit{
			ID: "joint", Order: 7,
			Proposals: []Named{{ID: "t1", Keys: []SectionKey{shop}}, {ID: "t2", Keys: []SectionKey{cart}}},
			Changes: []Change{
				{Key: shop, Target: section("shop", 0, "b", "b2").Section, Base: now[shop]},
				{Key: cart, Base: now[cart]},
			},
			Dead:  map[string]bool{"b2": true, "a2": true},
			Hosts: map[string][]string{"g": {"lb1"}, "h": {"lb2"}},
			Voted: map[string]bool{"lb1": true, "lb2": true},
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*Commit)
		want   string
	}{
		{"all is there", func(*Commit) {}, "g/shop 7 [b] removed=false retired=[a]; h/cart 7 [] removed=true retired=[c]"},
		{"a Section of a proposal is left out", func(c *Commit) { c.Changes = c.Changes[:1] },
			"error: proposal t2 names section h/cart, and transaction joint does not change it"},
		{"a Group has no Hosts", func(c *Commit) { c.Hosts["h"] = nil }, "error: proposal t2 changes section h/cart, and the group has no hosts"},
		{"a Host has not voted", func(c *Commit) { c.Voted = map[string]bool{"lb1": true} },
			"error: proposal t2 changes section h/cart, and host lb2 has not voted"},
		{"a base has moved", func(c *Commit) { c.Changes[1].Base = section("cart", 2, "c") }, "error: " + ErrBaseMoved.Error()},
		{"an Amendment of the base does not count", func(c *Commit) {
			c.Changes[1].Base = section("cart", 1, "c", "c2")
			c.Changes[1].Base.Version.Amendments = 1
		}, "g/shop 7 [b] removed=false retired=[a]; h/cart 7 [] removed=true retired=[c]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := good()
			tt.change(&c)
			plan, err := c.Plan(func(k SectionKey) *lbagentv1.CommittedSection { return now[k] })
			if diff := cmp.Diff(tt.want, planText(plan, err)); diff != "" {
				t.Error(diff)
			}
			if tt.name == "a base has moved" && !errors.Is(err, ErrBaseMoved) {
				t.Errorf("%v is not ErrBaseMoved", err)
			}
		})
	}
}

func planText(plan []Committing, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	var out []string
	for _, p := range plan {
		var ups []string
		for _, u := range p.Next.GetSection().GetUpstreams() {
			ups = append(ups, u.GetName())
		}
		removed := "removed=false"
		if p.Next.GetRemoved() {
			removed = "removed=true"
		}
		out = append(out, p.Key.Group+"/"+p.Key.App+" "+string(rune('0'+p.Next.GetVersion().GetTxn()))+" ["+strings.Join(ups, " ")+"] "+
			removed+" retired=["+strings.Join(p.Retired, " ")+"]")
	}
	return strings.Join(out, "; ")
}
