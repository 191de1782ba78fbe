package participant

import (
	"maps"
	"slices"
	"strconv"
	"time"
)

// AppendKey appends all that decides what the machine does next, for exhaustive searches: States with equal texts, whose
// times stand in the same relations to each other and to now, have the same future. The times are appended apart, in the
// order of the text. caller names a Token by what waits behind it. An upstream is told by its name alone, since a name is
// one task incarnation.
func (s *State) AppendKey(text []byte, times []time.Time, caller func(Token) string) ([]byte, []time.Time) {
	k := keyWriter{b: text, times: times, caller: caller}
	d := &s.Durable
	k.num(d.Epoch, d.View, d.Floor)
	for _, app := range slices.Sorted(maps.Keys(d.Sections)) {
		k.section(d.Sections[app])
	}
	for _, id := range slices.Sorted(maps.Keys(d.Txns)) {
		k.txn(d.Txns[id])
	}
	for _, o := range d.Outcomes {
		k.word(o.TxnID)
		k.flags(o.Committed, o.NeverActivated, o.Refusal != nil)
	}
	k.flags(s.Broken != nil, s.readErr != nil)
	k.num(uint64(s.Process.WorkerPID))
	k.time(s.readAll, s.lastAll)
	for _, id := range slices.Sorted(maps.Keys(s.attempts)) {
		k.word(id)
		k.attempt(s.attempts[id], s)
	}
	var touched []string
	s.live.each(func(app string, _ *live) { touched = append(touched, app) })
	slices.Sort(touched)
	for _, app := range touched {
		k.word(app)
		k.live(s.live.get(app), s)
	}
	for _, w := range s.waits {
		k.tokens('w', []Token{w.to})
		k.flags(w.settled, w.answer.NeverActivated)
		k.time(w.since, w.deadline)
	}
	for _, v := range s.verifies {
		k.tokens('v', []Token{v.to})
		k.flags(v.single)
		k.time(v.since, v.deadline)
	}
	return k.b, k.times
}

type keyWriter struct {
	b      []byte
	times  []time.Time
	caller func(Token) string
}

func (k *keyWriter) word(s string) {
	k.b = append(append(k.b, s...), ' ')
}

func (k *keyWriter) num(ns ...uint64) {
	for _, n := range ns {
		k.b = append(strconv.AppendUint(k.b, n, 10), ' ')
	}
}

func (k *keyWriter) flags(fs ...bool) {
	for _, f := range fs {
		if f {
			k.b = append(k.b, '1')
		} else {
			k.b = append(k.b, '0')
		}
	}
}

func (k *keyWriter) time(ts ...time.Time) {
	for _, t := range ts {
		if t.IsZero() {
			k.b = append(k.b, '-')
			continue
		}
		k.b = append(k.b, '@')
		k.times = append(k.times, t)
	}
}

func (k *keyWriter) tokens(kind byte, ts []Token) {
	k.b = append(k.b, kind)
	for _, t := range ts {
		k.word(k.caller(t))
	}
}

func (k *keyWriter) ups(kind byte, ups []Upstream) {
	k.b = append(k.b, kind)
	for _, u := range ups {
		k.word(u.Name)
	}
}

func (k *keyWriter) section(s *SectionState) {
	k.word(s.App)
	k.num(s.Version.Txn, s.Version.Amendments, s.Passed, uint64(len(s.Committed.Routes)))
	k.flags(s.Removed, s.Unsettled, s.Stray, s.Died)
	k.ups('c', s.Committed.Upstreams)
	for _, d := range s.Draining {
		k.word(d.Upstream.Name)
		k.flags(d.Running, d.Held)
		k.num(uint64(d.Left))
		k.time(d.Until)
	}
	for _, d := range s.Drained {
		k.word(d.Upstream.Name)
		k.flags(d.Forced)
	}
	k.word(s.Published)
}

func (k *keyWriter) txn(t *Txn) {
	k.word(t.ID)
	k.num(t.Order, uint64(t.Phase))
	k.flags(t.Activated, t.Fallback, t.Refusal != nil, t.Amend != nil)
	k.time(t.Deadline)
	for i := range t.Changes {
		c := &t.Changes[i]
		k.word(c.App)
		k.ups('t', c.Target.Upstreams)
		k.ups('r', c.Replacements)
		k.flags(c.Remove, c.Stop, c.Undo.Died)
		k.word(c.Undo.Running)
		k.word(c.Undo.Published)
		k.num(uint64(c.Undo.Serving))
	}
}

func (k *keyWriter) attempt(a *attempt, s *State) {
	if a.t != nil {
		k.txn(a.t)
	}
	k.time(a.since, a.asked, a.deadline, a.noGreen, a.readFail)
	k.tokens('p', a.prepare)
	k.tokens('a', a.activate)
	k.tokens('b', a.abort)
	k.tokens('m', a.amend)
	for _, app := range slices.Sorted(maps.Keys(a.staged)) {
		k.word(app)
	}
	for _, app := range slices.Sorted(maps.Keys(a.tried)) {
		k.num(uint64(a.tried[app]))
		k.flags(a.reqErr[app] != nil)
	}
	for _, app := range slices.Sorted(maps.Keys(a.passed)) {
		k.flags(a.passed[app] == s.Process)
	}
	for _, app := range slices.Sorted(maps.Keys(a.stage)) {
		k.num(uint64(a.stage[app]))
		k.time(a.drainFrom[app])
	}
}

func (k *keyWriter) live(l *live, s *State) {
	if w := l.work; w != nil {
		k.flags(w.Stage != nil, w.Publish != nil, w.Converge != nil, l.workProc == s.Process, l.ignore)
		k.num(uint64(len(w.Cut)), uint64(len(w.Requests)), uint64(w.Phase))
	}
	k.flags(l.conv.known, l.pub.known, l.lastErr != nil, l.reading != nil)
	k.word(l.conv.digest)
	k.time(l.conv.at, l.retryAt)
	k.word(l.pub.want)
	k.word(l.pub.digest)
	k.num(uint64(l.tries), uint64(len(l.cut)))
	if r := l.reading; r != nil {
		k.flags(r.process == s.Process)
		k.time(r.started, r.at)
		k.word(r.section.Digest)
		for i := range r.section.Rows {
			row := &r.section.Rows[i]
			k.flags(row.Green, row.Red, r.steady[row.Name])
			k.num(uint64(row.Sessions))
		}
	}
}
