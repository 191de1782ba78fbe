package lead

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Each story is a list of events; the golden text has the phase and the effects after each.
func TestElectionStories(t *testing.T) {
	me, other := Leader{Name: "me"}, Leader{Name: "other"}
	taken := lockTaken{session: "s1", index: 10, leader: me}
	for name, story := range map[string]struct {
		events []any
		want   string
	}{
		"an election won and handed over": {
			[]any{lockSeen{index: 5}, wanted{}, sessionMade{id: "s1"}, taken, released{}, left{"s1"}},
			`away; joining makeSession; trying takeLock{s1}; leading won{s1}; leaving leave{s1}; away`,
		},
		"waiting behind another": {
			[]any{lockSeen{index: 5, holder: "x", leader: other}, wanted{}, sessionMade{id: "s1"}, lockSeen{index: 6}, taken},
			`away; joining makeSession; waiting; trying takeLock{s1}; leading won{s1}`,
		},
		"what was seen before the lock was taken says nothing": {
			[]any{wanted{}, sessionMade{id: "s1"}, taken, lockSeen{index: 9}, lockSeen{index: 10, holder: "s1", leader: me}},
			`joining makeSession; trying takeLock{s1}; leading won{s1}; leading; leading`,
		},
		"the lock is lost to another": {
			[]any{wanted{}, sessionMade{id: "s1"}, taken, lockSeen{index: 11, holder: "x", leader: other}},
			`joining makeSession; trying takeLock{s1}; leading won{s1}; leading lost{` + string(lossLock) + `}`,
		},
		"Consul was restored from an older copy": {
			[]any{wanted{}, sessionMade{id: "s1"}, taken, lockSeen{index: 3, restarted: true}},
			`joining makeSession; trying takeLock{s1}; leading won{s1}; leading lost{` + string(lossLock) + `}`,
		},
		"the session is lost; only the owner of the term lets go": {
			[]any{wanted{}, sessionMade{id: "s1"}, taken, sessionLost{"s1"}, wanted{}, released{}, left{"s1"}},
			`joining makeSession; trying takeLock{s1}; leading won{s1}; leading lost{` + string(lossSession) + `}; leading; leaving leave{s1}; joining makeSession`,
		},
		"another session's loss is nothing": {
			[]any{wanted{}, sessionMade{id: "s1"}, taken, sessionLost{"s0"}},
			`joining makeSession; trying takeLock{s1}; leading won{s1}; leading`,
		},
		"the session is lost while waiting": {
			[]any{lockSeen{index: 5, holder: "x"}, wanted{}, sessionMade{id: "s1"}, sessionLost{"s1"}, sessionMade{id: "s2"}},
			`away; joining makeSession; waiting; joining leave{s1} makeSession; waiting`,
		},
		"an answer to a session that was given up": {
			[]any{wanted{}, sessionMade{id: "s1"}, sessionLost{"s1"}, taken},
			`joining makeSession; trying takeLock{s1}; joining leave{s1} makeSession; joining`,
		},
		"refused: the delay of a lost session, then again": {
			[]any{wanted{}, sessionMade{id: "s1"}, lockRefused{session: "s1"}, timePassed{}, later{}, timePassed{}, taken},
			`joining makeSession; trying takeLock{s1}; waiting; waiting; ; trying takeLock{s1}; leading won{s1}`,
		},
		"refused because another was faster": {
			[]any{wanted{}, sessionMade{id: "s1"}, lockRefused{session: "s1"}, lockSeen{index: 7, holder: "x"}, later{}, timePassed{}},
			`joining makeSession; trying takeLock{s1}; waiting; waiting; ; waiting`,
		},
		"a try whose answer was lost has the lock": {
			[]any{wanted{}, sessionMade{id: "s1"}, lockRefused{session: "s1", failed: true}, lockSeen{index: 7, holder: "s1", leader: me}, later{}, timePassed{}, taken},
			`joining makeSession; trying takeLock{s1}; waiting; waiting; ; trying takeLock{s1}; leading won{s1}`,
		},
		"no session for a while": {
			[]any{wanted{}, sessionRefused{}, timePassed{}, later{}, timePassed{}, sessionMade{id: "s1"}},
			`joining makeSession; joining; joining; ; joining makeSession; trying takeLock{s1}`,
		},
		"given up": {
			[]any{wanted{}, unwanted{}, sessionMade{id: "s1"}, wanted{}, sessionMade{id: "s2"}, unwanted{}, taken, left{"s2"}},
			`joining makeSession; away; away leave{s1}; joining makeSession; trying takeLock{s2}; leaving leave{s2}; leaving; away`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1, 0)
			e := election{phase: away}
			var got []string
			for _, ev := range story.events {
				if _, ok := ev.(later); ok {
					now = now.Add(time.Minute)
					got = append(got, "")
					continue
				}
				var effects []any
				e, effects = e.step(ev, now)
				line := e.phase.String()
				for _, ef := range effects {
					line += strings.Replace(fmt.Sprintf(" %T%v", ef, ef), "lead.", "", 1)
				}
				got = append(got, strings.ReplaceAll(line, "makeSession{}", "makeSession"))
			}
			if diff := cmp.Diff(story.want, strings.Join(got, "; ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// later lets a minute pass in a story.
type later struct{}

// At most one of three processes believes that it leads, whatever Consul and the network do, as long as a lost session is
// noticed before Consul gives its lock away; and whoever was told won is told lost or lets go before another wins.
func TestElectionSearch(t *testing.T) {
	// The world: a lock and sessions as Consul has them, and up to two processes. Breadth first over all orders of events.
	type world struct {
		e      [2]election
		live   [4]bool // sessions that Consul knows
		next   int
		holder int // index of the session that holds the lock, 0 none
		index  uint64
		leads  [2]bool
	}
	id := func(n int) string { return fmt.Sprintf("s%d", n) }
	num := func(s string) int {
		var n int
		_, _ = fmt.Sscanf(s, "s%d", &n)
		return n
	}
	start := world{e: [2]election{{phase: away}, {phase: away}}, next: 1}
	seen := map[world]bool{start: true}
	queue := []world{start}
	now := time.Unix(1, 0)
	// do feeds an event to process p and carries out the effects that need no answer; those that need one become choices,
	// which the phase remembers.
	do := func(w world, p int, ev any) world {
		var effects []any
		w.e[p], effects = w.e[p].step(ev, now)
		w.e[p].at, w.e[p].tries = time.Time{}, 0
		for _, ef := range effects {
			switch ef := ef.(type) {
			case won:
				w.leads[p] = true
			case lost:
				w.leads[p] = false
			case leave:
				n := num(ef.session)
				w.live[n] = false
				if w.holder == n {
					w.holder = 0
					w.index++
				}
			}
		}
		return w
	}
	states, wins := 0, 0
	for len(queue) > 0 {
		w := queue[0]
		queue = queue[1:]
		states++
		if w.leads[0] && w.leads[1] {
			t.Fatalf("both lead: %+v", w)
		}
		add := func(n world) {
			if n.index <= 6 && !seen[n] {
				seen[n] = true
				queue = append(queue, n)
			}
		}
		for p := range 2 {
			e := w.e[p]
			add(do(w, p, wanted{}))
			add(do(w, p, unwanted{}))
			holder := ""
			if w.holder != 0 {
				holder = id(w.holder)
			}
			add(do(w, p, lockSeen{index: w.index, holder: holder}))
			if w.index > 0 { // a late one
				add(do(w, p, lockSeen{index: w.index - 1}))
			}
			switch e.phase {
			case joining:
				if w.next < len(w.live) {
					n := w
					n.live[n.next] = true
					n.next++
					add(do(n, p, sessionMade{id: id(n.next - 1)}))
				}
			case trying:
				s := num(e.session)
				if w.live[s] && (w.holder == 0 || w.holder == s) {
					n := w
					if n.holder == 0 {
						n.index++
					}
					n.holder = s
					wins++
					add(do(n, p, lockTaken{session: e.session, index: n.index}))
					add(do(n, p, lockRefused{session: e.session, failed: true}))
				} else {
					add(do(w, p, lockRefused{session: e.session}))
				}
			case waiting:
				n := w
				n.e[p], _ = e, 0
				next, effects := e.try()
				if len(effects) > 0 {
					n.e[p] = next
					add(n)
				}
			case leading:
				n := w
				n.leads[p] = false // the owner has stopped
				add(do(n, p, released{}))
			case leaving:
				add(do(w, p, left{e.session}))
			case away:
			}
			// A session is lost: the process notices first, then Consul gives the lock away.
			if s := num(e.session); s != 0 && w.live[s] {
				n := do(w, p, sessionLost{e.session})
				n.live[s] = false
				if n.holder == s {
					n.holder = 0
					n.index++
				}
				add(n)
			}
		}
	}
	if states < 1000 || wins == 0 {
		t.Errorf("the search saw %d states and %d wins: it looks at nothing", states, wins)
	}
	t.Logf("%d states", states)
}
