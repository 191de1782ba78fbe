package registry

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/txn"
)

// This file is about Hosts that a catalog announces. What a catalog says is not stored: it takes nobody in, unless the Group
// admits whoever is announced; it takes nobody out, and moves nobody that somebody talks to (NO-SILENT-CHANGE, FAIL-STATIC).
// A catalog that is away, empty or wrong never lets a deploy succeed without a Host.

// Listing is all that a catalog announces at one moment, or why that is not known.
type Listing struct {
	Source Source
	At     time.Time
	// Err says why the catalog cannot be read; then the rest is empty, and what was heard last stays.
	Err error
	// Hosts have a name, a Group and an AgentURL. Nothing of that is checked yet.
	Hosts []Host
	// Refused says, for people, which entries name no Host at all.
	Refused []string
}

// catalog is what was heard of a catalog in this term.
type catalog struct {
	source  Source
	known   bool // it was read once
	heardAt time.Time
	said    map[string][]Host // by name; different ones
	refused []string
	problem string // why it cannot be read now
	since   time.Time
}

// What a catalog says is bounded before it is kept: the refused entries that people see and each one's length, the length of an
// address, and the places that are told of one Host.
const (
	maxRefused = 20
	maxText    = 300
	maxURL     = 500
	maxPlaces  = 4
)

// hear is the catalog after a listing.
func (c catalog) hear(groups map[string]Group, l Listing) catalog {
	c.source = l.Source
	if l.Err != nil {
		if c.problem == "" {
			c.since = l.At
		}
		c.problem = l.Err.Error()
		return c
	}
	c.known, c.heardAt, c.problem, c.since = true, l.At, "", time.Time{}
	c.said, c.refused = map[string][]Host{}, slices.Clone(l.Refused)
	for _, h := range l.Hosts {
		if len(h.AgentURL) > maxURL {
			c.refused = append(c.refused, fmt.Sprintf("host %s: its agent URL is longer than %d bytes", h.Name, maxURL))
			continue
		}
		if err := CheckHost(h); err != nil {
			c.refused = append(c.refused, err.Error())
			continue
		}
		if _, ok := groups[h.Group]; !ok {
			c.refused = append(c.refused, fmt.Sprintf("host %s: group %q is not declared in %s", h.Name, h.Group, FromFile.text()))
			continue
		}
		if !slices.ContainsFunc(c.said[h.Name], func(o Host) bool { return samePlace(o, h.Group, h.AgentURL) }) {
			c.said[h.Name] = append(c.said[h.Name], h)
		}
	}
	for _, said := range c.said {
		slices.SortFunc(said, func(a, b Host) int {
			return cmp.Or(strings.Compare(a.Group, b.Group), strings.Compare(a.AgentURL, b.AgentURL))
		})
	}
	slices.Sort(c.refused)
	for i, text := range c.refused[:min(len(c.refused), maxRefused)] {
		if len(text) > maxText {
			c.refused[i] = strings.ToValidUTF8(text[:maxText], "") + "…"
		}
	}
	if n := len(c.refused); n > maxRefused {
		c.refused = append(c.refused[:maxRefused:maxRefused], fmt.Sprintf("and %d more", n-maxRefused))
	}
	return c
}

func samePlace(h Host, group, agentURL string) bool {
	return h.Group == group && sameURL(h.AgentURL, agentURL)
}

// sameURL compares two URLs that have passed checkURL.
func sameURL(a, b string) bool {
	u, err := url.Parse(a)
	v, err2 := url.Parse(b)
	return err == nil && err2 == nil && u.Scheme == v.Scheme && strings.EqualFold(u.Host, v.Host) && strings.Trim(u.Path, "/") == strings.Trim(v.Path, "/")
}

// members are the Memberships after a listing: those that are stored or declared, as the catalog speaks of them, and those that
// are only announced, as long as they are.
func (c catalog) members(old map[string]Membership) map[string]Membership {
	next := make(map[string]Membership, len(old))
	for name, m := range old {
		if m.onlyAnnounced() && len(c.said[name]) == 0 {
			continue // nobody talks to it and nothing depends on it
		}
		next[name] = c.tell(m)
	}
	for name := range c.said {
		if _, ok := next[name]; !ok {
			next[name] = c.tell(Membership{Format: membershipFormat, Host: name, Standing: Announced, Source: c.source,
				Last: Change{Actor: "cutover", Reason: "announced by " + c.source.text(), At: c.heardAt}})
		}
	}
	return next
}

// onlyAnnounced: all that is known of the Host is what the catalog says.
func (m Membership) onlyAnnounced() bool {
	return m.Standing == Announced && m.Source == FromConsul && !m.Declared
}

// tell is the Membership as the catalog speaks of it. Where a Host is follows the catalog only while nobody talks to it and no
// file declares it.
func (c catalog) tell(m Membership) Membership {
	if !c.known {
		return m
	}
	said := c.said[m.Host]
	m.Announced, m.Notice, m.Ambiguous = m.Declared || len(said) > 0, "", false
	if len(said) == 0 {
		if m.Source == FromConsul && m.Standing.linked() {
			m.Notice = fmt.Sprintf("%s announces it no longer: it stays %s until an operator takes it out", c.source.text(), m.Standing)
		}
		return m
	}
	if !m.Standing.linked() && !m.Declared {
		m.Group, m.AgentURL, m.Source = said[0].Group, said[0].AgentURL, c.source
		if m.Ambiguous = len(said) > 1; m.Ambiguous {
			m.Notice = fmt.Sprintf("%s announces it more than once, %s: say which with --group and --agent-url", c.source.text(), places(said))
		}
		return m
	}
	others := slices.DeleteFunc(slices.Clone(said), func(h Host) bool { return samePlace(h, m.Group, m.AgentURL) })
	switch {
	case len(others) == 0:
	case m.Declared:
		m.Notice = fmt.Sprintf("%s announces it %s; %s decides", c.source.text(), places(others), FromFile.text())
	case len(others) < len(said):
		m.Notice = fmt.Sprintf("%s announces it also %s: that is not followed", c.source.text(), places(others))
	default:
		m.Notice = fmt.Sprintf("%s announces it %s, which is not followed, since it is %s: if it has moved, cutover lb remove %s and then cutover lb admit %s",
			c.source.text(), places(others), m.Standing, m.Host, m.Host)
	}
	return m
}

func places(hosts []Host) string {
	var out []string
	for i, h := range hosts {
		if i == maxPlaces {
			out = append(out, fmt.Sprintf("and %d more", len(hosts)-i))
			break
		}
		out = append(out, fmt.Sprintf("at %s in group %s", h.AgentURL, h.Group))
	}
	return strings.Join(out, ", ")
}

// Hear takes in what a catalog announces. It takes nobody into a View and nobody out; see Admissible.
func (r *Registry) Hear(l Listing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, had := r.heard, r.members
	r.heard = before.hear(r.groups, l)
	r.members = r.heard.members(had)
	r.logHeard(before, had)
}

// logHeard writes down what is new; mu is held.
func (r *Registry) logHeard(before catalog, had map[string]Membership) {
	log := r.opts.Logger.With("source", string(r.heard.source))
	switch {
	case before.problem == "" && r.heard.problem != "":
		log.Warn("the catalog cannot be read: everybody stays what he is", "error", r.heard.problem)
	case before.problem != "" && r.heard.problem == "":
		log.Info("the catalog can be read again")
	}
	if !slices.Equal(before.refused, r.heard.refused) {
		for _, text := range r.heard.refused {
			log.Warn("an entry of the catalog is not taken", "why", text)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.members)) {
		m, old := r.members[name], had[name]
		if m.Notice != "" && m.Notice != old.Notice {
			log.Warn("the catalog is not followed", "host", name, "standing", m.Standing, "why", m.Notice)
		}
		if m.onlyAnnounced() && (old.Host == "" || old.AgentURL != m.AgentURL) {
			log.Info("host announced", "host", name, "group", m.Group, "agent_url", m.AgentURL)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(had)) {
		if _, ok := r.members[name]; !ok {
			log.Info("host announced no longer, and it was never admitted", "host", name)
		}
	}
}

// Admissible names the Hosts that are announced in Groups which admit whoever is announced.
func (r *Registry) Admissible() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []string
	for name, m := range r.members {
		if admissible(m, r.groups[m.Group]) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func admissible(m Membership, g Group) bool {
	return m.Standing == Announced && m.Announced && !m.Ambiguous && g.Admit == AdmitAnnounced
}

// AdmitAnnounced is what becomes of a Host by its Group's policy; false if that does not let it in, or no longer.
func (r *Registry) AdmitAnnounced(host string, now time.Time) (Membership, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	m, ok := r.members[host]
	if !ok || !admissible(m, r.groups[m.Group]) {
		return m, false
	}
	m.Standing = Joining
	m.Last = Change{Actor: "cutover", Reason: fmt.Sprintf("announced by %s, and group %s admits whoever is announced", m.Source.text(), m.Group), At: now}
	return m, true
}

// Sources says what is known of the catalogs that announce Hosts.
func (r *Registry) Sources() []txn.SourceInfo {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !r.opts.Catalog {
		return nil
	}
	c := r.heard
	out := txn.SourceInfo{Source: string(FromConsul), HeardAt: c.heardAt, Hosts: len(c.said), Refused: c.refused, Problem: c.problem, Since: c.since}
	if !c.known && c.problem == "" {
		out.Problem = "it has not been read yet"
	}
	return []txn.SourceInfo{out}
}
