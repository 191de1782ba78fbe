package txn

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestRegroup(t *testing.T) {
	now := time.Unix(1000, 0)
	late := now.Add(time.Minute)
	units := func(ids ...string) []Unit {
		var out []Unit
		for _, id := range ids {
			out = append(out, Unit{ID: id, Apps: []string{"app-" + id}, Deadline: late})
		}
		return out
	}
	with := func(us []Unit, i int, f func(*Unit)) []Unit { f(&us[i]); return us }
	for _, tt := range []struct {
		name  string
		units []Unit
		why   Undone
		want  string // out | batch | batch
	}{
		{"a no, nobody named: halves", units("1", "2", "3", "4", "5"), Undone{Cause: CauseHostRefused}, "| 1 2 3 | 4 5"},
		{"the one that a Host names comes last, alone", units("1", "2", "3"), Undone{Cause: CauseHostRefused, Blamed: []string{"app-2"}}, "| 1 3 | 2"},
		{"all are named: halves", units("1", "2"), Undone{Cause: CauseHostLapsed, Blamed: []string{"app-1", "app-2"}}, "| 1 | 2"},
		{"alone, it is guilty", units("1"), Undone{Cause: CauseHostRefused}, "1"},
		{"one left: the others go on together", with(units("1", "2", "3"), 1, func(u *Unit) { u.Left = true }), Undone{Cause: CauseAsked}, "2 | 1 3"},
		{"one is late: the others go on together", with(units("1", "2", "3"), 2, func(u *Unit) { u.Deadline = now }), Undone{Cause: CauseDeadline}, "3 | 1 2"},
		{"a Host is missing: for all", units("1", "2"), Undone{Cause: CauseHostMissing}, "1 2"},
		{"no answer within the round: halves", units("1", "2"), Undone{Cause: CauseHostMissing, Expired: true}, "| 1 | 2"},
		{"stuck before: nothing is tried again", units("1", "2"), Undone{Cause: CauseHostRefused, Stuck: true}, "1 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, batches := Regroup(tt.units, tt.why, now)
			parts := []string{strings.Join(out, " ")}
			for _, b := range batches {
				parts = append(parts, strings.Join(b, " "))
			}
			if got := strings.TrimSpace(strings.Join(parts, " | ")); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestRegroupFindsTheGuilty: whatever Hosts blame, exactly the guilty units fail, each of them alone, and every round is
// smaller than the one before.
func TestRegroupFindsTheGuilty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1000, 0)
		n := rapid.IntRange(1, MaxMergedWeight).Draw(t, "units")
		guilty := map[string]bool{}
		var all []string
		for i := range n {
			id := fmt.Sprint(i)
			all = append(all, id)
			guilty[id] = rapid.IntRange(0, 4).Draw(t, "guilty") == 0
		}
		var failed, succeeded []string
		queue, rounds := [][]string{all}, 0
		for len(queue) > 0 {
			batch := queue[0]
			queue = queue[1:]
			if rounds++; rounds > 4*n {
				t.Fatalf("%d rounds for %d units", rounds, n)
			}
			bad := slices.ContainsFunc(batch, func(id string) bool { return guilty[id] })
			if !bad {
				succeeded = append(succeeded, batch...)
				continue
			}
			var units []Unit
			var blamed []string
			for _, id := range batch {
				units = append(units, Unit{ID: id, Apps: []string{id}, Deadline: now.Add(time.Minute)})
				if rapid.IntRange(0, 3).Draw(t, "blame") == 0 {
					blamed = append(blamed, id) // rightly or not
				}
			}
			out, batches := Regroup(units, Undone{Cause: CauseHostRefused, Blamed: blamed}, now)
			if len(out) > 0 && len(batch) > 1 {
				t.Fatalf("%v failed in a batch of %d", out, len(batch))
			}
			failed = append(failed, out...)
			for _, b := range batches {
				if len(b) == 0 || len(b) >= len(batch) {
					t.Fatalf("%v is tried again as %v", batch, batches)
				}
			}
			queue = append(queue, batches...)
		}
		for _, id := range failed {
			if !guilty[id] {
				t.Fatalf("%s failed for another's fault", id)
			}
		}
		if len(failed)+len(succeeded) != n {
			t.Fatalf("%d failed and %d succeeded of %d", len(failed), len(succeeded), n)
		}
	})
}

func TestRoundDeadline(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tt := range []struct {
		n    int
		left time.Duration
		want time.Duration
	}{
		{1, 2 * time.Minute, 2 * time.Minute},
		{2, 2 * time.Minute, 40 * time.Second},
		{20, 2 * time.Minute, 2 * time.Minute / 7},
		{20, 10 * time.Second, leastRound},
		{20, time.Second, time.Second},
	} {
		if got := RoundDeadline(tt.n, now.Add(tt.left), now).Sub(now); got != tt.want {
			t.Errorf("%d units with %v left: a round of %v, want %v", tt.n, tt.left, got, tt.want)
		}
	}
}
