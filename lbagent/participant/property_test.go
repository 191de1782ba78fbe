package participant

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/cutover/cutover/lbagent/driver"
)

// history drives one world with a coordinator that keeps to the protocol and with everything that can go wrong.
type history struct {
	*world
	rt    *rapid.T
	order uint64
	epoch uint64
	names int
	dead  map[string]bool
	open  map[string]*coordinated
	lost  map[Token]bool // callers of an agent that was killed
	asked map[Token]bool
}

// coordinated is one transaction as its coordinator sees it.
type coordinated struct {
	id       string
	order    uint64
	app      string
	prepare  Token
	activate Token
	abort    Token
	stop     bool
	before   []string // serving before Prepare
	at       int      // records before Prepare
}

func (h *history) ask(make func(Token) Event) Token {
	t := h.next()
	h.asked[t] = true
	h.step(make(t))
	return t
}

func (h *history) fence() Fence { return Fence{Cluster: "c", Group: "g", Epoch: h.epoch, View: 1} }

func (h *history) fresh(n int) []Upstream {
	var out []Upstream
	for range n {
		h.names++
		u := up(fmt.Sprintf("u%d", h.names))
		out = append(out, u)
	}
	return out
}

func serving(s driver.Section) []string {
	var out []string
	for _, u := range s.Upstreams {
		if u.Mode == driver.Serving {
			out = append(out, u.Name)
		}
	}
	slices.Sort(out)
	return out
}

func (h *history) alive(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return h.dead[n] })
}

// settle lets what is under way end, so that a change of health is seen before anything is decided on it.
func (h *history) settle() {
	for range 200 {
		if !h.work() {
			return
		}
	}
	h.rt.Fatal("Work follows Work without end")
}

func (h *history) setHealth(name, health string) {
	h.settle()
	h.health[name] = health
	h.readAll()
	h.settle()
}

var appNames = []string{"shop", "cart"}

func (h *history) txnOn(app string) *coordinated {
	for _, c := range h.open {
		if c.app == app {
			return c
		}
	}
	return nil
}

func (h *history) pickApp() string { return rapid.SampledFrom(appNames).Draw(h.rt, "app") }

// advance takes an open transaction one step further, with time for the Host to follow.
func (h *history) advance(*rapid.T) {
	c := h.pickOpen()
	switch {
	case c == nil || c.abort != 0:
	case h.ok(c.activate):
		h.commit(c)
	case h.ok(c.prepare) && c.activate == 0:
		c.activate = h.ask(func(t Token) Event { return Activate{To: t, Fence: h.fence(), TxnID: c.id, Order: c.order} })
	}
	h.run(3 * time.Second)
}

// commit is what a coordinator does on a Verified; by the time that it arrives the Host may have lapsed or fallen back.
func (h *history) commit(c *coordinated) {
	t := h.s.txn(c.id)
	if t == nil || !t.Phase.inDoubt() {
		return
	}
	to := h.ask(func(t Token) Event { return Commit{To: t, Fence: h.fence(), TxnID: c.id, Order: c.order} })
	if !h.ok(to) {
		h.rt.Fatalf("Commit of a transaction that is %s: %v", t.Phase, h.answers[to])
	}
	delete(h.open, c.id)
}

// actions are named so that rapid draws the likelier ones more often.
func (h *history) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"advance 1": h.advance, "advance 2": h.advance, "advance 3": h.advance, "advance 4": h.advance, "advance 5": h.advance,
		"prepare": func(*rapid.T) {
			app := h.pickApp()
			if h.txnOn(app) != nil {
				return
			}
			sec := h.s.section(app)
			h.order++
			c := &coordinated{id: fmt.Sprintf("t%d", h.order), order: h.order, app: app, before: serving(baseWant(sec)), at: len(h.journal)}
			ch := Change{App: app, Base: sec.Version}
			switch kind := rapid.IntRange(0, 9).Draw(h.rt, "kind"); {
			case kind == 0:
				c.stop = true
			case kind == 1:
				c.stop = true
				ch.Target = section(app)
			case kind == 2 && len(sec.Committed.Upstreams) > 1:
				ch.Target = section(app) // scale down
				ch.Target.Upstreams = sec.Committed.Upstreams[:1]
			default:
				ch.Target = section(app)
				ch.Target.Upstreams = h.fresh(rapid.IntRange(1, 3).Draw(h.rt, "new"))
				for _, u := range sec.Committed.Upstreams {
					if rapid.IntRange(0, 3).Draw(h.rt, "keep") == 0 {
						ch.Target.Upstreams = append(ch.Target.Upstreams, u)
					}
				}
				for _, d := range sec.Draining {
					if rapid.IntRange(0, 3).Draw(h.rt, "undrain") == 0 {
						ch.Target.Upstreams = append(ch.Target.Upstreams, d.Upstream)
					}
				}
			}
			h.open[c.id] = c
			c.prepare = h.ask(func(t Token) Event {
				return Prepare{To: t, Fence: h.fence(), TxnID: c.id, Order: c.order, Changes: []Change{ch}, Deadline: 40 * time.Second}
			})
		},
		"abort": func(*rapid.T) {
			if c := h.pickOpen(); c != nil && (c.abort == 0 || rapid.IntRange(0, 3).Draw(h.rt, "again") == 0) {
				h.abortTxn(c)
			}
		},
		"dies": func(*rapid.T) {
			app := h.pickApp()
			all := h.s.Want(app).Upstreams
			if len(all) == 0 {
				return
			}
			name := rapid.SampledFrom(all).Draw(h.rt, "who").Name
			h.setHealth(name, "red")
			h.dead[name] = true
			h.order++
			order := h.order
			h.ask(func(t Token) Event {
				return Amend{To: t, Fence: h.fence(), App: app, Order: order, Remove: []string{name}}
			})
		},
		"insert": func(*rapid.T) {
			app := h.pickApp()
			sec := h.s.section(app)
			if h.txnOn(app) != nil || sec.Removed || sec.Version.Txn == 0 {
				return
			}
			h.order++
			order, ups := h.order, h.fresh(1)
			var retire []string
			if len(sec.Committed.Upstreams) > 0 && rapid.Bool().Draw(h.rt, "retire") {
				retire = []string{sec.Committed.Upstreams[0].Name}
			}
			h.ask(func(t Token) Event {
				return Amend{To: t, Fence: h.fence(), App: app, Order: order, Base: sec.Version, Insert: ups, Retire: retire, Deadline: 30 * time.Second}
			})
		},
		"health": func(*rapid.T) {
			all := h.s.Want(h.pickApp()).Upstreams
			if len(all) == 0 {
				return
			}
			name := rapid.SampledFrom(all).Draw(h.rt, "who").Name
			if !h.dead[name] {
				h.setHealth(name, rapid.SampledFrom([]string{"", "", "red", "pending"}).Draw(h.rt, "health"))
			}
		},
		"target turns red": func(*rapid.T) {
			c := h.pickOpen()
			if c == nil || h.s.txn(c.id) == nil {
				return
			}
			for _, u := range h.s.txn(c.id).change(c.app).Target.Upstreams {
				if !h.dead[u.Name] {
					h.setHealth(u.Name, "red")
				}
			}
		},
		"old ones turn red": func(*rapid.T) {
			for _, u := range h.s.section(h.pickApp()).Committed.Upstreams {
				if !h.dead[u.Name] {
					h.setHealth(u.Name, "red")
				}
			}
		},
		"all is well": func(*rapid.T) { h.heal() },
		"sessions": func(*rapid.T) {
			for _, u := range h.s.Want(h.pickApp()).Upstreams {
				h.sessions[u.Name] = rapid.IntRange(0, 1).Draw(h.rt, "sessions")
			}
		},
		"stale epoch": func(*rapid.T) {
			c := h.pickOpen()
			if c == nil || h.s.Durable.Epoch < 2 {
				return
			}
			stale := Fence{Cluster: "c", Group: "g", Epoch: h.s.Durable.Epoch - 1, View: 1}
			before := asJSON(h.rt, h.s.Durable)
			for _, ev := range []Event{
				Activate{Fence: stale, TxnID: c.id, Order: c.order}, Commit{Fence: stale, TxnID: c.id, Order: c.order},
				Abort{Fence: stale, TxnID: c.id, Order: c.order}, Sync{Fence: stale, Order: 1 << 40},
				Amend{Fence: stale, App: c.app, Order: 1 << 40, Remove: c.before},
				Prepare{Fence: stale, TxnID: "x", Order: 1 << 40, Changes: []Change{{App: c.app}}},
			} {
				s := &stepper{s: h.s, now: h.now, ownLive: map[string]bool{}, ownAttempt: map[string]bool{}, reports: map[string]bool{}}
				s.dispatch(ev)
				if len(s.journal) > 0 || asJSON(h.rt, s.s.Durable) != before {
					h.rt.Fatalf("%T of a stale epoch changed the state", ev)
				}
			}
		},
		"new epoch":     func(*rapid.T) { h.epoch++ },
		"proxy restart": func(*rapid.T) { h.restart() },
		"down":          func(*rapid.T) { h.down = !h.down && rapid.IntRange(0, 2).Draw(h.rt, "down") == 0 },
		"kill": func(*rapid.T) {
			for t := range h.asked {
				if _, done := h.answers[t]; !done {
					h.lost[t] = true
				}
			}
			h.crash()
			for id, c := range h.open {
				if h.s.txn(id) == nil {
					if _, ended := h.s.Durable.Outcome(id); !ended && c.abort == 0 {
						delete(h.open, id) // never staged: the coordinator's call failed, and it may forget it
					}
				}
			}
		},
		"run":  func(*rapid.T) { h.run(5 * time.Second) },
		"pass": func(*rapid.T) { h.pass(time.Duration(rapid.IntRange(1, 20).Draw(h.rt, "seconds")) * time.Second) },
		"work": func(*rapid.T) { h.work() },
		"read": func(*rapid.T) { h.read() },
		"":     func(*rapid.T) { h.check() },
	}
}

func (h *history) heal() {
	h.settle()
	h.down = false
	for name := range h.health {
		if !h.dead[name] {
			h.health[name] = ""
		}
	}
	h.pass(time.Second)
}

func (h *history) pickOpen() *coordinated {
	var ids []string
	for id := range h.open {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil
	}
	slices.Sort(ids)
	return h.open[rapid.SampledFrom(ids).Draw(h.rt, "txn")]
}

func (h *history) ok(t Token) bool {
	a, done := h.answers[t]
	return t != 0 && done && a.Refusal == nil
}

func (h *history) abortTxn(c *coordinated) {
	c.abort = h.ask(func(t Token) Event {
		return Abort{To: t, Fence: h.fence(), TxnID: c.id, Order: c.order, Apps: []string{c.app}}
	})
}

// check looks at everything that must hold at any moment.
func (h *history) check() {
	var d Durable
	for _, r := range h.journal {
		d = d.Apply(roundTrip(h.rt, r))
	}
	if diff := cmp.Diff(asJSON(h.rt, d), asJSON(h.rt, h.s.Durable)); diff != "" {
		h.rt.Fatalf("replay differs from the live run: %s", diff)
	}
	for _, app := range appNames {
		for _, u := range h.s.Want(app).Upstreams {
			if h.dead[u.Name] {
				h.rt.Fatalf("%s is dead, and wanted again", u.Name)
			}
		}
	}
	for id, c := range h.open {
		if h.ok(c.abort) {
			got := serving(h.s.Want(c.app))
			want := h.alive(c.before)
			if len(got) == 0 && len(want) == 0 {
				got, want = nil, nil
			}
			// Amendments since Prepare may have added; nothing of before may be missing and nothing of the target stay.
			if diff := cmp.Diff(want, got); diff != "" && h.s.openOn(c.app) == nil && h.s.section(c.app).Version.Txn < c.order && !h.amendedSince(c) {
				h.rt.Fatalf("%s is aborted and %s is not what it was: %s", id, c.app, diff)
			}
			delete(h.open, id)
		}
	}
}

func (h *history) amendedSince(c *coordinated) bool {
	for _, r := range h.journal[c.at:] {
		if r.Kind == KindAmended && r.Note == "" || r.Kind == KindDrain {
			return true
		}
	}
	return false
}

func asJSON(t rapid.TB, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestProperties plays random histories. After each one everything is healed, every open transaction is aborted, and
// then all callers must have their answer and the proxy what the journal says (EVERY-STATE-ENDS).
func TestProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := &history{world: newWorld(t), rt: rt, epoch: 1, dead: map[string]bool{}, open: map[string]*coordinated{},
			lost: map[Token]bool{}, asked: map[Token]bool{}}
		h.onConverge = func(job Work, before, after int) {
			if before == 0 || after > 0 {
				return
			}
			// NEVER-ZERO: only a stop may take the last one that can serve.
			if c := h.txnOn(job.App); c != nil && (c.stop || len(c.before) == 0) {
				return
			}
			if sec := h.s.section(job.App); len(sec.Committed.Upstreams) == 0 {
				return
			}
			rt.Fatalf("%s: %d could serve, and none after %s", job.App, before, describeWork(job))
		}
		rt.Repeat(h.actions())
		h.heal()
		clear(h.sessions)
		h.pass(2 * time.Second)
		for _, c := range h.open {
			if h.s.txn(c.id) != nil {
				h.abortTxn(c)
			}
		}
		h.pass(90 * time.Second)
		h.check()
		for tok := range h.asked {
			if _, done := h.answers[tok]; !done && !h.lost[tok] {
				rt.Fatalf("caller %d was never answered", tok)
			}
		}
		for _, app := range appNames {
			if open := h.s.openOn(app); open != nil && open.Phase != RestoreFailedPhase {
				rt.Fatalf("%s is still %s", open.ID, open.Phase)
			}
			want, have := h.s.Want(app), h.reading().Sections[app]
			if diff := Difference(want, have); diff != "" {
				rt.Fatalf("%s: %s", app, diff)
			}
			if driver.Digest(h.files[app]) != driver.Digest(published(want)) {
				rt.Fatalf("the files of %s are not what the journal says", app)
			}
		}
	})
}
