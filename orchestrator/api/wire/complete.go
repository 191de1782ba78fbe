package wire

import "github.com/cutover/cutover/orchestrator/deploy"

// Complete returns v with empty lists in the place of nil ones, so that JSON shows [] and never null. The argument's own
// slices are not written to: they may be shared with the engine.
func Complete(v deploy.View) deploy.View {
	v.Tasks = some(v.Tasks)
	v.Steps = some(v.Steps)
	hosts := make([]deploy.HostView, len(v.Hosts))
	copy(hosts, v.Hosts)
	for i := range hosts {
		if e := hosts[i].Evidence; e != nil && e.Upstreams == nil {
			full := *e
			full.Upstreams = []deploy.UpstreamView{}
			hosts[i].Evidence = &full
		}
	}
	v.Hosts = hosts
	if len(v.Apps) > 0 {
		apps := make([]deploy.View, len(v.Apps))
		for i := range v.Apps {
			apps[i] = Complete(v.Apps[i])
		}
		v.Apps = apps
	}
	return v
}

// CompleteEvent is Complete for the View inside an Event.
func CompleteEvent(e deploy.Event) deploy.Event {
	if e.View != nil {
		v := Complete(*e.View)
		e.View = &v
	}
	return e
}

// CompleteApp is Complete for an App.
func CompleteApp(a deploy.AppView) deploy.AppView {
	a.Routes = some(a.Routes)
	return a
}

// CompleteHost is Complete for a Host.
func CompleteHost(h Host) Host {
	h.OpenTxns, h.Problems, h.Limits = some(h.OpenTxns), some(h.Problems), some(h.Limits)
	if h.Traffic != nil {
		t := *h.Traffic
		t.Reasons = some(t.Reasons)
		h.Traffic = &t
	}
	return h
}

// CompleteHosts is Complete for a list of Hosts.
func CompleteHosts(l HostList) HostList {
	out := HostList{Hosts: make([]Host, len(l.Hosts)), Sources: make([]Source, len(l.Sources))}
	for i, h := range l.Hosts {
		out.Hosts[i] = CompleteHost(h)
	}
	for i, s := range l.Sources {
		s.Refused = some(s.Refused)
		out.Sources[i] = s
	}
	return out
}

// CompleteShow is Complete for what one Host shows.
func CompleteShow(s HostShow) HostShow {
	s.Host = CompleteHost(s.Host)
	sections := make([]SectionShow, len(s.Sections))
	copy(sections, s.Sections)
	for i := range sections {
		sections[i].Routes = some(sections[i].Routes)
		sections[i].Committed = some(sections[i].Committed)
		sections[i].Running = some(sections[i].Running)
	}
	s.Sections = sections
	return s
}

// CompleteDrift is Complete for what differs on one Host.
func CompleteDrift(d HostDrift) HostDrift {
	d.Host = CompleteHost(d.Host)
	d.Differences, d.Repaired = some(d.Differences), some(d.Repaired)
	return d
}

func some[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// CompleteResolution is Complete for a Resolution.
func CompleteResolution(r Resolution) Resolution {
	hosts := make([]HostResolution, len(r.Hosts))
	copy(hosts, r.Hosts)
	for i := range hosts {
		hosts[i].Remaining, hosts[i].Serves = some(hosts[i].Remaining), some(hosts[i].Serves)
	}
	r.Hosts = hosts
	return r
}
