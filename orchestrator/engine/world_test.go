package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutover/cutover/internal/leaktest"
	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/memstore"
	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// world is an engine between a scripted framework, prober and coordinator, on a store that survives the engine. It runs
// in a synctest bubble: time is the bubble's, and Wait means that nothing more happens by itself.
type world struct {
	t     *testing.T
	st    store.Store
	epoch uint64
	e     *Engine
	mesos *fakeMesos
	probe *fakeProber
	coord *fakeCoordinator
	extra Options
	dies  bool // a term that ends by itself is part of the test
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, st: memstore.New()}
	w.mesos = &fakeMesos{w: w, tasks: map[string]*fakeTask{}, nextPort: 31000}
	w.probe = &fakeProber{w: w, targets: map[string]ProbeTarget{}}
	w.coord = &fakeCoordinator{w: w, sections: map[string]*lbagentv1.Section{}, txns: map[string]*fakeTxn{}, dead: map[string]bool{}, groups: []string{"public"}}
	return w
}

// inWorld runs a test in a bubble with a started world.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		t.Cleanup(w.stop)
		f(t, w)
	})
}

func (w *world) start() {
	w.t.Helper()
	w.epoch++
	opts := w.extra
	opts.Store, opts.Fence = w.st, store.Fence{Epoch: w.epoch}
	opts.Fatal = func(err error) {
		if !w.dies {
			w.t.Errorf("the term ended: %v", err)
		}
	}
	e, err := New(opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.e = e
	if err := e.Start(context.Background(), Ports{Runner: w.mesos, Logs: w.mesos, Prober: w.probe, Coordinator: w.coord}); err != nil {
		w.t.Fatal(err)
	}
}

// restart is what a kill and a new start leave: the store, Mesos, and the coordinator's decisions.
func (w *world) restart() {
	w.t.Helper()
	w.e.Stop()
	synctest.Wait()
	w.probe.clear()
	w.coord.newLeader()
	w.start()
	w.mesos.reconcile()
	synctest.Wait()
}

func (w *world) stop() {
	w.e.Stop()
	if err := w.e.Err(); err != nil {
		w.t.Error(err)
	}
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func yamlSpec(name string, instances int, more ...string) string {
	s := fmt.Sprintf("name: %s\ncommand: run\ninstances: %d\nresources: {ports: 1}\nhealth: {http: {path: /healthz}, interval: 200ms, rise: 1, grace: 10s}\n", name, instances)
	s += "deploy: {deadline: 1m, drain: 5s}\n"
	hasRoutes := false
	for _, m := range more {
		if k, _, _ := strings.Cut(m, ":"); k == "command" {
			s = strings.Replace(s, "command: run\n", m+"\n", 1)
			continue
		} else if k == "routes" {
			hasRoutes = true
		}
		s += m + "\n"
	}
	if !hasRoutes {
		s += fmt.Sprintf("routes: [{group: public, path: /%s}]\n", name)
	}
	return s
}

var ana = api.Meta{Actor: "ana"}

func (w *world) submit(source string) deploy.View {
	w.t.Helper()
	v, err := w.e.Submit(context.Background(), []byte(source), ana)
	if err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
	return w.deploy(v.DeployID)
}

func (w *world) deploy(id string) deploy.View {
	w.t.Helper()
	v, err := w.e.Deploy(context.Background(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

func (w *world) app(name string) deploy.AppView {
	w.t.Helper()
	v, err := w.e.App(context.Background(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// want checks a Deploy's state and step.
func (w *world) want(v deploy.View, state deploy.State, step deploy.StepName) deploy.View {
	w.t.Helper()
	v = w.deploy(v.DeployID)
	if v.State != state || v.Step != string(step) {
		w.t.Fatalf("Deploy of %s: %s %s (%s: %s), want %s %s", v.App, v.State, v.Step, v.ReasonCode, v.Reason, state, step)
	}
	return v
}

// serving are the upstreams' tasks of the App's committed Section.
func (w *world) serving(app string) []string { return w.servingIn("public", app) }

func (w *world) servingIn(group, app string) []string {
	w.coord.mu.Lock()
	defer w.coord.mu.Unlock()
	var out []string
	for _, u := range w.coord.sections[group+"/"+app].GetUpstreams() {
		out = append(out, u.GetTaskId())
	}
	slices.Sort(out)
	return out
}

// fakeTask is a process.
type fakeTask struct {
	spec  TaskSpec
	place Placement
	state TaskState
}

// fakeMesos launches at once, runs what the command says ("exit" ends at once, "sick" never answers, "slow" must be
// started by hand), and kills when told.
type fakeMesos struct {
	w        *world
	mu       sync.Mutex
	tasks    map[string]*fakeTask
	launches []string
	kills    []string
	nextPort uint16
	full     bool // no offers
	stubborn bool // tasks that are told to end take their time
	refuse   error
}

func (m *fakeMesos) Launch(_ context.Context, specs []TaskSpec) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return m.refuse
	}
	for _, s := range specs {
		if _, ok := m.tasks[s.ID]; ok {
			continue
		}
		m.tasks[s.ID] = &fakeTask{spec: s, state: Queued}
		m.launches = append(m.launches, s.ID)
		if !m.full {
			go m.place(s.ID)
		}
	}
	return nil
}

func (m *fakeMesos) place(id string) {
	m.mu.Lock()
	t := m.tasks[id]
	var ports []uint16
	for len(ports) < t.spec.Ports {
		m.nextPort++
		if !m.w.e.PortBlocked("10.0.0.1", m.nextPort) {
			ports = append(ports, m.nextPort)
		}
	}
	t.place = Placement{TaskID: id, AgentID: "a1", Hostname: "agent1", Host: "10.0.0.1", AgentURL: "http://10.0.0.1:5051", Ports: ports}
	e := m.w.e
	m.mu.Unlock()
	if e.SaveLaunching(context.Background(), []Placement{t.place}) != nil {
		m.mu.Lock()
		delete(m.tasks, id)
		m.mu.Unlock()
		return
	}
	m.set(id, Launching, "")
	if t.spec.Command != "slow" {
		m.run(id)
	}
}

func (m *fakeMesos) run(id string) {
	m.set(id, Running, "")
	m.mu.Lock()
	exits := m.tasks[id].spec.Command == "exit"
	m.mu.Unlock()
	if exits {
		m.set(id, Failed, "exited with status 1")
	}
}

// set changes a task and tells the engine of the moment; what it does not hear is reconciled later.
func (m *fakeMesos) set(id string, st TaskState, why string) {
	m.mu.Lock()
	t := m.tasks[id]
	if t.state.Terminal() { // it stays dead
		st = t.state
	}
	t.state = st
	e, place := m.w.e, t.place
	m.mu.Unlock()
	if st == Launching {
		return
	}
	_ = e.HandleUpdate(context.Background(), TaskUpdate{TaskID: id, AgentID: place.AgentID, Host: place.Host, Ports: place.Ports, State: st, Message: why})
}

func (m *fakeMesos) Kill(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kills = append(m.kills, id)
	m.w.coord.mustNotKnow(id)
	t := m.tasks[id]
	e, placed := m.w.e, t != nil && t.place.AgentID != ""
	if m.stubborn && placed {
		return nil
	}
	go func() {
		if !placed {
			_ = e.HandleLost(context.Background(), id, "not launched", true)
			return
		}
		m.set(id, Killed, "killed")
	}()
	return nil
}

func (m *fakeMesos) Pending() []PendingTask {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []PendingTask
	for id, t := range m.tasks {
		if t.state == Queued {
			out = append(out, PendingTask{TaskID: id, Why: "1 agent has too little memory"})
		}
	}
	return out
}

func (m *fakeMesos) ReadOutput(_ context.Context, task TaskRef, file string, _ int64, _ int) ([]byte, int64, error) {
	if file == "stderr" {
		return []byte("panic: cannot bind\x1b[31m\n"), 7, nil
	}
	return nil, 0, nil
}

// reconcile tells a new engine the state of the tasks that it asks about, as after a subscription.
func (m *fakeMesos) reconcile() {
	refs, err := m.w.e.Unended(context.Background())
	if err != nil {
		m.w.t.Fatal(err)
	}
	for _, r := range refs {
		m.mu.Lock()
		var state TaskState
		t := m.tasks[r.TaskID]
		if t != nil {
			state = t.state // a kill may still be changing it
		}
		m.mu.Unlock()
		if t == nil {
			_ = m.w.e.HandleUpdate(context.Background(), TaskUpdate{TaskID: r.TaskID, State: Dropped})
			continue
		}
		if state != Launching && state != Queued {
			m.set(r.TaskID, state, "reconciled")
		}
	}
}

func (m *fakeMesos) configure(change func(m *fakeMesos)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
}

// launched is how many tasks were ever asked for.
func (m *fakeMesos) launched() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.launches)
}

func (m *fakeMesos) portOf(id string) uint16 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tasks[id].place.Ports[0]
}

// in are the tasks in a state.
func (m *fakeMesos) in(st TaskState) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for id, t := range m.tasks {
		if t.state == st {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// alive are the App's tasks that run.
func (m *fakeMesos) alive(app string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for id, t := range m.tasks {
		if t.spec.App == app && t.state == Running {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// fakeProber finds every task healthy at once, but those whose command is "sick".
type fakeProber struct {
	w       *world
	mu      sync.Mutex
	targets map[string]ProbeTarget
}

func (p *fakeProber) Add(t ProbeTarget) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.targets[t.Task]; ok {
		return nil
	}
	p.targets[t.Task] = t
	e := p.w.e
	p.w.mesos.mu.Lock()
	command := p.w.mesos.tasks[t.Task].spec.Command
	sick := command == "sick" || command == "exit"
	p.w.mesos.mu.Unlock()
	if !sick {
		e.HandleProbe(ProbeEvent{Task: t.Task, Verdict: ProbeHealthy})
		return nil
	}
	time.AfterFunc(t.Grace, func() {
		e.HandleProbe(ProbeEvent{Task: t.Task, Verdict: ProbeOverdue, Why: "connection refused to " + t.Address})
	})
	return nil
}

func (p *fakeProber) Remove(task string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.targets, task)
}

func (p *fakeProber) LastError(task string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return "connection refused to " + p.targets[task].Address
}

func (p *fakeProber) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets = map[string]ProbeTarget{}
}
