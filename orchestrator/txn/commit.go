package txn

import (
	"errors"
	"fmt"
	"slices"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// Change is one Section that a transaction changes: Target nil removes it, Base nil is a Section that the Group never had.
type Change struct {
	Key    SectionKey
	Target *lbagentv1.Section
	Base   *lbagentv1.CommittedSection
}

// Named is a proposal as the Commit record has to answer for it: the Sections that it names.
type Named struct {
	ID   string
	Keys []SectionKey
}

// Committing is what one change of a Commit makes of its Section, and the upstreams that it takes out, apart from the dead.
type Committing struct {
	Key     SectionKey
	Next    *lbagentv1.CommittedSection
	Retired []string
}

// ErrBaseMoved is for a transaction below which a committed Section moved on.
var ErrBaseMoved = errors.New("the committed section is not the base any more")

// Commit is what the Commit record of a transaction holds.
type Commit struct {
	ID        string
	Order     uint64
	Proposals []Named
	Changes   []Change
	// Dead are the names that were removed since the proposal.
	Dead map[string]bool
	// Hosts are those of the pinned Views by Group, Voted those whose vote (or its absence, as the policy permits) is listed.
	Hosts map[string][]string
	Voted map[string]bool
}

// Plan is the last look before the record is written, and what it commits, change by change. now are the committed Sections.
// Whatever brought the transaction here, each Section that a proposal names is changed by it, in a Group with Hosts, and every
// Host of the pinned Views has voted (ALL-OR-OLD): if not, that is a mistake in this program, and nothing is committed.
func (c Commit) Plan(now func(SectionKey) *lbagentv1.CommittedSection) ([]Committing, error) {
	for _, p := range c.Proposals {
		for _, key := range p.Keys {
			if err := c.answersFor(p, key); err != nil {
				return nil, err
			}
		}
	}
	var out []Committing
	for _, ch := range c.Changes {
		committed := now(ch.Key)
		if BaseMoved(ch.Base, committed) {
			return nil, ErrBaseMoved
		}
		next := CommittedAfter(ch.Key.App, ch.Target, c.Order, c.Dead)
		out = append(out, Committing{Key: ch.Key, Next: next, Retired: RetiredNames(committed, next, c.Dead)})
	}
	return out, nil
}

func (c Commit) answersFor(p Named, key SectionKey) error {
	if !slices.ContainsFunc(c.Changes, func(ch Change) bool { return ch.Key == key }) {
		return fmt.Errorf("proposal %s names section %s/%s, and transaction %s does not change it", p.ID, key.Group, key.App, c.ID)
	}
	if len(c.Hosts[key.Group]) == 0 {
		return fmt.Errorf("proposal %s changes section %s/%s, and the group has no hosts", p.ID, key.Group, key.App)
	}
	for _, name := range c.Hosts[key.Group] {
		if !c.Voted[name] {
			return fmt.Errorf("proposal %s changes section %s/%s, and host %s has not voted", p.ID, key.Group, key.App, name)
		}
	}
	return nil
}

// BaseMoved says whether the committed Section is not the one any more that a transaction builds on: then it must not be
// decided. Amendments do not count, they apply to base and target alike.
func BaseMoved(base, now *lbagentv1.CommittedSection) bool {
	return base.GetVersion().GetTxn() != now.GetVersion().GetTxn()
}

// CommittedAfter is the Section that a change commits: its target (nil: removed) without what died meanwhile. A removed
// Section leaves its order number behind.
func CommittedAfter(app string, target *lbagentv1.Section, order uint64, dead map[string]bool) *lbagentv1.CommittedSection {
	out := &lbagentv1.CommittedSection{Version: &lbagentv1.Version{Txn: order}}
	if target == nil {
		out.Removed = true
		out.Section = &lbagentv1.Section{App: app}
	} else {
		out.Section = Without(target, dead)
	}
	return out
}

// RetiredNames are the upstreams of now that next does not have, apart from the dead, sorted.
func RetiredNames(now, next *lbagentv1.CommittedSection, dead map[string]bool) []string {
	keep := names(next.GetSection())
	var out []string
	for _, u := range now.GetSection().GetUpstreams() {
		if !keep[u.GetName()] && !dead[u.GetName()] {
			out = append(out, u.GetName())
		}
	}
	slices.Sort(out)
	return out
}
