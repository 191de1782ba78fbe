package screen

import (
	"fmt"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/api/wire"
)

// HostError is a Host that could not be asked.
type HostError struct {
	Host  string `json:"host"`
	Error string `json:"error"`
}

// causes are the likely causes in words.
var causes = map[string]string{
	"edited-file":     "somebody changed a file",
	"foreign-command": "somebody gave the running proxy a command",
	"restarted-proxy": "the proxy was restarted or reloaded and came back with something else",
	"changed-base":    "the owner's configuration changed",
	"unknown-section": "the host's journal does not know it",
	"refused":         "the proxy does not take, or does not keep, what should run",
}

// LBDrift is what differs on the Hosts, each with its diff.
func LBDrift(hosts []wire.HostDrift, unknown []HostError, now time.Time, s Style) []string {
	var out []string
	for i, h := range hosts {
		if i > 0 {
			out = append(out, "")
		}
		out = append(out, hostDrift(h, now, s)...)
	}
	for _, u := range unknown {
		if len(out) > 0 {
			out = append(out, "")
		}
		out = append(out, fmt.Sprintf("%s  %s: %s", s.bold(Clean(u.Host)), s.bad("not known"), Clean(u.Error)))
	}
	if len(out) == 0 {
		return LBHosts(wire.HostList{}, now, s)
	}
	return out
}

func hostDrift(d wire.HostDrift, now time.Time, s Style) []string {
	h := d.Host
	head := fmt.Sprintf("%s  group %s  %s %s  policy %s  ", s.bold(Clean(h.Name)), Clean(h.Group), orDash(Clean(h.Proxy)), Clean(h.ProxyVersion), orDash(Clean(d.Policy)))
	n := len(d.Differences) + d.LeftOut
	switch {
	case n == 1:
		head += s.bad("1 difference")
	case n > 1:
		head += s.bad(fmt.Sprintf("%d differences", n))
	case len(h.Problems) > 0:
		head += s.warn("nothing differs, as far as it could be read")
	default:
		head += s.good("nothing differs")
	}
	out := append([]string{head}, hostProblems(h, s)...)
	for _, one := range d.Differences {
		out = append(out, "")
		out = append(out, oneDrift(one, d.Policy, now, s)...)
	}
	if d.LeftOut > 0 {
		out = append(out, "", fmt.Sprintf("%d more are not listed", d.LeftOut))
	}
	for i, one := range d.Repaired {
		if i == 0 {
			out = append(out, "", "put right lately:")
		}
		after := ""
		if one.RepairedAt != nil {
			after = fmt.Sprintf("%s ago, after %s", Duration(now.Sub(*one.RepairedAt)), Duration(one.RepairedAt.Sub(one.Since)))
		}
		out = append(out, fmt.Sprintf("  %s  %s  %s: %s", s.dim(after), orDash(Clean(one.App)), Clean(one.Place), Clean(one.Summary)))
	}
	return out
}

func oneDrift(d wire.Drift, policy string, now time.Time, s Style) []string {
	what := Clean(d.App)
	if what == "" {
		what = "(no App)"
	}
	cause := causes[d.Cause]
	if cause == "" {
		cause = Clean(d.Cause)
	}
	doing := "being put right"
	switch {
	case d.Manual:
		doing = "only the owner of the proxy can put it right"
	case d.Left:
		doing = "left alone: the group's policy is " + orDash(Clean(policy))
	}
	out := []string{
		fmt.Sprintf("%s  %s", s.bold(what), Clean(d.Place)),
		"  " + Clean(d.Summary),
		fmt.Sprintf("  likely cause: %s (%s), first seen %s ago; %s", cause, Clean(d.Cause), Duration(now.Sub(d.Since)), doing),
	}
	for line := range strings.Lines(d.Diff) {
		line = Clean(line)
		switch {
		case strings.HasPrefix(line, "-"):
			line = s.bad(line)
		case strings.HasPrefix(line, "+"):
			line = s.good(line)
		}
		out = append(out, "  "+line)
	}
	return out
}
