package agent

import (
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/executor"
	"github.com/cutover/cutover/mesosframework/localmesos/link"
)

// This file is about what a task says: its updates, on disk and on the stream.

// hush makes the task say nothing more.
func (t *task) hush() {
	t.silent = true
	t.retry.Cancel()
	t.viewMu.Lock()
	t.view.done = true
	t.viewMu.Unlock()
}

// acknowledge takes the head off the stream; it may be called from anywhere.
func (t *task) acknowledge(uuid []byte) {
	t.actor.Post(func() {
		head := t.stream.Ack(uuid)
		if head == nil {
			return // not the head: as if it had never come
		}
		t.retry.Cancel()
		t.journal.ack(uuid)
		if link.Terminal(*head.State) {
			t.finish()
			return
		}
		if t.stream.Head() != nil {
			t.forward()
		}
	})
}

// resend sends the head at once; it may be called from anywhere.
func (t *task) resend() {
	t.actor.Post(func() {
		t.stream.Reset()
		if t.stream.Head() != nil && !t.silent {
			t.forward()
		}
	})
}

// send puts an update of the executor on the stream.
func (t *task) send(u executor.Update) {
	t.sendStatus(u.State, func(s *mesos.TaskStatus) {
		s.Reason, s.Healthy, s.CheckStatus = u.Reason, u.Healthy, u.Check
		s.ExecutorID = &mesos.ExecutorID{Value: t.key.task}
		if u.Message != "" {
			s.Message = &u.Message
		}
		if u.ByAgent {
			s.Source = mesos.SOURCE_AGENT.Enum()
			return
		}
		s.Source = mesos.SOURCE_EXECUTOR.Enum()
		s.ContainerStatus = t.containerStatus()
	})
}

func (t *task) containerStatus() *mesos.ContainerStatus {
	ipv4 := mesos.IPv4
	ip := t.agent.opts.IP
	c := &mesos.ContainerStatus{
		ContainerID:  &mesos.ContainerID{Value: t.container},
		NetworkInfos: []mesos.NetworkInfo{{IPAddresses: []mesos.NetworkInfo_IPAddress{{Protocol: &ipv4, IPAddress: &ip}}}},
	}
	if t.proc != nil {
		pid := uint32(t.proc.PID())
		c.ExecutorPID = &pid
	}
	return c
}

// sendStatus writes an update to disk, then puts it on the stream.
func (t *task) sendStatus(state mesos.TaskState, fill func(*mesos.TaskStatus)) {
	if t.silent {
		return
	}
	now := float64(time.Now().UnixNano()) / 1e9
	s := mesos.TaskStatus{
		TaskID: t.info.TaskID, State: state.Enum(), AgentID: &mesos.AgentID{Value: t.agentID()},
		Timestamp: &now, UUID: newUUIDBytes(),
	}
	fill(&s)
	if err := t.journal.update(s); err != nil {
		t.log.Error("status update is not on disk; a restart of the agent would lose it", "state", state, "error", err)
	}
	t.noteLast(s)
	if t.stream.Push(s) {
		t.forward()
	}
}

func (t *task) agentID() string { return t.info.AgentID.Value }

func (t *task) noteLast(s mesos.TaskStatus) {
	t.viewMu.Lock()
	defer t.viewMu.Unlock()
	t.view.state, t.view.last = *s.State, &s
	if n := len(t.view.statuses); n > 0 && *t.view.statuses[n-1].State == *s.State {
		t.view.statuses[n-1] = s
	} else {
		t.view.statuses = append(t.view.statuses, s)
	}
}

// forward sends the head and sets the timer of its repetition.
func (t *task) forward() {
	head := *t.stream.Head()
	t.viewMu.Lock()
	t.view.forwarded = &head
	latest := t.view.state
	t.viewMu.Unlock()
	t.agent.master.Update(link.Update{FrameworkID: t.key.framework, Status: head, Latest: latest})
	t.retry.Cancel()
	t.retry = t.actor.After(t.stream.Wait(), func() {
		if t.stream.Head() != nil && !t.silent {
			t.forward()
		}
	})
}

// snapshot is what the master is told at registration; ok is false when there
// is nothing more to tell.
func (t *task) snapshot() (s link.Task, ok bool) {
	t.viewMu.Lock()
	defer t.viewMu.Unlock()
	return link.Task{FrameworkID: t.key.framework, Info: t.info, State: t.view.state, Last: t.view.last, Forwarded: t.view.forwarded}, !t.view.done
}
