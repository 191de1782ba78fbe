package screen

import (
	"fmt"
	"slices"
	"time"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// LBHost is where one Host stands, after a command that changed it.
func LBHost(h wire.Host, s Style) []string {
	line := fmt.Sprintf("%s  group %s  %s", s.bold(Clean(h.Name)), orDash(Clean(h.Group)), standing(h, s))
	if h.Membership.View > 0 {
		line += fmt.Sprintf("  view %d", h.Membership.View)
	}
	out := []string{line}
	if h.Membership.Proof != "" {
		out = append(out, "  no traffic: "+Clean(h.Membership.Proof))
	}
	if h.Membership.Waiting != "" {
		out = append(out, s.warn("  it is not a member yet: "+Clean(h.Membership.Waiting)))
	}
	return append(out, hostProblems(h, s)...)
}

// standing is a Host's standing with its traffic, in a word or two.
func standing(h wire.Host, s Style) string {
	word := orDash(Clean(h.Membership.Standing))
	switch {
	case h.Membership.Drained:
		word += ", drained"
		if t := h.Traffic; t != nil && t.Counted {
			word += fmt.Sprintf(" (%d clients)", t.Sessions)
		}
		return s.warn(word)
	case h.Membership.Standing != "member":
		return s.warn(word)
	case h.Traffic != nil && h.Connected && !h.Traffic.Ready:
		return s.bad(word + ", not ready")
	}
	return word
}

// Resolution is what became of a request to settle what is stuck.
func Resolution(r wire.Resolution, s Style) []string {
	var out []string
	for _, h := range r.Hosts {
		if h.Resolved {
			out = append(out, s.bold(Clean(h.Name))+": "+s.good("nothing is left to settle"))
			continue
		}
		out = append(out, s.bold(Clean(h.Name))+": "+s.bad("not settled"))
		for _, left := range h.Remaining {
			out = append(out, "  "+Clean(left))
		}
		out = append(out, indent(serves(h.Serves, s), "  ")...)
		if h.Fix != "" {
			out = append(out, "  fix:  "+Clean(h.Fix))
		}
		if h.Next != "" {
			out = append(out, "  next: "+Clean(h.Next))
		}
	}
	return out
}

// serves is what proxies were read to serve.
func serves(list []deploy.ServesView, s Style) []string {
	var out []string
	for _, v := range list {
		out = append(out, fmt.Sprintf("serves of %s, read %s from proxy pid %d:", Clean(v.App), v.ReadAt.UTC().Format(time.RFC3339), v.ProxyPID))
		for _, u := range v.Upstreams {
			out = append(out, fmt.Sprintf("  %s %s %s, healthy %s, %s", Clean(u.Name), Clean(u.Address), orDash(Clean(u.Mode)), yesNo(s, u.Healthy), orDash(Clean(u.Status))))
		}
		if len(v.Upstreams) == 0 {
			out = append(out, "  nothing")
		}
	}
	return out
}

// StuckDeploys are the Deploys that are stuck, each with its Hosts, and an empty line behind.
func StuckDeploys(deploys []deploy.View, s Style) []string {
	var out []string
	for _, v := range deploys {
		out = append(out, s.bad("STUCK")+" "+Header(v, s))
		if len(v.Stuck) == 0 {
			reason, _ := firstLine(v.Reason)
			out = append(out, "  "+reason)
		}
		out = append(out, Stuck(v, s)...)
		if v.NextCommand != "" {
			out = append(out, "  next: "+Clean(v.NextCommand))
		}
		out = append(out, "")
	}
	return out
}

// needFirst puts the Hosts that need somebody at the top.
func needFirst(hosts []wire.Host) []wire.Host {
	rank := func(h wire.Host) int {
		switch {
		case len(h.OpenTxns) > 0 && len(h.Problems) > 0:
			return 0
		case len(h.Problems) > 0 || !h.Connected:
			return 1
		default:
			return 2
		}
	}
	hosts = slices.Clone(hosts)
	slices.SortStableFunc(hosts, func(a, b wire.Host) int { return rank(a) - rank(b) })
	return hosts
}

// Stuck is why a Deploy cannot be undone, Host by Host.
func Stuck(v deploy.View, s Style) []string {
	var out []string
	for _, h := range v.Stuck {
		out = append(out, fmt.Sprintf("  host %s (group %s): %s", s.bold(Clean(h.Host)), Clean(h.Group), s.bad(Clean(h.What))))
		out = append(out, indent(serves(h.Serves, s), "    ")...)
		out = append(out, "    fix:  "+Clean(h.Fix), "    then: "+Clean(h.Next))
	}
	return out
}

// HostChanges is the audit record of membership, newest first.
func HostChanges(list []wire.HostChange, s Style) []string {
	if len(list) == 0 {
		return []string{"nobody has changed the membership of a host"}
	}
	t := table{head: []string{"AT", "HOST", "GROUP", "WHAT", "FROM", "TO", "VIEW", "BY", "REASON", "PROOF"}}
	for _, c := range list {
		t.add(c.At.UTC().Format(time.RFC3339), Clean(c.Host), Clean(c.Group), Clean(c.What), orDash(Clean(c.From)), Clean(c.To), fmt.Sprint(c.View), Clean(c.Actor),
			orDash(Clean(c.Reason)), orDash(Clean(c.Proof)))
	}
	return t.lines(s)
}
