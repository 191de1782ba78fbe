package participant

import (
	"slices"

	"github.com/cutover/cutover/lbagent/driver"
)

// want is the Section that the proxy should hold: the heart of the machine. It is a function of what is journaled (sec,
// and t, the transaction open on it or nil) and of how far a restore has come.
//
//	no transaction            committed serving, replaced ones draining until they are gone
//	PREPARING (staged), READY + the target's new ones warm
//	ACTIVATING .. FAILED      target serving, what it replaces draining
//	... in fallback           both serving
//	RESTORING                 committed serving; the target's new ones serving, until one of the committed can serve,
//	                          then draining for a moment (requests under way end well), then gone
func want(sec *SectionState, t *Txn, stage restoreStage) driver.Section {
	b := wantBuilder{app: sec.App}
	var c *TxnChange
	if t != nil {
		c = t.change(sec.App)
	}
	switch {
	case c == nil:
		b.base(sec)
	case t.Phase.restoring():
		b.routes(sec.Committed.Routes)
		b.add(driver.Serving, sec.Committed.Upstreams...)
		if stage == keepTarget {
			if t.Activated {
				b.routes(c.Target.Routes)
				b.add(driver.Serving, c.Target.Upstreams...)
			}
			b.draining(sec)
			b.add(driver.Warm, c.Replacements...)
			break
		}
		b.add(driver.Serving, c.Replacements...)
		b.draining(sec)
		if stage == drainTarget {
			b.add(driver.Draining, c.Target.Upstreams...)
		}
	case t.Activated:
		b.routes(c.Target.Routes)
		b.add(driver.Serving, c.Target.Upstreams...)
		if t.Fallback {
			b.routes(sec.Committed.Routes)
			b.add(driver.Serving, sec.Committed.Upstreams...)
		} else {
			b.add(driver.Draining, sec.Committed.Upstreams...)
		}
		for _, d := range sec.Draining {
			b.add(driver.Draining, d.Upstream)
		}
	default:
		b.base(sec)
		b.add(driver.Warm, c.Target.Upstreams...)
	}
	return b.section()
}

// baseWant is want with no transaction open: what an Abort goes back to.
func baseWant(sec *SectionState) driver.Section { return want(sec, nil, undone) }

// restoreStage is how far the restore of one Section has come.
type restoreStage uint8

const (
	keepTarget  restoreStage = iota // the target serves on, beside the old Section
	drainTarget                     // the target gets no new request
	undone                          // as before Prepare
)

// published is the part of a want that belongs in the files: all but the warm ones.
func published(w driver.Section) driver.Section {
	w.Upstreams = slices.DeleteFunc(slices.Clone(w.Upstreams), func(u driver.Upstream) bool { return u.Mode == driver.Warm })
	return w
}

// Published returns what the files of an App should say by the journal alone, as it is when an agent starts; false: the
// journal does not say what the proxy should hold.
func (d Durable) Published(app string) (driver.Section, bool) {
	sec := d.Sections[app]
	var open *Txn
	for _, t := range d.Txns {
		if t.change(app) != nil {
			open = t
		}
	}
	if open == nil && (sec == nil || sec.Stray) {
		return driver.Section{}, false
	}
	if sec == nil {
		sec = &SectionState{App: app, Committed: Section{App: app}}
	}
	return published(want(sec, open, keepTarget)), true
}

// hasWarm: some of w is registered only, which no published file tells.
func hasWarm(w driver.Section) bool {
	return slices.ContainsFunc(w.Upstreams, func(u driver.Upstream) bool { return u.Mode == driver.Warm })
}

// wantBuilder adds upstreams by name; the first mode given to a name stays.
type wantBuilder struct {
	app  string
	r    []driver.Route
	ups  []driver.Upstream
	seen map[string]bool
}

func (b *wantBuilder) base(sec *SectionState) {
	b.routes(sec.Committed.Routes)
	b.add(driver.Serving, sec.Committed.Upstreams...)
	b.draining(sec)
}

func (b *wantBuilder) draining(sec *SectionState) {
	for _, d := range sec.Draining {
		if d.Held {
			b.add(driver.Serving, d.Upstream)
		} else {
			b.add(driver.Draining, d.Upstream)
		}
	}
}

func (b *wantBuilder) routes(routes []driver.Route) {
	for _, r := range routes {
		if !slices.ContainsFunc(b.r, func(x driver.Route) bool { return x.Host == r.Host && x.Path == r.Path }) {
			b.r = append(b.r, r)
		}
	}
}

func (b *wantBuilder) add(mode driver.Mode, ups ...Upstream) {
	if b.seen == nil {
		b.seen = map[string]bool{}
	}
	for _, u := range ups {
		if b.seen[u.Name] {
			continue
		}
		b.seen[u.Name] = true
		b.ups = append(b.ups, driver.Upstream{Name: u.Name, Address: u.Address, Weight: u.Weight, Mode: mode, Health: u.Health})
	}
}

func (b *wantBuilder) section() driver.Section {
	return driver.Section{App: b.app, Routes: driver.SortedRoutes(b.r), Upstreams: driver.SortedUpstreams(b.ups)}
}

// fresh returns the target's upstreams that the committed Section does not have: those that need proof.
func fresh(sec *SectionState, c *TxnChange) []Upstream {
	return slices.DeleteFunc(slices.Clone(c.Target.Upstreams), func(u Upstream) bool { return sec.Committed.has(u.Name) })
}
