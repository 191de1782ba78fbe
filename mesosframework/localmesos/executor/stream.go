package executor

import (
	"bytes"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// How long a head waits for its acknowledgement before it is sent again.
const (
	RetryMin = 10 * time.Second
	RetryMax = 10 * time.Minute
)

// Stream is the FIFO of a task's updates that are not acknowledged. The zero
// value is empty.
type Stream struct {
	pending []mesos.TaskStatus
	retry   time.Duration
}

// Push adds an update and reports whether it is now the head, that is, to be
// sent at once.
func (s *Stream) Push(u mesos.TaskStatus) bool {
	s.pending = append(s.pending, u)
	if len(s.pending) == 1 {
		s.retry = RetryMin
	}
	return len(s.pending) == 1
}

// Head returns the update in flight, nil when there is none.
func (s *Stream) Head() *mesos.TaskStatus {
	if len(s.pending) == 0 {
		return nil
	}
	return &s.pending[0]
}

// Last returns the newest update, nil when there is none.
func (s *Stream) Last() *mesos.TaskStatus {
	if len(s.pending) == 0 {
		return nil
	}
	return &s.pending[len(s.pending)-1]
}

// Ack takes the head away if it has that uuid, and returns it.
func (s *Stream) Ack(uuid []byte) *mesos.TaskStatus {
	if len(s.pending) == 0 || !bytes.Equal(s.pending[0].UUID, uuid) {
		return nil
	}
	head := s.pending[0]
	s.pending = s.pending[1:]
	s.retry = RetryMin
	return &head
}

// Wait returns how long to wait for the head's acknowledgement, and doubles
// the next wait.
func (s *Stream) Wait() time.Duration {
	d := s.retry
	s.retry = min(2*s.retry, RetryMax)
	return d
}

// Reset makes the next wait the shortest again: the framework or the master is
// new.
func (s *Stream) Reset() { s.retry = RetryMin }
