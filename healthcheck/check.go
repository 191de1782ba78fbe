package healthcheck

import (
	"fmt"
	"strings"
	"time"
)

// Kind is the protocol of a Check.
type Kind string

// The kinds.
const (
	HTTP Kind = "http"
	TCP  Kind = "tcp"
)

// FastInterval is the longest time between the starts of two probes before the
// target is first healthy (a probe still in flight delays the next one).
const FastInterval = 100 * time.Millisecond

// Check says how a target is probed. Zero values of all but Kind take the
// defaults given; call Normalize once before use.
type Check struct {
	Kind Kind
	// Path is asked with GET (HTTP only), "/" by default; it may have a query.
	Path string
	// HostHeader is sent as Host (HTTP only); by default the target's address.
	HostHeader string
	// Interval is the time from the start of a probe to the start of the next;
	// 1 s by default, at least 10 ms.
	Interval time.Duration
	// Timeout bounds one probe, connect and answer together; 1 s by default.
	Timeout time.Duration
	// Grace is how long a target may take to become healthy first; 60 s by
	// default. Failures within it do not count.
	Grace time.Duration
	// Rise is the number of successes in a row that make a target healthy, Fall
	// the number of failures in a row that make it unhealthy; 1 and 3 by default.
	Rise, Fall int
}

// Normalize returns the check with its defaults filled in, or what is wrong
// with it.
func (c Check) Normalize() (Check, error) {
	def := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.Interval, time.Second)
	def(&c.Timeout, time.Second)
	def(&c.Grace, time.Minute)
	if c.Rise == 0 {
		c.Rise = 1
	}
	if c.Fall == 0 {
		c.Fall = 3
	}
	switch c.Kind {
	case HTTP:
		if c.Path == "" {
			c.Path = "/"
		}
		if !strings.HasPrefix(c.Path, "/") || strings.ContainsFunc(c.Path, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return c, fmt.Errorf("health path %q must start with / and have no blank or control character", c.Path)
		}
		if strings.ContainsAny(c.HostHeader, " \r\n\t/") {
			return c, fmt.Errorf("health host %q is not a host name", c.HostHeader)
		}
	case TCP:
		if c.Path != "" || c.HostHeader != "" {
			return c, fmt.Errorf("a tcp check has neither path nor host")
		}
	default:
		return c, fmt.Errorf("health check kind %q is not built (known: http, tcp)", c.Kind)
	}
	switch {
	case c.Interval < 10*time.Millisecond:
		return c, fmt.Errorf("health interval %s is shorter than 10ms", c.Interval)
	case c.Timeout < time.Millisecond || c.Timeout > 5*time.Minute:
		return c, fmt.Errorf("health timeout %s is not between 1ms and 5m", c.Timeout)
	case c.Grace < 0:
		return c, fmt.Errorf("health grace %s is negative", c.Grace)
	case c.Rise < 1 || c.Fall < 1:
		return c, fmt.Errorf("health rise %d and fall %d must be at least 1", c.Rise, c.Fall)
	}
	return c, nil
}

// fast returns the time between probes before the first success.
func (c Check) fast() time.Duration { return min(c.Interval, FastInterval) }
