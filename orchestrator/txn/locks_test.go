package txn

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func sections(names ...string) []SectionKey {
	var out []SectionKey
	for _, n := range names {
		group, app, _ := strings.Cut(n, "/")
		out = append(out, SectionKey{group, app})
	}
	return out
}

func TestLockOrder(t *testing.T) {
	var table LockTable
	add := func(r LockRequest, want ...string) {
		t.Helper()
		var got []string
		if table, got = table.Add(r); !slices.Equal(got, want) {
			t.Fatalf("adding %s granted %v, want %v", r.ID, got, want)
		}
	}
	release := func(id string, want ...string) {
		t.Helper()
		var got []string
		if table, got = table.Release(id); !slices.Equal(got, want) {
			t.Fatalf("releasing %s granted %v, want %v", id, got, want)
		}
	}
	add(LockRequest{ID: "1", Sections: sections("g/a")}, "1")
	add(LockRequest{ID: "2", Sections: sections("g/a", "g/b")})
	add(LockRequest{ID: "3", Sections: sections("g/b")}) // behind 2, which came first
	add(LockRequest{ID: "4", Sections: sections("g/c")}, "4")
	add(LockRequest{ID: "5", Sections: sections("g/a"), Rollback: true})
	add(LockRequest{ID: "6", Sections: sections("g/d"), Exclusive: []string{"g"}})
	add(LockRequest{ID: "7", Sections: sections("g/e")})      // waits behind the Frame lock
	add(LockRequest{ID: "8", Sections: sections("h/e")}, "8") // another Group
	release("1", "5")
	release("5", "2")
	release("4")
	release("2", "3")
	release("3", "6")
	release("6", "7")
	if table.Holder(SectionKey{"g", "e"}) != "7" || !table.Held("8") || table.Held("6") {
		t.Error("the table does not say who holds what")
	}
	release("nobody")
}

// TestLockLaws: nobody holds what another one holds, and when all holders let go, everybody has had a turn.
func TestLockLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table LockTable
		requests := map[string]LockRequest{}
		var held, done []string
		granted := func(ids []string) {
			for _, id := range ids {
				for _, h := range held {
					if conflict(requests[id], requests[h]) {
						t.Fatalf("%s was granted while %s holds the same", id, h)
					}
				}
				held = append(held, id)
			}
		}
		letGo := func() {
			i := rapid.IntRange(0, len(held)-1).Draw(t, "who")
			id := held[i]
			held = slices.Delete(held, i, i+1)
			done = append(done, id)
			var ids []string
			table, ids = table.Release(id)
			granted(ids)
		}
		n := rapid.IntRange(1, 12).Draw(t, "requests")
		for i := range n {
			r := LockRequest{ID: fmt.Sprint(i), Rollback: rapid.Bool().Draw(t, "rollback"),
				Sections: sections(rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"g/a", "g/b", "g/c", "h/a"}), 1, 3, rapid.ID).Draw(t, "sections")...)}
			if rapid.IntRange(0, 4).Draw(t, "exclusive") == 0 {
				r.Exclusive = []string{r.Sections[0].Group}
			}
			requests[r.ID] = r
			var ids []string
			table, ids = table.Add(r)
			granted(ids)
			if len(held) > 0 && rapid.Bool().Draw(t, "release") {
				letGo()
			}
		}
		for len(held) > 0 {
			letGo()
		}
		if len(done) != n {
			t.Fatalf("%d of %d had a turn: %v", len(done), n, done)
		}
	})
}
