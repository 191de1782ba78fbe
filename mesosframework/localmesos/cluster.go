package localmesos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/mesosframework/localmesos/agent"
	"github.com/cutover/cutover/mesosframework/localmesos/link"
	"github.com/cutover/cutover/mesosframework/localmesos/master"
	"github.com/cutover/cutover/mesosframework/localmesos/resource"
)

// Cluster is a master with its agents. Its methods are safe for concurrent
// use.
type Cluster struct {
	opts   Options
	log    *slog.Logger
	master *master.Master
	server *http.Server
	listen net.Listener
	served chan struct{}
	lock   *os.File

	mu      sync.Mutex // guards all below
	members []*member
	started bool
	stopped bool
}

// New makes a cluster and binds its master's address; nothing runs before
// Start. Another cluster on the same directory is refused.
func New(o Options) (*Cluster, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("local Mesos: %w", err)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("local Mesos: %w", err)
	}
	c := &Cluster{opts: o, log: o.Logger, served: make(chan struct{})}
	if c.lock, err = lockDir(o.Dir); err != nil {
		return nil, err
	}
	c.listen, err = net.Listen("tcp", o.Listen)
	if err != nil {
		_ = c.lock.Close()
		return nil, fmt.Errorf("local Mesos: master: listen: %w (choose another address)", err)
	}
	c.master, err = master.New(master.Options{
		Addr: c.listen.Addr().String(), AllocationInterval: o.AllocationInterval, OfferTimeout: o.OfferTimeout,
		HeartbeatInterval: o.HeartbeatInterval, PingTimeout: o.PingTimeout, MaxPings: o.MaxPings, Version: Version,
		Cluster: o.Name, Copies: o.Copies, Logger: o.Logger,
	})
	if err != nil {
		_ = c.listen.Close()
		_ = c.lock.Close()
		return nil, err
	}
	c.server = &http.Server{
		Handler: c.master.Handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	for i, spec := range o.Agents {
		c.members = append(c.members, &member{cluster: c, spec: spec, dir: filepath.Join(o.Dir, fmt.Sprintf("agent-%d", i+1))})
	}
	return c, nil
}

// lockDir keeps two clusters off one directory.
func lockDir(dir string) (*os.File, error) {
	f, err := flock.Try(filepath.Join(dir, "lock"))
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("local Mesos: %s is in use by another local Mesos: %w", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("local Mesos: %w", err)
	}
	return f, nil
}

// Start starts the agents, which adopt the tasks of their directories, and the
// master. When it returns nil, the agents are registered and the API answers;
// after an error, call Stop.
func (c *Cluster) Start(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.started || c.stopped {
		return errors.New("local Mesos: Start called twice, or after Stop")
	}
	c.started = true
	c.master.Start()
	for _, m := range c.members {
		if err := m.start(); err != nil {
			return err
		}
	}
	go func() {
		defer close(c.served)
		if err := c.server.Serve(c.listen); !errors.Is(err, http.ErrServerClosed) {
			c.log.Error("master HTTP server ended", "error", err)
		}
	}()
	for _, m := range c.members {
		select {
		case <-m.registered():
		case <-ctx.Done():
			return fmt.Errorf("local Mesos: agent %s did not register: %w", m.spec.Hostname, ctx.Err())
		}
	}
	return nil
}

// Stop ends master and agents and leaves the tasks running. It may be called
// more than once.
func (c *Cluster) Stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	c.stopped = true
	c.master.Stop() // ends the streams
	if c.started {
		_ = c.server.Close()
		<-c.served
	}
	_ = c.listen.Close()
	for _, m := range c.members {
		m.stop()
	}
	_ = c.lock.Close()
}

// Run is Start, the wait for the end of ctx, and Stop.
func (c *Cluster) Run(ctx context.Context) error {
	err := c.Start(ctx)
	if err == nil {
		<-ctx.Done()
	}
	c.Stop()
	return err
}

// KillTasks ends every task of every agent at once, without a status update,
// and waits until they are gone or ctx ends. For a cluster that will not come
// back; call it before Stop.
func (c *Cluster) KillTasks(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		if m.agent != nil {
			m.agent.KillTasks(ctx)
		}
	}
}

// Addr returns the master's host:port.
func (c *Cluster) Addr() string { return c.listen.Addr().String() }

// URL returns the master's base URL.
func (c *Cluster) URL() string { return "http://" + c.Addr() }

// Agents returns how to reach each agent, in the order of Options.Agents.
func (c *Cluster) Agents() []AgentStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []AgentStatus
	for _, m := range c.members {
		out = append(out, m.status())
	}
	return out
}

// AgentStatus is one agent of a running cluster.
type AgentStatus struct {
	ID       string // "" before the first registration
	Hostname string
	Addr     string // host:port, "" while the agent is stopped
	Dir      string
}

// member is an agent with its link to the master.
type member struct {
	cluster *Cluster
	spec    AgentSpec
	dir     string
	port    int // once bound, kept for restarts

	agent    *agent.Agent // nil while stopped
	toMaster link.Pipe
	toAgent  link.Pipe

	mu    sync.Mutex // guards all below
	id    string
	ready chan struct{} // closed at registration
}

func (m *member) start() error {
	o := m.cluster.opts
	set, err := resource.Parse(m.spec.Resources)
	if err != nil {
		return err
	}
	port := m.spec.Port
	if port == 0 {
		port = m.port
	}
	s := &session{member: m}
	a, err := agent.New(agent.Options{
		Dir: m.dir, Hostname: m.spec.Hostname, IP: m.spec.IP, Port: port, Resources: set, Attributes: attributes(m.spec.Attributes),
		SupervisorArgv: o.SupervisorArgv, HonourKillPolicy: o.HonourKillPolicy, MaxLog: o.MaxLog, KeepSandboxes: o.KeepSandboxes,
		LaunchDelay: o.LaunchDelay, Version: Version, Logger: o.Logger,
	}, s)
	if err != nil {
		return err
	}
	m.agent, s.agent = a, a
	_, p, _ := net.SplitHostPort(a.Addr())
	_, _ = fmt.Sscan(p, &m.port)
	m.mu.Lock()
	m.ready = make(chan struct{})
	m.mu.Unlock()
	m.toMaster.Open()
	m.toAgent.Open()
	return a.Start()
}

func (m *member) registered() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ready
}

func (m *member) stop() {
	m.toMaster.Close()
	m.toAgent.Close()
	if m.agent != nil {
		m.agent.Stop()
		m.agent = nil
	}
}

func (m *member) status() AgentStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := AgentStatus{ID: m.id, Hostname: m.spec.Hostname, Dir: m.dir}
	if m.agent != nil {
		s.Addr = m.agent.Addr()
	}
	return s
}

func attributes(in map[string]string) []mesos.Attribute {
	var out []mesos.Attribute
	for name, value := range in {
		out = append(out, mesos.Attribute{Name: name, Type: mesos.TEXT, Text: &mesos.Value_Text{Value: value}})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// session is the life of a member's agent from one start to the next stop: the
// master as the agent sees it, and the agent as the master sees it.
type session struct {
	member *member
	agent  *agent.Agent
}

// Register implements agent.Master.
func (s *session) Register(r link.Registration) {
	s.member.toMaster.Send(func() { s.member.cluster.master.Register(r, s) })
}

// Update implements agent.Master.
func (s *session) Update(u link.Update) {
	s.member.toMaster.Send(func() { s.member.cluster.master.Update(u) })
}

// Registered implements master.Agent.
func (s *session) Registered(id string) {
	m := s.member
	m.toAgent.Send(func() {
		s.agent.Registered(id)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.id = id
		select {
		case <-m.ready:
		default:
			close(m.ready)
		}
	})
}

// Run implements master.Agent.
func (s *session) Run(fw mesos.FrameworkInfo, task mesos.TaskInfo) {
	s.member.toAgent.Send(func() { s.agent.Run(fw, task) })
}

// Kill implements master.Agent.
func (s *session) Kill(framework, task string, policy *mesos.KillPolicy) {
	s.member.toAgent.Send(func() { s.agent.Kill(framework, task, policy) })
}

// Acknowledge implements master.Agent.
func (s *session) Acknowledge(framework, task string, uuid []byte) {
	s.member.toAgent.Send(func() { s.agent.Acknowledge(framework, task, uuid) })
}

// FrameworkUpdated implements master.Agent.
func (s *session) FrameworkUpdated(fw mesos.FrameworkInfo) {
	s.member.toAgent.Send(func() { s.agent.FrameworkUpdated(fw) })
}

// FrameworkRemoved implements master.Agent.
func (s *session) FrameworkRemoved(id string) {
	s.member.toAgent.Send(func() { s.agent.FrameworkRemoved(id) })
}

// Leave implements master.Agent.
func (s *session) Leave() { s.member.toAgent.Send(s.agent.Leave) }
