package localmesos

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/resource"
)

// Version is the version that the cluster says it has: the API is that of
// Mesos 1.11.
const Version = "1.11.0-localmesos"

// Options configure a Cluster.
type Options struct {
	// Dir holds the agents' state and the sandboxes of their tasks. One
	// cluster at a time owns it.
	Dir string
	// Listen is the master's address; port 0 picks one. Default 127.0.0.1:0.
	Listen string
	// Agents are the agents; default DefaultAgents(1).
	Agents []AgentSpec
	// SupervisorArgv is the command line of a task's warden; default: this
	// executable with the argument "task-supervisor". The binary must import
	// package supervise (which this package does).
	SupervisorArgv []string

	// Name is shown as the name of the cluster.
	Name string
	// AllocationInterval is the time between allocation runs; default 1 s.
	AllocationInterval time.Duration
	// OfferTimeout takes offers back after a while; 0 = never, as in Mesos.
	OfferTimeout time.Duration
	// HeartbeatInterval of event streams; default 15 s.
	HeartbeatInterval time.Duration
	// PingTimeout times MaxPings is how long an agent may be silent before it
	// is unreachable; default 15 s and 5.
	PingTimeout time.Duration
	MaxPings    int
	// HonourKillPolicy makes Kill.kill_policy count, as agents with
	// --http_command_executor do; those without it ignore the field.
	HonourKillPolicy bool
	// MaxLog bounds each output file of a task; default 16 MiB. Older output
	// moves to FILE.1.
	MaxLog int64
	// KeepSandboxes is how many sandboxes of ended tasks each agent keeps;
	// default 100.
	KeepSandboxes int

	// Copies tells how often an update is delivered to its framework: 1 is
	// normal, 0 loses it, 2 repeats it. Nil means always 1. For tests.
	Copies func(framework string, status mesos.TaskStatus) int
	// LaunchDelay is waited between the order and the launch of a task. For
	// tests.
	LaunchDelay time.Duration

	// Logger; default: discard.
	Logger *slog.Logger
}

// AgentSpec is one agent.
type AgentSpec struct {
	// IP is where the agent listens and where its tasks are reached.
	IP string
	// Port of the agent's endpoints; 0 picks one.
	Port int
	// Hostname; default: the IP.
	Hostname string
	// Resources in the form "cpus:4;mem:8192;disk:20000;ports:[31000-31099]".
	Resources string
	// Attributes by name.
	Attributes map[string]string
}

// DefaultAgents returns k agents: agent n has the address 127.0.0.n, 100 ports
// from 31000+100(n-1), the attributes agent=aN and rack=r1..r3 in turn.
func DefaultAgents(k int) []AgentSpec {
	out := make([]AgentSpec, k)
	for i := range out {
		out[i] = AgentSpec{
			IP:         fmt.Sprintf("127.0.0.%d", i+1),
			Resources:  fmt.Sprintf("cpus:4;mem:8192;disk:20000;ports:[%d-%d]", 31000+100*i, 31099+100*i),
			Attributes: map[string]string{"agent": fmt.Sprintf("a%d", i+1), "rack": fmt.Sprintf("r%d", i%3+1)},
		}
	}
	return out
}

// maxAgents keeps the default addresses within 127.0.0.0/24.
const maxAgents = 250

// withDefaults fills in what is not set and checks the rest.
func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("local Mesos: Options.Dir is not set")
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if len(o.Agents) == 0 {
		o.Agents = DefaultAgents(1)
	}
	if len(o.Agents) > maxAgents {
		return o, fmt.Errorf("local Mesos: %d agents, at most %d", len(o.Agents), maxAgents)
	}
	o.Agents = append([]AgentSpec(nil), o.Agents...)
	for i := range o.Agents {
		a := &o.Agents[i]
		if net.ParseIP(a.IP) == nil {
			return o, fmt.Errorf("local Mesos: agent %d: %q is no IP address", i+1, a.IP)
		}
		if a.Hostname == "" {
			a.Hostname = a.IP
		}
		if _, err := resource.Parse(a.Resources); err != nil {
			return o, fmt.Errorf("local Mesos: agent %d: %w", i+1, err)
		}
	}
	if len(o.SupervisorArgv) == 0 {
		exe, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("local Mesos: own executable unknown: %w (set Options.SupervisorArgv)", err)
		}
		o.SupervisorArgv = []string{exe, "task-supervisor"}
	}
	setDefault(&o.AllocationInterval, time.Second)
	setDefault(&o.HeartbeatInterval, 15*time.Second)
	setDefault(&o.PingTimeout, 15*time.Second)
	setDefault(&o.MaxPings, 5)
	setDefault(&o.MaxLog, 16<<20)
	setDefault(&o.KeepSandboxes, 100)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}
