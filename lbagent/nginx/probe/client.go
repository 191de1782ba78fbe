package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Names of the headers that the private listeners of the Frame add. An upstream cannot forge them: nginx hides its.
const (
	headerTime       = "x-cutover-header-time"
	headerBytesSent  = "x-cutover-bytes-sent"
	headerConnected  = "x-cutover-connected"
	headerGeneration = "x-cutover-generation"
	headerWorker     = "x-cutover-worker"
)

// maxHead bounds the header of an answer, in bytes. The Frame bounds that of the upstream at 16 KiB.
const maxHead = 32 << 10

// Client asks nginx's workers to reach an upstream, over private unix sockets. It is safe for concurrent use.
type Client struct {
	// ProbeSocket takes HTTP requests for the upstream named by X-Cutover-Target.
	ProbeSocket string
	// ConnectSocket takes requests for a plain connect: a header says that it worked, or that bytes were sent.
	ConnectSocket string
}

// Answer is what a worker said about one request.
type Answer struct {
	Status       int
	FromUpstream bool // the upstream itself made the status
	Connected    bool // ConnectSocket: the connect worked
	Generation   string
	Worker       string
}

// Get sends GET path with the Host header to the upstream.
func (c *Client) Get(ctx context.Context, target netip.AddrPort, path, host string) (Answer, error) {
	return ask(ctx, c.ProbeSocket, "GET", target, path, host)
}

// Connect makes a worker connect to the upstream.
func (c *Client) Connect(ctx context.Context, target netip.AddrPort) (Answer, error) {
	return ask(ctx, c.ConnectSocket, "HEAD", target, "/", target.String())
}

// check makes one check and judges it.
func (c *Client) check(ctx context.Context, target netip.AddrPort, h driver.Health) Result {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	var (
		a   Answer
		err error
	)
	if h.Kind == driver.HealthHTTP {
		a, err = c.Get(ctx, target, h.Path, target.String())
	} else {
		a, err = c.Connect(ctx, target)
	}
	r := Result{Verdict: Failed, Generation: a.Generation, Worker: a.Worker}
	switch {
	case err != nil && isTimeout(err):
		r.Text = fmt.Sprintf("TOUT no answer in %s", h.Timeout)
		return r
	case err != nil:
		return Result{Verdict: Unknown, Text: err.Error()}
	case h.Kind != driver.HealthHTTP && a.Connected:
		r.Verdict, r.Text = Passed, "L4OK"
	case h.Kind != driver.HealthHTTP && ofUpstream(a.Status):
		r.Text = "L4CON"
	case !a.FromUpstream && !ofUpstream(a.Status):
		r.Verdict, r.Text = Unknown, fmt.Sprintf("nginx itself says %d: the owner's http{} limits or refuses checks", a.Status)
	case !a.FromUpstream:
		r.Text = fmt.Sprintf("L4CON nginx says %d", a.Status)
	case a.Status >= 200 && a.Status < 400:
		r.Verdict, r.Text = Passed, fmt.Sprintf("L7OK %d", a.Status)
	default:
		r.Text = fmt.Sprintf("L7STS %d", a.Status)
	}
	r.Text += " worker " + a.Worker
	return r
}

// ofUpstream says whether a status that nginx made tells of the upstream: it cannot be reached, or does not answer. Any other
// comes from what the owner asks of all requests (limit_req, deny, auth_basic), and takes nobody out (FAIL-STATIC).
func ofUpstream(status int) bool {
	return status == http.StatusBadGateway || status == http.StatusGatewayTimeout
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

var heads = sync.Pool{New: func() any { b := make([]byte, maxHead); return &b }}

// ask makes one request on a connection of its own: a new connection is accepted by a current worker, never by one that is
// leaving. It reads the header only and closes, so the body of an upstream costs nothing.
func ask(ctx context.Context, socket, method string, target netip.AddrPort, path, host string) (Answer, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return Answer{}, fmt.Errorf("%w: private socket: %w", driver.ErrProxyDown, err)
	}
	defer conn.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(30 * time.Second)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return Answer{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if strings.ContainsAny(path+host, " \r\n\x00") {
		return Answer{}, fmt.Errorf("path %q or host %q is not one word", path, host)
	}
	request := method + " " + path + " HTTP/1.1\r\nHost: " + host + "\r\nX-Cutover-Target: " + target.String() +
		"\r\nUser-Agent: cutover-check\r\nConnection: close\r\n\r\n"
	if _, err := conn.Write([]byte(request)); err != nil {
		return Answer{}, fmt.Errorf("send to nginx: %w", err)
	}
	buf := heads.Get().(*[]byte)
	defer heads.Put(buf)
	n := 0
	for {
		m, err := conn.Read((*buf)[n:])
		n += m
		if end := bytes.Index((*buf)[:n], []byte("\r\n\r\n")); end >= 0 {
			return parseAnswer(string((*buf)[:end]))
		}
		if err != nil {
			return Answer{}, fmt.Errorf("answer of nginx: %w", err)
		}
		if n == len(*buf) {
			return Answer{}, fmt.Errorf("answer of nginx: header above %d bytes", maxHead)
		}
	}
}

// parseAnswer reads the head of an answer. One without our generation header was not made by our location.
func parseAnswer(head string) (Answer, error) {
	lines := strings.Split(head, "\r\n")
	f := strings.SplitN(lines[0], " ", 3)
	if len(f) < 2 || !strings.HasPrefix(f[0], "HTTP/1.") {
		return Answer{}, fmt.Errorf("answer of nginx: status line %.80q", lines[0])
	}
	status, err := strconv.Atoi(f[1])
	if err != nil || status < 100 || status > 999 {
		return Answer{}, fmt.Errorf("answer of nginx: status line %.80q", lines[0])
	}
	a := Answer{Status: status}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.ToLower(name) {
		case headerTime:
			_, err := strconv.ParseFloat(value, 64)
			a.FromUpstream = err == nil
			a.Connected = a.Connected || a.FromUpstream
		case headerBytesSent:
			sent, err := strconv.ParseInt(value, 10, 64)
			a.Connected = a.Connected || (err == nil && sent > 0)
		case headerConnected:
			a.Connected = a.Connected || value == "1"
		case headerGeneration:
			a.Generation = value
		case headerWorker:
			a.Worker = value
		}
	}
	if a.Generation == "" {
		return Answer{}, fmt.Errorf("answer of nginx: status %d without the header of the private listener", status)
	}
	return a, nil
}
