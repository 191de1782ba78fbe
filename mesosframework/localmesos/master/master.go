package master

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/mesosframework/localmesos/actor"
	"github.com/cutover/cutover/mesosframework/localmesos/link"
	"github.com/cutover/cutover/mesosframework/localmesos/resource"
)

// Agent is what the master sends to an agent. Its methods do not block, keep
// their order, and may get lost, as messages do.
type Agent interface {
	// Registered gives the agent its id.
	Registered(id string)
	Run(fw mesos.FrameworkInfo, task mesos.TaskInfo)
	Kill(framework, task string, policy *mesos.KillPolicy)
	Acknowledge(framework, task string, uuid []byte)
	// FrameworkUpdated tells that a framework subscribed anew or changed.
	FrameworkUpdated(fw mesos.FrameworkInfo)
	FrameworkRemoved(id string)
	// Leave tells an agent that was marked gone to end everything.
	Leave()
}

// Options configure a master.
type Options struct {
	Addr               string        // host:port on which it is served
	AllocationInterval time.Duration // between allocation runs
	OfferTimeout       time.Duration // 0 = offers are not taken back
	HeartbeatInterval  time.Duration
	PingTimeout        time.Duration // per ping of an agent
	MaxPings           int           // missed pings that make an agent unreachable
	Version            string
	Cluster            string // name shown in the state
	// Copies tells how often an update is delivered to its framework: 1 is
	// normal, 0 loses it, 2 repeats it. Nil means always 1.
	Copies func(framework string, status mesos.TaskStatus) int
	Logger *slog.Logger
}

// Master is one master. Its exported methods are safe for concurrent use.
type Master struct {
	opts  Options
	log   *slog.Logger
	actor *actor.Actor
	info  mesos.MasterInfo
	start time.Time

	// Below: owned by the actor.
	frameworks    map[string]*framework
	removed       map[string]*framework // torn down or timed out
	removedOrder  []string
	agents        map[string]*agent
	unreachable   map[string]*lostAgent
	gone          map[string]*lostAgent
	offers        map[string]*offer
	nextOffer     int
	nextFramework int
	nextAgent     int
	tick          *actor.Timer
	runAt         time.Time // when the latest batch run was due
	handles       map[string]Agent
}

// maxRemoved is how many ended frameworks are remembered, maxCompleted how many
// ended tasks of each framework.
const (
	maxRemoved   = 50
	maxCompleted = 1000
)

// New makes a master with a new id.
func New(o Options) (*Master, error) {
	host, port, err := net.SplitHostPort(o.Addr)
	if err != nil {
		return nil, fmt.Errorf("local Mesos master: address %q: %w", o.Addr, err)
	}
	m := &Master{
		opts: o, log: o.Logger, start: time.Now(),
		frameworks: map[string]*framework{}, removed: map[string]*framework{}, agents: map[string]*agent{},
		unreachable: map[string]*lostAgent{}, gone: map[string]*lostAgent{}, offers: map[string]*offer{}, handles: map[string]Agent{},
	}
	var p uint32
	_, _ = fmt.Sscan(port, &p)
	pid, version := "master@"+o.Addr, o.Version
	m.info = mesos.MasterInfo{
		ID: newUUID(), IP: ipNumber(host), Port: &p, PID: &pid, Hostname: &host, Version: &version,
		Address: &mesos.Address{Hostname: &host, IP: &host, Port: int32(p)},
		Capabilities: []mesos.MasterInfo_Capability{
			{Type: mesos.MasterInfo_Capability_AGENT_UPDATE}, {Type: mesos.MasterInfo_Capability_AGENT_DRAINING},
		},
	}
	m.actor = actor.New()
	return m, nil
}

// ipNumber is an IPv4 address in network order, as MasterInfo wants it.
func ipNumber(host string) uint32 {
	ip := net.ParseIP(host).To4()
	if ip == nil {
		return 0
	}
	return binary.LittleEndian.Uint32(ip)
}

func newUUID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// ID returns the master's id; each start has another.
func (m *Master) ID() string { return m.info.ID }

// Start begins the allocation runs.
func (m *Master) Start() {
	m.actor.Post(func() { m.schedule() })
}

func (m *Master) schedule() {
	due := time.Now().Add(m.opts.AllocationInterval)
	m.tick = m.actor.After(m.opts.AllocationInterval, func() {
		m.runAt = due
		m.allocate(due)
		m.schedule()
	})
}

// Stop ends the master; streams end without an ERROR, as when a master dies.
func (m *Master) Stop() {
	_ = m.actor.Call(context.Background(), func() {
		m.tick.Cancel()
		for _, f := range m.frameworks {
			if f.stream != nil {
				f.stream.close()
			}
			f.heartbeat.Cancel()
			f.failover.Cancel()
		}
		for _, a := range m.agents {
			a.ping.Cancel()
		}
		for _, o := range m.offers {
			o.timeout.Cancel()
		}
	})
	m.actor.Stop()
}

// task is a task as the master knows it.
type task struct {
	info      mesos.TaskInfo
	framework string
	agent     string
	role      string
	state     mesos.TaskState   // the latest that the agent knows
	last      *mesos.TaskStatus // the newest that was forwarded
	statuses  []mesos.TaskStatus
	held      bool // its resources are counted as used
}

// forwarded is the state that reconciliation tells.
func (t *task) forwarded() mesos.TaskState {
	if t.last == nil {
		return mesos.TASK_STAGING
	}
	return *t.last.State
}

func (t *task) resources() resource.Set { return resource.Of(t.info.Resources) }

func (t *task) note(s mesos.TaskStatus) {
	t.last = &s
	if n := len(t.statuses); n > 0 && *t.statuses[n-1].State == *s.State {
		t.statuses[n-1] = s
		return
	}
	t.statuses = append(t.statuses, s)
}

// now is a timestamp as Mesos gives it.
func now() *float64 {
	t := float64(time.Now().UnixNano()) / 1e9
	return &t
}

// masterStatus makes an update of the master's own: no uuid, never repeated.
func masterStatus(taskID, agentID string, state mesos.TaskState, reason mesos.TaskStatus_Reason, message string) mesos.TaskStatus {
	s := mesos.TaskStatus{
		TaskID: mesos.TaskID{Value: taskID}, State: state.Enum(), Source: mesos.SOURCE_MASTER.Enum(),
		Reason: reason.Enum(), Message: &message, Timestamp: now(),
	}
	if agentID != "" {
		s.AgentID = &mesos.AgentID{Value: agentID}
	}
	return s
}

// update forwards what an agent says of a task.
func (m *Master) update(u link.Update) {
	f := m.frameworks[u.FrameworkID]
	if f == nil {
		return
	}
	a := m.agents[u.Status.AgentID.GetValue()]
	if a == nil {
		return // unreachable or gone: it registers again first
	}
	t := f.tasks[u.Status.TaskID.Value]
	if t != nil && t.agent == a.id {
		t.state = u.Latest
		if link.Terminal(t.state) {
			m.release(t)
		}
		if a.draining && (*u.Status.State == mesos.TASK_KILLING || *u.Status.State == mesos.TASK_KILLED) {
			u.Status.Reason = mesos.REASON_AGENT_DRAINING.Enum()
			if a.markGone && *u.Status.State == mesos.TASK_KILLED && f.partitionAware() {
				u.Status.State = mesos.TASK_GONE_BY_OPERATOR.Enum()
			}
		}
		t.note(u.Status)
	}
	copies := 1
	if m.opts.Copies != nil {
		copies = m.opts.Copies(u.FrameworkID, u.Status)
	}
	for range copies {
		f.send(&scheduler.Event{Type: scheduler.Event_UPDATE, Update: &scheduler.Event_Update{Status: u.Status}})
	}
}

// release gives the resources of an ended task back to its agent.
func (m *Master) release(t *task) {
	if !t.held {
		return
	}
	t.held = false
	if a := m.agents[t.agent]; a != nil {
		a.used = a.used.Sub(t.resources())
	}
}

// complete takes a task off a framework and remembers it for a while.
func (f *framework) complete(t *task) {
	delete(f.tasks, t.info.TaskID.Value)
	f.completed = append(f.completed, t)
	if len(f.completed) > maxCompleted {
		f.completed = f.completed[1:]
	}
}

// Update takes an agent's update.
func (m *Master) Update(u link.Update) { m.actor.Post(func() { m.update(u) }) }
