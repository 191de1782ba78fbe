package txn

import (
	"fmt"
	"strconv"
	"strings"
)

// Policy says how many Hosts of a Group may be missing from a Commit. A missing one is recorded `unproven`: it permits the
// Commit, and blocks kills until it is synced or proven out of traffic (NO-ORPHAN-KILL). The zero value is `all`.
type Policy struct {
	// AllBut is how many Hosts may be missing.
	AllBut int
	// Percent, if not 0, is how many of a hundred Hosts must not be missing, rounded up.
	Percent int
}

// ParsePolicy reads `all`, `all-but(k)` or `percent(p)`; the empty text is `all`.
func ParsePolicy(text string) (Policy, error) {
	bad := fmt.Errorf("policy %q: want all, all-but(K) with K from 1, or percent(P) with P from 1 to 100", text)
	name, arg, found := strings.Cut(text, "(")
	if !found {
		if text == "" || text == "all" {
			return Policy{}, nil
		}
		return Policy{}, bad
	}
	digits, closed := strings.CutSuffix(arg, ")")
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || !closed || n == 0 {
		return Policy{}, bad
	}
	switch {
	case name == "all-but":
		return Policy{AllBut: int(n)}, nil
	case name == "percent" && n <= 100:
		return Policy{Percent: int(n)}, nil
	}
	return Policy{}, bad
}

// String is the text that ParsePolicy reads.
func (p Policy) String() string {
	switch {
	case p.Percent > 0:
		return fmt.Sprintf("percent(%d)", p.Percent)
	case p.AllBut > 0:
		return fmt.Sprintf("all-but(%d)", p.AllBut)
	default:
		return "all"
	}
}

// Spares is how many of that many members may be missing. One must always be there: a Group of which no Host has proved
// anything is never a success (ALL-OR-OLD).
func (p Policy) Spares(members int) int {
	spare := p.AllBut
	if p.Percent > 0 {
		spare = members - (members*p.Percent+99)/100
	}
	return max(0, min(spare, members-1))
}
