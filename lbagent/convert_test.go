package lbagent

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cutover/cutover/lbagent/participant"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// TestNumbersAreTheProtocols: the machine's reasons and phases are passed on by number.
func TestNumbersAreTheProtocols(t *testing.T) {
	for n, name := range lbagentv1.RefusalReason_name {
		if n == 0 {
			continue
		}
		want := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, "REFUSAL_REASON_"), "_", "-"))
		if got := participant.Reason(n).String(); got != want {
			t.Errorf("reason %d is %q here and %q in the protocol", n, got, want)
		}
	}
	for n, name := range lbagentv1.TxnPhase_name {
		if n == 0 {
			continue
		}
		if got, want := participant.Phase(n).String(), strings.TrimPrefix(name, "TXN_PHASE_"); got != want {
			t.Errorf("phase %d is %q here and %q in the protocol", n, got, want)
		}
	}
}

func TestMessagesAreChecked(t *testing.T) {
	up := func(change func(*lbagentv1.Upstream)) *lbagentv1.Section {
		u := pbUpstream("a")
		change(u)
		return &lbagentv1.Section{App: "shop", Upstreams: []*lbagentv1.Upstream{u}}
	}
	for name, s := range map[string]*lbagentv1.Section{
		"app with a slash":   {App: "../etc"},
		"route with syntax":  {App: "shop", Routes: []*lbagentv1.Route{{Host: "a;b", Path: "/"}}},
		"route with newline": {App: "shop", Routes: []*lbagentv1.Route{{Host: "*", Path: "/a\nb"}}},
		"long route":         {App: "shop", Routes: []*lbagentv1.Route{{Host: "*", Path: "/" + strings.Repeat("a", maxPath)}}},
		"route twice":        {App: "shop", Routes: []*lbagentv1.Route{{Host: "*", Path: "/a"}, {Host: "*", Path: "/a"}}},
		"drain below zero":   {App: "shop", Drain: durationpb.New(-1)},
		"address by name":    up(func(u *lbagentv1.Upstream) { u.Address = "localhost:80" }),
		"port 0":             up(func(u *lbagentv1.Upstream) { u.Address = "127.0.0.1:0" }),
		"weight":             up(func(u *lbagentv1.Upstream) { u.Weight = 257 }),
		"health path":        up(func(u *lbagentv1.Upstream) { u.Health.Path = "/a b" }),
		"health kind":        up(func(u *lbagentv1.Upstream) { u.Health.Kind = 99 }),
	} {
		if _, err := sectionOf(s); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	good := pbSection("shop", "a", "b")
	s, err := sectionOf(good)
	if err != nil {
		t.Fatal(err)
	}
	if back := sectionTo(s); back.String() != good.String() {
		t.Errorf("there and back: %v, was %v", back, good)
	}
}
