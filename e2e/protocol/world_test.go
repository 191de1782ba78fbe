package protocol

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/orchestrator/txn"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func hostName(i int) string { return "lb" + strconv.Itoa(i+1) }

func hostIndex(name string) int { return int(name[2] - '1') }

// budget is what may still go wrong, each so many times.
type budget struct {
	leader  uint8 // a leader dies, at any write or send
	depose  uint8 // a new leader is elected while the old one acts on
	agent   uint8 // an lbagent dies, at any write or answer
	proxy   uint8 // a proxy is restarted
	late    uint8 // a call times out and its request arrives later
	lose    uint8 // a request or an answer is lost
	repeat  uint8 // a request arrives twice
	red     uint8 // an upstream of shop fails one proxy's checks
	die     uint8 // a task ends
	abort   uint8 // somebody asks for an abort
	unlink  uint8 // a Watch stream falls
	slow    uint8 // a Watch stream tells nothing for a while
	pause   uint8 // three seconds pass in the middle
	expire  uint8 // the transaction's deadline passes in the middle
	insert  uint8 // a replacement is inserted by Amendment
	again   uint8 // the change is tried again in a new transaction
	refused uint8 // the store refuses a decision
	disk    uint8 // a Host's journal cannot be written; what was to be written may be there all the same
	away    uint8 // a Host cannot be reached for a while
	exclude uint8 // an operator asks for an exclusion
	drain   uint8 // an operator takes a Host out of traffic, to prove that it gets none
}

// world is one state of everything.
type world struct {
	now     time.Time
	sc      *scenario
	hosts   []*host
	leaders []*leader // those that run, oldest first
	wire    []*message
	store   kv
	epochs  uint64
	dead    [upstreams]bool // the task has ended
	killed  [upstreams]bool // because it was ordered killed
	budget  budget
	// told: an Abort of the transaction was sent.
	told []string
	// spare is the Spec that r is a task of; 0: it was not started.
	spare uint64

	ownHosts, ownLeaders uint32
	fuse                 int // counts down to a crash; 0: none
	points               int // how many points of a crash the move has passed
	broken               *violation
	telling              bool
	lines                []string
}

// violation is an invariant that does not hold.
type violation struct{ invariant, text string }

func (w *world) violate(invariant, format string, args ...any) {
	if w.broken == nil {
		w.broken = &violation{invariant, fmt.Sprintf(format, args...)}
	}
}

func (w *world) say(format string, args ...any) {
	if w.telling {
		w.lines = append(w.lines, fmt.Sprintf(format, args...))
	}
}

// who dies at a point.
type who uint8

const (
	leaderDies who = iota
	agentDies
	diskFails
)

// burn passes a point at which a process may die, and says whether it does.
func (w *world) burn(dies who, format string, args ...any) bool {
	left := [...]*uint8{&w.budget.leader, &w.budget.agent, &w.budget.disk}[dies]
	if *left == 0 {
		return false
	}
	w.points++
	if w.fuse == 0 {
		return false
	}
	w.fuse--
	if w.fuse > 0 {
		return false
	}
	*left--
	w.say(format, args...)
	return true
}

func (w *world) clone() *world {
	c := *w
	c.hosts = slices.Clone(w.hosts)
	c.leaders = slices.Clone(w.leaders)
	c.wire = slices.Clone(w.wire)
	c.ownHosts, c.ownLeaders, c.points, c.fuse, c.lines = 0, 0, 0, 0, nil
	return &c
}

// host returns host i for writing.
func (w *world) host(i int) *host {
	if w.ownHosts&(1<<i) == 0 {
		w.hosts[i] = w.hosts[i].clone()
		w.ownHosts |= 1 << i
	}
	return w.hosts[i]
}

// call is what a message asks.
type call uint8

const (
	callHello call = iota
	callPrepare
	callActivate
	callVerify
	callCommit
	callAbort
	callSettleCommit // the decision, told to a Host that asks for it by its report
	callSettleAbort
	callRemove // Amendments
	callInsert
	callSync
	callTraffic
)

var callNames = [...]string{"Hello", "Prepare", "Activate", "Verify", "Commit", "Abort", "Commit", "Abort", "Amend", "Amend", "Sync", "SetTraffic"}

// message is a request on its way, or the answer to it on its way back. Never changed once it is on the wire.
type message struct {
	epoch  uint64
	host   int
	call   call
	id     string // of the transaction or Amendment
	order  uint64
	try    uint32 // of the transaction's calls
	sentAt time.Time
	// orphan: whoever asked does not wait for the answer any more.
	orphan bool
	req    participant.Event
	what   string // the content, for the key
	answer *participant.Answer
}

func (m *message) String() string {
	return fmt.Sprintf("%s%s of epoch %d", callNames[m.call], m.what, m.epoch)
}

// event is the request with the caller's token.
func (m *message) event(to participant.Token) participant.Event {
	switch ev := m.req.(type) {
	case participant.Prepare:
		ev.To = to
		return ev
	case participant.Activate:
		ev.To = to
		return ev
	case participant.Verify:
		ev.To = to
		return ev
	case participant.Commit:
		ev.To = to
		return ev
	case participant.Abort:
		ev.To = to
		return ev
	case participant.Amend:
		ev.To = to
		return ev
	case participant.Sync:
		ev.To = to
		return ev
	case participant.SetTraffic:
		ev.To = to
		return ev
	default:
		panic(fmt.Sprintf("a request of type %T", ev))
	}
}

func answerText(m *message, a *participant.Answer) string {
	refusal := a.Refusal
	for _, v := range a.Verifies {
		refusal = v.Refusal
	}
	if refusal != nil {
		return fmt.Sprintf("%s%s: NO{%s: %s}", callNames[m.call], m.what, refusal.Reason, refusal.Message)
	}
	yes := map[call]string{callPrepare: "READY", callActivate: "VERIFIED", callVerify: "VERIFIED", callCommit: "COMMITTED",
		callSettleCommit: "COMMITTED", callAbort: "ABORTED", callSettleAbort: "ABORTED", callRemove: "AMENDED", callInsert: "AMENDED",
		callSync: "SYNCED", callTraffic: "DONE"}[m.call]
	return yes + m.what
}

// kv is the store: the rules are those of package store, the values are kept as they are.
type kv struct {
	epoch uint64
	rev   uint64
	recs  []record // sorted by key; never changed in place
}

type record struct {
	key string
	rev uint64
	val any
	txt string // of val, for the key
}

func (s *kv) get(key string) *record {
	at, ok := slices.BinarySearchFunc(s.recs, key, func(r record, k string) int { return cmp.Compare(r.key, k) })
	if !ok {
		return nil
	}
	return &s.recs[at]
}

// digests remembers the digests of Sections, which are expensive; they are few.
var digests = &digestCache{known: map[*driver.Section]string{}, texts: map[string]string{}}

type digestCache struct {
	mu    sync.Mutex
	known map[*driver.Section]string
	texts map[string]string
}

func (c *digestCache) of(s *driver.Section) string {
	text := s.App + strconv.Itoa(len(s.Routes))
	for _, u := range s.Upstreams {
		text += u.Name + u.Mode.String()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d, ok := c.texts[text]
	if !ok {
		d = driver.Digest(*s)
		c.texts[text] = d
	}
	return d
}

// key is the state in canonical form.
type key [16]byte

var seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

// keyBuilder collects texts and times.
type keyBuilder struct {
	b           []byte
	local, lead []time.Time // the Host's clock, the leaders'
	now         time.Time
}

func (k *keyBuilder) text(s string) { k.b = append(append(k.b, s...), ' ') }
func (k *keyBuilder) num(ns ...uint64) {
	for _, n := range ns {
		k.b = append(strconv.AppendUint(k.b, n, 10), ' ')
	}
}

func (k *keyBuilder) flags(fs ...bool) {
	for _, f := range fs {
		if f {
			k.b = append(k.b, '1')
		} else {
			k.b = append(k.b, '0')
		}
	}
}

func mark(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, '-')
	}
	return append(b, '@')
}

func (k *keyBuilder) at(ts ...time.Time) { // the leaders' clock
	for _, t := range ts {
		if k.b = mark(k.b, t); !t.IsZero() {
			k.lead = append(k.lead, t)
		}
	}
}

func (k *keyBuilder) localAt(ts ...time.Time) {
	for _, t := range ts {
		if k.b = mark(k.b, t); !t.IsZero() {
			k.local = append(k.local, t)
		}
	}
}

// canonical appends times as their distance to now in seconds and their rank.
func (k *keyBuilder) canonical(times []time.Time) {
	if len(times) == 0 {
		return
	}
	ranks := append(slices.Clone(times), k.now)
	slices.SortFunc(ranks, time.Time.Compare)
	ranks = slices.CompactFunc(ranks, time.Time.Equal)
	for _, t := range times {
		at, _ := slices.BinarySearchFunc(ranks, t, time.Time.Compare)
		k.b = append(k.b, byte(at), byte(seconds(t.Sub(k.now))))
	}
}

// seconds rounds: the milliseconds that events take never add up to half a second.
func seconds(d time.Duration) int8 {
	return int8(max(min(int(d.Round(time.Second)/time.Second), 100), -40))
}

func (k *keyBuilder) finish() []byte {
	k.canonical(k.local)
	k.canonical(k.lead)
	k.local, k.lead = k.local[:0], k.lead[:0]
	return k.b
}

// key tells states apart. Hosts are told by what they are, not by their names.
func (w *world) key() key {
	subs := make([][]byte, len(w.hosts))
	for i := range w.hosts {
		subs[i] = w.hostKey(i)
	}
	slices.SortFunc(subs, func(a, b []byte) int { return cmp.Compare(string(a), string(b)) })
	k := keyBuilder{now: w.now, b: make([]byte, 0, 2048)}
	for _, s := range subs {
		k.b = binary.AppendUvarint(k.b, uint64(len(s)))
		k.b = append(k.b, s...)
	}
	for n := range upNames {
		k.flags(w.dead[n], w.killed[n])
	}
	k.b = append(k.b, fmt.Sprint(w.budget)...)
	k.num(w.epochs, w.store.epoch, w.spare)
	for _, r := range w.store.recs {
		k.text(r.key)
		k.text(r.txt)
	}
	for _, l := range w.leaders {
		l.key(w, &k)
	}
	b := k.finish()
	var out key
	binary.LittleEndian.PutUint64(out[:], maphash.Bytes(seeds[0], b))
	binary.LittleEndian.PutUint64(out[8:], maphash.Bytes(seeds[1], b))
	return out
}

func (w *world) hostKey(i int) []byte {
	h := w.hosts[i]
	k := keyBuilder{now: w.now, b: make([]byte, 0, 1024)}
	caller := func(t participant.Token) string {
		for _, c := range h.callers {
			if c.token == t {
				return callNames[c.msg.call] + c.msg.what + strconv.FormatUint(c.msg.epoch, 10) + strconv.FormatBool(w.orphaned(c.msg))
			}
		}
		return "nobody"
	}
	k.b, k.local = h.m.AppendKey(k.b, k.local, caller)
	for _, c := range h.callers {
		if !w.orphaned(c.msg) {
			k.at(c.msg.sentAt)
		}
	}
	for _, j := range h.works {
		k.flags(j.App == shop, j.Stage != nil, j.Publish != nil, j.Converge != nil)
	}
	for app := range apps {
		k.text(digestOf(h.run[app]))
		k.text(digestOf(h.files[app]))
	}
	k.num(h.watch, uint64(h.held), uint64(h.pid))
	k.num(uint64(h.disk.Traffic.Order))
	k.at(h.quiet)
	k.flags(h.slow, h.unread, h.away, h.out, w.sc.split && i*2 >= len(w.hosts))
	for n := range upNames {
		k.num(uint64(h.sessions[n]))
		k.flags(h.red[n])
	}
	var msgs []string
	for _, m := range w.wire {
		if m.host == i {
			msgs = append(msgs, w.messageKey(m))
		}
	}
	slices.Sort(msgs)
	for _, m := range msgs {
		k.text(m)
	}
	for _, l := range w.leaders {
		l.hostKey(&k, i)
	}
	return k.finish()
}

// messageKey tells messages apart; of the times only how old the question is in seconds.
func (w *world) messageKey(m *message) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s %d %d %t", m.call, m.what, m.epoch, m.order, w.orphaned(m))
	if m.answer == nil {
		if w.orphaned(m) {
			return b.String()
		}
		fmt.Fprintf(&b, " %d", seconds(m.sentAt.Sub(w.now)))
		return b.String()
	}
	fmt.Fprintf(&b, " %d", seconds(m.sentAt.Sub(w.now)))
	a := m.answer
	fmt.Fprintf(&b, "%t %v", a.NeverActivated, a.Open)
	refusal, evidence := a.Refusal, a.Evidence
	for _, v := range a.Verifies {
		refusal, evidence = v.Refusal, v.Evidence
	}
	if refusal != nil {
		fmt.Fprintf(&b, " no %d", refusal.Reason)
	}
	for _, e := range evidence {
		fmt.Fprintf(&b, " %s %d %d %d %s", e.App, e.Process.WorkerPID, e.Version.Txn, e.Version.Amendments, e.Digest)
		for _, r := range e.Rows {
			fmt.Fprintf(&b, "%t%t", r.Healthy, r.Drained)
		}
	}
	return b.String()
}

var rules = txn.Rules{
	Fresh: 2 * time.Second, HostWait: 5 * time.Second, Restore: 60 * time.Second, Tidy: 2 * time.Second,
	RetryMin: time.Second, RetryMax: time.Second, StartCommand: func(h string) string { return "start " + h },
}
