package mesosframework_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/servertest"
	"github.com/cutover/cutover/mesosframework"
	"github.com/cutover/cutover/mesosframework/localmesos"
	"github.com/cutover/cutover/mesosframework/placement"
)

// The tests here run the framework against the local Mesos: real calls, real
// processes.

const patience = time.Minute

// book is a Journal and a Listener in memory that remembers all of a task.
type book struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change
	id      string
	tasks   map[string]mesosframework.TaskRef
	states  map[string][]mesosframework.TaskState
	last    map[string]mesosframework.Update
	lost    []mesosframework.Loss
}

func newBook() *book {
	return &book{
		changed: make(chan struct{}), tasks: map[string]mesosframework.TaskRef{},
		states: map[string][]mesosframework.TaskState{}, last: map[string]mesosframework.Update{},
	}
}

// change runs f under the lock and wakes who waits.
func (b *book) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *book) FrameworkID(context.Context) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.id, nil
}

func (b *book) SaveFrameworkID(_ context.Context, id string) error {
	b.change(func() { b.id = id })
	return nil
}

func (b *book) SaveLaunching(_ context.Context, launches []mesosframework.Launch) error {
	b.change(func() {
		for _, l := range launches {
			b.tasks[l.TaskID] = l.Ref()
		}
	})
	return nil
}

func (b *book) HandleSubscribed(context.Context, mesosframework.Subscription) ([]mesosframework.TaskRef, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var refs []mesosframework.TaskRef
	for _, r := range b.tasks {
		if !r.State.Terminal() {
			refs = append(refs, r)
		}
	}
	return refs, nil
}

func (b *book) HandleUpdate(_ context.Context, u mesosframework.Update) error {
	b.change(func() {
		r := b.tasks[u.TaskID]
		r.TaskID, r.State = u.TaskID, u.State
		b.tasks[u.TaskID] = r
		b.states[u.TaskID] = append(b.states[u.TaskID], u.State)
		b.last[u.TaskID] = u
	})
	return nil
}

func (b *book) HandleLost(_ context.Context, l mesosframework.Loss) error {
	b.change(func() { b.lost = append(b.lost, l) })
	return nil
}

func (b *book) HandleDisconnected(context.Context, error) { b.change(func() {}) }

// wait waits until ok holds for what is in the book.
func (b *book) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.After(patience)
	for {
		b.mu.Lock()
		done, changed := ok(), b.changed
		b.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-late:
			b.mu.Lock()
			defer b.mu.Unlock()
			t.Fatalf("%s did not come true; states %v, losses %+v", what, b.states, b.lost)
		}
	}
}

func (b *book) in(t *testing.T, taskID string, s mesosframework.TaskState) mesosframework.Update {
	t.Helper()
	b.wait(t, taskID+" in "+string(s), func() bool { return b.last[taskID].State == s })
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last[taskID]
}

func (b *book) ref(taskID string) mesosframework.TaskRef {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tasks[taskID]
}

func localMesos(t *testing.T, change func(*localmesos.Options)) *localmesos.Cluster {
	t.Helper()
	o := localmesos.Options{Dir: t.TempDir(), Agents: localmesos.DefaultAgents(2)}
	if change != nil {
		change(&o)
	}
	c, err := localmesos.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c.KillTasks(ctx)
		c.Stop()
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func framework(t *testing.T, c *localmesos.Cluster, b *book, change func(*mesosframework.Options)) *mesosframework.Framework {
	t.Helper()
	o := mesosframework.Options{Masters: []string{c.URL()}, Name: "cutover", Journal: b, Listener: b}
	if change != nil {
		change(&o)
	}
	f, err := mesosframework.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, f) })
	connected(t, f)
	return f
}

func stop(t *testing.T, f *mesosframework.Framework) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func connected(t *testing.T, f *mesosframework.Framework) {
	t.Helper()
	until(t, "connected", func() bool { return f.State().Connected })
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come true", what)
		}
	}
}

func task(id, command string, change func(*mesosframework.TaskSpec)) mesosframework.TaskSpec {
	s := mesosframework.TaskSpec{ID: id, App: "shop", Command: command, CPUs: 0.1, MemoryMB: 32, Ports: 1}
	if change != nil {
		change(&s)
	}
	return s
}

func launch(t *testing.T, f *mesosframework.Framework, specs ...mesosframework.TaskSpec) {
	t.Helper()
	if err := f.Launch(t.Context(), specs); err != nil {
		t.Fatal(err)
	}
}

func TestLocalLaunchRunKill(t *testing.T) {
	c, b := localMesos(t, nil), newBook()
	f := framework(t, c, b, nil)
	start := time.Now()
	var specs []mesosframework.TaskSpec
	for i := range 4 {
		specs = append(specs, task(fmt.Sprintf("shop-%d", i), `echo "host=$HOST port=$PORT0 $PORT id=$TASK_ID app=$CUTOVER_APP $GREETING"; sleep 600`, func(s *mesosframework.TaskSpec) {
			s.Env = map[string]string{"GREETING": "hello ${TASK_ID}"}
		}))
	}
	launch(t, f, specs...)
	perAgent := map[string]int{}
	ports := map[string]bool{}
	for _, s := range specs {
		u := b.in(t, s.ID, mesosframework.Running)
		perAgent[u.AgentID]++
		ports[net.JoinHostPort(u.Host, fmt.Sprint(u.Ports[0]))] = true
		if !u.Known || net.ParseIP(u.Host) == nil {
			t.Errorf("update %+v", u)
		}
	}
	t.Logf("Launch of 4 tasks to all RUNNING: %s", time.Since(start))
	if len(perAgent) != 2 || len(ports) != 4 {
		t.Errorf("agents %v, addresses %v: want 2 and 4", perAgent, ports)
	}
	for id, n := range perAgent {
		if n != 2 {
			t.Errorf("agent %s has %d of 4 tasks", id, n)
		}
	}
	until(t, "suppressed", func() bool { return f.State().Suppressed })

	// What the task wrote.
	ref := b.ref("shop-0")
	want := fmt.Sprintf("host=%s port=%d %[2]d id=shop-0 app=shop hello shop-0\n", ref.Host, ref.Ports[0])
	until(t, "output", func() bool {
		c, err := f.ReadSandbox(t.Context(), ref, "stdout", 0, 1000)
		return err == nil && strings.HasSuffix(string(c.Data), want)
	})
	r, err := f.DownloadSandbox(t.Context(), mesosframework.TaskRef{TaskID: "shop-0", AgentURL: ref.AgentURL}, "stdout")
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(r)
	r.Close()
	if err != nil || !strings.HasSuffix(string(all), want) {
		t.Errorf("%q %v", all, err)
	}
	if _, err := f.ReadSandbox(t.Context(), ref, "nothing", 0, 10); !errors.Is(err, mesosframework.ErrNotFound) {
		t.Errorf("missing file: %v", err)
	}

	for _, s := range specs {
		if err := f.Kill(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range specs {
		if u := b.in(t, s.ID, mesosframework.Killed); u.Reason != "" {
			t.Errorf("killed with %+v", u)
		}
	}
	until(t, "forgotten", func() bool { return f.State().Tasks == 0 })
	until(t, "all acknowledged", func() bool { s := f.State().Stats; return s.Acknowledged >= s.Updates && s.CallsRefused == 0 })
}

func TestLocalExitsAndFailures(t *testing.T) {
	c, b := localMesos(t, nil), newBook()
	f := framework(t, c, b, nil)
	launch(t, f,
		task("ok", "exit 0", nil), task("bad", "exit 3", nil),
		task("nofetch", "true", func(s *mesosframework.TaskSpec) {
			s.Artifacts = []mesosframework.Artifact{{URI: "file:///does/not/exist"}}
		}),
		task("args", "/bin/sh", func(s *mesosframework.TaskSpec) { s.Args = []string{"-c", "test ${PORT0} = $PORT && exit 4"} }),
		task("nowhere", "true", func(s *mesosframework.TaskSpec) {
			s.Constraints = []placement.Constraint{{Attribute: "rack", Operator: placement.Is, Value: "r9"}}
		}),
	)
	b.in(t, "ok", mesosframework.Finished)
	if u := b.in(t, "bad", mesosframework.Failed); u.Message != "Command exited with status 3" {
		t.Errorf("bad: %+v", u)
	}
	if u := b.in(t, "args", mesosframework.Failed); u.Message != "Command exited with status 4" {
		t.Errorf("args: %+v", u)
	}
	if u := b.in(t, "nofetch", mesosframework.Failed); u.Reason != mesosframework.ReasonContainerLaunch {
		t.Errorf("nofetch: %+v", u)
	}
	until(t, "explained", func() bool {
		p := f.Pending()
		return len(p) == 1 && p[0].Vetoes[placement.ReasonConstraint] == 2 && strings.Contains(p[0].Detail, "rack is r9")
	})
	if err := f.Kill(t.Context(), "nowhere"); err != nil {
		t.Fatal(err)
	}
	b.wait(t, "told", func() bool { return len(b.lost) == 1 && b.lost[0].Reason == mesosframework.LossNotLaunched })
}

func TestLocalRestartOfTheFramework(t *testing.T) {
	c, b := localMesos(t, func(o *localmesos.Options) {
		for i := range o.Agents {
			o.Agents[i].Resources = fmt.Sprintf("cpus:4;mem:4096;disk:100;ports:[%d-%d]", 31500+10*i, 31502+10*i)
		}
	}), newBook()
	f := framework(t, c, b, nil)
	launch(t, f, task("keep", "sleep 600", nil), task("ends", "sleep 600", nil))
	b.in(t, "keep", mesosframework.Running)
	b.in(t, "ends", mesosframework.Running)
	stop(t, f)
	b.change(func() { // it was ordered killed just before we went down
		r := b.tasks["ends"]
		r.Kill = true
		b.tasks["ends"] = r
	})
	before := b.ref("keep")

	f = framework(t, c, b, nil)
	b.in(t, "ends", mesosframework.Killed)
	until(t, "reconciled", func() bool { s := f.State(); return s.Unreconciled == 0 && s.Tasks == 1 })
	// The port of the task that was kept is not given out again.
	var specs []mesosframework.TaskSpec
	for i := range 5 { // all ports that are left
		specs = append(specs, task(fmt.Sprint("new-", i), "sleep 600", nil))
	}
	launch(t, f, specs...)
	for _, s := range specs {
		b.in(t, s.ID, mesosframework.Running)
		if r := b.ref(s.ID); r.AgentID == before.AgentID && slices.Equal(r.Ports, before.Ports) {
			t.Errorf("%s got the port of keep", s.ID)
		}
	}
}

func TestLocalAgentGoesAndComesBack(t *testing.T) {
	c, b := localMesos(t, func(o *localmesos.Options) {
		o.PingTimeout, o.MaxPings, o.Agents = 100*time.Millisecond, 3, localmesos.DefaultAgents(1)
	}), newBook()
	f := framework(t, c, b, nil)
	launch(t, f, task("t", "sleep 600", nil))
	b.in(t, "t", mesosframework.Running)
	if err := c.FreezeAgent(1); err != nil {
		t.Fatal(err)
	}
	if u := b.in(t, "t", mesosframework.Unreachable); u.State.Terminal() || u.UUID != "" {
		t.Errorf("unreachable: %+v", u)
	}
	// A KILL now is forgotten by Mesos, and repeated when the task is back.
	if err := f.Kill(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	if err := c.ThawAgent(1); err != nil {
		t.Fatal(err)
	}
	b.in(t, "t", mesosframework.Killed)
}

func TestLocalRestartOfTheCluster(t *testing.T) {
	dir := t.TempDir()
	listen := servertest.Loopback() + ":0" // its own: the port is still free for the second one
	cluster := func() *localmesos.Cluster {
		c := localMesos(t, func(o *localmesos.Options) { o.Dir, o.Listen = dir, listen })
		listen = c.Addr()
		return c
	}
	c, b := cluster(), newBook()
	f := framework(t, c, b, nil)
	launch(t, f, task("t", "sleep 600", nil))
	b.in(t, "t", mesosframework.Running)
	id := f.State().FrameworkID
	c.Stop()
	until(t, "disconnected", func() bool { return !f.State().Connected })
	cluster()
	connected(t, f)
	until(t, "reconciled", func() bool { return f.State().Unreconciled == 0 })
	if got := f.State().FrameworkID; got != id {
		t.Errorf("the framework id became %s", got)
	}
	launch(t, f, task("u", "sleep 600", nil))
	b.in(t, "u", mesosframework.Running)
	// The agents are at other ports now: the master is asked.
	stale := b.ref("t")
	stale.AgentURL = "http://127.0.0.1:1"
	if _, err := f.ReadSandbox(t.Context(), stale, "stdout", -1, 0); err != nil {
		t.Error(err)
	}
	if err := f.Kill(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	b.in(t, "t", mesosframework.Killed)
	if _, err := f.ReadSandbox(t.Context(), stale, "stdout", -1, 0); err != nil {
		t.Error(err)
	}
	if s := b.states["t"]; slices.Contains(s, mesosframework.Gone) || slices.Contains(s, mesosframework.Lost) {
		t.Errorf("states %v", s)
	}
}

func TestLocalFailover(t *testing.T) {
	c, b := localMesos(t, nil), newBook()
	first := framework(t, c, b, nil)
	launch(t, first, task("t", "sleep 600", nil))
	b.in(t, "t", mesosframework.Running)
	second := framework(t, c, b, nil) // the same id: it takes over
	select {
	case <-first.Done():
	case <-time.After(patience):
		t.Fatal("the first one goes on")
	}
	if !errors.Is(first.Err(), mesosframework.ErrFailedOver) {
		t.Errorf("ended by %v", first.Err())
	}
	if err := second.Kill(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	b.in(t, "t", mesosframework.Killed)
}

func TestLocalRescindRace(t *testing.T) {
	c, b := localMesos(t, nil), newBook()
	f := framework(t, c, b, nil)
	for i := range 6 {
		id := fmt.Sprint("t", i)
		launch(t, f, task(id, "sleep 600", nil))
		c.RescindOffers()
		// Launched, or dropped because the offer was gone: never silence.
		b.wait(t, id, func() bool { s := b.last[id].State; return s == mesosframework.Running || s == mesosframework.Dropped })
	}
}

// BenchmarkLaunchToRunning measures a Launch while offers are suppressed, one
// task at a time, until TASK_RUNNING was handed over.
func BenchmarkLaunchToRunning(b *testing.B) {
	dir := b.TempDir()
	c, err := localmesos.New(localmesos.Options{Dir: dir, Agents: localmesos.DefaultAgents(2)})
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	if err := c.Start(ctx); err != nil {
		b.Fatal(err)
	}
	defer func() { c.KillTasks(ctx); c.Stop() }()
	bk := newBook()
	f, err := mesosframework.New(mesosframework.Options{Masters: []string{c.URL()}, Name: "bench", Journal: bk, Listener: bk})
	if err != nil {
		b.Fatal(err)
	}
	if err := f.Start(ctx); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Stop(ctx) }()
	for n := 0; b.Loop(); n++ {
		id := fmt.Sprint("t", n)
		if err := f.Launch(ctx, []mesosframework.TaskSpec{task(id, "exit 0", func(s *mesosframework.TaskSpec) { s.Command = "sleep 0.01" })}); err != nil {
			b.Fatal(err)
		}
		for done := false; !done; {
			bk.mu.Lock()
			done = slices.Contains(bk.states[id], mesosframework.Running)
			changed := bk.changed
			bk.mu.Unlock()
			if !done {
				<-changed
			}
		}
	}
}
