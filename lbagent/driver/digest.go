package driver

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
)

// Digest is the canonical digest of a Section: routes, and {name, address, weight, mode} of each upstream, sorted.
// Every driver computes the digest of what it read with the same function, so equal digests mean equal sets on any two
// Hosts, whatever their proxies are. An absent Section (no routes, no upstreams) has the digest "".
func Digest(s Section) string {
	if len(s.Routes) == 0 && len(s.Upstreams) == 0 {
		return ""
	}
	h := sha256.New()
	fmt.Fprintf(h, "section 1\n%q\n", s.App)
	for _, r := range SortedRoutes(s.Routes) {
		fmt.Fprintf(h, "route %q %q %t\n", r.Host, r.Path, r.Strip)
	}
	for _, u := range SortedUpstreams(s.Upstreams) {
		fmt.Fprintf(h, "upstream %q %s %d %s\n", u.Name, u.Address, u.Weight, u.Mode)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// SortedRoutes returns the routes sorted by host and path; the argument is left alone.
func SortedRoutes(routes []Route) []Route {
	out := slices.Clone(routes)
	slices.SortFunc(out, func(a, b Route) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Path, b.Path))
	})
	return out
}

// SortedUpstreams returns the upstreams sorted by name; the argument is left alone.
func SortedUpstreams(upstreams []Upstream) []Upstream {
	out := slices.Clone(upstreams)
	slices.SortFunc(out, func(a, b Upstream) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// NewSectionReading returns the SectionReading of rows and routes: sorted, with its digest.
func NewSectionReading(app string, routes []Route, rows []Row) SectionReading {
	rows = slices.Clone(rows)
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.Name, b.Name) })
	s := Section{App: app, Routes: routes}
	for _, r := range rows {
		s.Upstreams = append(s.Upstreams, Upstream{Name: r.Name, Address: r.Address, Weight: r.Weight, Mode: r.Mode})
	}
	return SectionReading{Routes: SortedRoutes(routes), Rows: rows, Digest: Digest(s)}
}
