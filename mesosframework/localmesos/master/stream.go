package master

import (
	"net/http"
	"sync"

	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/mesosframework/localmesos/wire"
)

// streamLimit is how many bytes wait for a client before its stream is cut.
const streamLimit = 64 << 20

// stream is the event stream of one subscription. Its methods are safe for
// concurrent use.
type stream struct {
	id    string // Mesos-Stream-Id
	media string

	mu     sync.Mutex
	queue  []byte // RecordIO, ready to be written
	closed bool
	wake   chan struct{}
}

func newStream(media string) *stream {
	return &stream{id: newUUID(), media: media, wake: make(chan struct{}, 1)}
}

// send queues an event and reports whether the client can still get it.
func (s *stream) send(e *scheduler.Event) bool {
	b, err := wire.Marshal(s.media, e)
	if err != nil {
		return true // cannot be: every event is made here
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if len(s.queue)+len(b) > streamLimit {
		s.closed = true
		s.queue = nil
		s.signal()
		return false
	}
	s.queue = wire.AppendRecord(s.queue, b)
	s.signal()
	return true
}

// close ends the stream once what is queued was written.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.signal()
}

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// serve writes events until the stream is closed or the client goes away.
func (s *stream) serve(w http.ResponseWriter, r *http.Request) {
	flush := http.NewResponseController(w)
	for {
		s.mu.Lock()
		out, closed := s.queue, s.closed
		s.queue = nil
		s.mu.Unlock()
		if len(out) > 0 {
			if _, err := w.Write(out); err != nil {
				return
			}
			if err := flush.Flush(); err != nil {
				return
			}
			continue
		}
		if closed {
			return
		}
		select {
		case <-s.wake:
		case <-r.Context().Done():
			return
		}
	}
}
