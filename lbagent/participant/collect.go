package participant

// collecting is a Collect under way: a reload of the proxy, and who waits for its end.
type collecting struct {
	seq uint64
	to  []Token
}

// stepCollect begins a reload of the proxy, or joins the one that is under way. None begins while a transaction is open: its
// proofs would have to be made again in the new process. What is still in motion apart from that (a drain, a settlement) is
// held by level: the new process is read, and brought to the same want.
func (m *stepper) stepCollect(ev Collect) {
	if c := m.s.collecting; c != nil {
		m.s.collecting = &collecting{seq: c.seq, to: append(append([]Token{}, c.to...), ev.To)}
		return
	}
	if ids := m.s.openIDs(); len(ids) > 0 {
		m.replyNo(ev.To, refuse(Busy, "", "%s is open here", ids[0]))
		return
	}
	m.record(Record{Kind: KindCollect, Origin: ev.Origin, Note: "reload the proxy to free what removed upstreams left behind"})
	m.s.seq++
	m.s.collecting = &collecting{seq: m.s.seq, to: []Token{ev.To}}
	m.emit(Start{Work: Work{Seq: m.s.seq, Collect: true}})
}

// collectDone journals the outcome (NO-SILENT-CHANGE) and answers. Everything is read again, whichever process runs now.
func (m *stepper) collectDone(err error) {
	m.s.readAll = m.now
	if err != nil {
		m.record(Record{Kind: KindCollected, Note: "the reload failed: " + err.Error()})
		m.collected(refusalOf("", err))
		return
	}
	m.s.Tombstones = 0
	m.record(Record{Kind: KindCollected})
	m.collected(nil)
}

// collected answers all who wait for a Collect.
func (m *stepper) collected(no *Refusal) {
	if m.s.collecting == nil {
		return
	}
	for _, to := range m.s.collecting.to {
		m.reply(to, Answer{Refusal: no})
	}
	m.s.collecting = nil
}
