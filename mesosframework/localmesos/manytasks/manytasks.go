package manytasks

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"golang.org/x/sys/unix"

	"github.com/cutover/cutover/mesosframework/localmesos/link"
	"github.com/cutover/cutover/mesosframework/localmesos/master"
	"github.com/cutover/cutover/mesosframework/localmesos/resource"
)

// Cluster is the master with its agents. Its methods are safe for concurrent use.
type Cluster struct {
	testing.TB
	master *master.Master
	// URL is the master's host:port.
	URL string

	mu         sync.Mutex
	agents     []*tableAgent
	frameworks []mesos.FrameworkInfo // the one that has tasks
	held       map[string]Hold       // by App
}

// Hold is what the tasks of an App are kept from until Release.
type Hold int

// The holds.
const (
	HoldStart  Hold = iota + 1 // they are launched and do not run
	HoldHealth                 // they run and are not healthy
	HoldWarm                   // they are healthy, and no proxy finds out
	HoldEnd                    // they are told to end and do not
)

// The size of one agent.
const (
	tableAgents    = 100
	portsPerAgent  = 300
	firstTablePort = 21000 // where no agent of a local Mesos has its ports
)

// New starts the master and its agents, and stops them with the benchmark.
func New(b testing.TB) *Cluster {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	m := &Cluster{TB: b, URL: ln.Addr().String(), held: map[string]Hold{}}
	m.master, err = master.New(master.Options{
		Addr: m.URL, AllocationInterval: time.Second, HeartbeatInterval: 15 * time.Second, PingTimeout: time.Hour, MaxPings: 5,
		Version: "1.11.0-table", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	m.master.Start()
	server := &http.Server{Handler: m.master.Handler(), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(ln) }()
	b.Cleanup(func() {
		m.master.Stop()
		_ = server.Close()
		<-served
	})
	m.answerChecks()
	var agents []keptAgent
	for i := range tableAgents {
		agents = append(agents, keptAgent{IP: fmt.Sprintf("127.20.0.%d", i+1)})
	}
	m.register(agents)
	return m
}

// keptAgent is an agent that registers: the first time, or with its id and tasks, which all run.
type keptAgent struct {
	ID, IP string
	Tasks  []mesos.TaskInfo
}

// register adds agents, and returns when the master knows them.
func (m *Cluster) register(agents []keptAgent) {
	m.Helper()
	set, err := resource.Parse(fmt.Sprintf("cpus:1000;mem:1000000;disk:1000000;ports:[%d-%d]", firstTablePort, firstTablePort+portsPerAgent-1))
	if err != nil {
		m.Fatal(err)
	}
	m.mu.Lock()
	frameworks := m.frameworks
	m.mu.Unlock()
	var registered sync.WaitGroup
	for _, k := range agents {
		a := &tableAgent{m: m, ip: k.IP, tasks: map[string]*tableTask{}, registered: registered.Done}
		r := link.Registration{PID: fmt.Sprintf("slave(1)@%s:5051", k.IP), Info: mesos.AgentInfo{Hostname: k.IP, Resources: set.Mesos("")}, Frameworks: frameworks}
		if k.ID != "" {
			r.Info.ID = &mesos.AgentID{Value: k.ID}
		}
		for _, info := range k.Tasks {
			t := &tableTask{framework: frameworks[0], info: info, state: mesos.TASK_RUNNING}
			a.tasks[info.TaskID.Value] = t
			status := a.status(t)
			r.Tasks = append(r.Tasks, link.Task{FrameworkID: t.framework.ID.GetValue(), Info: info, State: t.state, Last: status, Forwarded: status})
		}
		m.mu.Lock()
		m.agents = append(m.agents, a)
		m.mu.Unlock()
		registered.Add(1)
		m.master.Register(r, a)
	}
	registered.Wait()
}

// Copy adds to each agent another one with the same tasks under other names. Nothing may be under way.
func (m *Cluster) Copy(rename func([]byte) []byte) {
	m.Helper()
	m.mu.Lock()
	var all []keptAgent
	for _, a := range m.agents[:tableAgents] {
		k := keptAgent{ID: a.id, IP: a.ip}
		for _, t := range a.tasks {
			k.Tasks = append(k.Tasks, t.info)
		}
		all = append(all, k)
	}
	m.mu.Unlock()
	data, err := json.Marshal(all)
	if err == nil {
		err = json.Unmarshal(rename(data), &all)
	}
	if err != nil {
		m.Fatal(err)
	}
	m.register(all)
}

// answerChecks listens at every port of every agent, on the loopback interface only.
func (m *Cluster) answerChecks() {
	m.Helper()
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m.Holds(strings.TrimPrefix(r.URL.Path, "/healthz/")) == HoldHealth {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	onLoopback := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo") }); e != nil {
			return e
		}
		return err
	}}
	var served sync.WaitGroup
	for i := range portsPerAgent {
		ln, err := onLoopback.Listen(context.Background(), "tcp4", fmt.Sprintf("0.0.0.0:%d", firstTablePort+i))
		if err != nil {
			m.Fatal(err)
		}
		served.Go(func() { _ = server.Serve(ln) })
	}
	m.Cleanup(func() {
		_ = server.Close()
		served.Wait()
	})
}

// AgentID is the id of one agent; all begin with the master's.
func (m *Cluster) AgentID() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.agents[0].id
}

// Hold keeps the App's tasks from something.
func (m *Cluster) Hold(app string, h Hold) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held[app] = h
}

// Holds returns what the App's tasks are kept from, 0 if nothing.
func (m *Cluster) Holds(app string) Hold {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held[app]
}

// Release lets every task go on.
func (m *Cluster) Release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.held)
	for _, a := range m.agents {
		for _, t := range a.tasks {
			if t.waits != nil {
				a.say(t, *t.waits)
			}
		}
	}
}

// tableAgent is one agent. Protected by Cluster.mu.
type tableAgent struct {
	m          *Cluster
	id, ip     string
	tasks      map[string]*tableTask
	registered func()
}

type tableTask struct {
	framework mesos.FrameworkInfo
	info      mesos.TaskInfo
	state     mesos.TaskState
	waits     *mesos.TaskState  // held back
	told      *mesos.TaskStatus // not acknowledged
}

var _ master.Agent = (*tableAgent)(nil)

// say tells the master a task's new state; the update is repeated to each subscription until it is acknowledged.
func (a *tableAgent) say(t *tableTask, state mesos.TaskState) {
	t.state, t.waits = state, nil
	t.told = a.status(t)
	a.repeat(t)
}

// status is a new update of the task's state.
func (a *tableAgent) status(t *tableTask) *mesos.TaskStatus {
	uuid := make([]byte, 16)
	_, _ = rand.Read(uuid)
	now, ipv4 := float64(time.Now().UnixNano())/1e9, mesos.IPv4
	return &mesos.TaskStatus{
		TaskID: t.info.TaskID, State: t.state.Enum(), AgentID: &mesos.AgentID{Value: t.info.AgentID.Value}, UUID: uuid, Timestamp: &now,
		Source: mesos.SOURCE_EXECUTOR.Enum(),
		ContainerStatus: &mesos.ContainerStatus{NetworkInfos: []mesos.NetworkInfo{{
			IPAddresses: []mesos.NetworkInfo_IPAddress{{Protocol: &ipv4, IPAddress: &a.ip}},
		}}},
	}
}

func (a *tableAgent) repeat(t *tableTask) {
	a.m.master.Update(link.Update{FrameworkID: t.framework.ID.GetValue(), Status: *t.told, Latest: t.state})
}

// become says the state, unless the App's tasks are held back from it.
func (a *tableAgent) become(t *tableTask, state mesos.TaskState, unless Hold) {
	app, _, _ := strings.Cut(t.info.TaskID.Value, ".")
	if a.m.held[app] == unless {
		t.waits = &state
		return
	}
	a.say(t, state)
}

// Registered implements master.Agent.
func (a *tableAgent) Registered(id string) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	if a.id == "" {
		a.registered()
	}
	a.id = id
}

// Run implements master.Agent.
func (a *tableAgent) Run(fw mesos.FrameworkInfo, info mesos.TaskInfo) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	t := &tableTask{framework: fw, info: info, state: mesos.TASK_STAGING}
	a.tasks[info.TaskID.Value] = t
	a.m.frameworks = []mesos.FrameworkInfo{fw}
	a.become(t, mesos.TASK_RUNNING, HoldStart)
}

// Kill implements master.Agent.
func (a *tableAgent) Kill(_, task string, _ *mesos.KillPolicy) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	if t := a.tasks[task]; t != nil && t.state != mesos.TASK_KILLED {
		a.become(t, mesos.TASK_KILLED, HoldEnd)
	}
}

// Acknowledge implements master.Agent.
func (a *tableAgent) Acknowledge(_, task string, uuid []byte) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	t := a.tasks[task]
	if t == nil || t.told == nil || !bytes.Equal(t.told.UUID, uuid) {
		return
	}
	t.told = nil
	if t.state == mesos.TASK_KILLED {
		delete(a.tasks, task)
	}
}

// FrameworkUpdated implements master.Agent: a new subscription is told what no one has acknowledged.
func (a *tableAgent) FrameworkUpdated(mesos.FrameworkInfo) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	for _, t := range a.tasks {
		if t.told != nil {
			a.repeat(t)
		}
	}
}

// FrameworkRemoved implements master.Agent.
func (a *tableAgent) FrameworkRemoved(string) {}

// Leave implements master.Agent.
func (a *tableAgent) Leave() {}
