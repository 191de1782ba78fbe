package protocol

import (
	"strings"
	"time"
)

// key is the part of a leader that is about no Host.
func (l *leader) key(w *world, k *keyBuilder) {
	k.num(l.epoch, l.last, l.passed, uint64(l.joints))
	for _, c := range l.secs {
		k.num(c.rev)
		k.text(sectionText(c.sec))
	}
	for _, v := range l.views {
		k.num(v.number)
	}
	for _, a := range l.asks {
		k.num(uint64(a.host))
		k.text(string(a.ask.Verb))
		k.flags(a.ask.Sure)
	}
	for _, o := range l.txns {
		k.text(o.id)
		k.text(o.writing)
		k.text(o.lockID)
		for _, u := range o.units {
			k.text(u.id())
			k.flags(u.left, w.now.Before(u.deadline))
		}
		k.text(string(o.state.Cause))
		s := &o.state
		k.num(s.Order, uint64(s.Phase), uint64(len(o.dead)))
		k.flags(s.Marking, s.Marked, o.granted)
		for _, t := range []time.Time{s.Deadline, s.RestoreBy, s.TidyBy} {
			if k.b = mark(k.b, t); !t.IsZero() {
				k.b = append(k.b, byte(seconds(t.Sub(k.now))))
			}
		}
	}
	for _, e := range l.ended {
		k.text(e.id)
		k.num(uint64(e.phase))
	}
	for _, a := range l.amends {
		a.key(k)
	}
	for _, d := range l.drains {
		k.text(d.id)
		k.text(strings.Join(d.released, " "))
	}
	k.text(strings.Join(l.removed, " "))
}

// hostKey is the part of a leader that is about Host i.
func (l *leader) hostKey(k *keyBuilder, i int) {
	s := &l.hosts[i]
	k.flags(s.up, s.syncing != 0, s.settle != 0, s.tries > 0, s.reports.Known)
	k.text(string(s.member.Standing))
	k.num(uint64(s.traffic.order))
	k.flags(s.member.Drained, s.direct != 0, s.traffic.proves(), s.traffic.quiet.IsZero())
	k.at(s.syncAt)
	if !s.up {
		k.at(s.downAt)
	}
	for _, app := range apps {
		r := s.reports.Sections[app]
		k.num(r.GetVersion().GetTxn(), r.GetVersion().GetAmendments(), uint64(r.GetOpen().GetPhase()))
		k.text(r.GetOpen().GetTxnId())
		e := r.GetEvidence()
		k.text(e.GetDigest())
		if e.GetReadAt() != nil {
			k.localAt(e.GetReadAt().AsTime())
		}
		for _, row := range e.GetUpstreams() {
			k.text(row.GetName())
			k.num(uint64(row.GetMode()))
			k.flags(row.GetDrained(), row.GetRegistered(), row.GetHealthy())
		}
	}
	for _, o := range l.txns {
		h := o.host(i)
		if h == nil {
			continue
		}
		k.num(uint64(h.Vote), uint64(h.Call), uint64(h.PID), uint64(h.SeenPID+1))
		k.flags(h.SentPrepare, h.SentActivate, h.Done, h.Connected, h.CaughtUp, h.Unproven, h.Excluded, h.Unrestored != nil, h.Reason != "")
		k.text(string(h.Trouble))
		k.at(h.AwaySince, h.RetryAt, h.FreshAt, h.NotBefore, h.DownSince)
		k.flags(o.heard[i].verified.IsZero(), o.heard[i].lapsed.IsZero())
		k.localAt(h.ReadAt, h.SeenAt)
	}
	for _, a := range l.amends {
		a.hostKey(k, i)
	}
}
