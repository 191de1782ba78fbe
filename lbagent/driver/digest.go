package driver

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
)

// Digest is the canonical digest of a Section: routes, and {name, address, weight, mode} of each upstream, sorted.
// Every driver computes the digest of what it read with the same function, so equal digests mean equal sets on any two
// Hosts, whatever their proxies are. An absent Section (no routes, no upstreams) has the digest "".
func Digest(s Section) string {
	if len(s.Routes) == 0 && len(s.Upstreams) == 0 {
		return ""
	}
	// Appended by hand: every reading of every Section is digested, and fmt made that the larger part of a reading.
	b := make([]byte, 0, 128+96*(len(s.Routes)+len(s.Upstreams)))
	b = append(strconv.AppendQuote(append(b, "section 1\n"...), s.App), '\n')
	for _, r := range SortedRoutes(s.Routes) {
		b = strconv.AppendQuote(append(b, "route "...), r.Host)
		b = strconv.AppendQuote(append(b, ' '), r.Path)
		b = append(strconv.AppendBool(append(b, ' '), r.Strip), '\n')
	}
	for _, u := range SortedUpstreams(s.Upstreams) {
		b = strconv.AppendQuote(append(b, "upstream "...), u.Name)
		b = append(append(append(b, ' '), u.Address.String()...), ' ')
		b = append(strconv.AppendInt(b, int64(u.Weight), 10), ' ')
		b = append(append(b, u.Mode.String()...), '\n')
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// SortedRoutes returns the routes sorted by host and path; the argument is left alone, and may be what is
// returned.
func SortedRoutes(routes []Route) []Route {
	return sorted(routes, func(a, b Route) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Path, b.Path))
	})
}

// SortedUpstreams returns the upstreams sorted by name; the argument is left alone, and may be what is
// returned.
func SortedUpstreams(upstreams []Upstream) []Upstream {
	return sorted(upstreams, func(a, b Upstream) int { return cmp.Compare(a.Name, b.Name) })
}

// sorted returns the values in order: themselves if they are so already, which is the usual case.
func sorted[T any](values []T, compare func(a, b T) int) []T {
	if slices.IsSortedFunc(values, compare) {
		return slices.Clip(values)
	}
	out := slices.Clone(values)
	slices.SortFunc(out, compare)
	return out
}

// NewSectionReading returns the SectionReading of rows and routes: sorted, with its digest.
func NewSectionReading(app string, routes []Route, rows []Row) SectionReading {
	rows = slices.Clone(rows)
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.Name, b.Name) })
	s := Section{App: app, Routes: routes, Upstreams: make([]Upstream, 0, len(rows))}
	for _, r := range rows {
		s.Upstreams = append(s.Upstreams, Upstream{Name: r.Name, Address: r.Address, Weight: r.Weight, Mode: r.Mode})
	}
	return SectionReading{Routes: SortedRoutes(routes), Rows: rows, Digest: Digest(s)}
}
