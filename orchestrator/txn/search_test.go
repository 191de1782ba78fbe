package txn

import (
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

// The exhaustive search: the machine against two model Hosts, a network that loses, repeats and reorders, crashes of the
// coordinator at every moment, and time that passes when it is waited for. After every action the invariants are checked;
// from every state a well-behaved future must lead to an end.

// hostPhase is what a model Host has journaled about the transaction.
type hostPhase uint8

const (
	idle      hostPhase = iota
	ready               // prepared
	active              // activated: the target may be in traffic
	broken              // activated, and failed
	committed           // obeyed Commit
	closed              // restored, or refused for good
)

// message is a request on its way to a Host, or an answer on its way back.
type message struct {
	host    int
	call    Call
	epoch   int
	attempt uint32
	answer  bool
	no      bool
	sentAt  time.Time
	readAt  time.Time // answers
	pid     int64
}

// world is one state of everything.
type world struct {
	now     time.Time
	state   State
	epoch   int // of the leader
	hosts   [2]modelHost
	wire    []message
	marking bool // writes that are on their way to the store
	writing bool
	marked  bool // what the store holds
	decided bool
	saved   *Found
	// unproven are the Hosts that the record lists so. excluded: proven out of traffic, durably.
	unproven []string
	excluded [2]bool
	told     bool // an Abort was sent: it must never be decided
	budget   budget
}

type modelHost struct {
	phase hostPhase
	epoch int
	pid   int64
}

// budget bounds how often each fault may still happen.
type budget struct{ crash, lose, repeat, restart, refuse, lapse, reload, abort, replace, link, tick, exclude int }

var searchRules = Rules{
	Fresh: 2 * time.Second, HostWait: 5 * time.Second, Restore: 60 * time.Second, Tidy: 2 * time.Second,
	RetryMin: time.Second, RetryMax: time.Second, StartCommand: func(h string) string { return "start " + h },
}

func (w *world) clone() *world {
	c := *w
	c.wire = slices.Clone(w.wire)
	c.state.Hosts = slices.Clone(w.state.Hosts)
	return &c
}

// key identifies the state; messages that nobody will hear any more do not count.
func (w *world) key() string {
	var msgs []string
	for _, m := range w.wire {
		current := w.state.Hosts[m.host].Attempt == m.attempt
		msgs = append(msgs, fmt.Sprintf("%d%v%t%t%t%t%v%v%d", m.host, m.call, m.answer, m.no, current, m.epoch == w.epoch, w.now.Sub(m.sentAt), w.now.Sub(m.readAt), m.pid))
	}
	sort.Strings(msgs)
	return fmt.Sprintf("%s|%d%v%v%v%t%t%t%t%t%t|%v|%v", w.state.Key(w.now), w.epoch, w.hosts, w.unproven, w.excluded, w.marking, w.writing, w.marked,
		w.decided, w.saved != nil, w.told, msgs, w.budget)
}

// search explores, breadth first, all states that are reachable within the budget.
type search struct {
	t     *testing.T
	seen  map[string]bool
	queue []*world
	moves map[string]bool // transitions taken, "from>to"
	limit int
}

func (s *search) add(w *world) {
	if k := w.key(); !s.seen[k] && len(s.seen) < s.limit {
		s.seen[k] = true
		s.queue = append(s.queue, w)
	}
}

// step gives the machine an event in a copy of w, checks what it did, and returns the copy.
func (s *search) step(w *world, ev Event) *world {
	c := w.clone()
	before := c.state.Phase
	var effects []Effect
	c.state, effects = searchRules.Step(c.state, ev, c.now)
	s.took(before, c.state.Phase, ev)
	for _, e := range effects {
		s.carryOut(c, e)
	}
	s.check(c)
	return c
}

func (s *search) took(from, to Phase, ev Event) {
	if from != to {
		s.moves[fmt.Sprintf("%v>%v", from, to)] = true
	}
}

func (s *search) carryOut(w *world, e Effect) {
	switch e := e.(type) {
	case Send:
		host := int(e.Host[2] - '1')
		switch e.Call {
		case CallActivate:
			if !w.marked {
				s.fail(w, "Activate was sent before the mark was durable")
			}
		case CallCommit:
			if !w.decided {
				s.fail(w, "Commit was sent without a record")
			}
		case CallAbort:
			if w.decided {
				s.fail(w, "Abort was sent although the record exists (ALL-OR-OLD)")
			}
			w.told = true
		}
		m := message{host: host, call: e.Call, epoch: w.epoch, attempt: e.Attempt, sentAt: w.now}
		w.wire = append(w.wire, m)
	case WriteMark:
		w.marking = true
	case WriteDecision:
		w.writing = true
		w.unproven = nil
		for _, h := range w.state.Hosts {
			if h.Unproven {
				w.unproven = append(w.unproven, h.Name)
			}
		}
		if n := len(w.unproven); n > w.state.Policies["public"].Spares(len(w.state.Hosts)) {
			s.fail(w, fmt.Sprintf("the decision was asked for with %d hosts missing, which the policy does not permit (ALL-OR-OLD)", n))
		}
		for i, h := range w.state.Hosts {
			if h.Unproven {
				continue
			}
			if h.Vote != VoteVerified || h.FreshAt.IsZero() || w.now.Sub(h.FreshAt) > searchRules.Fresh {
				s.fail(w, "the decision was asked for without a fresh Verified of "+h.Name)
			}
			if h.PID != w.hosts[i].pid {
				s.fail(w, "the decision was asked for with evidence of a proxy process that is gone on "+h.Name)
			}
			if w.hosts[i].phase != active && w.hosts[i].phase != broken {
				s.fail(w, "the decision was asked for although "+h.Name+" is not active")
			}
		}
	case SaveAbort:
		f := Found{Aborted: true, Cause: w.state.Cause, Reason: w.state.Reason}
		for _, h := range w.state.Hosts {
			f.Activate = f.Activate || h.SentActivate
		}
		w.saved = &f
	}
}

// check are the invariants of every state.
func (s *search) check(w *world) {
	if w.decided && w.told {
		s.fail(w, "decided after an Abort was sent (ALL-OR-OLD)")
	}
	if w.state.Phase == Committed && !w.decided {
		s.fail(w, "shown as committed without a record")
	}
	for i, h := range w.hosts {
		if h.phase == committed && !w.decided {
			s.fail(w, "a host committed without a record")
		}
		if w.state.Phase == RolledBack && !w.excluded[i] && (h.phase == active || h.phase == broken) {
			s.fail(w, fmt.Sprintf("shown as rolled back while host %d is active (UNDO)", i+1))
		}
	}
	if wake := searchRules.NextWake(w.state); wake.IsZero() && (w.state.Phase == Waiting || w.state.Phase == Preparing || w.state.Phase == Activating || w.state.Phase == Restoring) {
		s.fail(w, "a state without a deadline (EVERY-STATE-ENDS)")
	}
}

func (s *search) fail(w *world, what string) {
	s.t.Helper()
	s.t.Fatalf("%s\n%s\n%+v", what, w.key(), w.state)
}

// deliver gives message i to its receiver; the message stays when repeat.
func (s *search) deliver(w *world, i int, repeat bool) *world {
	m := w.wire[i]
	c := w.clone()
	if !repeat {
		c.wire = slices.Delete(c.wire, i, i+1)
	}
	if m.answer {
		return s.step(c, answerEvent(c, m))
	}
	c.receive(m, false)
	s.check(c)
	return c
}

// answerEvent is what the coordinator hears; answers to an older leader's questions reach nobody.
func answerEvent(w *world, m message) Event {
	if m.epoch != w.epoch {
		return Tick{}
	}
	a := Answer{Host: w.state.Hosts[m.host].Name, Call: m.call, SentAt: m.sentAt}
	if m.no {
		a.Refusal = &lbagentv1.Refusal{Reason: lbagentv1.RefusalReason_REFUSAL_REASON_ABORTED}
	} else {
		a.Evidence = []*lbagentv1.Evidence{{App: "shop", ReadAt: timestamppb.New(m.readAt), Process: &lbagentv1.Process{WorkerPid: m.pid}}}
	}
	return a
}

// receive is the model Host: it takes a request and sends the answer.
func (w *world) receive(m message, refuse bool) {
	h := &w.hosts[m.host]
	reply := message{host: m.host, call: m.call, epoch: m.epoch, attempt: m.attempt, answer: true, sentAt: m.sentAt, readAt: w.now, pid: h.pid}
	if m.epoch < h.epoch { // FENCE
		return
	}
	h.epoch = m.epoch
	switch m.call {
	case CallPrepare:
		switch {
		case refuse:
			reply.no = true
		case h.phase == idle:
			h.phase = ready
		case h.phase != ready:
			reply.no = true
		}
	case CallActivate:
		switch {
		case refuse && h.phase == ready:
			h.phase, reply.no = broken, true
		case h.phase == ready:
			h.phase = active
		case h.phase != active:
			reply.no = true
		}
	case CallVerify:
		reply.no = h.phase != active
	case CallCommit:
		if h.phase == active || h.phase == broken {
			h.phase = committed
		}
		reply.no = h.phase != committed
	case CallAbort:
		reply.no = h.phase == committed
		if h.phase != committed {
			h.phase = closed
		}
	}
	w.wire = append(w.wire, reply)
}

// successors are all states that one action leads to.
func (s *search) successors(w *world) {
	for i, m := range w.wire {
		s.add(s.deliver(w, i, false))
		if w.budget.repeat > 0 {
			c := s.deliver(w, i, true)
			c.budget.repeat--
			s.add(c)
		}
		if w.budget.lose > 0 {
			c := w.clone()
			c.wire = slices.Delete(c.wire, i, i+1)
			c.budget.lose--
			if m.epoch == c.epoch {
				c = s.step(c, NoAnswer{Host: c.state.Hosts[m.host].Name, Call: m.call, Attempt: m.attempt, Err: "lost"})
			}
			s.add(c)
		}
		if w.budget.refuse > 0 && !m.answer && (m.call == CallPrepare || m.call == CallActivate) {
			c := w.clone()
			c.wire = slices.Delete(c.wire, i, i+1)
			c.budget.refuse--
			c.receive(m, true)
			s.check(c)
			s.add(c)
		}
	}
	if w.marking {
		s.add(s.step(w.wrote(true), MarkWritten{}))
	}
	if w.writing {
		s.add(s.step(w.wrote(true), DecisionWritten{At: w.now}))
		if w.budget.refuse > 0 {
			c := w.clone()
			c.writing = false
			c.budget.refuse--
			s.add(s.step(c, WriteRefused{Cause: CauseBaseMismatch, Reason: "moved on"}))
		}
	}
	if w.budget.crash > 0 {
		s.add(s.crash(w.clone()))
		if w.marking || w.writing {
			s.add(s.crash(w.wrote(true)))
		}
	}
	if w.budget.tick > 0 {
		if wake := searchRules.NextWake(w.state); !wake.IsZero() {
			c := w.clone()
			c.budget.tick--
			if wake.After(c.now) {
				c.now = wake
			}
			s.add(s.step(c, Tick{}))
		}
	}
	if w.budget.abort > 0 {
		c := w.clone()
		c.budget.abort--
		s.add(s.step(c, AbortAsked{Cause: CauseAsked, Reason: "asked"}))
	}
	if w.budget.replace > 0 {
		c := w.clone()
		c.budget.replace--
		s.add(s.step(c, Replaced{}))
	}
	for i := range w.hosts {
		s.hostFaults(w, i)
	}
}

func (s *search) hostFaults(w *world, i int) {
	name := w.state.Hosts[i].Name
	if w.budget.restart > 0 && (w.hosts[i].phase == ready || w.hosts[i].phase == active) {
		// An agent that restarts may abort what is not Verified; what it was asked is lost.
		c := w.clone()
		c.budget.restart--
		if c.hosts[i].phase == ready {
			c.hosts[i].phase = closed
		}
		s.add(s.step(s.step(c, HostLink{Host: name}), HostLink{Host: name, Connected: true}))
	}
	if w.budget.link > 0 {
		c := w.clone()
		c.budget.link--
		s.add(s.step(c, HostLink{Host: name, Connected: !c.state.Hosts[i].Connected}))
	}
	if w.budget.lapse > 0 && w.hosts[i].phase == active {
		c := w.clone()
		c.budget.lapse--
		c.hosts[i].phase = broken
		s.add(s.step(c, Reported{Host: name, Phase: lbagentv1.TxnPhase_TXN_PHASE_LAPSED}))
	}
	if w.budget.reload > 0 && w.hosts[i].phase == active {
		c := w.clone()
		c.budget.reload--
		c.hosts[i].pid++
		s.add(s.step(c, ProcessSeen{Host: name, PID: c.hosts[i].pid, At: c.now.Add(time.Millisecond)}))
	}
	// An exclusion waits until no transaction of the Group is undecided.
	if w.budget.exclude > 0 && !w.excluded[i] && !w.writing && (w.decided || w.state.Phase == Restoring || w.state.Phase == StuckRestoring) {
		c := w.clone()
		c.budget.exclude--
		c.excluded[i] = true
		s.add(s.step(c, HostExcluded{Host: name}))
	}
}

// wrote is w after its write reached the store.
func (w *world) wrote(bool) *world {
	c := w.clone()
	if c.marking {
		c.marking, c.marked = false, true
	}
	if c.writing {
		c.writing, c.decided = false, true
	}
	return c
}

// crash ends the leader: its writes that did not reach the store never will (FENCE). The next one recovers.
func (s *search) crash(w *world) *world {
	w.budget.crash--
	w.marking, w.writing = false, false
	w.epoch++
	old := w.state
	if old.Phase == Waiting {
		return w // nothing was recorded: nobody knows of it
	}
	f := Found{Marked: w.marked, Decided: w.decided, CommittedAt: w.now}
	if f.Decided {
		f.Unproven = w.unproven
	}
	if w.saved != nil {
		f = *w.saved
		f.Marked = w.marked
	}
	var hosts []Host
	for _, h := range old.Hosts {
		hosts = append(hosts, Host{Name: h.Name, Group: h.Group, Connected: h.Connected, Attempt: h.Attempt})
	}
	w.state = NewState(old.ID, old.Deploy, old.Deadline, hosts, w.now)
	w.state.Order, w.state.Policies = old.Order, old.Policies
	w.state = searchRules.Recover(w.state, f, w.now)
	s.moves[fmt.Sprintf("%v>%v", Phase(0), w.state.Phase)] = true
	for i, out := range w.excluded {
		if out {
			w = s.step(w, HostExcluded{Host: w.state.Hosts[i].Name})
		}
	}
	return s.step(w, Tick{})
}

// settle lets everything go well from now on and requires that it ends.
func (s *search) settle(w *world) {
	c := w.clone()
	c.budget = budget{}
	for i := range c.hosts {
		if !c.state.Hosts[i].Connected {
			c = s.step(c, HostLink{Host: c.state.Hosts[i].Name, Connected: true})
		}
	}
	for range 400 {
		switch {
		case c.state.Finished:
			s.ended(w, c)
			return
		case c.marking:
			c = s.step(c.wrote(true), MarkWritten{})
		case c.writing:
			c = s.step(c.wrote(true), DecisionWritten{At: c.now})
		case len(c.wire) > 0:
			c = s.deliver(c, 0, false)
		default:
			wake := searchRules.NextWake(c.state)
			if wake.IsZero() {
				s.fail(c, "nothing will ever happen again")
			}
			if wake.After(c.now) {
				c.now = wake
			}
			// A call whose request or answer was lost without a word ends by its own timeout.
			for _, h := range c.state.Hosts {
				if h.Call != CallNone {
					c = s.step(c, NoAnswer{Host: h.Name, Call: h.Call, Attempt: h.Attempt, Err: "timeout"})
				}
			}
			c = s.sync(s.step(c, Tick{}))
		}
		if c.state.Phase == Waiting {
			c = s.step(c, Granted{Order: 1})
		}
	}
	s.fail(c, "no end in sight (EVERY-STATE-ENDS)")
}

// sync brings a Host that was missing at the Commit, and therefore refuses it, to the committed state by other means.
func (s *search) sync(w *world) *world {
	for i, h := range w.state.Hosts {
		if h.Unproven && !h.Done && w.decided && w.hosts[i].phase != active {
			w.hosts[i].phase = committed
			w = s.step(w, Answer{Host: h.Name, Call: CallCommit})
		}
	}
	return w
}

// ended: all Hosts agree with the decision.
func (s *search) ended(from, w *world) {
	for i, h := range w.hosts {
		switch {
		case w.decided && h.phase == idle && slices.Contains(w.unproven, w.state.Hosts[i].Name):
			// It never heard of it: it is synced past it, as every Host that comes back.
		case w.decided && h.phase != committed:
			s.fail(from, fmt.Sprintf("ended committed, and host %d is in phase %d", i+1, h.phase))
		case !w.decided && (h.phase == active || h.phase == broken || h.phase == committed):
			s.fail(from, fmt.Sprintf("ended aborted, and host %d is in phase %d", i+1, h.phase))
		}
	}
}

func newSearch(t *testing.T, b budget, policy Policy, limit int) *search {
	s := &search{t: t, seen: map[string]bool{}, moves: map[string]bool{}, limit: limit}
	w := &world{now: epochStart, epoch: 1, budget: b}
	var hosts []Host
	for i := range w.hosts {
		w.hosts[i].pid = 1
		hosts = append(hosts, Host{Name: fmt.Sprintf("lb%d", i+1), Group: "public", Connected: true, CaughtUp: true})
	}
	w.state = NewState("t1", "d1", w.now.Add(30*time.Second), hosts, w.now)
	w.state.Policies = map[string]Policy{"public": policy}
	s.add(w)
	s.add(s.step(w, Granted{Order: 1}))
	return s
}

func (s *search) run() {
	for n := 0; len(s.queue) > 0; n++ {
		w := s.queue[0]
		s.queue = s.queue[1:]
		s.settle(w)
		s.successors(w)
	}
}

// TestExhaustive explores every order of events within each combination of faults, breadth first up to a limit of states
// each; TXN_SEARCH_LIMIT sets another limit for a long run.
func TestExhaustive(t *testing.T) {
	limit := 6_000
	if testing.Short() {
		limit = 2_000
	}
	if n, err := strconv.Atoi(os.Getenv("TXN_SEARCH_LIMIT")); err == nil && n > 0 {
		limit = n
	}
	moves := map[string]bool{}
	all, allButOne := Policy{}, Policy{AllBut: 1}
	for name, c := range map[string]struct {
		budget
		policy Policy
	}{
		"no fault":              {budget{}, all},
		"crash, repeat":         {budget{crash: 1, repeat: 1}, all},
		"two crashes":           {budget{crash: 2}, all},
		"crash, lose":           {budget{crash: 1, lose: 1}, all},
		"lose, repeat":          {budget{lose: 1, repeat: 1}, all},
		"refuse, repeat":        {budget{refuse: 1, repeat: 1}, all},
		"refuse, crash":         {budget{refuse: 1, crash: 1}, all},
		"agent restart, repeat": {budget{restart: 1, repeat: 1}, all},
		"agent restart, crash":  {budget{restart: 1, crash: 1}, all},
		"lapse, crash":          {budget{lapse: 1, crash: 1}, all},
		"reload, lapse":         {budget{reload: 1, lapse: 1}, all},
		"reload, time":          {budget{reload: 1, tick: 2}, all},
		"abort, crash":          {budget{abort: 1, crash: 1}, all},
		"abort, repeat":         {budget{abort: 1, repeat: 1}, all},
		"abort, replace, crash": {budget{abort: 1, replace: 1, crash: 1}, all},
		"refuse, replace, lose": {budget{refuse: 1, replace: 1, lose: 1}, all},
		"time":                  {budget{tick: 5, lose: 1}, all},
		"link, time":            {budget{link: 2, tick: 3}, all},
		"refuse, lose, time":    {budget{refuse: 1, lose: 1, tick: 2}, all},
		"abort, time, link":     {budget{abort: 1, tick: 2, link: 1}, all},
		"abort, time, exclude":  {budget{abort: 1, tick: 1, exclude: 1, lose: 1}, all},
		"exclude, crash":        {budget{abort: 1, exclude: 1, crash: 1}, all},
		"spare, link, time":     {budget{link: 3, tick: 3}, allButOne},
		"spare, link, crash":    {budget{link: 1, tick: 2, crash: 1}, allButOne},
		"spare, refuse, link":   {budget{link: 1, tick: 2, refuse: 1}, allButOne},
		"spare, restart, link":  {budget{link: 1, tick: 2, restart: 1}, allButOne},
		"spare, link, exclude":  {budget{link: 1, tick: 2, abort: 1, exclude: 1}, allButOne},
	} {
		s := newSearch(t, c.budget, c.policy, limit)
		s.run()
		full := ""
		if len(s.seen) >= limit {
			full = " (the limit)"
		}
		t.Logf("%s: %d states%s", name, len(s.seen), full)
		for m := range s.moves {
			moves[m] = true
		}
	}
	// The diagram: every move that was taken is drawn, and every drawn one was taken. The two that no search takes need
	// a transaction without Hosts; a story has them.
	drawn := map[string]bool{}
	for _, tr := range Transitions() {
		drawn[fmt.Sprintf("%v>%v", tr.From, tr.To)] = true
	}
	var unknown, untaken []string
	for m := range moves {
		if !drawn[m] {
			unknown = append(unknown, m)
		}
	}
	for m := range drawn {
		if !moves[m] {
			untaken = append(untaken, m)
		}
	}
	slices.Sort(unknown)
	slices.Sort(untaken)
	if len(unknown) > 0 {
		t.Errorf("moves that Transitions does not list: %v", unknown)
	}
	if got := strings.Join(untaken, " "); !testing.Short() && got != "deciding>rolled-back waiting>deciding" {
		t.Errorf("listed transitions that the search did not take: %s", got)
	}
}
