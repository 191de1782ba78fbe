package protocol

import (
	"slices"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/txn"
)

// kind is what a move is.
type kind uint8

const (
	// What happens by itself, sooner or later.
	mDeliver kind = iota // message at arrives
	mWork                // Host at changes its proxy
	mLand                // the write of leader at, transaction arg, reaches the store
	mConnect             // Host at and the newest leader connect
	mElect               // a leader is elected
	mLost                // the call of leader at to Host arg has no answer to come
	mResume              // Host at reports again
	mSession             // the last client of a leaves Host at
	mAgain               // the change is tried again
	mReplace             // a replacement for the dead is healthy and is inserted
	mKill                // the leader at orders upstream arg killed
	mOver                // an old leader learns that its term is over
	mReadmit             // an operator readmits Host at
	mLeave               // the balancer before Host at sees that it is not ready: no client comes to it any more
	mTell                // Host at tells what traffic it gets
	mDirect              // the leader tells Host at whether it may get traffic
	mHeal                // nothing else happens: checks pass again on Host at, or its journal can be written
	mBack                // nothing else happens: Host at can be reached again
	mTime                // nothing else happens: time passes

	// Faults.
	mLeaderDies // leader at; arg 1: after its pending writes landed
	mDepose
	mLate
	mLose
	mRepeat
	mAgentDies // Host at; arg: how much of its Work is done
	mProxyDies
	mRed
	mDie
	mAbort
	mUnlink
	mSlow
	mPause
	mExpire
	mInsert
	mRefused
	mAway
	mExclude // Host at; arg 1: the operator has taken it out of traffic, and says so
	mDrain
)

// move is one step of the world. fuse cuts it short: a process dies at that point of it.
type move struct {
	kind    kind
	at, arg uint8
	fuse    uint8
}

// fault says whether the move needs a budget.
func (m move) fault() bool { return m.kind >= mLeaderDies || m.fuse > 0 }

// moves are all that can happen in w, apart from crashes in the middle of one. Good ones come first, in the order in
// which a well-behaved world takes them.
func (w *world) moves() []move {
	var out []move
	add := func(k kind, at, arg int) { out = append(out, move{kind: k, at: uint8(at), arg: uint8(arg)}) }
	for n, m := range w.wire {
		if !w.orphaned(m) && !w.hosts[m.host].away {
			add(mDeliver, n, 0)
		}
	}
	for i, h := range w.hosts {
		if len(h.works) > 0 {
			add(mWork, i, 0)
		}
	}
	for k, l := range w.leaders {
		for j, o := range l.txns {
			if o.writing != "" {
				add(mLand, k, j)
			}
		}
	}
	l := w.newest()
	if l == nil {
		add(mElect, 0, 0)
	} else {
		for i, h := range w.hosts {
			if h.watch != l.epoch && !h.away {
				add(mConnect, i, 0)
			}
		}
	}
	for k, l := range w.leaders {
		for i := range w.hosts {
			for range w.lost(l, i) {
				add(mLost, k, i)
				break
			}
		}
	}
	for i, h := range w.hosts {
		if h.slow {
			add(mResume, i, 0)
		}
		if u := h.row("a"); h.sessions[upA] > 0 && u != nil && u.Mode == driver.Draining {
			add(mSession, i, 0)
		}
	}
	if l != nil && w.sc.budget.drain > 0 {
		w.trafficMoves(l, add)
	}
	quiet := len(out) == 0
	if l != nil {
		if w.budget.again > 0 && len(l.ended) > 0 && w.sc.together == alone && l.ended[len(l.ended)-1].phase == txn.RolledBack && len(l.txns) == 0 && !w.dead[upB] && !w.ended(l, "t2") {
			add(mAgain, 0, 0)
		}
		if w.replacementDue(l) {
			add(mReplace, 0, 0)
		}
		for i := range w.hosts {
			m := l.hosts[i].member
			if (m.Standing == registry.Excluded || m.Drained) && !slices.ContainsFunc(l.asks, func(a memberAsk) bool { return a.host == i }) {
				add(mReadmit, i, 0)
			}
		}
	}
	for k, l := range w.leaders {
		for n, name := range upNames {
			if n == upR || n >= upC && w.sc.together == alone {
				continue
			}
			if !w.dead[n] && l.mayKill() && !l.committed(name) && !l.inOpenTxn(name) && !l.mayTryAgain(name) && (l.released(name) || l.drained(name)) {
				add(mKill, k, n)
			}
		}
	}
	if len(w.leaders) > 1 {
		add(mOver, 0, 0)
	}
	if quiet {
		for i, h := range w.hosts {
			if slices.Contains(h.red[:], true) || h.m.Broken != nil {
				add(mHeal, i, 0)
			}
			if h.away {
				add(mBack, i, 0)
			}
		}
		add(mTime, 0, 0)
	}
	for n, m := range w.wire {
		if w.orphaned(m) && m.answer == nil && !w.hosts[m.host].away {
			add(mDeliver, n, 1)
		}
	}
	w.faults(add)
	return out
}

func (w *world) ended(l *leader, id string) bool {
	return slices.ContainsFunc(l.ended, func(e ended) bool { return e.id == id })
}

// mayKill: some transaction is not undecided any more, so the engine may want to be rid of a task.
func (l *leader) mayKill() bool {
	return len(l.ended)+len(l.drains) > 0 || slices.ContainsFunc(l.txns, func(o *open) bool { return !o.state.Undecided() })
}

// mayTryAgain: the task is one of a proposal that is not over, so the engine keeps it.
func (l *leader) mayTryAgain(name string) bool {
	return slices.ContainsFunc(l.txns, func(o *open) bool {
		return len(o.units) > 1 && slices.ContainsFunc(o.parts(), func(p part) bool { return p.up == name })
	})
}

// replacementDue: no task of the committed Spec is left, so the scheduler has started another one, and it is healthy.
func (w *world) replacementDue(l *leader) bool {
	return len(l.shop().GetSection().GetUpstreams()) == 0 && w.mayInsert(l) && len(l.amends) == 0 && !w.dead[upR]
}

// lost are the calls of the leader to Host i whose answer can come no more.
func (w *world) lost(l *leader, i int) []*message {
	var out []*message
	check := func(m *message) {
		same := func(x *message) bool {
			return x.epoch == m.epoch && x.host == i && x.try == m.try && x.id == m.id && (x.call == m.call || m.call == callHello && x.call < callRemove && x.call != callHello)
		}
		if slices.ContainsFunc(w.wire, same) || slices.ContainsFunc(w.hosts[i].callers, func(c caller) bool { return same(c.msg) }) {
			return
		}
		out = append(out, m)
	}
	for _, o := range l.txns {
		if h := o.host(i); h != nil && h.Call != txn.CallNone {
			check(&message{epoch: l.epoch, host: i, call: []call{0, callPrepare, callActivate, callVerify, callCommit, callAbort}[h.Call], id: o.id, try: h.Attempt})
		}
	}
	s := &l.hosts[i]
	if s.direct != 0 {
		check(&message{epoch: l.epoch, host: i, call: callTraffic, try: s.direct})
	}
	if s.syncing != 0 {
		check(&message{epoch: l.epoch, host: i, call: callSync, try: s.syncing})
	}
	if s.settle != 0 {
		for _, c := range []call{callSettleCommit, callSettleAbort} {
			if slices.ContainsFunc(w.wire, func(x *message) bool { return x.epoch == l.epoch && x.host == i && x.call == c && x.try == s.settle }) ||
				slices.ContainsFunc(w.hosts[i].callers, func(x caller) bool { return x.msg.epoch == l.epoch && x.msg.call == c && x.msg.try == s.settle }) {
				return out
			}
		}
		out = append(out, &message{epoch: l.epoch, host: i, call: callSettleAbort, try: s.settle})
	}
	for _, a := range l.amends {
		if f := a.hosts[i].flying; f != 0 && !a.hosts[i].done {
			check(&message{epoch: l.epoch, host: i, call: a.call, id: a.rec.id, try: f})
		}
	}
	return out
}

// do makes the move in a copy of w.
func (w *world) do(m move) *world {
	c := w.clone()
	c.telling = w.telling
	c.fuse = int(m.fuse)
	c.apply(m)
	if c.broken == nil {
		c.flush()
	}
	for _, l := range slices.Clone(c.leaders) {
		if c.broken == nil && !l.over && c.sc.budget.exclude > 0 {
			c.advanceAsks(c.lead(l.epoch))
		}
	}
	c.sweep()
	if c.broken == nil {
		c.check()
	}
	c.fuse = 0
	return c
}

func (w *world) take(n int) *message {
	m := w.wire[n]
	w.wire = slices.Delete(w.wire, n, n+1)
	return m
}

func (w *world) apply(m move) {
	b := &w.budget
	switch at, arg := int(m.at), int(m.arg); m.kind {
	case mDeliver:
		if msg := w.take(at); msg.answer != nil {
			w.answered(msg)
		} else {
			w.deliverRequest(msg)
		}
	case mWork:
		w.work(at)
	case mLand:
		l := w.lead(w.leaders[at].epoch)
		w.landed(l, l.txns[arg])
	case mConnect:
		w.connect(at)
	case mElect:
		w.elect()
	case mLost:
		w.noAnswer(w.lost(w.leaders[at], arg)[0])
	case mResume:
		w.host(at).slow = false
		w.say("%s reports again", hostName(at))
	case mSession:
		h := w.host(at)
		h.sessions[upA], h.unread = 0, true
		w.say("the last client of a on %s is served", hostName(at))
		w.settle(at)
	case mAgain:
		b.again--
		w.begin(w.lead(w.newest().epoch), "t2")
	case mReplace:
		l := w.lead(w.newest().epoch)
		undo := ""
		for _, o := range l.txns {
			if o.state.Phase == txn.Restoring || o.state.Phase == txn.StuckRestoring {
				if slices.ContainsFunc(o.state.Hosts, func(h txn.Host) bool { return h.SentActivate }) {
					undo = o.id
				}
			}
		}
		w.insert(l, undo)
	case mKill:
		w.kill(w.lead(w.leaders[at].epoch), arg)
	case mTime:
		w.pass(w.nextWake())
	case mOver:
		w.say("the leader of epoch %d learns that its term is over", w.leaders[0].epoch)
		w.leaderDied(w.lead(w.leaders[0].epoch))
	case mReadmit:
		w.askMember(w.lead(w.newest().epoch), at, txn.MemberAsk{Verb: txn.Readmit, Host: hostName(at), Actor: "operator", Reason: "it is repaired"})
	case mLeave:
		h := w.host(at)
		h.out, h.quiet, h.sessions, h.unread = true, w.now, [upstreams]uint8{}, true
		w.say("the balancer sees that %s is not ready: no client comes to it any more", hostName(at))
		w.settle(at)
	case mTell:
		l := w.lead(w.newest().epoch)
		l.hosts[at].traffic = w.hosts[at].traffic(w.now)
		w.say("%s tells the leader of epoch %d what traffic it gets", hostName(at), l.epoch)
	case mDirect:
		w.direct(w.lead(w.newest().epoch), at)
	case mBack:
		w.isBack(at)
	case mHeal:
		h := w.host(at)
		if h.m.Broken != nil {
			w.repaired(at)
			return
		}
		h.red, h.unread = [upstreams]bool{}, true
		w.say("all checks pass again on %s", hostName(at))
		w.settle(at)
	default:
		w.applyFault(m)
	}
}

func (w *world) taskDies(n int) {
	w.say("the task of %s ends", upNames[n])
	w.dead[n] = true
	for i := range w.hosts {
		h := w.host(i)
		if h.row(upNames[n]) != nil {
			h.sessions[n], h.unread = 0, true
			w.settle(i)
		}
	}
}

// kill orders a task killed: the order is durable before it is given.
func (w *world) kill(l *leader, n int) {
	if w.commit(l, put(store.Put, "killed/"+upNames[n], true, "")) != nil {
		return
	}
	w.say("the leader of epoch %d orders the task of %s killed", l.epoch, upNames[n])
	w.killed[n] = true
	w.taskDies(n)
}

// nextWake is how long until something is due.
func (w *world) nextWake() time.Duration {
	next := time.Time{}
	due := func(t time.Time) {
		if t.After(w.now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, l := range w.leaders {
		for _, o := range l.txns {
			due(rules.NextWake(o.state))
		}
		for _, a := range l.amends {
			due(a.rec.deadline)
		}
	}
	for _, h := range w.hosts {
		for _, t := range h.disk.Txns {
			if t.Phase != participant.Verified && t.Phase != participant.Lapsed {
				due(t.Deadline)
			}
		}
	}
	if next.IsZero() {
		return time.Second
	}
	return min(max(next.Sub(w.now), time.Second), 10*time.Second)
}

// pass lets time go by for everybody.
func (w *world) pass(d time.Duration) {
	w.now = w.now.Add(d)
	w.say("%v pass", d.Round(time.Second))
	for _, l := range slices.Clone(w.leaders) {
		if o := w.lead(l.epoch); o != nil {
			w.tick(o)
		}
	}
	for i := range w.hosts {
		w.hear(i, participant.Tick{})
	}
}
