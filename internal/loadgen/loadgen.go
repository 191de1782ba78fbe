package loadgen

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is how a client uses its connections.
type Kind uint8

// The kinds.
const (
	KeepAlive Kind = iota // POSTs on one kept-alive connection
	Close                 // a POST on a fresh connection each, announced with Connection: close
	Slow                  // POSTs that the App answers slowly (Options.SlowPath)
)

// Options of a run. Zero values mean the defaults.
type Options struct {
	// URLs are the entry points; every client belongs to one of them.
	URLs []string
	// Path is requested below each URL, SlowPath by the Slow clients.
	Path, SlowPath string
	// Clients of each kind per URL.
	KeepAlive, Close, Slow int
	// Think is the pause between two requests of a client.
	Think time.Duration
	// Timeout of one request (default 10 s).
	Timeout time.Duration
	// OnAnswer, if set, gets the body of every good answer and the URL it came through. It must be fast and safe for
	// concurrent use.
	OnAnswer func(url string, body []byte)
}

// Failure is one request that failed.
type Failure struct {
	At   time.Time
	URL  string
	Kind Kind
	Err  string
}

// Result is what has been sent so far.
type Result struct {
	Sent, Failed uint64
	PerURL       map[string]Counts
	// Failures are the first ones, at most 100.
	Failures []Failure
	Elapsed  time.Duration
}

// Counts of one URL.
type Counts struct{ Sent, Failed uint64 }

// String is one line for people.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests sent, %d failed, in %s", r.Sent, r.Failed, r.Elapsed.Round(time.Millisecond))
	urls := make([]string, 0, len(r.PerURL))
	for u := range r.PerURL {
		urls = append(urls, u)
	}
	sort.Strings(urls)
	for _, u := range urls {
		c := r.PerURL[u]
		fmt.Fprintf(&b, "; %s %d/%d", u, c.Sent, c.Failed)
	}
	return b.String()
}

// Run is load that is being sent.
type Run struct {
	opts    Options
	start   time.Time
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	sent    map[string]*atomic.Uint64
	failed  map[string]*atomic.Uint64
	gates   map[string]*gate
	mu      sync.Mutex
	first   []Failure
	stopped atomic.Int64 // elapsed, once stopped
}

const maxFailures = 100

// Start begins to send. Stop it with Stop; it also ends with ctx.
func Start(ctx context.Context, opts Options) (*Run, error) {
	if opts.Timeout == 0 {
		opts.Timeout = 10 * time.Second
	}
	if opts.Path == "" {
		opts.Path = "/"
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &Run{opts: opts, start: time.Now(), cancel: cancel, sent: map[string]*atomic.Uint64{}, failed: map[string]*atomic.Uint64{}, gates: map[string]*gate{}}
	for _, raw := range opts.URLs {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" {
			cancel()
			return nil, fmt.Errorf("load: %q is not an http URL", raw)
		}
		r.sent[raw], r.failed[raw], r.gates[raw] = new(atomic.Uint64), new(atomic.Uint64), newGate()
		for kind, n := range map[Kind]int{KeepAlive: opts.KeepAlive, Close: opts.Close, Slow: opts.Slow} {
			for range n {
				c := &client{run: r, gate: r.gates[raw], url: raw, host: u.Host, kind: kind}
				r.wg.Add(1)
				go func() {
					defer r.wg.Done()
					c.loop(ctx)
				}()
			}
		}
	}
	return r, nil
}

// Stop lets the requests in flight end, and returns the totals.
func (r *Run) Stop() Result {
	r.cancel()
	r.wg.Wait()
	r.stopped.CompareAndSwap(0, int64(time.Since(r.start)))
	return r.Result()
}

// Result returns the totals so far.
func (r *Run) Result() Result {
	res := Result{PerURL: map[string]Counts{}, Elapsed: time.Since(r.start)}
	if e := r.stopped.Load(); e != 0 {
		res.Elapsed = time.Duration(e)
	}
	for u := range r.sent {
		c := Counts{Sent: r.sent[u].Load(), Failed: r.failed[u].Load()}
		res.PerURL[u] = c
		res.Sent += c.Sent
		res.Failed += c.Failed
	}
	r.mu.Lock()
	res.Failures = append([]Failure(nil), r.first...)
	r.mu.Unlock()
	return res
}

// TakeOut takes an entry point out of traffic, as the balancer before it would: no request is sent there any more. It returns
// when none is under way, so that what is done to the entry point afterwards costs none.
func (r *Run) TakeOut(url string) { r.gates[url].shut() }

// PutIn lets requests go there again, on fresh connections.
func (r *Run) PutIn(url string) { r.gates[url].open() }

func (r *Run) count(c *client, err error) {
	r.sent[c.url].Add(1)
	if err == nil {
		return
	}
	r.failed[c.url].Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.first) < maxFailures {
		r.first = append(r.first, Failure{At: time.Now(), URL: c.url, Kind: c.kind, Err: err.Error()})
	}
}

// client is one connection's owner; used by its own goroutine only.
type client struct {
	run       *Run
	gate      *gate
	opened    uint64 // how often the gate had been opened when conn was made
	url, host string
	kind      Kind
	conn      net.Conn
	reader    *bufio.Reader
}

func (c *client) loop(ctx context.Context) {
	defer c.drop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		opened, ok := c.gate.enter(ctx)
		if !ok {
			return
		}
		if opened != c.opened {
			c.drop() // nobody used it meanwhile, and whoever held the other end may be gone
			c.opened = opened
		}
		err := c.once()
		c.gate.leave()
		c.run.count(c, err)
		if err != nil {
			c.drop()
		}
		timer.Reset(c.run.opts.Think)
	}
}

func (c *client) drop() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// once sends one request and reads its answer. It is not interrupted by Stop, so that no request is cut by us.
func (c *client) once() error {
	opts := &c.run.opts
	deadline := time.Now().Add(opts.Timeout)
	if c.conn == nil {
		d := net.Dialer{Deadline: deadline}
		conn, err := d.Dial("tcp", c.host)
		if err != nil {
			return err
		}
		c.conn, c.reader = conn, bufio.NewReader(conn)
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return err
	}
	path, extra := opts.Path, ""
	switch c.kind {
	case KeepAlive:
	case Slow:
		path = opts.SlowPath
	case Close:
		extra = "Connection: close\r\n"
	}
	const body = "cutover-load"
	var req bytes.Buffer
	fmt.Fprintf(&req, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n%s\r\n%s", path, c.host, len(body), extra, body)
	if _, err := c.conn.Write(req.Bytes()); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	resp, err := http.ReadResponse(c.reader, &http.Request{Method: http.MethodPost})
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.New("the connection was closed before an answer")
		}
		return fmt.Errorf("read answer: %w", err)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	_ = resp.Body.Close()
	if err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	if resp.Close || c.kind == Close {
		c.drop()
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("status %s", resp.Status)
	}
	if opts.OnAnswer != nil {
		opts.OnAnswer(c.url, answer)
	}
	return nil
}
