package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

const (
	// requestTimeout bounds one request and its answer. It is longer than the orchestrator's own limit, so that its answer
	// about a timeout arrives.
	requestTimeout = 45 * time.Second
	// repeatFor is how long a request is repeated whose answer was lost.
	repeatFor = 20 * time.Second
	// leaderFor is how long a request waits for an orchestrator that leads: after a crash that takes about 20 s.
	leaderFor = 45 * time.Second
	// noteAfter is from when on it is said that an answer is waited for.
	noteAfter = 2 * time.Second
	// dialTimeout bounds connecting.
	dialTimeout = 5 * time.Second

	// maxAnswerBytes bounds an answer that is no stream.
	maxAnswerBytes = 64 << 20
	// expectBytes is the size from which a body is only sent when the server says that it wants it: an early refusal is then
	// read, not lost in a broken connection.
	expectBytes = 1 << 20

	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 2 * time.Second
)

// Options are what a Client is made of.
type Options struct {
	// URL of the API: http or https, with or without a path before /v1.
	URL string
	// Token is sent as a bearer token. Empty: none.
	Token string
	// UserAgent names the program.
	UserAgent string
	// RootCAs verify an https address; nil means the system's.
	RootCAs *x509.CertPool
	// Note is told what goes on when a request or a stream is taken up again, one line at a time. Nil: nobody.
	Note func(string)
}

// Client asks one orchestrator. It is safe for concurrent use if Note is.
type Client struct {
	base  *url.URL
	opts  Options
	http  *http.Client
	trans *http.Transport
}

// New makes a Client; it connects to nothing yet.
func New(opts Options) (*Client, error) {
	base, err := url.Parse(strings.TrimRight(opts.URL, "/"))
	if err != nil {
		return nil, fmt.Errorf("client: API address: %w", err)
	}
	if base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("client: API address %q: want http://HOST:PORT or https://HOST:PORT", opts.URL)
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("client: API address of %s: user, query and fragment have no place in it; the token is given apart", base.Host)
	}
	if opts.Note == nil {
		opts.Note = func(string) {}
	}
	trans := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: opts.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   dialTimeout,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
	}
	return &Client{base: base, opts: opts, trans: trans, http: &http.Client{
		Transport:     trans,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close closes idle connections. The Client can still be used.
func (c *Client) Close() { c.trans.CloseIdleConnections() }

// URL returns the API's address.
func (c *Client) URL() string { return c.base.String() }

// NewKey returns a fresh idempotency key.
func NewKey() string { return "key-" + rand.Text() }

// Unreachable is a request that nobody answered.
type Unreachable struct {
	URL string
	// Sent says that the request may have arrived: what it asked for may happen.
	Sent bool
	// After is how long the answer was waited for, where that was the end of it; else zero.
	After time.Duration
	Err   error
}

// Error says what to check.
func (e *Unreachable) Error() string {
	cause := e.Err
	var urlErr *url.Error
	if errors.As(cause, &urlErr) {
		cause = urlErr.Err // its text repeats method and address
	}
	if e.After > 0 {
		return fmt.Sprintf("the orchestrator at %s did not answer within %s: it hangs or was stopped (ps -o pid,stat,cmd shows T for a stopped one), or the network loses what is sent", e.URL, e.After)
	}
	if e.Sent {
		return fmt.Sprintf("the orchestrator at %s did not answer: %v", e.URL, cause)
	}
	return fmt.Sprintf("cannot reach the orchestrator at %s: %v", e.URL, cause)
}

// Unwrap returns the cause.
func (e *Unreachable) Unwrap() error { return e.Err }

// request makes a request with its headers.
func (c *Client) request(ctx context.Context, method, path string, query url.Values, body []byte) (*http.Request, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if c.opts.Token != "" {
		r.Header.Set("Authorization", "Bearer "+c.opts.Token)
	}
	if c.opts.UserAgent != "" {
		r.Header.Set("User-Agent", c.opts.UserAgent)
	}
	r.Header.Set("Accept", "application/json")
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
		if len(body) > expectBytes {
			r.Header.Set("Expect", "100-continue")
		}
	}
	return r, nil
}

// send sends a request and returns the answer if it is good. The caller closes its body.
func (c *Client) send(r *http.Request) (*http.Response, error) {
	start := time.Now()
	resp, err := c.http.Do(r)
	if err != nil {
		out := &Unreachable{URL: c.URL(), Sent: !failedToDial(err), Err: err}
		if out.Sent && errors.Is(err, context.DeadlineExceeded) {
			out.After = max(time.Since(start).Round(time.Second), time.Second)
		}
		return nil, out
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil && len(body) == 0 {
		return nil, &Unreachable{URL: c.URL(), Sent: true, Err: err}
	}
	return nil, wire.DecodeProblem(resp.StatusCode, resp.Header.Get("Content-Type"), body)
}

// failedToDial reports whether the request cannot have arrived.
func failedToDial(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &op) && op.Op == "dial" || errors.As(err, &dns)
}

// get asks for a resource, again while the orchestrator says that the cause of its refusal passes.
func (c *Client) get(ctx context.Context, path string, query url.Values, into any) error {
	for p := (patience{client: c}); ; {
		err := c.getOnce(ctx, path, query, into)
		if !p.again(ctx, err) {
			return err
		}
	}
}

func (c *Client) getOnce(ctx context.Context, path string, query url.Values, into any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := c.request(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	return c.exchange(r, into)
}

// exchange sends a request and reads its answer. When the answer takes long, the Note says so, once.
func (c *Client) exchange(r *http.Request, into any) error {
	done := make(chan error, 1)
	go func() { done <- c.answered(r, into) }() // ends with the request's context at the latest
	slow := time.NewTimer(noteAfter)
	defer slow.Stop()
	select {
	case err := <-done:
		return err
	case <-slow.C:
	}
	text := fmt.Sprintf("waiting for the orchestrator at %s: no answer for %s", c.URL(), noteAfter)
	if deadline, ok := r.Context().Deadline(); ok {
		text += fmt.Sprintf(", giving up in %s", time.Until(deadline).Round(time.Second))
	}
	c.opts.Note(text)
	return <-done
}

func (c *Client) answered(r *http.Request, into any) error {
	resp, err := c.send(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err != nil {
		return &Unreachable{URL: c.URL(), Sent: true, Err: err}
	}
	if len(body) > maxAnswerBytes {
		return fmt.Errorf("client: the answer of %s is larger than %d bytes", r.URL.Path, maxAnswerBytes)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("client: the answer of %s is not what this release understands (%w); check that the API address is the orchestrator's", r.URL.Path, err)
	}
	return nil
}

// Change says why something is changed, and under which key. The zero value gives no reason and makes a fresh key.
type Change struct {
	Reason string
	// Key is the idempotency key. Two requests with the same key and body are one.
	Key string
}

// post asks for a change. If the answer is lost, it asks again under the same key, for at most repeatFor.
func (c *Client) post(ctx context.Context, path string, change Change, body, into any) error {
	payload, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("client: encoding the request: %w", err)
	}
	key := change.Key
	if key == "" {
		key = NewKey()
	}
	var giveUp time.Time // zero: the request has not been sent yet
	p := patience{client: c}
	for wait := newBackoff(); ; {
		err := c.postOnce(ctx, path, key, payload, into)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if p.again(ctx, err) {
			continue
		}
		var unreachable *Unreachable
		switch lost := errors.As(err, &unreachable); {
		case lost && unreachable.Sent && giveUp.IsZero():
			giveUp = time.Now().Add(repeatFor)
			c.opts.Note(fmt.Sprintf("%v; asking again with the same idempotency key", err))
		case giveUp.IsZero(), !lost && !passing(err), time.Now().After(giveUp):
			return err
		}
		if !wait.sleep(ctx) {
			return err
		}
	}
}

func (c *Client) postOnce(ctx context.Context, path, key string, payload []byte, into any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := c.request(ctx, http.MethodPost, path, nil, payload)
	if err != nil {
		return err
	}
	r.Header.Set("Idempotency-Key", key)
	return c.exchange(r, into)
}

// patience waits for an orchestrator that leads, at most leaderFor in all.
type patience struct {
	client *Client
	giveUp time.Time
}

// again reports whether the request should be repeated, after the time that the refusal names.
func (p *patience) again(ctx context.Context, err error) bool {
	var refusal *deploy.Refusal
	if !errors.As(err, &refusal) || refusal.RetryAfter <= 0 {
		return false
	}
	now := time.Now()
	if p.giveUp.IsZero() {
		p.giveUp = now.Add(leaderFor)
		p.client.opts.Note(fmt.Sprintf("%v; asking again for up to %s", err, leaderFor))
	}
	if now.After(p.giveUp) {
		return false
	}
	return sleep(ctx, min(refusal.RetryAfter, leaderFor))
}

// passing reports whether the orchestrator answered that it cannot do this now.
func passing(err error) bool {
	var refusal *deploy.Refusal
	return errors.As(err, &refusal) && refusal.Kind == deploy.RefusedUnavailable
}

// backoff waits longer each time.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{next: firstBackoff} }

// sleep waits, and reports whether ctx let it.
func (b *backoff) sleep(ctx context.Context) bool {
	d := b.next
	b.next = min(b.next*2, maxBackoff)
	return sleep(ctx, d)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// reset makes the next wait short again.
func (b *backoff) reset() { b.next = firstBackoff }
