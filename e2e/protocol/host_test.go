package protocol

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant"
)

// The upstreams of the world, by index: of shop, a is committed, b the target, r replaces a; of cart, c is committed and d the
// target, if any transaction names it.
const (
	upA = iota
	upB
	upR
	upC
	upD
	upstreams
)

var upNames = [upstreams]string{"a", "b", "r", "c", "d"}

// upSpecs are the Specs that the tasks are of. That of r is the one which was committed when it was started: world.spare.
var upSpecs = [upstreams]uint64{upA: 1, upB: 2, upC: 1, upD: 2}

// appOf is the App that the upstream belongs to.
func appOf(name string) int {
	if upIndex(name) >= upC {
		return 1
	}
	return 0
}

func upIndex(name string) int { return slices.Index(upNames[:], name) }

const (
	shop = "shop"
	cart = "cart"
)

var apps = [2]string{shop, cart}

func appIndex(app string) int { return slices.Index(apps[:], app) }

// drainTime is how long a replaced upstream may finish its sessions.
const drainTime = 10 * time.Second

func upstream(name string) participant.Upstream {
	return participant.Upstream{
		Name: name, Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(upIndex(name) + 1)}), 80), Weight: 100,
		Health: driver.Health{Kind: driver.HealthHTTP, Path: "/", Interval: 100 * time.Millisecond, Timeout: 100 * time.Millisecond, Rise: 1, Fall: 1},
	}
}

func section(app string, names ...string) participant.Section {
	s := participant.Section{App: app, Spec: 1, Routes: []driver.Route{{Host: "*", Path: "/" + app}}, Drain: drainTime}
	for _, n := range names {
		s.Upstreams = append(s.Upstreams, upstream(n))
	}
	return s
}

// host is one Host: the participant's machine, what it has on disk, and the proxy.
type host struct {
	m     participant.State
	disk  participant.Durable
	works []participant.Work
	// callers wait for an answer of the machine.
	callers []caller
	tokens  participant.Token
	// watch is the epoch of the leader whose Watch stream stands; 0: none.
	watch uint64
	// held are the Apps of reports that have not reached the leader yet; slow: they do not for now.
	held uint8
	slow bool
	// away: nothing comes to it or from it. out: no client comes to it, since quiet.
	away, out bool
	quiet     time.Time

	// The proxy: what runs, what is published, which process, sessions on each upstream, whose checks fail.
	run, files [2]*driver.Section
	pid        int
	sessions   [upstreams]uint8
	red        [upstreams]bool
	// known are the checks as the machine has read them last: it cannot act on what it cannot know yet.
	known [upstreams]bool

	// What the checks remember: the proxy as it was when a transaction was staged here.
	before []snapshot
	// unread: something happened that the machine has not read.
	unread bool
}

type caller struct {
	token participant.Token
	msg   *message
}

// snapshot is the running set and the files of an App when a transaction was staged.
type snapshot struct {
	id         string
	app        int
	run, files string
	amendments uint64
}

func (h *host) clone() *host {
	c := *h
	c.works = slices.Clone(h.works)
	c.callers = slices.Clone(h.callers)
	c.before = slices.Clone(h.before)
	return &c
}

func (h *host) row(name string) *driver.Upstream {
	for _, s := range h.run {
		if s == nil {
			continue
		}
		for i := range s.Upstreams {
			if s.Upstreams[i].Name == name {
				return &s.Upstreams[i]
			}
		}
	}
	return nil
}

// canServe counts the upstreams of the App that a client reaches, as far as the machine can know; with the dead or without.
func (w *world) canServe(h *host, app int, dead bool) int {
	s, n := h.run[app], 0
	if s == nil || len(s.Routes) == 0 {
		return 0
	}
	for _, u := range s.Upstreams {
		if i := upIndex(u.Name); u.Mode == driver.Serving && h.known[i] && (dead || !w.dead[i]) {
			n++
		}
	}
	return n
}

func (w *world) green(h *host, name string) bool {
	i := upIndex(name)
	return !h.red[i] && !w.dead[i]
}

func digestOf(s *driver.Section) string {
	if s == nil {
		return ""
	}
	return digests.of(s)
}

// filesDigest is what the driver says of the published files.
func filesDigest(s *driver.Section) string {
	if d := digestOf(s); d != "" {
		return "f" + d
	}
	return ""
}

// names is a Section in short: a=serving b=warm.
func modes(s *driver.Section) string {
	if s == nil || len(s.Upstreams) == 0 {
		return "nothing"
	}
	out := ""
	for i, u := range s.Upstreams {
		if i > 0 {
			out += ", "
		}
		out += u.Name + " " + u.Mode.String()
	}
	return out
}

// feed gives the machine of host i one event and carries out the effects in their order. It returns false if the process
// died on the way.
func (w *world) feed(i int, ev participant.Event) bool {
	h := w.host(i)
	w.now = w.now.Add(time.Millisecond)
	before := h.m
	next, effects := participant.Step(h.m, ev, w.now)
	h.m = next
	if len(effects) > 0 {
		if first, ok := effects[0].(participant.Journal); ok && w.diskFails(i, before, first, effects) {
			return true
		}
	}
	for _, e := range effects {
		switch e := e.(type) {
		case participant.Journal:
			w.journaled(i, e.Record)
			h.disk = h.disk.Apply(e.Record)
			h.unread = true
			if w.burn(agentDies, "%s dies after journaling it", hostName(i)) {
				w.agentDied(i)
				return false
			}
		case participant.Start:
			h.works = append(h.works, e.Work)
		case participant.Reply:
			w.reply(i, e.To, e.Answer)
			if w.burn(agentDies, "%s dies after answering", hostName(i)) {
				w.agentDied(i)
				return false
			}
		case participant.Report:
			if app := appIndex(e.App); app >= 0 {
				h.held |= 1 << app
			}
		case participant.Cancel: // only what is done at once here is ever cancelled
		}
	}
	return true
}

// settle lets host i do by itself what nobody outside can tell apart: look at the proxy and the files, stage, send requests
// through the proxy. Changes of the proxy and of what it loads are moves of their own. False: the process died.
func (w *world) settle(i int) bool {
	for range 60 {
		h := w.host(i)
		at := slices.IndexFunc(h.works, func(j participant.Work) bool { return j.Publish == nil && j.Converge == nil && len(j.Cut) == 0 })
		if at >= 0 {
			job := h.works[at]
			h.works = slices.Delete(h.works, at, at+1)
			done := participant.WorkDone{App: job.App, Seq: job.Seq}
			if job.ReadPublished {
				done.Published, done.PublishedKnown = filesDigest(h.files[appIndex(job.App)]), true
			}
			if job.Stage != nil && w.sc.bad && slices.ContainsFunc(job.Stage.Upstreams, func(u driver.Upstream) bool { return u.Name == "d" }) {
				done.Err = &driver.RefusedError{Checker: "the proxy's checker", Err: errors.New("no"), Output: "d is refused"}
			}
			for _, r := range job.Requests {
				if u := h.row(r.Upstream); u == nil || !w.green(h, r.Upstream) {
					done.Err = fmt.Errorf("503 made by the proxy for %s", r.Upstream)
				}
			}
			if !w.feed(i, done) {
				return false
			}
			continue
		}
		if !h.unread {
			return true
		}
		h.unread = false
		plan := h.m.ReadPlan()
		if !plan.All && len(plan.Urgent)+len(plan.Watched) == 0 {
			return true
		}
		if !w.feed(i, w.reading(h)) {
			return false
		}
	}
	w.violate("EVERY-STATE-ENDS", "%s reads and works without end", hostName(i))
	return true
}

func (w *world) reading(h *host) participant.Reading {
	at := w.now.Add(time.Millisecond)
	r := driver.Reading{Process: process(h.pid), At: at, Sections: map[string]driver.SectionReading{}}
	changing := func(app int) bool { // a change that has begun cannot be taken back any more
		return slices.ContainsFunc(h.works, func(j participant.Work) bool { return appIndex(j.App) == app && j.Converge != nil })
	}
	for app, s := range h.run {
		if s == nil {
			continue
		}
		rows := make([]driver.Row, 0, len(s.Upstreams))
		for _, u := range s.Upstreams {
			green := w.green(h, u.Name)
			if !changing(app) {
				h.known[upIndex(u.Name)] = green
			}
			status := "UP"
			if !green {
				status = "DOWN"
			}
			rows = append(rows, driver.Row{Name: u.Name, Address: u.Address, Weight: u.Weight, Mode: u.Mode, Green: green, Red: !green,
				Status: status, Sessions: int(h.sessions[upIndex(u.Name)])})
		}
		r.Sections[apps[app]] = driver.SectionReading{Routes: s.Routes, Rows: rows, Digest: digestOf(s)}
	}
	return participant.Reading{Started: at, All: true, Reading: r}
}

func process(pid int) driver.Process {
	return driver.Process{MasterPID: 1, WorkerPID: pid, StartedAt: start.Add(time.Duration(pid) * time.Hour), Version: "model"}
}

// hear gives host i a message, and lets it do what follows at once.
func (w *world) hear(i int, ev participant.Event) {
	h := w.host(i)
	h.unread = true
	if w.feed(i, ev) {
		w.settle(i)
	}
}

// work carries out one Work of host i that changes the proxy: files first, as in production.
func (w *world) work(i int) {
	h := w.host(i)
	job := h.works[0]
	if !w.doWork(i, job, 2) {
		return
	}
	h = w.host(i)
	h.works = slices.Delete(h.works, 0, 1)
	done := participant.WorkDone{App: job.App, Seq: job.Seq}
	if job.Publish != nil {
		done.Published, done.PublishedKnown = filesDigest(h.files[appIndex(job.App)]), true
	}
	h.unread = true
	if w.feed(i, done) {
		w.settle(i)
	}
}

// doWork does the first parts of a Work: 1 the files, 2 the running proxy too. False: the process died meanwhile.
func (w *world) doWork(i int, job participant.Work, parts int) bool {
	h := w.host(i)
	app := appIndex(job.App)
	if job.Publish != nil && parts >= 1 {
		s := *job.Publish
		h.files[app] = &s
		w.say("%s publishes %s: %s", hostName(i), job.App, modes(&s))
		if w.burn(agentDies, "%s dies between the files and the proxy", hostName(i)) {
			w.agentDied(i)
			return false
		}
	}
	if parts < 2 {
		return true
	}
	if job.Converge != nil {
		s := *job.Converge
		w.say("%s's proxy now holds %s: %s", hostName(i), job.App, modes(&s))
		w.becomes(i, app, &s, "the lbagent")
	}
	for _, name := range job.Cut {
		w.cut(i, name)
	}
	if w.burn(agentDies, "%s dies before it has read the proxy back", hostName(i)) {
		w.agentDied(i)
		return false
	}
	return true
}

// becomes changes what the proxy runs for an App.
func (w *world) becomes(i, app int, s *driver.Section, who string) {
	h := w.host(i)
	// A task that is dead may be taken out at any time, and one that has just died may be activated: nobody knows yet.
	before, old := w.canServe(h, app, false), h.run[app]
	if len(s.Routes) == 0 && len(s.Upstreams) == 0 {
		s = nil
	}
	h.run[app] = s
	if before > 0 && w.canServe(h, app, true) == 0 {
		w.violate("NEVER-ZERO", "%s takes the route of %s on %s from upstreams that can serve to none", who, apps[app], hostName(i))
	}
	if old == nil {
		return
	}
	for _, u := range old.Upstreams {
		n := upIndex(u.Name)
		if h.row(u.Name) == nil && h.sessions[n] > 0 {
			if !w.dead[n] {
				w.violate("UNDO", "%s leaves %s's proxy while a client's session is open on it, before its drain time is over", u.Name, hostName(i))
			}
			h.sessions[n] = 0
		}
	}
}

func (w *world) cut(i int, name string) {
	h := w.host(i)
	w.say("%s closes the sessions that are left on %s", hostName(i), name)
	due := false
	if s := h.disk.Sections[apps[appOf(name)]]; s != nil {
		for _, d := range s.Draining {
			due = due || d.Upstream.Name == name && d.Running && !w.now.Before(d.Until)
		}
	}
	if !due {
		w.violate("UNDO", "%s closes the sessions on %s before its drain time is over", hostName(i), name)
	}
	h.sessions[upIndex(name)] = 0
}

// restartProxy is a crash of the proxy: it comes back with what is published.
func (w *world) restartProxy(i int) {
	h := w.host(i)
	h.pid++
	w.say("%s's proxy is restarted and loads what is published: %s", hostName(i), modes(h.files[0]))
	for app := range h.run {
		// Connections end with their process.
		for n := range h.sessions {
			h.sessions[n] = 0
		}
		if !w.holds(i, app) {
			continue
		}
		s := driver.Section{App: apps[app]}
		if h.files[app] != nil {
			s = *h.files[app]
		}
		w.becomes(i, app, &s, "the restarted proxy")
	}
	h.unread = true
	if w.feed(i, participant.ProcessSeen{Process: process(h.pid)}) {
		w.settle(i)
	}
}

// agentDied is kill -9 of an lbagent. It starts again at once; what it was asked is forgotten.
func (w *world) agentDied(i int) {
	h := w.host(i)
	h.works, h.callers, h.held, h.slow = nil, nil, 0, false
	w.unlinked(i)
	h = w.host(i)
	h.m = participant.Recover(w.identity(i), h.disk, w.now)
	h.unread = true
	if w.feed(i, participant.Tick{}) {
		w.settle(i)
	}
}

// deliverRequest gives a request to its Host.
func (w *world) deliverRequest(msg *message) {
	h := w.host(msg.host)
	stale := msg.epoch < h.disk.Epoch
	before := h.disk
	works := len(h.works)
	h.tokens++
	token := h.tokens
	h.callers = append(h.callers, caller{token, msg})
	w.say("%s gets %s", hostName(msg.host), msg)
	w.hear(msg.host, msg.event(token))
	if msg.call == callTraffic {
		w.ordered(msg.host)
	}
	if stale {
		after := w.hosts[msg.host]
		if after.disk.Epoch != before.Epoch || len(after.works) != works || !sameDurable(before, after.disk) {
			w.violate("FENCE", "%s acts on a message of epoch %d although it has seen epoch %d", hostName(msg.host), msg.epoch, before.Epoch)
		}
	}
}

// sameDurable compares by identity: values that a journal record did not replace are shared.
func sameDurable(a, b participant.Durable) bool {
	if len(a.Sections) != len(b.Sections) || len(a.Txns) != len(b.Txns) || len(a.Outcomes) != len(b.Outcomes) {
		return false
	}
	for k, v := range a.Sections {
		if b.Sections[k] != v {
			return false
		}
	}
	for k, v := range a.Txns {
		if b.Txns[k] != v {
			return false
		}
	}
	return true
}

// reply sends an answer back to who asked, if the asker still listens.
func (w *world) reply(i int, to participant.Token, a participant.Answer) {
	h := w.host(i)
	at := slices.IndexFunc(h.callers, func(c caller) bool { return c.token == to })
	if at < 0 {
		return
	}
	msg := h.callers[at].msg
	h.callers = slices.Delete(h.callers, at, at+1)
	w.answerChecked(i, msg, &a)
	if msg.call == callHello || msg.orphan || w.orphaned(msg) {
		if w.telling && msg.call != callHello {
			w.say("%s answers %s, which nobody waits for any more", hostName(i), answerText(msg, &a))
		}
		return
	}
	w.say("%s answers %s", hostName(i), answerText(msg, &a))
	back := *msg
	back.answer = &a
	w.wire = append(w.wire, &back)
}
