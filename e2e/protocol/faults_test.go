package protocol

import (
	"slices"
	"time"

	"github.com/cutover/cutover/orchestrator/txn"
)

// faults are all that may go wrong now, as far as the budget goes.
func (w *world) faults(add func(k kind, at, arg int)) {
	b := &w.budget
	for k, l := range w.leaders {
		if b.leader > 0 {
			add(mLeaderDies, k, 0)
			if slices.ContainsFunc(l.txns, func(o *open) bool { return o.writing != "" }) {
				add(mLeaderDies, k, 1)
			}
		}
		if b.abort > 0 {
			for j, o := range l.txns {
				if o.state.Undecided() && o.state.Phase != txn.Deciding {
					for n := range o.units {
						add(mAbort, k, j<<2|n)
					}
				}
			}
		}
		if b.refused > 0 && slices.ContainsFunc(l.txns, func(o *open) bool { return o.writing != "" }) {
			add(mRefused, k, 0)
		}
	}
	if b.depose > 0 && len(w.leaders) == 1 {
		add(mDepose, 0, 0)
	}
	for n, m := range w.wire {
		if b.late > 0 && m.answer == nil && !w.orphaned(m) {
			add(mLate, n, 0)
		}
		if b.lose > 0 && !w.orphaned(m) {
			add(mLose, n, 0)
		}
		if b.repeat > 0 && m.answer == nil {
			add(mRepeat, n, 0)
		}
	}
	for i, h := range w.hosts {
		if b.agent > 0 {
			add(mAgentDies, i, 0)
		}
		if b.proxy > 0 {
			add(mProxyDies, i, 0)
		}
		if b.red > 0 {
			for n := range upNames[:2] {
				if !h.red[n] && !w.dead[n] && h.row(upNames[n]) != nil {
					add(mRed, i, n)
				}
			}
		}
		if b.unlink > 0 && h.watch != 0 {
			add(mUnlink, i, 0)
		}
		if b.away > 0 && !h.away && h.watch != 0 {
			add(mAway, i, 0)
		}
		if b.exclude > 0 && len(w.leaders) == 1 && w.newest().hosts[i].counts() {
			add(mExclude, i, 0)
			if w.sc.budget.drain == 0 && w.newest().views[groupIndex(w.hostGroup(i))].members() > 1 {
				add(mExclude, i, 1)
			}
		}
		if b.drain > 0 && len(w.leaders) == 1 && w.newest().hosts[i].member.InTraffic() {
			add(mDrain, i, 0)
		}
		if b.slow > 0 && h.watch != 0 && !h.slow {
			add(mSlow, i, 0)
		}
	}
	if b.die > 0 && len(w.leaders) == 1 {
		for n := range upNames[:2] {
			if !w.dead[n] {
				add(mDie, n, 0)
			}
		}
	}
	if b.pause > 0 {
		add(mPause, 0, 0)
	}
	if b.expire > 0 {
		add(mExpire, 0, 0)
	}
	if l := w.newest(); b.insert > 0 && l != nil && w.mayInsert(l) {
		add(mInsert, 0, 0)
	}
}

func (w *world) applyFault(m move) {
	b := &w.budget
	switch at, arg := int(m.at), int(m.arg); m.kind {
	case mLeaderDies:
		b.leader--
		l := w.lead(w.leaders[at].epoch)
		if arg == 1 {
			for _, o := range l.txns {
				if o.writing != "" {
					w.land(l, o)
				}
			}
		}
		w.say("the leader of epoch %d is killed", l.epoch)
		w.leaderDied(l)
	case mDepose:
		b.depose--
		w.say("the leader of epoch %d has lost its lock and does not know it", w.newest().epoch)
		w.elect()
	case mLate:
		b.late--
		msg := w.take(at)
		w.noAnswer(msg)
		late := *msg
		late.orphan = true
		w.wire = append(w.wire, &late)
	case mLose:
		b.lose--
		msg := w.take(at)
		w.say("%s is lost", msg)
		w.noAnswer(msg)
	case mRepeat:
		b.repeat--
		twice := *w.wire[at]
		twice.orphan = true
		w.wire = append(w.wire, &twice)
		w.say("%s is on its way twice", &twice)
	case mAgentDies:
		b.agent--
		w.say("the lbagent of %s is killed", hostName(at))
		w.agentDied(at)
	case mProxyDies:
		b.proxy--
		w.restartProxy(at)
	case mRed:
		b.red--
		h := w.host(at)
		h.red[arg], h.unread = true, true
		w.say("%s fails the checks of %s's proxy", upNames[arg], hostName(at))
		w.settle(at)
	case mDie:
		b.die--
		w.taskDies(at)
		l := w.newest()
		if l != nil {
			w.taskEnded(w.lead(l.epoch), upNames[at])
		}
	case mAbort:
		b.abort--
		l := w.lead(w.leaders[at].epoch)
		o := l.txns[arg>>2]
		u := &o.units[arg&3]
		w.say("somebody asks the leader of epoch %d to abort %s", l.epoch, u.id())
		u.left = len(o.units) > 1 // the others go on without it
		w.step(l, o, txn.AbortAsked{Cause: txn.CauseAsked, Reason: "asked"})
	case mUnlink:
		b.unlink--
		w.say("the Watch stream of %s falls", hostName(at))
		w.unlinked(at)
	case mSlow:
		b.slow--
		w.host(at).slow = true
		w.say("the reports of %s are held up", hostName(at))
	case mAway:
		b.away--
		w.host(at).away = true
		w.say("%s cannot be reached", hostName(at))
		w.unlinked(at)
	case mDrain:
		b.drain--
		w.askMember(w.lead(w.newest().epoch), at, txn.MemberAsk{Verb: txn.DrainHost, Host: hostName(at), Actor: "operator", Reason: "it is repaired"})
	case mExclude:
		b.exclude--
		ask := txn.MemberAsk{Verb: txn.Exclude, Host: hostName(at), Actor: "operator", Reason: "it is repaired", Sure: arg == 1}
		if ask.Sure {
			h := w.host(at)
			h.out, h.sessions, h.unread = true, [upstreams]uint8{}, true
			w.say("clients come to %s no more", hostName(at))
			w.settle(at)
		}
		w.askMember(w.lead(w.newest().epoch), at, ask)
	case mPause:
		b.pause--
		w.pass(3 * time.Second)
	case mExpire:
		b.expire--
		w.pass(txnDeadline + time.Second)
	case mInsert:
		b.insert--
		w.insert(w.lead(w.newest().epoch), "")
	case mRefused:
		b.refused--
		l := w.lead(w.leaders[at].epoch)
		for _, o := range l.txns {
			if o.writing != "" {
				w.say("the store refuses the %s of %s", o.writing, o.id)
				o.writing = ""
				w.step(l, o, txn.WriteRefused{Cause: txn.CauseStore, Reason: "refused"})
				return
			}
		}
	}
}
