package txn

import "testing"

func TestPolicies(t *testing.T) {
	for _, c := range []struct {
		text    string
		members int
		spares  int
	}{
		{"all", 4, 0},
		{"all-but(1)", 4, 1},
		{"all-but(1)", 1, 0}, // one has to prove it
		{"all-but(9)", 4, 3},
		{"percent(100)", 4, 0},
		{"percent(80)", 4, 0}, // 3.2 of 4 are needed: 4
		{"percent(75)", 4, 1},
		{"percent(80)", 10, 2},
		{"percent(1)", 10, 9},
		{"percent(1)", 0, 0},
	} {
		p, err := ParsePolicy(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := p.Spares(c.members); got != c.spares {
			t.Errorf("%s of %d: %d may be missing, want %d", c.text, c.members, got, c.spares)
		}
		if p.String() != c.text {
			t.Errorf("%s is written as %s", c.text, p)
		}
	}
	if p, err := ParsePolicy(""); err != nil || p != (Policy{}) {
		t.Errorf("no policy: %v %v", p, err)
	}
	for _, text := range []string{"some", "all-but", "all-but()", "all-but(0)", "all-but(-1)", "all-but(1", "percent(0)", "percent(101)", "percent(x)", "all(1)", "ALL", "percent(99999999)"} {
		if p, err := ParsePolicy(text); err == nil {
			t.Errorf("%s is taken as %v", text, p)
		}
	}
}
