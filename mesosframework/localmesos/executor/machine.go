package executor

import (
	"syscall"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// DefaultGrace is the time between SIGTERM and SIGKILL of a task that names
// none.
const DefaultGrace = 3 * time.Second

// Config is what the machine knows of its task.
type Config struct {
	KillingState  bool          // the framework has TASK_KILLING_STATE
	Grace         time.Duration // of TaskInfo.kill_policy, or DefaultGrace
	HonourPolicy  bool          // Kill.kill_policy counts (--http_command_executor)
	MaxCompletion time.Duration // 0 = none
	HasHealth     bool
	HealthGrace   time.Duration
	HealthFails   uint32               // consecutive failures that kill
	CheckType     mesos.CheckInfo_Type // CheckInfo_UNKNOWN = no check
}

// Machine is the state of one task from its start to its end. The zero value
// with a Config is a task that has not started. It is a value: Step returns the
// next one.
type Machine struct {
	Config Config

	Started     bool
	StartedAt   time.Time
	Killed      bool // asked to by KILL
	KillAt      time.Time
	KilledAsk   time.Time // when the first KILL came
	ByHealth    bool      // killed by its health check
	TimedOut    bool      // max_completion_time
	EverHealthy bool
	Fails       uint32
	Ended       bool

	healthy *bool                  // last reported
	check   *mesos.CheckStatusInfo // last reported
}

// Update is one status update as the executor makes it.
type Update struct {
	State   mesos.TaskState
	Reason  *mesos.TaskStatus_Reason
	Message string
	Healthy *bool
	Check   *mesos.CheckStatusInfo
	// ByAgent marks an update that the agent makes in the executor's place:
	// SOURCE_AGENT, without container_status.
	ByAgent bool
}

// Event is something that happened to a task: Started, Kill, Health, Check,
// GraceOver, TimeOver or Exited.
type Event interface{ event() }

// Events.
type (
	// Started: the task's process was started (or could not be executed).
	Started struct{}
	// Kill: the framework asked for the end. Grace is of Kill.kill_policy.
	Kill struct{ Grace *time.Duration }
	// Health: a health check gave a result.
	Health struct{ OK bool }
	// Check: a check gave a result.
	Check struct{ Status mesos.CheckStatusInfo }
	// GraceOver: the timer that SetGrace asked for.
	GraceOver struct{}
	// TimeOver: the timer that SetCompletion asked for.
	TimeOver struct{}
	// Exited: the task ended. Known is false when nobody knows how.
	Exited struct {
		Status syscall.WaitStatus
		Known  bool
	}
)

func (Started) event()   {}
func (Kill) event()      {}
func (Health) event()    {}
func (Check) event()     {}
func (GraceOver) event() {}
func (TimeOver) event()  {}
func (Exited) event()    {}

// Effect is something to do, in order: Send, Signal, SetGrace, SetCompletion,
// StartChecks or StopChecks.
type Effect interface{ effect() }

// Effects.
type (
	// Send puts an update on the stream.
	Send struct{ Update Update }
	// Signal signals the task's process group.
	Signal struct{ Signal syscall.Signal }
	// SetGrace sets (or replaces) the timer of GraceOver.
	SetGrace struct{ After time.Duration }
	// SetCompletion sets the timer of TimeOver.
	SetCompletion struct{ After time.Duration }
	// StartChecks starts the health check and the check.
	StartChecks struct{}
	// StopChecks stops them.
	StopChecks struct{}
)

func (Send) effect()          {}
func (Signal) effect()        {}
func (SetGrace) effect()      {}
func (SetCompletion) effect() {}
func (StartChecks) effect()   {}
func (StopChecks) effect()    {}

// Step takes one event.
func (m Machine) Step(e Event, now time.Time) (Machine, []Effect) {
	if m.Ended {
		return m, nil
	}
	switch e := e.(type) {
	case Started:
		return m.started(now)
	case Kill:
		return m.kill(e, now)
	case Health:
		return m.health(e, now)
	case Check:
		return m.checked(e)
	case GraceOver:
		return m, []Effect{Signal{syscall.SIGKILL}}
	case TimeOver:
		if m.Killed || m.ByHealth {
			return m, nil
		}
		m.TimedOut = true
		return m, []Effect{StopChecks{}, Signal{syscall.SIGTERM}, Signal{syscall.SIGKILL}}
	case Exited:
		return m.exited(e)
	}
	return m, nil
}

func (m Machine) started(now time.Time) (Machine, []Effect) {
	m.Started, m.StartedAt = true, now
	out := []Effect{
		Send{Update{State: mesos.TASK_STARTING, Check: m.emptyCheck()}},
		Send{Update{State: mesos.TASK_RUNNING, Check: m.emptyCheck()}},
		StartChecks{},
	}
	if m.Config.MaxCompletion > 0 {
		out = append(out, SetCompletion{m.Config.MaxCompletion})
	}
	return m, out
}

// Recall sets what the last update before a pause said of health and check.
func (m Machine) Recall(healthy *bool, check *mesos.CheckStatusInfo) Machine {
	m.healthy, m.EverHealthy = healthy, healthy != nil && *healthy
	if m.Config.CheckType != mesos.CheckInfo_UNKNOWN {
		m.check = check
	}
	return m
}

// Resume is for a task that was found running after the agent had been away:
// its updates of then are on the stream already, last is the state of the
// newest. TASK_STARTING and TASK_RUNNING are written one after the other: an
// agent that was killed between the two has yet to say the second, or the
// framework would wait for it for ever.
func (m Machine) Resume(last mesos.TaskState, startedAt, now time.Time) (Machine, []Effect) {
	m.Started, m.StartedAt = true, startedAt
	var out []Effect
	if last == mesos.TASK_STARTING {
		out = append(out, Send{Update{State: mesos.TASK_RUNNING, Check: m.emptyCheck()}})
	}
	out = append(out, StartChecks{})
	if m.Config.MaxCompletion > 0 {
		out = append(out, SetCompletion{max(0, m.Config.MaxCompletion-now.Sub(startedAt))})
	}
	return m, out
}

// ResumeKill is Resume for a task whose kill had been asked for: what was left
// of the grace period starts anew, and nothing is said twice.
func (m Machine) ResumeKill(startedAt, now time.Time) (Machine, []Effect) {
	m.Started, m.StartedAt, m.Killed, m.KilledAsk = true, startedAt, true, now
	m.KillAt = now.Add(m.Config.Grace)
	return m, []Effect{Signal{syscall.SIGTERM}, SetGrace{m.Config.Grace}}
}

func (m Machine) kill(e Kill, now time.Time) (Machine, []Effect) {
	grace := m.Config.Grace
	if m.Config.HonourPolicy && e.Grace != nil {
		grace = *e.Grace
	}
	if m.Killed || m.ByHealth || m.TimedOut {
		// A repeated KILL can only shorten.
		at := m.KilledAsk.Add(grace)
		if !m.Config.HonourPolicy || e.Grace == nil || m.TimedOut || !at.Before(m.KillAt) {
			return m, nil
		}
		m.KillAt = at
		return m, []Effect{SetGrace{max(0, at.Sub(now))}}
	}
	m.Killed = true
	m, out := m.end(grace, now)
	return m, out
}

// end begins the end of a running task.
func (m Machine) end(grace time.Duration, now time.Time) (Machine, []Effect) {
	m.KilledAsk, m.KillAt = now, now.Add(grace)
	out := []Effect{StopChecks{}}
	if m.Config.KillingState {
		out = append(out, Send{Update{State: mesos.TASK_KILLING, Check: m.emptyCheck()}})
	}
	return m, append(out, Signal{syscall.SIGTERM}, SetGrace{grace})
}

func (m Machine) health(e Health, now time.Time) (Machine, []Effect) {
	if !m.Started || m.Killed || m.ByHealth || m.TimedOut {
		return m, nil
	}
	if e.OK {
		if m.EverHealthy && m.Fails == 0 {
			return m, nil
		}
		m.EverHealthy, m.Fails = true, 0
		return m.healthUpdate(true)
	}
	if !m.EverHealthy && now.Sub(m.StartedAt) <= m.Config.HealthGrace {
		return m, nil
	}
	m.Fails++
	m, out := m.healthUpdate(false)
	if m.Fails >= m.Config.HealthFails {
		m.ByHealth = true
		var more []Effect
		m, more = m.end(m.Config.Grace, now)
		out = append(out, more...)
	}
	return m, out
}

func (m Machine) healthUpdate(ok bool) (Machine, []Effect) {
	m.healthy = &ok
	reason := mesos.REASON_TASK_HEALTH_CHECK_STATUS_UPDATED
	return m, []Effect{Send{Update{State: mesos.TASK_RUNNING, Reason: &reason, Healthy: &ok, Check: m.lastCheck()}}}
}

func (m Machine) checked(e Check) (Machine, []Effect) {
	if !m.Started || m.Killed || m.ByHealth || m.TimedOut {
		return m, nil
	}
	if last := m.lastCheck(); last != nil && last.Equal(e.Status) {
		return m, nil
	}
	status := e.Status
	m.check = &status
	reason := mesos.REASON_TASK_CHECK_STATUS_UPDATED
	return m, []Effect{Send{Update{State: mesos.TASK_RUNNING, Reason: &reason, Healthy: m.healthy, Check: &status}}}
}

func (m Machine) exited(e Exited) (Machine, []Effect) {
	m.Ended = true
	if !e.Known {
		reason := mesos.REASON_EXECUTOR_TERMINATED
		return m, []Effect{StopChecks{}, Send{Update{
			State: mesos.TASK_FAILED, Reason: &reason, Message: "Executor terminated", ByAgent: true,
		}}}
	}
	u := Update{Message: ExitText(e.Status), Check: m.emptyCheck()}
	switch {
	case m.TimedOut:
		reason := mesos.REASON_MAX_COMPLETION_TIME_REACHED
		u.State, u.Reason = mesos.TASK_FAILED, &reason
	case m.ByHealth:
		no := false
		u.State, u.Healthy = mesos.TASK_KILLED, &no
	case m.Killed:
		u.State = mesos.TASK_KILLED
	case e.Status.Exited() && e.Status.ExitStatus() == 0:
		u.State = mesos.TASK_FINISHED
	default:
		u.State = mesos.TASK_FAILED
	}
	return m, []Effect{StopChecks{}, Send{u}}
}

// emptyCheck is the check status of a task with a check of which nothing is
// known.
func (m Machine) emptyCheck() *mesos.CheckStatusInfo {
	if m.Config.CheckType == mesos.CheckInfo_UNKNOWN {
		return nil
	}
	s := EmptyCheck(m.Config.CheckType)
	return &s
}

func (m Machine) lastCheck() *mesos.CheckStatusInfo {
	if m.check != nil {
		return m.check
	}
	return m.emptyCheck()
}

// EmptyCheck returns the check status that says nothing.
func EmptyCheck(t mesos.CheckInfo_Type) mesos.CheckStatusInfo {
	s := mesos.CheckStatusInfo{Type: &t}
	switch t {
	case mesos.CheckInfo_COMMAND:
		s.Command = &mesos.CheckStatusInfo_Command{}
	case mesos.CheckInfo_HTTP:
		s.HTTP = &mesos.CheckStatusInfo_Http{}
	case mesos.CheckInfo_TCP:
		s.TCP = &mesos.CheckStatusInfo_Tcp{}
	default: // no such check passes validation
	}
	return s
}
