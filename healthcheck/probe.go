package healthcheck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// bodyLimit is how much of an answer is read at most.
const bodyLimit = 4 << 10

// errorBody is how much of a bad answer's body is quoted in the error.
const errorBody = 120

// network probes over the network. It holds no connection between probes.
type network struct {
	dialer net.Dialer
	client http.Client
}

func newNetwork() *network {
	n := &network{dialer: net.Dialer{KeepAlive: -1}}
	n.client = http.Client{
		Transport: &http.Transport{
			DialContext:            n.dialer.DialContext,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return n
}

// probe runs one probe; ctx carries its timeout.
func (n *network) probe(ctx context.Context, t Target) Result {
	start := time.Now()
	var err error
	if t.Check.Kind == TCP {
		err = n.tcp(ctx, t.Address)
	} else {
		err = n.http(ctx, t)
	}
	r := Result{Latency: time.Since(start)}
	if err != nil {
		r.Err = describe(err, t)
	}
	return r
}

func (n *network) tcp(ctx context.Context, address string) error {
	conn, err := n.dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (n *network) http(ctx context.Context, t Target) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.Address+t.Check.Path, nil)
	if err != nil {
		return err
	}
	req.Host = t.Check.HostHeader
	req.Header.Set("User-Agent", "cutover-healthcheck")
	resp, err := n.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, bodyLimit))
	if resp.StatusCode >= 200 && resp.StatusCode <= 399 {
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("answer cut short: %w", err)
		}
		// An endless or slow body after a good status is still a good answer.
		return nil
	}
	return statusError{code: resp.StatusCode, body: quote(body)}
}

// statusError is an answer with a bad status.
type statusError struct {
	code int
	body string
}

func (e statusError) Error() string {
	s := fmt.Sprintf("status %d", e.code)
	if e.body != "" {
		s += " (" + e.body + ")"
	}
	return s
}

// quote makes the start of a body fit for one line of a message.
func quote(body []byte) string {
	s := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return ' '
	}, string(body[:min(len(body), errorBody)]))
	return strings.Join(strings.Fields(s), " ")
}

// describe says what failed and where, without the layers of wrapping that
// repeat the address.
func describe(err error, t Target) string {
	where := t.Address
	var status statusError
	var op *net.OpError
	dialing := errors.As(err, &op) && op.Op == "dial"
	switch {
	case errors.As(err, &status):
		return fmt.Sprintf("%s from http://%s%s", status.Error(), where, t.Check.Path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused to " + where
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed by " + where + " before an answer"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		if dialing {
			return fmt.Sprintf("no connection to %s within %s", where, t.Check.Timeout)
		}
		return fmt.Sprintf("no answer from %s%s within %s", where, t.Check.Path, t.Check.Timeout)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return fmt.Sprintf("%s: %v", where, err)
}
