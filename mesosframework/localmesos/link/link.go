package link

import (
	"sync"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// Registration is how an agent makes itself known, the first time and again.
type Registration struct {
	// Info describes the agent; without Info.ID the master assigns one.
	Info mesos.AgentInfo
	// PID is "slave(1)@host:port".
	PID string
	// Frameworks and Tasks are what the agent has on disk.
	Frameworks []mesos.FrameworkInfo
	Tasks      []Task
}

// Task is a task as an agent knows it.
type Task struct {
	FrameworkID string
	Info        mesos.TaskInfo
	// State is the latest state; Last the newest update, nil before the
	// first; Forwarded the last update that was sent, nil before the first.
	State           mesos.TaskState
	Last, Forwarded *mesos.TaskStatus
}

// Update carries one status update to the master.
type Update struct {
	FrameworkID string
	Status      mesos.TaskStatus
	// Latest is the state after all updates, this one's or a later one's.
	Latest mesos.TaskState
}

// heldLimit bounds what a frozen pipe holds; what is more is lost, as it
// would be with a real partition.
const heldLimit = 1 << 16

// Pipe is one direction. Its zero value is closed. It is safe for concurrent
// use.
type Pipe struct {
	mu     sync.Mutex
	open   bool
	frozen bool
	held   []func()
}

// Open makes the pipe carry messages; what a former opening held is lost.
func (p *Pipe) Open() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open, p.frozen, p.held = true, false, nil
}

// Close loses every message from now on.
func (p *Pipe) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open, p.held = false, nil
}

// Freeze holds messages until Thaw.
func (p *Pipe) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = true
}

// Thaw delivers what was held and ends the freeze.
func (p *Pipe) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = false
	for _, f := range p.held {
		f()
	}
	p.held = nil
}

// Send delivers by calling deliver, which must not block (it posts to an
// actor), now or after Thaw or never.
func (p *Pipe) Send(deliver func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.open:
	case p.frozen:
		if len(p.held) < heldLimit {
			p.held = append(p.held, deliver)
		}
	default:
		deliver()
	}
}

// Terminal says whether a task in this state has ended, as master and agent
// of Mesos see it.
func Terminal(s mesos.TaskState) bool {
	switch s {
	case mesos.TASK_FINISHED, mesos.TASK_FAILED, mesos.TASK_KILLED, mesos.TASK_ERROR, mesos.TASK_DROPPED, mesos.TASK_GONE,
		mesos.TASK_LOST, mesos.TASK_GONE_BY_OPERATOR:
		return true
	default:
		return false
	}
}
