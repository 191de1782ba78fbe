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

// flat writes what was granted together as "1+2".
func flat(grants []Grant) []string {
	var out []string
	for _, g := range grants {
		out = append(out, strings.Join(g, "+"))
	}
	return out
}

func TestLockOrder(t *testing.T) {
	var table LockTable
	add := func(r LockRequest, want ...string) {
		t.Helper()
		var got []Grant
		if table, got = table.Add(r); !slices.Equal(flat(got), want) {
			t.Fatalf("adding %s granted %v, want %v", r.ID, got, want)
		}
	}
	release := func(id string, want ...string) {
		t.Helper()
		var got []Grant
		if table, got = table.Release(id); !slices.Equal(flat(got), want) {
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

func TestLockMerge(t *testing.T) {
	frame := []string{"g"}
	reload := func(id string, apps ...string) LockRequest {
		return LockRequest{ID: id, Sections: sections(apps...), Exclusive: frame, Merge: true, Weight: len(apps)}
	}
	with := func(r LockRequest, f func(*LockRequest)) LockRequest { f(&r); return r }
	for _, tt := range []struct {
		name     string
		requests []LockRequest
		want     string // each round's grants, as the holder lets go
	}{
		{"all that wait for the Frame lock", []LockRequest{reload("1", "g/a"), reload("2", "g/b"), reload("3", "g/c")}, "1 2+3"},
		{"not what keeps to itself", []LockRequest{reload("1", "g/a"), reload("2", "g/b"), with(reload("3", "g/c"), func(r *LockRequest) { r.Merge = false })}, "1 2 3"},
		{"not the same Section, nor who waits behind it", []LockRequest{reload("1", "g/a"), reload("2", "g/b"), reload("3", "g/b"), reload("4", "g/c")}, "1 2 3+4"},
		{"not the same route", []LockRequest{
			reload("1", "g/a"), with(reload("2", "g/b"), func(r *LockRequest) { r.Claims = []string{"/x"} }), with(reload("3", "g/c"), func(r *LockRequest) { r.Claims = []string{"/x"} }),
		}, "1 2 3"},
		{"rollbacks among themselves", []LockRequest{
			reload("1", "g/a"), reload("2", "g/b"), with(reload("3", "g/c"), func(r *LockRequest) { r.Rollback = true }), with(reload("4", "g/d"), func(r *LockRequest) { r.Rollback = true }),
		}, "1 3+4 2"},
		{"what is tried again before the others", []LockRequest{
			reload("1", "g/a"), reload("2", "g/b"), with(reload("3", "g/c"), func(r *LockRequest) { r.Again, r.Merge = true, false }),
		}, "1 3 2"},
		{"no more than one Commit can hold", []LockRequest{
			reload("1", "g/a"), with(reload("2", "g/b"), func(r *LockRequest) { r.Weight = MaxMergedWeight }), reload("3", "g/c"), reload("4", "g/d"),
		}, "1 2 3+4"},
		{"one that needs no reload goes by itself", []LockRequest{reload("1", "g/a"), {ID: "2", Sections: sections("g/b"), Merge: true}, {ID: "3", Sections: sections("g/c"), Merge: true}}, "1 2 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var table LockTable
			var grants []Grant
			table, open := table.Add(tt.requests[0])
			for _, r := range tt.requests[1:] {
				table, grants = table.Add(r)
				open = append(open, grants...)
			}
			var story []string
			for len(open) > 0 {
				story = append(story, strings.Join(open[0], "+"))
				table, grants = table.Release(open[0][0])
				open = append(open[1:], grants...)
			}
			if got := strings.Join(story, " "); got != tt.want {
				t.Errorf("granted %s, want %s", got, tt.want)
			}
		})
	}
}

// TestLockLaws: nobody holds what another one holds, and when all holders let go, everybody has had a turn.
func TestLockLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table LockTable
		requests := map[string]LockRequest{}
		var held []Grant
		var done []string
		granted := func(grants []Grant) {
			for _, g := range grants {
				weight := 0
				for i, id := range g {
					for _, other := range g[:i] {
						if !sameSet(requests[id].Exclusive, requests[other].Exclusive) || requests[id].Rollback != requests[other].Rollback {
							t.Fatalf("%s and %s were merged", id, other)
						}
						for _, k := range requests[id].Sections {
							if slices.Contains(requests[other].Sections, k) {
								t.Fatalf("%s and %s were merged and both change %v", id, other, k)
							}
						}
					}
					weight += requests[id].Weight
					for _, h := range slices.Concat(held...) {
						if conflict(requests[id], requests[h]) {
							t.Fatalf("%s was granted while %s holds the same", id, h)
						}
					}
				}
				if len(g) > 1 && weight > MaxMergedWeight {
					t.Fatalf("%v weigh %d together", g, weight)
				}
				held = append(held, g)
			}
		}
		letGo := func() {
			i := rapid.IntRange(0, len(held)-1).Draw(t, "who")
			g := held[i]
			held = slices.Delete(held, i, i+1)
			done = append(done, g...)
			var next []Grant
			table, next = table.Release(g[0])
			granted(next)
		}
		n := rapid.IntRange(1, 12).Draw(t, "requests")
		for i := range n {
			r := LockRequest{ID: fmt.Sprint(i), Rollback: rapid.Bool().Draw(t, "rollback"),
				Sections: sections(rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"g/a", "g/b", "g/c", "h/a"}), 1, 3, rapid.ID).Draw(t, "sections")...)}
			if rapid.IntRange(0, 4).Draw(t, "exclusive") == 0 {
				r.Exclusive = []string{r.Sections[0].Group}
			}
			r.Merge = rapid.Bool().Draw(t, "merge")
			r.Again = rapid.IntRange(0, 4).Draw(t, "again") == 0
			r.Weight = rapid.IntRange(1, MaxMergedWeight).Draw(t, "weight")
			requests[r.ID] = r
			var next []Grant
			table, next = table.Add(r)
			granted(next)
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
