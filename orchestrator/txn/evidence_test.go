package txn

import (
	"strings"
	"testing"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"
)

const (
	serving  = lbagentv1.UpstreamMode_UPSTREAM_MODE_SERVING
	draining = lbagentv1.UpstreamMode_UPSTREAM_MODE_DRAINING
	warm     = lbagentv1.UpstreamMode_UPSTREAM_MODE_WARM
)

func section(names ...string) *lbagentv1.Section {
	s := &lbagentv1.Section{App: "shop"}
	for _, n := range names {
		s.Upstreams = append(s.Upstreams, &lbagentv1.Upstream{Name: n, Address: "127.0.0.1:80"})
	}
	return s
}

func row(name string, mode lbagentv1.UpstreamMode, healthy bool) *lbagentv1.UpstreamStatus {
	return &lbagentv1.UpstreamStatus{Name: name, Address: "127.0.0.1:80", Mode: mode, Registered: true, Healthy: healthy, Status: "L4CON"}
}

func reading(rows ...*lbagentv1.UpstreamStatus) *lbagentv1.Evidence {
	return &lbagentv1.Evidence{App: "shop", Process: &lbagentv1.Process{WorkerPid: 7}, Upstreams: rows, Version: &lbagentv1.Version{Txn: 5}}
}

func TestCheckVerified(t *testing.T) {
	unregistered := row("b", serving, true)
	unregistered.Registered = false
	moved := row("b", serving, true)
	moved.Address = "127.0.0.1:81"
	nobody := reading(row("b", serving, true))
	nobody.Process = nil
	for name, tc := range map[string]struct {
		target, base *lbagentv1.Section
		dead         map[string]bool
		evidence     *lbagentv1.Evidence
		want         string // part of the error; "" means none
	}{
		"exact":                 {section("a", "b"), section("a", "x"), nil, reading(row("a", serving, true), row("b", serving, true), row("x", draining, true)), ""},
		"kept one is red":       {section("a", "b"), section("a"), nil, reading(row("a", serving, false), row("b", serving, true)), ""},
		"new one is red":        {section("a", "b"), section("a"), nil, reading(row("a", serving, true), row("b", serving, false)), "new upstream b is not healthy: L4CON"},
		"all kept ones are red": {section("a"), section("a"), nil, reading(row("a", serving, false)), "no upstream of the target is healthy"},
		"missing":               {section("a", "b"), section("a"), nil, reading(row("a", serving, true)), "b is not registered"},
		"not registered":        {section("b"), nil, nil, reading(unregistered), "b is not registered"},
		"only warm":             {section("b"), nil, nil, reading(row("b", warm, true)), "b is not routable"},
		"another address":       {section("b"), nil, nil, reading(moved), "127.0.0.1:81"},
		"one too many":          {section("b"), section("a"), nil, reading(row("a", serving, true), row("b", serving, true)), "a is routable and not in the target"},
		"dead one left":         {section("a", "b"), section("a"), map[string]bool{"a": true}, reading(row("b", serving, true)), ""},
		"dead one not yet":      {section("a", "b"), section("a"), map[string]bool{"a": true}, reading(row("a", serving, false), row("b", serving, true)), ""},
		"removal":               {nil, section("a"), nil, reading(row("a", draining, true)), ""},
		"removal that was not":  {nil, section("a"), nil, reading(row("a", serving, true)), "not in the target"},
		"stop to empty":         {section(), section("a"), nil, reading(row("a", draining, true)), ""},
		"no evidence":           {section("b"), nil, nil, nil, "does not speak of shop"},
		"no process":            {section("b"), nil, nil, nobody, "does not name the proxy process"},
	} {
		t.Run(name, func(t *testing.T) {
			var evidence []*lbagentv1.Evidence
			if tc.evidence != nil {
				evidence = append(evidence, tc.evidence)
			}
			err := CheckVerified("shop", tc.target, tc.base, tc.dead, evidence)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestCheckAborted(t *testing.T) {
	if err := CheckAborted([]string{"shop"}, &lbagentv1.Aborted{NeverActivated: true}); err != nil {
		t.Error(err)
	}
	if err := CheckAborted([]string{"shop"}, &lbagentv1.Aborted{Evidence: []*lbagentv1.Evidence{reading()}}); err != nil {
		t.Error(err)
	}
	for _, a := range []*lbagentv1.Aborted{{}, {Evidence: []*lbagentv1.Evidence{{App: "shop"}}}} {
		if CheckAborted([]string{"shop"}, a) == nil {
			t.Errorf("an Aborted without what was read back was taken: %v", a)
		}
	}
}

// TestReleasedOn: only what the Host said, at the version that matters, releases a name (NO-ORPHAN-KILL).
func TestReleasedOn(t *testing.T) {
	drained := row("a", draining, true)
	drained.Drained, drained.Forced = true, true
	unread := reading()
	unread.Process = nil
	report := func(txn, amendments uint64, e *lbagentv1.Evidence) *lbagentv1.SectionReport {
		v := &lbagentv1.Version{Txn: txn, Amendments: amendments}
		if e != nil {
			e.Version = v
		}
		return &lbagentv1.SectionReport{App: "shop", Version: v, Evidence: e}
	}
	gone := report(5, 0, nil)
	gone.Removed = true
	for name, tc := range map[string]struct {
		known            bool
		report           *lbagentv1.SectionReport
		released, forced bool
	}{
		"never heard of the host": {},
		"app is not there":        {known: true, released: true},
		"older version":           {known: true, report: report(4, 9, reading())},
		"amendment not there yet": {known: true, report: report(5, 0, reading())},
		"absent":                  {known: true, report: report(5, 1, reading(row("b", serving, true))), released: true},
		"newer version":           {known: true, report: report(6, 0, reading(row("b", serving, true))), released: true},
		"serving":                 {known: true, report: report(5, 1, reading(row("a", serving, true)))},
		"draining":                {known: true, report: report(5, 1, reading(row("a", draining, true)))},
		"warm":                    {known: true, report: report(5, 1, reading(row("a", warm, true)))},
		"drained, forced":         {known: true, report: report(5, 1, reading(drained)), released: true, forced: true},
		"not read yet":            {known: true, report: report(5, 1, nil)},
		"agent just started":      {known: true, report: report(5, 1, unread)},
	} {
		t.Run(name, func(t *testing.T) {
			h := HostReports{Known: tc.known, Sections: map[string]*lbagentv1.SectionReport{}}
			if tc.report != nil {
				h.Sections["shop"] = tc.report
			}
			released, forced := ReleasedOn(h, "shop", "a", &lbagentv1.Version{Txn: 5, Amendments: 1})
			if released != tc.released || forced != tc.forced {
				t.Errorf("released %t, forced %t, want %t, %t", released, forced, tc.released, tc.forced)
			}
		})
	}
	h := HostReports{Known: true, Sections: map[string]*lbagentv1.SectionReport{"shop": gone}}
	if ok, _ := ReleasedOn(h, "shop", "a", &lbagentv1.Version{Txn: 5}); !ok {
		t.Error("a removed section without a reading holds a")
	}
}

func TestDisagreement(t *testing.T) {
	committed := &lbagentv1.CommittedSection{Section: section("a", "b"), Version: &lbagentv1.Version{Txn: 5, Amendments: 1}}
	removed := &lbagentv1.CommittedSection{Section: section(), Version: &lbagentv1.Version{Txn: 6}, Removed: true}
	at := func(txn, amendments uint64, rows ...*lbagentv1.UpstreamStatus) *lbagentv1.SectionReport {
		v := &lbagentv1.Version{Txn: txn, Amendments: amendments}
		e := reading(rows...)
		e.Version = v
		return &lbagentv1.SectionReport{App: "shop", Version: v, Evidence: e}
	}
	both := []*lbagentv1.UpstreamStatus{row("a", serving, true), row("b", serving, false), row("x", draining, true)}
	open := at(4, 0)
	open.Open = &lbagentv1.OpenTxn{TxnId: "t"}
	unread := at(5, 1)
	unread.Evidence.Process = nil
	tombstone := at(6, 0)
	tombstone.Removed = true
	for name, tc := range map[string]struct {
		committed *lbagentv1.CommittedSection
		report    *lbagentv1.SectionReport
		want      string
	}{
		"agrees":              {committed, at(5, 1, both...), ""},
		"transaction open":    {committed, open, ""},
		"neither has it":      {nil, nil, ""},
		"lacks it":            {committed, nil, "lacks the Section"},
		"stray":               {nil, at(0, 0, both...), "the group does not"},
		"tombstone of old":    {nil, tombstone, ""},
		"older":               {committed, at(4, 1, both...), "another version"},
		"newer":               {committed, at(7, 0, both...), "another version"},
		"lacks an amendment":  {committed, at(5, 0, both...), "lacks an amendment"},
		"counts more of them": {committed, at(5, 2, both...), ""},
		"lacks a name":        {committed, at(5, 1, both[0]), "it lacks b"},
		"routes to another":   {committed, at(5, 1, append(both, row("z", serving, true))...), "it routes to z"},
		"agent just started":  {committed, unread, ""},
		"removed":             {removed, tombstone, ""},
		"not removed":         {removed, at(5, 1, both...), "another version"},
		"removal unknown":     {removed, nil, "does not know of the removal"},
	} {
		t.Run(name, func(t *testing.T) {
			h := HostReports{Known: true, Sections: map[string]*lbagentv1.SectionReport{}}
			if tc.report != nil {
				h.Sections["shop"] = tc.report
			}
			got := Disagreement(h, "shop", tc.committed)
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
