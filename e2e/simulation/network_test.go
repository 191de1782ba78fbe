package simulation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// wire is the network between one orchestrator and one Host, as an http.RoundTripper. A message takes its time, gets
// lost, arrives twice, or late. A stream has no gaps, as TCP has none: of one that lost something, nothing more arrives.
type wire struct {
	w    *world
	from *incarnation
	to   *host
}

var _ http.RoundTripper = (*wire)(nil)

// RoundTrip implements http.RoundTripper.
func (l *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		_ = req.Body.Close()
	}
	h := fnv.New64a()
	_, _ = h.Write(body)
	call := req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:]
	what := fmt.Sprintf("%s e%d->%s %x", call, l.from.epoch, l.to.name, h.Sum64())
	dice := l.w.chance(what)
	ex := newExchange(l, req, what)
	send := func(d time.Duration, answered bool) {
		l.w.after(d, what, func() { l.deliver(ex, req, body, answered) })
	}
	faults := l.w.faults()
	switch {
	case l.lost():
	case oneIn(dice, faults.lose):
		l.w.step("lost " + what)
	default:
		d := l.w.latency(dice)
		send(d, true)
		if call != "Watch" && oneIn(dice, faults.twice) {
			send(d+between(dice, 0, 20*time.Second), false)
		}
	}
	select {
	case <-ex.head:
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	if ex.err != nil {
		return nil, ex.err
	}
	return &http.Response{
		Status: http.StatusText(ex.status), StatusCode: ex.status, Proto: "HTTP/2.0", ProtoMajor: 2, Header: ex.header, Body: ex,
		ContentLength: -1, Request: req,
	}, nil
}

// lost: the two are apart, or the sender is dead.
func (l *wire) lost() bool { return l.from.isDead() || l.to.apart() }

// deliver hands the request to the Host's lbagent, if there is one by now.
func (l *wire) deliver(ex *exchange, req *http.Request, body []byte, answered bool) {
	if l.to.apart() {
		return
	}
	handler, ctx, ok := l.to.serve()
	if !ok {
		if answered {
			ex.fail(&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)})
		}
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	in := req.Clone(ctx)
	in.Body, in.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	in.RequestURI, in.RemoteAddr = req.URL.RequestURI(), "orchestrator:1"
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/2.0", 2, 0
	out := ex
	if !answered { // the second of two: nobody listens
		out = newExchange(l, req, ex.what+" again")
	} else {
		context.AfterFunc(req.Context(), func() { cancel(context.Cause(req.Context())) })
	}
	out.gone = ctx
	go func() {
		defer cancel(nil)
		handler.ServeHTTP(out, in)
		out.finish()
	}()
}

// exchange is one request with its answer: a ResponseWriter on the Host's side, a body on the caller's.
type exchange struct {
	l    *wire
	what string
	ctx  context.Context // the caller's
	gone context.Context // ends when the Host's process does

	// The Host's side.
	sent    http.Header
	code    int
	pending []byte
	last    time.Time // nothing arrives before what was sent before it

	// The caller's side. head is closed when status and header, or err, are there.
	head   chan struct{}
	once   sync.Once
	status int
	header http.Header
	err    error

	mu     sync.Mutex
	torn   bool          // something was lost: nothing that is behind it arrives
	more   chan struct{} // closed and replaced when something arrives
	buf    []byte
	end    error
	closed bool
}

func newExchange(l *wire, req *http.Request, what string) *exchange {
	return &exchange{l: l, what: what, ctx: req.Context(), sent: http.Header{}, head: make(chan struct{}), more: make(chan struct{}), last: time.Now()}
}

// Header implements http.ResponseWriter.
func (e *exchange) Header() http.Header { return e.sent }

// WriteHeader implements http.ResponseWriter.
func (e *exchange) WriteHeader(code int) {
	if e.code == 0 {
		e.code = code
	}
}

// Write implements http.ResponseWriter.
func (e *exchange) Write(p []byte) (int, error) {
	e.WriteHeader(http.StatusOK)
	e.pending = append(e.pending, p...)
	return len(p), nil
}

// Flush implements http.Flusher.
func (e *exchange) Flush() { e.ship(nil) }

// finish sends the rest and the end.
func (e *exchange) finish() {
	e.WriteHeader(http.StatusOK)
	if e.gone.Err() != nil && e.ctx.Err() == nil { // the process died: the kernel resets the connection
		e.l.w.after(between(e.l.w.chance("reset "+e.what), time.Microsecond, time.Millisecond), "reset "+e.what, func() {
			e.fail(syscall.ECONNRESET)
			e.arrive(nil, syscall.ECONNRESET)
		})
		return
	}
	e.ship(io.EOF)
}

// ship sends what was written so far; end goes behind it.
func (e *exchange) ship(end error) {
	e.WriteHeader(http.StatusOK)
	data, code, header := e.pending, e.code, e.sent.Clone()
	e.pending = nil
	if e.gap() {
		return
	}
	dice := e.l.w.chance("answer " + e.what)
	if end != nil && oneIn(dice, e.l.w.faults().lose) {
		e.l.w.step("lost answer " + e.what)
		return
	}
	d := max(e.l.w.latency(dice), time.Until(e.last)+1)
	e.last = time.Now().Add(d)
	e.l.w.after(d, "answer "+e.what, func() {
		if e.gap() {
			return
		}
		e.once.Do(func() {
			e.status, e.header = code, header
			close(e.head)
		})
		e.arrive(data, end)
	})
}

// gap says whether something of the stream is lost: now, since the two are apart, or before.
func (e *exchange) gap() bool {
	lost := e.l.lost()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.torn = e.torn || lost
	return e.torn
}

// fail ends the exchange before its head.
func (e *exchange) fail(err error) {
	e.once.Do(func() {
		e.err = err
		close(e.head)
	})
}

func (e *exchange) arrive(data []byte, end error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.buf = append(e.buf, data...)
	if e.end == nil {
		e.end = end
	}
	close(e.more)
	e.more = make(chan struct{})
}

// Read implements io.Reader for the caller.
func (e *exchange) Read(p []byte) (int, error) {
	for {
		e.mu.Lock()
		n := copy(p, e.buf)
		e.buf = e.buf[n:]
		end, more, closed := e.end, e.more, e.closed
		e.mu.Unlock()
		switch {
		case n > 0:
			return n, nil
		case closed:
			return 0, errors.New("read on a closed body")
		case end != nil:
			return 0, end
		}
		select {
		case <-more:
		case <-e.ctx.Done():
			return 0, e.ctx.Err()
		}
	}
}

// Close implements io.Closer for the caller.
func (e *exchange) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.closed = true
		close(e.more)
		e.more = make(chan struct{})
	}
	return nil
}

// quiet is a listener on which nobody ever calls: requests come over the wire.
type quiet struct {
	once sync.Once
	done chan struct{}
}

func newQuiet() *quiet { return &quiet{done: make(chan struct{})} }

// Accept implements net.Listener.
func (q *quiet) Accept() (net.Conn, error) {
	<-q.done
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (q *quiet) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr implements net.Listener.
func (q *quiet) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
