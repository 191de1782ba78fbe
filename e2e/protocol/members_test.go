package protocol

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// Groups: g has shop and, unless the scenario splits them, cart too; then h has cart.
var groupNames = [2]string{"g", "h"}

func groupIndex(name string) int { return slices.Index(groupNames[:], name) }

func (w *world) groupOf(app int) string {
	if w.sc.split {
		return groupNames[app]
	}
	return groupNames[0]
}

func (w *world) hostGroup(i int) string {
	if w.sc.split && i*2 >= w.sc.hosts {
		return groupNames[1]
	}
	return groupNames[0]
}

// holds: the App's Section is for Host i.
func (w *world) holds(i, app int) bool { return w.groupOf(app) == w.hostGroup(i) }

func (w *world) identity(i int) participant.Identity {
	return participant.Identity{Cluster: "c", Group: w.hostGroup(i)}
}

func (w *world) fence(l *leader, i int) participant.Fence {
	g := w.hostGroup(i)
	return participant.Fence{Cluster: "c", Group: g, Epoch: l.epoch, View: l.views[groupIndex(g)].number}
}

// view is the numbered membership of a Group: a bit for each Host.
type view struct {
	number uint64
	hosts  uint8
	rev    uint64
}

func (v view) has(i int) bool { return v.hosts&(1<<i) != 0 }

func (v view) members() int {
	n := 0
	for i := range 8 {
		if v.has(i) {
			n++
		}
	}
	return n
}

// memberAsk is a change of a Host's membership that waits until no transaction of its Group is undecided.
type memberAsk struct {
	host int
	ask  txn.MemberAsk // Verb "" is that a Host which holds all that is committed becomes a member again
}

// viewLocks begins the names of the locks that hold back transactions while a View is to change.
const viewLocks = "view/"

// counts: the word of the Host is needed.
func (s seen) counts() bool { return s.member.Standing == registry.Member }

// loadMembers reads who is a member.
func (w *world) loadMembers(l *leader) {
	for n, g := range groupNames {
		if r := w.store.get("view/" + g); r != nil {
			l.views[n] = r.val.(view)
			l.views[n].rev = r.rev
		}
	}
	for i := range l.hosts {
		l.hosts[i].member = w.store.get("view/" + w.hostGroup(i) + "/" + hostName(i)).val.(registry.Membership)
	}
}

// pinned are the Hosts of the Views as the machine starts with them.
func (w *world) pinned(l *leader, o *open) []txn.Host {
	var out []txn.Host
	for i := range l.hosts {
		g := w.hostGroup(i)
		if !slices.Contains(o.groups(w), g) || !l.views[groupIndex(g)].has(i) {
			continue
		}
		h := txn.Host{Name: hostName(i), Group: g, Connected: l.hosts[i].up}
		if !h.Connected && w.sc.policy.Spares(l.views[groupIndex(g)].members()) > 0 {
			h.AwaySince = l.hosts[i].downAt
		}
		out = append(out, h)
	}
	return out
}

// tellExcluded tells a transaction of an earlier term who is out of the View by now.
func (w *world) tellExcluded(l *leader, o *open) {
	for _, h := range slices.Clone(o.state.Hosts) {
		if l.hosts[hostIndex(h.Name)].member.Standing == registry.Excluded {
			w.step(l, o, txn.HostExcluded{Host: h.Name})
		}
	}
}

// askMember is what an operator asks of the leader.
func (w *world) askMember(l *leader, i int, ask txn.MemberAsk) {
	w.say("an operator asks the leader of epoch %d to %s %s%s", l.epoch, ask.Verb, hostName(i), map[bool]string{true: ": he knows that it gets no traffic"}[ask.Sure])
	m, changed, err := w.decideMember(l, i, ask)
	if err != nil {
		w.say("it is refused: %v", err)
		return
	}
	if (m.Standing == registry.Member) == l.hosts[i].counts() { // it changes no View, so it waits for nothing
		if changed {
			w.changeMember(l, i, m)
		}
		return
	}
	w.queueAsk(l, memberAsk{i, ask})
}

func (w *world) queueAsk(l *leader, a memberAsk) {
	g := w.hostGroup(a.host)
	if !slices.ContainsFunc(l.asks, func(x memberAsk) bool { return w.hostGroup(x.host) == g }) {
		w.holdGroup(l, g)
	}
	l.asks = append(l.asks, a)
}

func (w *world) holdGroup(l *leader, group string) {
	var granted []txn.Grant
	l.locks, granted = l.locks.Add(txn.LockRequest{ID: viewLocks + group, Exclusive: []string{group}})
	w.grant(l, granted)
}

func (w *world) decideMember(l *leader, i int, ask txn.MemberAsk) (registry.Membership, bool, error) {
	s := &l.hosts[i]
	old := s.member
	if ask.Verb == "" {
		if old.Standing != registry.Joining || w.lacks(l, i) {
			return old, false, nil
		}
		old.Standing = registry.Member
		return old, true, nil
	}
	others := 0
	for j := range l.hosts {
		if j != i && w.hostGroup(j) == w.hostGroup(i) && l.hosts[j].member.InTraffic() {
			others++
		}
	}
	return registry.Decide(ask, &old, registry.Seen{Connected: s.up, SentAt: s.traffic.at, Traffic: s.traffic.report(), Others: others}, w.now)
}

// lacks: something keeps a joining Host from being a member.
func (w *world) lacks(l *leader, i int) bool {
	s := &l.hosts[i]
	if !s.up || !s.reports.Known || s.syncing != 0 {
		return true
	}
	for app, name := range apps {
		r := s.reports.Sections[name]
		if w.holds(i, app) && (r.GetOpen() != nil || l.inMotion(app, i) || txn.Disagreement(s.reports, name, l.secs[app].sec) != "" || !txn.HasRead(r.GetEvidence())) {
			return true
		}
	}
	return false
}

// advanceAsks makes the changes of membership whose turn it is.
func (w *world) advanceAsks(l *leader) {
	for i := range l.hosts {
		if l.hosts[i].member.Standing == registry.Joining && !w.lacks(l, i) && !slices.ContainsFunc(l.asks, func(a memberAsk) bool { return a.host == i }) {
			w.queueAsk(l, memberAsk{host: i})
		}
	}
	for len(l.asks) > 0 && !l.over {
		a := l.asks[0]
		g := w.hostGroup(a.host)
		if slices.ContainsFunc(l.txns, func(o *open) bool { return o.granted && o.state.Undecided() && slices.Contains(o.groups(w), g) }) {
			return
		}
		m, changed, err := w.decideMember(l, a.host, a.ask)
		if err == nil && changed {
			w.changeMember(l, a.host, m)
		}
		if l.over {
			return
		}
		l.asks = l.asks[1:]
		w.unlock(l, viewLocks+g)
		if slices.ContainsFunc(l.asks, func(x memberAsk) bool { return w.hostGroup(x.host) == g }) {
			w.holdGroup(l, g)
		}
	}
}

// changeMember makes the Membership durable, with the View that follows from it, and draws the consequences.
func (w *world) changeMember(l *leader, i int, m registry.Membership) {
	g := w.hostGroup(i)
	n := groupIndex(g)
	v := l.views[n]
	ops := []op{put(store.Put, "view/"+g+"/"+hostName(i), m, string(m.Standing))}
	if v.has(i) != (m.Standing == registry.Member) {
		v.hosts ^= 1 << i
		v.number++
		o := put(store.Replace, "view/"+g, v, fmt.Sprint(v.number, v.hosts))
		o.Expect = store.Revision(v.rev)
		ops = append(ops, o)
	}
	if w.commit(l, ops...) != nil {
		return
	}
	w.say("the leader of epoch %d has recorded that %s is %s%s", l.epoch, hostName(i), m.Standing, map[bool]string{true: ", drained"}[m.Drained])
	if w.burn(leaderDies, "the leader of epoch %d dies when the membership is recorded", l.epoch) {
		w.leaderDied(l)
		return
	}
	was := l.hosts[i].member
	w.loadMembers(l)
	switch m.Standing {
	case registry.Excluded:
		if !w.hosts[i].out {
			w.violate("UNDO", "%s is excluded, which stands for every answer that it owes, and clients come to it", hostName(i))
		}
		for _, o := range slices.Clone(l.txns) {
			if o.host(i) != nil {
				w.step(l, o, txn.HostExcluded{Host: hostName(i)})
			}
		}
		for _, a := range slices.Clone(l.amends) {
			a.hosts[i].done, a.hosts[i].flying = true, 0
			w.advanceAmend(l, a)
		}
	case registry.Member:
		if was.Standing == registry.Member {
			break // it is drained, or is not any more: what follows is told to it
		}
		h := w.host(i)
		for app := range apps {
			if w.holds(i, app) && !w.routesAsCommitted(h, app, l.secs[app].sec) {
				w.violate("ALL-OR-OLD", "%s is a member again, and runs %s, which is not what is committed", hostName(i), modes(h.run[app]))
			}
		}
		if h.out && h.disk.Traffic.Order != participant.TrafficOut {
			h.out = false
			w.say("clients come to %s again", hostName(i))
		}
	default:
	}
	if !l.over {
		w.refresh(l, i)
	}
}

// isBack: the Host can be reached again. What was on its way to it or from it meanwhile is lost.
func (w *world) isBack(i int) {
	w.host(i).away = false
	w.say("%s can be reached again", hostName(i))
	for {
		at := slices.IndexFunc(w.wire, func(m *message) bool { return m.host == i })
		if at < 0 {
			return
		}
		if m := w.take(at); !w.orphaned(m) {
			w.noAnswer(m)
		}
	}
}

// diskFails: the journal of Host i cannot be written, from this Record on. Nothing of the Step is promised, and the Host
// refuses everything until the journal is open again; what was to be written may be on the disk all the same.
func (w *world) diskFails(i int, before participant.State, first participant.Journal, effects []participant.Effect) bool {
	h := w.host(i)
	switch {
	case w.burn(diskFails, "%s cannot write its journal", hostName(i)):
	case w.burn(diskFails, "%s cannot write its journal, and does not know that the record is there: %s", hostName(i), first.Record.Kind):
		h.disk = h.disk.Apply(first.Record)
	default:
		return false
	}
	no := &participant.Refusal{Reason: participant.JournalBroken, Message: "fsync failed"}
	for _, e := range effects {
		if r, ok := e.(participant.Reply); ok {
			w.reply(i, r.To, participant.Answer{Refusal: no})
		}
	}
	var more []participant.Effect
	h.m, more = participant.Step(before, participant.JournalFailed{Err: errors.New("fsync failed")}, w.now)
	for _, e := range more {
		if r, ok := e.(participant.Reply); ok {
			w.reply(i, r.To, r.Answer)
		}
	}
	h.works, h.held = nil, 0
	return true
}

// repaired: the journal of Host i can be written again; it starts from what is on the disk.
func (w *world) repaired(i int) {
	h := w.host(i)
	w.say("the journal of %s can be written again", hostName(i))
	h.works, h.callers = nil, nil
	h.m = participant.Recover(w.identity(i), h.disk, w.now)
	h.unread = true
	for n, app := range apps {
		if slices.Contains(h.m.Apps(), app) {
			h.held |= 1 << n
		}
	}
	if w.feed(i, participant.Tick{}) {
		w.settle(i)
	}
}
