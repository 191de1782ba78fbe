package sectionfile

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// MaxSize bounds the text of one Section, in bytes.
const MaxSize = 1 << 20

// maxUpstreams and maxRoutes bound one Section.
const (
	maxUpstreams = 5000
	maxRoutes    = 1000
	maxPath      = 1024
)

var (
	appName      = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$`)
	upstreamName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,64}$`)
	hostName     = regexp.MustCompile(`^(\*|[a-z0-9_]([a-z0-9._-]{0,253}[a-z0-9_])?|\[[0-9a-f:.]+\])$`)
	// Printable ASCII without what ends a word or starts a query, a fragment or a quote in some configuration language.
	urlPath = regexp.MustCompile(`^/[!$%&'()*+,./0-9:;=@A-Z_a-z~\[\]^|{}-]*$`)
)

// CheckApp says why a name cannot be the name of an App in files and keys.
func CheckApp(app string) error {
	if !appName.MatchString(app) {
		return fmt.Errorf("app name %q: want %s", app, appName)
	}
	return nil
}

// IsUpstreamName says whether a word can be the name of an upstream.
func IsUpstreamName(name string) bool { return upstreamName.MatchString(name) }

// Check says why a Section cannot be given to nginx.
func Check(s driver.Section) error {
	if err := CheckApp(s.App); err != nil {
		return err
	}
	if len(s.Routes) > maxRoutes {
		return fmt.Errorf("app %s has %d routes, the limit is %d", s.App, len(s.Routes), maxRoutes)
	}
	if len(s.Upstreams) > maxUpstreams {
		return fmt.Errorf("app %s has %d upstreams, the limit is %d", s.App, len(s.Upstreams), maxUpstreams)
	}
	routes := make(map[[2]string]bool, len(s.Routes))
	for _, r := range s.Routes {
		if !hostName.MatchString(r.Host) {
			return fmt.Errorf("app %s: route host %q is not a lower-case host name or *", s.App, r.Host)
		}
		if !urlPath.MatchString(r.Path) || len(r.Path) > maxPath {
			return fmt.Errorf("app %s: route path %q is not a plain path", s.App, r.Path)
		}
		key := [2]string{r.Host, strings.TrimRight(r.Path, "/")}
		if routes[key] {
			return fmt.Errorf("app %s: route %s%s is there twice", s.App, r.Host, r.Path)
		}
		routes[key] = true
	}
	names := make(map[string]bool, len(s.Upstreams))
	for _, u := range s.Upstreams {
		if err := checkUpstream(u); err != nil {
			return fmt.Errorf("app %s: %w", s.App, err)
		}
		if names[u.Name] {
			return fmt.Errorf("app %s: upstream %s is there twice", s.App, u.Name)
		}
		names[u.Name] = true
	}
	return nil
}

func checkUpstream(u driver.Upstream) error {
	if !upstreamName.MatchString(u.Name) {
		return fmt.Errorf("upstream name %q: want %s", u.Name, upstreamName)
	}
	if !u.Address.IsValid() || u.Address.Port() == 0 || u.Address.Addr().Zone() != "" {
		return fmt.Errorf("upstream %s: address %q is not IP:PORT", u.Name, u.Address)
	}
	if u.Weight < 1 || u.Weight > 256 {
		return fmt.Errorf("upstream %s: weight %d is not in 1..256", u.Name, u.Weight)
	}
	if u.Mode < driver.Warm || u.Mode > driver.Draining {
		return fmt.Errorf("upstream %s: unknown %s", u.Name, u.Mode)
	}
	h := u.Health
	switch h.Kind {
	case driver.HealthNone, driver.HealthTCP:
	case driver.HealthHTTP:
		path, _, _ := strings.Cut(h.Path, "?")
		if !urlPath.MatchString(path) || strings.ContainsAny(h.Path, " \t\r\n#\"\\") || !isPrintable(h.Path) || len(h.Path) > 2048 {
			return fmt.Errorf("upstream %s: health path %q is not a plain path", u.Name, h.Path)
		}
	default:
		return fmt.Errorf("upstream %s: unknown health kind %d", u.Name, h.Kind)
	}
	if h.Interval < 0 || h.Timeout < 0 || h.Rise < 0 || h.Fall < 0 || h.Rise > 1000 || h.Fall > 1000 {
		return fmt.Errorf("upstream %s: health interval %s, timeout %s, rise %d, fall %d out of range", u.Name, h.Interval, h.Timeout, h.Rise, h.Fall)
	}
	return nil
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Published returns the part of a Section that goes into files: without Warm upstreams.
func Published(s driver.Section) driver.Section {
	out := driver.Section{App: s.App, Routes: s.Routes}
	for _, u := range s.Upstreams {
		if u.Mode != driver.Warm {
			out.Upstreams = append(out.Upstreams, u)
		}
	}
	return out
}

// File is the text of a published file: the same for equal Sections, whoever writes it and when (UNDO).
func File(s driver.Section) []byte { return Encode(s, 0) }

// Encode writes a Section that Check accepts. write is the fencing number of a write to the dictionary.
func Encode(s driver.Section, write uint64) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "cutover-section 1 %d\napp %s\n", write, s.App)
	for _, r := range driver.SortedRoutes(s.Routes) {
		strip := 0
		if r.Strip {
			strip = 1
		}
		fmt.Fprintf(&b, "route %s %s %d\n", r.Host, r.Path, strip)
	}
	for _, u := range driver.SortedUpstreams(s.Upstreams) {
		path := u.Health.Path
		if path == "" {
			path = "-"
		}
		fmt.Fprintf(&b, "upstream %s %s %d %s %d %s %d %d %d %d\n", u.Name, u.Address, u.Weight, u.Mode,
			u.Health.Kind, path, u.Health.Interval.Milliseconds(), u.Health.Timeout.Milliseconds(), u.Health.Rise, u.Health.Fall)
	}
	fmt.Fprintf(&b, "end %08x\n", crc32.ChecksumIEEE(b.Bytes()))
	return b.Bytes()
}

// Decode reads what Encode wrote and refuses everything else.
func Decode(text []byte) (s driver.Section, write uint64, err error) {
	if len(text) > MaxSize {
		return s, 0, fmt.Errorf("section of %d bytes, the limit is %d", len(text), MaxSize)
	}
	body, end, ok := cutEnd(text)
	if !ok {
		return s, 0, errors.New("section has no end line: it is not whole")
	}
	if want := fmt.Sprintf("%08x", crc32.ChecksumIEEE(body)); end != want {
		return s, 0, fmt.Errorf("section has checksum %q, its text has %s", end, want)
	}
	for i, line := range strings.Split(strings.TrimSuffix(string(body), "\n"), "\n") {
		if err := decodeLine(&s, &write, i, strings.Split(line, " ")); err != nil {
			return driver.Section{}, 0, fmt.Errorf("section line %d: %w", i+1, err)
		}
	}
	if err := Check(s); err != nil {
		return driver.Section{}, 0, err
	}
	return s, write, nil
}

func cutEnd(text []byte) (body []byte, crc string, ok bool) {
	trimmed, ok := bytes.CutSuffix(text, []byte("\n"))
	if !ok {
		return nil, "", false
	}
	i := bytes.LastIndexByte(trimmed, '\n')
	if i < 0 {
		return nil, "", false
	}
	crc, ok = strings.CutPrefix(string(trimmed[i+1:]), "end ")
	return trimmed[:i+1], crc, ok
}

func decodeLine(s *driver.Section, write *uint64, i int, w []string) (err error) {
	switch {
	case i == 0:
		if len(w) != 3 || w[0] != "cutover-section" || w[1] != "1" {
			return errors.New("unknown format; this version reads cutover-section 1")
		}
		*write, err = strconv.ParseUint(w[2], 10, 64)
		return err
	case i == 1 && w[0] == "app" && len(w) == 2:
		s.App = w[1]
		return nil
	case i > 1 && w[0] == "route" && len(w) == 4 && (w[3] == "0" || w[3] == "1"):
		s.Routes = append(s.Routes, driver.Route{Host: w[1], Path: w[2], Strip: w[3] == "1"})
		return nil
	case i > 1 && w[0] == "upstream" && len(w) == 11:
		u, err := decodeUpstream(w)
		s.Upstreams = append(s.Upstreams, u)
		return err
	default:
		return fmt.Errorf("not understood: %.80q", strings.Join(w, " "))
	}
}

func decodeUpstream(w []string) (u driver.Upstream, err error) {
	u.Name = w[1]
	if u.Address, err = netip.ParseAddrPort(w[2]); err != nil {
		return u, err
	}
	for _, mode := range []driver.Mode{driver.Warm, driver.Serving, driver.Draining} {
		if mode.String() == w[4] {
			u.Mode = mode
		}
	}
	var n [6]int
	for i, word := range []string{w[3], w[5], w[7], w[8], w[9], w[10]} {
		if n[i], err = strconv.Atoi(word); err != nil {
			return u, err
		}
		if n[i] < 0 || n[i] > 1<<31 {
			return u, fmt.Errorf("number %d out of range", n[i])
		}
	}
	u.Weight = n[0]
	if n[1] > int(driver.HealthHTTP) {
		return u, fmt.Errorf("unknown health kind %d", n[1])
	}
	u.Health = driver.Health{
		Kind:     driver.HealthKind(n[1]),
		Interval: time.Duration(n[2]) * time.Millisecond,
		Timeout:  time.Duration(n[3]) * time.Millisecond,
		Rise:     n[4],
		Fall:     n[5],
	}
	if w[6] != "-" {
		u.Health.Path = w[6]
	}
	return u, nil
}
