package simulation

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cutover/cutover/orchestrator/engine"
)

// mesos runs the tasks. They know nothing of orchestrators: each one that starts asks for what it remembers, and hears
// what changes until it has acknowledged it.
type mesos struct {
	w *world

	mu       sync.Mutex
	tasks    map[string]*task
	byAddr   map[netip.AddrPort]*task
	nextPort uint16
}

type task struct {
	id, app string
	command string
	place   engine.Placement
	addr    netip.AddrPort
	state   engine.TaskState
	well    bool
	since   time.Time // well, or not, since then
	killed  bool
}

func newMesos(w *world) *mesos {
	return &mesos{w: w, tasks: map[string]*task{}, byAddr: map[netip.AddrPort]*task{}, nextPort: 20000}
}

// health says whether a check of the address passes, and since when that is so.
func (m *mesos) health(addr netip.AddrPort) (bool, time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.byAddr[addr]
	if t == nil {
		return false, time.Time{}
	}
	return t.well, t.since
}

// runner is mesos as one orchestrator sees it.
type runner struct {
	m   *mesos
	inc *incarnation
}

var _ engine.TaskRunner = runner{}

// Launch implements engine.TaskRunner.
func (r runner) Launch(_ context.Context, specs []engine.TaskSpec) error {
	for _, s := range specs {
		r.m.mu.Lock()
		t := r.m.tasks[s.ID]
		if t == nil {
			t = &task{id: s.ID, app: s.App, command: s.Command, state: engine.Queued}
			r.m.tasks[s.ID] = t
		}
		waits := t.state == engine.Queued
		r.m.mu.Unlock()
		if waits {
			r.m.w.after(between(r.m.w.chance("place "+s.ID), time.Millisecond, 300*time.Millisecond), "place "+s.ID, func() { r.place(t, s) })
		}
	}
	return nil
}

func (r runner) place(t *task, s engine.TaskSpec) {
	m := r.m
	e := r.inc.live()
	if e == nil {
		return
	}
	m.mu.Lock()
	if t.state != engine.Queued {
		m.mu.Unlock()
		return
	}
	const ip = "10.0.0.1"
	var ports []uint16
	for len(ports) < s.Ports {
		m.nextPort++
		if !e.PortBlocked(ip, m.nextPort) {
			ports = append(ports, m.nextPort)
		}
	}
	place := engine.Placement{TaskID: t.id, AgentID: "a1", Hostname: "agent1", Host: ip, AgentURL: "http://" + ip + ":5051", Ports: ports}
	m.mu.Unlock()
	if e.SaveLaunching(r.inc.ctx, []engine.Placement{place}) != nil {
		return // it is offered again by the next one
	}
	m.mu.Lock()
	if t.state != engine.Queued { // killed meanwhile, and told to be not launched
		m.mu.Unlock()
		return
	}
	t.place, t.state = place, engine.Launching
	t.addr = netip.AddrPortFrom(netip.MustParseAddr(ip), ports[0])
	t.since = time.Now()
	m.byAddr[t.addr] = t
	m.mu.Unlock()
	dice := m.w.chance("run " + t.id)
	m.w.after(between(dice, 5*time.Millisecond, 400*time.Millisecond), "run "+t.id, func() {
		if !m.become(t, engine.Running) {
			return
		}
		switch t.command {
		case "exit":
			m.w.after(between(dice, time.Millisecond, time.Second), "exit "+t.id, func() { m.end(t, engine.Failed) })
		case "sick":
		default:
			m.w.after(between(dice, time.Millisecond, 500*time.Millisecond), "well "+t.id, func() { m.feel(t, true) })
		}
	})
}

func (m *mesos) feel(t *task, well bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.state == engine.Running && t.well != well {
		t.well, t.since = well, time.Now()
	}
}

// become moves a task on and tells it; false if it has ended before.
func (m *mesos) become(t *task, state engine.TaskState) bool {
	m.mu.Lock()
	if t.state.Terminal() {
		m.mu.Unlock()
		return false
	}
	t.state = state
	if state.Terminal() && (t.well || t.since.IsZero()) {
		t.well, t.since = false, time.Now()
	}
	m.mu.Unlock()
	m.announce(t)
	return true
}

func (m *mesos) end(t *task, state engine.TaskState) { m.become(t, state) }

// announce tells the leader the task's state until it is acknowledged, or told anew.
func (m *mesos) announce(t *task) {
	dice := m.w.chance("update " + t.id)
	m.w.after(between(dice, time.Millisecond, 50*time.Millisecond), "update "+t.id, func() {
		if inc := m.w.leader(); inc != nil {
			if e := inc.live(); e != nil && e.HandleUpdate(inc.ctx, m.update(t)) == nil {
				return
			}
		}
		m.w.after(between(dice, time.Second, 2*time.Second), "repeat "+t.id, func() { m.announce(t) })
	})
}

func (m *mesos) update(t *task) engine.TaskUpdate {
	m.mu.Lock()
	defer m.mu.Unlock()
	return engine.TaskUpdate{TaskID: t.id, AgentID: t.place.AgentID, Host: t.place.Host, Ports: t.place.Ports, State: t.state}
}

// Kill implements engine.TaskRunner, and checks NO-ORPHAN-KILL.
func (r runner) Kill(_ context.Context, id string) error {
	m := r.m
	m.mu.Lock()
	t := m.tasks[id]
	var e *engine.Engine
	running := t != nil && !t.state.Terminal() && t.state != engine.Queued
	if t != nil {
		t.killed = true
	}
	m.mu.Unlock()
	if r.inc.isDead() {
		return nil
	}
	m.w.step("kill " + id)
	if running {
		m.w.checkKill(t)
	}
	m.w.after(between(m.w.chance("kill "+id), time.Millisecond, 500*time.Millisecond), "killed "+id, func() {
		m.mu.Lock()
		waits := t == nil || t.state == engine.Queued
		if t != nil && waits {
			t.state = engine.Killed
		}
		m.mu.Unlock()
		switch {
		case running:
			m.end(t, engine.Killed)
		case waits:
			if e = r.inc.live(); e != nil {
				_ = e.HandleLost(r.inc.ctx, id, "not launched", true)
			}
		}
	})
	return nil
}

// Pending implements engine.TaskRunner.
func (r runner) Pending() []engine.PendingTask { return nil }

// ReadOutput implements engine.LogReader.
func (r runner) ReadOutput(context.Context, engine.TaskRef, string, int64, int) ([]byte, int64, error) {
	return []byte("simulated\n"), 10, nil
}

// reconcile answers a new leader about every task that it remembers.
func (r runner) reconcile(ctx context.Context, e *engine.Engine) {
	refs, err := e.Unended(ctx)
	if err != nil {
		return
	}
	for _, ref := range refs {
		r.m.mu.Lock()
		t := r.m.tasks[ref.TaskID]
		r.m.mu.Unlock()
		switch {
		case t == nil, t.place.AgentID == "":
			// Queued with the framework of a leader that is gone: the engine launches it again.
			if ref.State != engine.Queued {
				_ = e.HandleUpdate(ctx, engine.TaskUpdate{TaskID: ref.TaskID, State: engine.Dropped})
			}
		case t.state != engine.Launching:
			_ = e.HandleUpdate(ctx, r.m.update(t))
		}
	}
}

// pick returns a running task of the App by chance, or nil.
func (m *mesos) pick(app string, n int) *task {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []string
	for id, t := range m.tasks {
		if t.app == app && t.state == engine.Running {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	slices.Sort(ids)
	return m.tasks[ids[n%len(ids)]]
}

// hasEnded: it has ended for good, so it is a part of no target any more.
func (m *mesos) hasEnded(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tasks[id]
	return t == nil || t.state.Terminal()
}

// running are the tasks of the App that have not ended.
func (m *mesos) running(app string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for id, t := range m.tasks {
		if t.app == app && !t.state.Terminal() && t.state != engine.Queued {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// prober is the orchestrator's own probes: each task is asked now and then, and changes are told.
type prober struct {
	m   *mesos
	inc *incarnation

	mu      sync.Mutex
	targets map[string]*probed
}

type probed struct {
	engine.ProbeTarget
	added time.Time
	said  engine.ProbeVerdict
}

var _ engine.Prober = (*prober)(nil)

// Add implements engine.Prober.
func (p *prober) Add(t engine.ProbeTarget) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.targets[t.Task] == nil {
		p.targets[t.Task] = &probed{ProbeTarget: t, added: time.Now()}
		p.probe(t.Task, 20*time.Millisecond)
	}
	return nil
}

func (p *prober) probe(id string, d time.Duration) {
	p.m.w.after(d, "probe "+id, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		t := p.targets[id]
		if t == nil || p.inc.isDead() {
			return
		}
		addr, err := netip.ParseAddrPort(t.Address)
		if err != nil {
			p.m.w.fail("probe of %s at %q: %v", id, t.Address, err)
			return
		}
		verdict, pause := engine.ProbeVerdict(0), time.Second
		ok, since := p.m.health(addr)
		switch {
		case ok:
			verdict = engine.ProbeHealthy
		case t.said == engine.ProbeHealthy && time.Since(since) > time.Second:
			verdict = engine.ProbeUnhealthy
		case t.said == 0 && time.Since(t.added) > t.Grace:
			verdict = engine.ProbeOverdue
		case t.said == 0:
			pause = 100 * time.Millisecond
		}
		if verdict != 0 && verdict != t.said && (t.said != engine.ProbeOverdue || ok) {
			t.said = verdict
			p.inc.engine.HandleProbe(engine.ProbeEvent{Task: id, Verdict: verdict, Why: fmt.Sprintf("simulated at %s", t.Address)})
		}
		p.probe(id, pause)
	})
}

// Remove implements engine.Prober.
func (p *prober) Remove(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.targets, id)
}

// LastError implements engine.Prober.
func (p *prober) LastError(string) string { return "simulated" }
