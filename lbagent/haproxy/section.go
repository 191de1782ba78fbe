package haproxy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Limits of what is rendered. They are far above real Sections and keep every line below HAProxy's own limits.
const (
	maxUpstreams = 1000
	maxRoutes    = 256
	maxStrip     = 12 // segments of a prefix that can be stripped
	maxPath      = 512
	maxHost      = 253
)

var (
	upstreamName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,64}$`)
	appName      = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,128}$`)
	routeHost    = regexp.MustCompile(`^(\*|[a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])$`)
	// routePath leaves out what would need quoting in a map, in the runtime CLI or in a pattern: blanks, quotes,
	// backslash, comma, semicolon, hash and the bar that separates host and path.
	routePath  = regexp.MustCompile(`^/[A-Za-z0-9._~!$&()*+=:@%/-]*$`)
	healthPath = regexp.MustCompile(`^/[\x21-\x7e]*$`)
)

// errUnrenderable is wrapped by refusals of the driver itself, before HAProxy's checker is asked.
var errUnrenderable = errors.New("the Section cannot be expressed in HAProxy")

// validateSection says whether the Section can be rendered exactly. A Section that passes can neither break out of its
// line nor be silently changed by HAProxy's parsers.
func validateSection(s driver.Section) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !appName.MatchString(s.App) {
		bad("App name %.140q", s.App)
	}
	if len(s.Upstreams) > maxUpstreams || len(s.Routes) > maxRoutes {
		bad("%d upstreams and %d routes, more than %d and %d", len(s.Upstreams), len(s.Routes), maxUpstreams, maxRoutes)
	}
	keys := map[string]bool{}
	for _, r := range s.Routes {
		switch {
		case len(r.Host) > maxHost || !routeHost.MatchString(r.Host):
			bad("route host %.260q: want a host name in lower case, or *", r.Host)
		case len(r.Path) > maxPath || !routePath.MatchString(r.Path):
			bad("route path %.520q: want a slash first and only letters, digits and ._~!$&()*+=:@%%/-", r.Path)
		case strings.Contains(r.Path, "//"):
			bad("route path %q has an empty segment", r.Path)
		case r.Strip && segments(r.Path) > maxStrip:
			bad("route path %q: at most %d segments can be stripped", r.Path, maxStrip)
		case keys[routeKey(r)]:
			bad("route %s%s is given twice", r.Host, r.Path)
		}
		keys[routeKey(r)] = true
	}
	names := map[string]bool{}
	for _, u := range s.Upstreams {
		if !upstreamName.MatchString(u.Name) || names[u.Name] {
			bad("upstream name %.80q: want [a-zA-Z0-9._-]{1,64}, each once", u.Name)
		}
		names[u.Name] = true
		if !u.Address.IsValid() || u.Address.Port() == 0 || u.Address.Addr().Zone() != "" || u.Address.Addr().IsUnspecified() {
			bad("upstream %s: address %s", u.Name, u.Address)
		}
		if u.Weight < 1 || u.Weight > 256 {
			bad("upstream %s: weight %d, want 1 to 256", u.Name, u.Weight)
		}
		if u.Mode < driver.Warm || u.Mode > driver.Draining {
			bad("upstream %s: %s", u.Name, u.Mode)
		}
		if err := validateHealth(u.Health); err != nil {
			bad("upstream %s: %w", u.Name, err)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	err := fmt.Errorf("App %.140q: %w: %w", s.App, errUnrenderable, errors.Join(errs...))
	return &driver.RefusedError{Checker: "haproxy driver", Output: tail(err.Error()), Err: errUnrenderable}
}

func validateHealth(h driver.Health) error {
	switch h.Kind {
	case driver.HealthHTTP:
		if len(h.Path) > maxPath || !healthPath.MatchString(h.Path) {
			return fmt.Errorf("health path %.520q: want a slash first and no blanks", h.Path)
		}
		if h.Timeout > maxHealthTimeout {
			return fmt.Errorf("health timeout %s: at most %s", h.Timeout, maxHealthTimeout)
		}
	case driver.HealthTCP:
	case driver.HealthNone:
		return nil // nothing of it is used: see withoutChecks
	default:
		return fmt.Errorf("health kind %d", h.Kind)
	}
	if h.Interval < time.Millisecond || h.Interval > time.Hour {
		return fmt.Errorf("health interval %s: want 1ms to 1h", h.Interval)
	}
	if h.Rise < 1 || h.Rise > 100 || h.Fall < 1 || h.Fall > 100 {
		return fmt.Errorf("health rise %d, fall %d: want 1 to 100", h.Rise, h.Fall)
	}
	return nil
}

// tail returns the end of s within driver.MaxOutput bytes: the end is where checkers say what is wrong.
func tail(s string) string {
	if len(s) > driver.MaxOutput {
		s = s[len(s)-driver.MaxOutput:]
	}
	return s
}
