package mesosframework

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

const (
	schedulerPath  = "/api/v1/scheduler"
	streamIDHeader = "Mesos-Stream-Id"
	// errorBodyLimit bounds how much of an error's text is read.
	errorBodyLimit = 4 << 10
	// maxHops bounds redirects between masters.
	maxHops = 5
)

// newClient returns a client that follows no redirect and asks no proxy. The
// whole exchange is bounded by the context of each request.
func newClient(conf *tls.Config, connections int) *http.Client {
	if conf != nil {
		conf = conf.Clone()
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			TLSClientConfig:        conf,
			TLSHandshakeTimeout:    10 * time.Second,
			MaxConnsPerHost:        connections,
			MaxIdleConnsPerHost:    connections,
			IdleConnTimeout:        90 * time.Second,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// verdict is what the answer to a call means.
type verdict int

const (
	// accepted: the master took the call.
	accepted verdict = iota
	// refused: the master did not, and the subscription is fine.
	refused
	// resubscribe: the subscription is no longer ours, or the master not leading.
	resubscribe
	// unauthorized: the credentials are wrong.
	unauthorized
	// unsent: nothing of the call reached the master.
	unsent
	// ambiguous: nobody knows whether the call arrived.
	ambiguous
)

func (v verdict) String() string {
	return [...]string{"accepted", "refused", "resubscribe", "unauthorized", "unsent", "ambiguous"}[v]
}

// judge says what the answer to a call other than SUBSCRIBE means.
func judge(status int, body string) verdict {
	switch {
	case status == http.StatusAccepted || status == http.StatusOK:
		return accepted
	case status == http.StatusUnauthorized:
		return unauthorized
	case status >= 300 && status <= 399:
		return resubscribe // a standby: another master leads
	case status == http.StatusForbidden, status == http.StatusNotFound, status == http.StatusServiceUnavailable:
		return resubscribe // not subscribed, starting, or recovering
	case status == http.StatusBadRequest && (strings.Contains(body, "stream ID") || strings.Contains(body, "Framework cannot be found")):
		return resubscribe // replaced or removed: the next subscription tells
	case status >= 500:
		return ambiguous
	}
	return refused
}

// callError is a call that was not accepted.
type callError struct {
	what    string
	verdict verdict
	status  int // 0 if there was no answer
	detail  string
}

func (e *callError) Error() string {
	if e.status == 0 {
		return fmt.Sprintf("%s: %s (%s)", e.what, e.detail, e.verdict)
	}
	return fmt.Sprintf("%s: status %d %q (%s)", e.what, e.status, e.detail, e.verdict)
}

// post sends one call of a subscription and waits for its answer; ctx bounds it.
func post(ctx context.Context, client *http.Client, base *url.URL, cred *Credentials, streamID string, call *scheduler.Call) error {
	what := call.Type.String()
	body, err := call.Marshal()
	if err != nil {
		return &callError{what: what, verdict: refused, detail: err.Error()}
	}
	// Whether an error left the call unsent decides if an ACCEPT may be made again.
	var written atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaderField: func(string, []string) { written.Store(true) },
		WroteHeaders:     func() { written.Store(true) },
	})
	req, err := newCall(ctx, base, cred, body)
	if err != nil {
		return &callError{what: what, verdict: refused, detail: err.Error()}
	}
	req.Header.Set(streamIDHeader, streamID)
	resp, err := client.Do(req)
	if err != nil {
		v := ambiguous
		if !written.Load() {
			v = unsent
		}
		return &callError{what: what, verdict: v, detail: err.Error()}
	}
	text := readText(resp)
	if v := judge(resp.StatusCode, text); v != accepted {
		return &callError{what: what, verdict: v, status: resp.StatusCode, detail: text}
	}
	return nil
}

func newCall(ctx context.Context, base *url.URL, cred *Credentials, body []byte) (*http.Request, error) {
	u := *base
	u.Path = schedulerPath
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", mediaType)
	req.Header.Set("Accept", mediaType)
	req.Header.Set("User-Agent", "cutover")
	authorize(req, cred)
	return req, nil
}

func authorize(req *http.Request, cred *Credentials) {
	if cred != nil {
		req.SetBasicAuth(cred.Principal, cred.Secret)
	}
}

// readText drains and closes an answer's body, so that its connection is used
// again, and returns the start of it.
func readText(resp *http.Response) string {
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, errorBodyLimit))
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return strings.TrimSpace(string(b))
}

// stream is an open subscription.
type stream struct {
	base *url.URL // of the leading master; every call goes there
	id   string
	body io.ReadCloser
	cred *Credentials
}

// masters finds the leading master.
type masters struct {
	list    []*url.URL
	client  *http.Client
	cred    *Credentials
	forward bool
	next    int // where to ask first
}

func newMasters(o *Options) (*masters, error) {
	m := &masters{client: newClient(o.TLS, 2), cred: o.Credentials, forward: o.ForwardCredentials}
	for _, s := range o.Masters {
		u, err := parseMaster(s)
		if err != nil {
			return nil, err
		}
		m.list = append(m.list, u)
	}
	return m, nil
}

// credentials returns what may be shown to a master: nothing to one that the
// operator did not name, unless it is permitted.
func (m *masters) credentials(base *url.URL) (*Credentials, error) {
	if m.cred == nil || m.forward {
		return m.cred, nil
	}
	for _, u := range m.list {
		if u.Scheme == base.Scheme && u.Host == base.Host {
			return m.cred, nil
		}
	}
	return nil, fmt.Errorf("%w: the leading master %s is not in the list of masters, so it does not get the credentials; add it, or set ForwardCredentials", errResolve, base)
}

// leader asks the masters in turn who leads.
func (m *masters) leader(ctx context.Context, timeout time.Duration) (*url.URL, error) {
	var errs []error
	for i := range m.list {
		at := (m.next + i) % len(m.list)
		base, err := m.ask(ctx, m.list[at], timeout)
		if err == nil {
			m.next = at
			return base, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	m.next = (m.next + 1) % len(m.list)
	return nil, fmt.Errorf("%w: %w", errResolve, errors.Join(errs...))
}

// ask asks one master, without credentials: /redirect is open to all.
func (m *masters) ask(ctx context.Context, base *url.URL, timeout time.Duration) (*url.URL, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("redirect").String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("master %s: %w", base, err)
	}
	text := readText(resp)
	if resp.StatusCode < 300 || resp.StatusCode > 399 {
		return nil, fmt.Errorf("master %s: status %d %q where a redirect to the leader was expected", base, resp.StatusCode, text)
	}
	return location(resp)
}

// location returns the base URL to which an answer redirects.
func location(resp *http.Response) (*url.URL, error) {
	u, err := resp.Location()
	if err != nil {
		return nil, fmt.Errorf("redirect of %s without a usable Location: %w", resp.Request.URL, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("redirect of %s to %q, which is not a master", resp.Request.URL, u.Redacted())
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// subscribe opens a subscription at the leading master. ctx lives as long as
// the stream; timeout bounds each step until its headers are there.
func (m *masters) subscribe(ctx context.Context, client *http.Client, call *scheduler.Call, timeout time.Duration) (*stream, error) {
	base, err := m.leader(ctx, timeout)
	if err != nil {
		return nil, err
	}
	body, err := call.Marshal()
	if err != nil {
		return nil, fatal(ErrRefused, "encode SUBSCRIBE: %w", err)
	}
	for range maxHops {
		cred, err := m.credentials(base)
		if err != nil {
			return nil, err
		}
		resp, err := m.open(ctx, client, base, cred, body, timeout)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK {
			id := resp.Header.Get(streamIDHeader)
			if ct := resp.Header.Get("Content-Type"); id == "" || ct != mediaType {
				_ = resp.Body.Close()
				return nil, fmt.Errorf("master %s: subscription with stream id %q and content type %q: not a Mesos master?", base, id, ct)
			}
			return &stream{base: base, id: id, body: resp.Body, cred: cred}, nil
		}
		text := readText(resp)
		switch s := resp.StatusCode; {
		case s >= 300 && s <= 399:
			if base, err = location(resp); err != nil {
				return nil, err
			}
		case s == http.StatusUnauthorized:
			return nil, fatal(ErrUnauthorized, "master %s: %s", base, text)
		case s == http.StatusNotFound || s == http.StatusRequestTimeout || s == http.StatusTooManyRequests || s >= 500:
			return nil, fmt.Errorf("master %s: status %d %q", base, s, text)
		default:
			return nil, fatal(ErrRefused, "master %s: status %d %q", base, s, text)
		}
	}
	return nil, fmt.Errorf("%w: more than %d redirects, the last to %s", errResolve, maxHops, base)
}

// open posts a SUBSCRIBE and waits for the headers of the answer only.
func (m *masters) open(ctx context.Context, client *http.Client, base *url.URL, cred *Credentials, body []byte, timeout time.Duration) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(timeout, func() { cancel(fmt.Errorf("no answer within %s", timeout)) })
	req, err := newCall(ctx, base, cred, body)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp, err := client.Do(req)
	if !late.Stop() && err == nil {
		_ = resp.Body.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, fmt.Errorf("master %s: SUBSCRIBE: %w", base, err)
	}
	resp.Body = &cancelBody{ReadCloser: resp.Body, cancel: cancel}
	return resp, nil
}

// cancelBody releases the request's context with the body.
type cancelBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

// Close closes the body and cancels the request.
func (b *cancelBody) Close() error {
	b.cancel(nil)
	return b.ReadCloser.Close()
}
