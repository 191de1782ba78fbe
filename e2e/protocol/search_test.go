package protocol

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// cartDigest is of cart as every Host holds it at the start.
var cartDigest string

// newWorld is the world of a scenario: Hosts that hold shop with a and cart with c, and a leader that has just taken t1, shop to
// b, or that and t2, cart to d.
func newWorld(sc scenario) *world {
	w := &world{now: start, sc: &sc}
	w.store.rev = 1
	add := func(key string, val any, txt string) {
		w.store.recs = append(w.store.recs, record{key, 1, val, txt})
	}
	for n, name := range []string{"a", "c"} {
		old := lbagentv1.CommittedSection{Section: sectionProto(apps[n], name), Version: &lbagentv1.Version{Txn: 1}}
		add("section/"+apps[n], &old, sectionText(&old))
	}
	var views [2]view
	for i := range sc.hosts {
		m := registry.Membership{Host: hostName(i), Group: w.hostGroup(i), Standing: registry.Member}
		views[groupIndex(m.Group)].hosts |= 1 << i
		add("view/"+m.Group+"/"+m.Host, m, string(m.Standing))
	}
	for n, v := range views {
		if v.hosts != 0 {
			v.number = 1
			add("view/"+groupNames[n], v, fmt.Sprint(v.number, v.hosts))
		}
	}
	slices.SortFunc(w.store.recs, func(a, b record) int { return strings.Compare(a.key, b.key) })
	for i := range sc.hosts {
		w.hosts = append(w.hosts, w.newHost(i, sc.sessions))
	}
	w.elect()
	for i := range sc.hosts {
		w.connect(i)
	}
	switch {
	case sc.idle:
	case sc.together == alone:
		w.begin(w.lead(1), "t1")
	default:
		w.begin(w.lead(1), "t1", "t2")
	}
	w.flush()
	w.ownHosts, w.ownLeaders, w.budget = 0, 0, sc.budget
	return w
}

func (w *world) newHost(i int, sessions bool) *host {
	h := &host{pid: 100}
	h.disk = participant.Durable{Sections: map[string]*participant.SectionState{}}
	for n, s := range []participant.Section{section(shop, "a"), section(cart, "c")} {
		if !w.holds(i, n) {
			continue
		}
		sec := &participant.SectionState{App: s.App, Committed: s, Version: participant.Version{Txn: 1}, Passed: 1}
		h.disk.Sections[s.App] = sec
		state := participant.State{Durable: h.disk}
		want := state.Want(s.App)
		h.run[n], h.files[n] = &want, &want
		sec.Published = filesDigest(&want)
		if s.App == cart {
			cartDigest = digestOf(&want)
		}
	}
	if sessions {
		h.sessions[upA] = 1
	}
	h.m = participant.Recover(w.identity(i), h.disk, w.now)
	h.unread = true
	w.hosts = append(w.hosts, h)
	w.ownHosts |= 1 << i
	w.feed(i, participant.Tick{})
	w.settle(i)
	w.hosts = w.hosts[:i]
	return h
}

// scenario is a budget of faults and the number of Hosts.
type scenario struct {
	name     string
	hosts    int
	budget   budget
	sessions bool
	together together
	split    bool       // shop and cart belong to two Groups, with half of the Hosts each
	idle     bool       // nobody proposes anything
	bad      bool       // every proxy's checker refuses d
	policy   txn.Policy // of the Groups
}

var scenarios = []scenario{
	{name: "no fault", hosts: 2, sessions: true},
	{name: "leader dies", hosts: 2, budget: budget{leader: 1}},
	{name: "leader dies, again", hosts: 2, budget: budget{leader: 1, again: 1}},
	{name: "two leaders die", hosts: 2, budget: budget{leader: 2}},
	{name: "old leader acts on", hosts: 2, budget: budget{depose: 1}},
	{name: "old leader acts on, again", hosts: 2, budget: budget{depose: 1, again: 1}},
	{name: "old leader acts on, abort", hosts: 2, budget: budget{depose: 1, abort: 1}},
	{name: "lbagent dies", hosts: 2, budget: budget{agent: 1}},
	{name: "lbagent and leader die", hosts: 2, budget: budget{agent: 1, leader: 1}},
	{name: "lbagent dies twice", hosts: 2, budget: budget{agent: 2}},
	{name: "late", hosts: 2, budget: budget{late: 1}},
	{name: "late, abort, again", hosts: 2, budget: budget{late: 1, abort: 1, again: 1}},
	{name: "repeated, abort", hosts: 2, budget: budget{repeat: 1, abort: 1}},
	{name: "lost, leader dies", hosts: 2, budget: budget{lose: 1, leader: 1}},
	{name: "proxy dies", hosts: 2, budget: budget{proxy: 1}},
	{name: "proxy and leader die", hosts: 2, budget: budget{proxy: 1, leader: 1}},
	{name: "proxy and lbagent die", hosts: 2, budget: budget{proxy: 1, agent: 1}},
	{name: "checks fail, reports held up", hosts: 2, budget: budget{red: 1, slow: 1}},
	{name: "checks fail, leader dies", hosts: 2, budget: budget{red: 1, leader: 1}},
	{name: "checks fail, slow, sessions", hosts: 2, budget: budget{red: 1, slow: 1}, sessions: true},
	{name: "task dies", hosts: 2, budget: budget{die: 1}},
	{name: "task dies, leader dies", hosts: 2, budget: budget{die: 1, leader: 1}},
	{name: "task dies, abort", hosts: 2, budget: budget{die: 1, abort: 1}},
	{name: "task dies, late", hosts: 2, budget: budget{die: 1, late: 1}},
	{name: "abort, leader dies", hosts: 2, budget: budget{abort: 1, leader: 1}},
	{name: "time, late", hosts: 2, budget: budget{pause: 1, late: 1}},
	{name: "deadline, leader dies", hosts: 2, budget: budget{expire: 1, leader: 1}},
	{name: "deadline, late", hosts: 2, budget: budget{expire: 1, late: 1}},
	{name: "stream falls, time", hosts: 2, budget: budget{unlink: 1, pause: 1}},
	{name: "insertion", hosts: 2, budget: budget{insert: 1}},
	{name: "insertion, late, abort", hosts: 2, budget: budget{insert: 1, late: 1, abort: 1}},
	{name: "insertion, leader dies", hosts: 2, budget: budget{insert: 1, leader: 1}},
	{name: "store refuses, leader dies", hosts: 2, budget: budget{refused: 1, leader: 1}},
	{name: "three hosts", hosts: 3},
	{name: "three hosts, leader dies", hosts: 3, budget: budget{leader: 1}},
	{name: "three hosts, old leader acts on", hosts: 3, budget: budget{depose: 1}},
	{name: "three hosts, lbagent dies", hosts: 3, budget: budget{agent: 1}},
	{name: "lock-step", hosts: 2, together: lockStep},
	{name: "lock-step, leader dies", hosts: 2, together: lockStep, budget: budget{leader: 1}},
	{name: "lock-step, lbagent dies", hosts: 2, together: lockStep, budget: budget{agent: 1}},
	{name: "lock-step, two groups, leader dies", hosts: 2, together: lockStep, split: true, budget: budget{leader: 1}},
	{name: "lock-step, two groups, old leader acts on", hosts: 2, together: lockStep, split: true, budget: budget{depose: 1}},
	{name: "lock-step, two groups, one refuses, leader dies", hosts: 2, together: lockStep, split: true, bad: true, budget: budget{leader: 1}},
	{name: "lock-step, two groups, late, abort", hosts: 2, together: lockStep, split: true, budget: budget{late: 1, abort: 1}},
	{name: "lock-step, two groups, task dies", hosts: 2, together: lockStep, split: true, budget: budget{die: 1}},
	{name: "lock-step, two groups, three hosts", hosts: 3, together: lockStep, split: true, budget: budget{red: 1}},
	{name: "merged", hosts: 2, together: merged},
	{name: "merged, leader dies", hosts: 2, together: merged, budget: budget{leader: 1}},
	{name: "merged, one is guilty", hosts: 2, together: merged, bad: true},
	{name: "merged, one is guilty, leader dies", hosts: 2, together: merged, bad: true, budget: budget{leader: 1}},
	{name: "merged, one is guilty, late", hosts: 1, together: merged, bad: true, budget: budget{late: 1}},
	{name: "merged, one is guilty, lbagent dies", hosts: 1, together: merged, bad: true, budget: budget{agent: 1}},
	{name: "merged, one is aborted, leader dies", hosts: 1, together: merged, budget: budget{abort: 1, leader: 1}},
	{name: "merged, checks fail, time", hosts: 1, together: merged, budget: budget{red: 1, expire: 1}},
	{name: "journal fails", hosts: 2, budget: budget{disk: 1}},
	{name: "journal fails, abort", hosts: 2, budget: budget{disk: 1, abort: 1}},
	{name: "journal fails, leader dies", hosts: 2, budget: budget{disk: 1, leader: 1}},
	{name: "journal fails, lbagent dies", hosts: 2, budget: budget{disk: 1, agent: 1}},
	{name: "all but one, away", hosts: 2, policy: txn.Policy{AllBut: 1}, budget: budget{away: 1}},
	{name: "all but one, away, abort", hosts: 2, policy: txn.Policy{AllBut: 1}, budget: budget{away: 1, abort: 1}},
	{name: "all but one, away, leader dies", hosts: 2, policy: txn.Policy{AllBut: 1}, budget: budget{away: 1, leader: 1}},
	{name: "three hosts, 60 percent, away, again", hosts: 3, policy: txn.Policy{Percent: 60}, budget: budget{away: 1, again: 1}},
	{name: "away", hosts: 2, budget: budget{away: 1}},
	{name: "exclusion", hosts: 2, budget: budget{exclude: 1}},
	{name: "drained, exclusion", hosts: 2, budget: budget{drain: 1, exclude: 1}},
	{name: "drained, exclusion, nothing proposed", hosts: 2, idle: true, budget: budget{drain: 1, exclude: 1, leader: 1}},
	{name: "exclusion, abort", hosts: 2, budget: budget{exclude: 1, abort: 1}},
	{name: "exclusion, away", hosts: 2, budget: budget{exclude: 1, away: 1}},
	{name: "exclusion, leader dies", hosts: 2, budget: budget{exclude: 1, leader: 1}},
	{name: "exclusion, lbagent dies", hosts: 2, budget: budget{exclude: 1, agent: 1}},
}

// node is a state as the search remembers it: how it was reached, and where a well-behaved world goes from it.
type node struct {
	from int32
	// next is the state after the first move, in which nothing fails; unknown if that is not explored.
	next int32
	move move
	good bool
}

const unknown = -1

// search goes breadth first through all states of a scenario.
type search struct {
	start  *world
	limit  int
	nodes  []node
	seen   map[key]int32
	queue  []*world
	first  int32 // the node of queue[0]
	full   bool
	moves  int
	broken *violation
	at     int32 // the node from which the broken move was made
	last   []move
	// beyond are states that are not nodes and lead to a good end.
	beyond map[key]bool
}

func explore(start *world, limit int) *search {
	s := &search{start: start, limit: limit, seen: map[key]int32{}, beyond: map[key]bool{}}
	s.add(start, unknown, move{})
	for len(s.queue) > 0 && s.broken == nil {
		w := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		s.expand(w, s.first)
		s.first++
	}
	if s.broken == nil {
		s.ends()
	}
	return s
}

// add notes the state that a move led to, unless it is known, and returns its node. False: it breaks an invariant.
func (s *search) add(w *world, from int32, m move) (int32, bool) {
	s.moves++
	if w.broken != nil {
		s.broken, s.at, s.last = w.broken, from, []move{m}
		return unknown, false
	}
	k := w.key()
	if n, known := s.seen[k]; known {
		return n, true
	}
	if len(s.seen) >= s.limit {
		s.full = true
		if m.fault() || w.good() || s.beyond[k] {
			return unknown, true
		}
		return unknown, s.follow(w, k, from, m)
	}
	n := int32(len(s.nodes))
	s.seen[k] = n
	s.nodes = append(s.nodes, node{from: from, next: unknown, move: m, good: w.good()})
	s.queue = append(s.queue, w)
	return n, true
}

func (s *search) expand(w *world, at int32) {
	for n, m := range w.moves() {
		next := w.do(m)
		points := next.points
		to, ok := s.add(next, at, m)
		if !ok {
			return
		}
		if n == 0 {
			s.nodes[at].next = to
			s.nodes[at].good = s.nodes[at].good || to == unknown // then follow has seen its end
		}
		for f := 1; f <= points; f++ {
			m.fuse = uint8(f)
			if _, ok := s.add(w.do(m), at, m); !ok {
				return
			}
		}
	}
}

// patience is how many steps a well-behaved future may take to a good end.
const patience = 2000

// follow goes on from a state beyond the limit, where nothing fails any more, until it ends well or is known to do so, or
// comes to a node. It is for the last moves before the limit; the nodes' own futures are judged by ends.
func (s *search) follow(w *world, k key, from int32, m move) bool {
	moves := []move{m}
	way := map[key]bool{}
	for range patience {
		_, node := s.seen[k]
		if node || s.beyond[k] || w.good() {
			for k := range way {
				s.beyond[k] = true
			}
			return true
		}
		if way[k] {
			break
		}
		way[k] = true
		next := w.moves()[0]
		moves = append(moves, next)
		w = w.do(next)
		if w.broken != nil {
			s.broken, s.at, s.last = w.broken, from, moves
			return false
		}
		k = w.key()
	}
	s.endless(from, moves)
	return false
}

func (s *search) endless(at int32, moves []move) {
	s.broken = &violation{"EVERY-STATE-ENDS", "nothing fails any more, and no good end is reached"}
	s.at, s.last = at, moves
}

// ends requires that every state leads to a good end when nothing fails any more (EVERY-STATE-ENDS). Every state has one
// well-behaved future, so the ways join and each is gone once.
func (s *search) ends() {
	checked := make([]int32, len(s.nodes)) // by which walk, from 1
	for at := range s.nodes {
		n := int32(at)
		var way []int32
		for n != unknown && !s.nodes[n].good {
			if checked[n] == int32(at)+1 {
				s.endless(int32(at), nil)
				return
			}
			checked[n] = int32(at) + 1
			way = append(way, n)
			n = s.nodes[n].next
		}
		for _, n := range way {
			s.nodes[n].good = true
		}
	}
}

// story tells the way to the violation.
func (s *search) story() string {
	var way []move
	for n := s.at; n > 0; n = s.nodes[n].from {
		way = append([]move{s.nodes[n].move}, way...)
	}
	way = append(way, s.last...)
	endless := s.broken.invariant == "EVERY-STATE-ENDS" && len(s.last) == 0
	w := s.start
	var b strings.Builder
	fmt.Fprintf(&b, "%s does not hold: %s\n\n", s.broken.invariant, s.broken.text)
	for n := 0; n < len(way) || endless; n++ {
		var m move
		if n < len(way) {
			m = way[n]
		} else {
			m = w.moves()[0] // the well-behaved future
		}
		w.telling = true
		w = w.do(m)
		if n > len(way)+60 || n > 200 {
			b.WriteString("    and so on\n")
			break
		}
		for j, line := range w.lines {
			if j == 0 {
				fmt.Fprintf(&b, "%3d. %s\n", n+1, line)
			} else {
				fmt.Fprintf(&b, "     %s\n", line)
			}
		}
	}
	return b.String()
}

// limitOf is how many states of each scenario are explored: SEARCH_LIMIT for a long run.
func limitOf(t testing.TB) int {
	limit := defaultLimit
	if testing.Short() {
		limit = 500
	}
	if v := os.Getenv("SEARCH_LIMIT"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			t.Fatalf("SEARCH_LIMIT=%q: want a number of states", v)
		}
		limit = n
	}
	return limit
}

const defaultLimit = 8_000

func TestSearch(t *testing.T) {
	limit := limitOf(t)
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			s := sc.explore(t, limit)
			t.Logf("%d states%s, %d moves", len(s.seen), map[bool]string{true: " (the limit)"}[s.full], s.moves)
		})
	}
}

// explore searches the scenario, and fails with the story of what it found.
func (sc scenario) explore(t *testing.T, limit int) *search {
	s := explore(newWorld(sc), limit)
	if s.broken != nil {
		t.Fatalf("after %d states:\n%s", len(s.seen), s.story())
	}
	return s
}
