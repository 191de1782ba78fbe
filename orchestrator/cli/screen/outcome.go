package screen

import (
	"fmt"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// lastLines is how much of an output is shown after a failure.
const lastLines = 20

// Outcome is what is said when the wait for a Deploy is over.
func Outcome(v deploy.View, now time.Time, s Style) []string {
	var out []string
	cause, more := firstLine(v.Reason)
	if v.ReasonCode != "" && cause != "" {
		cause += " (" + Clean(v.ReasonCode) + ")"
	}
	switch v.State {
	case deploy.Succeeded:
		out = append(out, s.good("succeeded")+": "+summary(v))
		if v.ReasonCode == string(deploy.CodeDrainStuck) || v.ReasonCode == string(deploy.CodeUnchanged) {
			out = append(out, "  "+cause)
		}
		out = append(out, Hosts(v, s)...)
	case deploy.Running, "paused":
		out = append(out, s.warn("still "+Clean(string(v.State)))+": step "+Clean(v.Step)+", "+Duration(now.Sub(v.StartedAt))+" after its start; waiting for "+Waiting(v))
	default:
		out = append(out, s.bad(words(v.State))+": "+orDash(cause))
		out = append(out, indent(Lines(more, lastLines), "  ")...)
		out = append(out, culprits(v, s)...)
		out = append(out, Stuck(v, s)...)
		if len(v.Hosts) > 0 {
			out = append(out, HostSummaries(v, s)...)
		}
	}
	out = append(out, strings.Split("now:  "+Now(v), "\n")...)
	return out
}

func words(state deploy.State) string { return Clean(strings.ReplaceAll(string(state), "_", " ")) }

func summary(v deploy.View) string {
	text := Move(v)
	if v.CommittedAt != nil {
		text += ", committed " + Duration(v.CommittedAt.Sub(v.StartedAt)) + " after its start"
	}
	if v.Generation > 0 {
		text += fmt.Sprintf(", generation %d", v.Generation)
	}
	if len(v.Apps) > 0 {
		return text
	}
	return Clean(v.App) + " " + text
}

// culprits shows the Hosts that failed with what their checker printed, and the tasks that are the reason.
func culprits(v deploy.View, s Style) []string {
	var out []string
	for _, h := range v.Hosts {
		if h.Vote != deploy.VoteFailed && h.Reason == "" && h.Output == "" {
			continue
		}
		first, more := firstLine(h.Reason)
		line := fmt.Sprintf("  host %s (%s, group %s): %s", s.bold(Clean(h.Name)), orDash(Clean(h.Proxy)), Clean(h.Group), paintVote(h.Vote, s))
		if first != "" {
			line += ": " + first
		}
		out = append(out, line)
		out = append(out, indent(Lines(more, lastLines), "    ")...)
		out = append(out, indent(Lines(h.Output, lastLines), "    | ")...)
		if h.Evidence == nil {
			continue
		}
		for _, u := range h.Evidence.Upstreams {
			if !u.Registered || !u.Healthy {
				out = append(out, fmt.Sprintf("    upstream %s %s: registered %s, healthy %s, %s",
					Clean(u.Name), Clean(u.Address), yesNo(s, u.Registered), yesNo(s, u.Healthy), orDash(Clean(u.Status))))
			}
		}
	}
	for _, t := range v.Tasks {
		if t.Role == "old" || t.Message == "" || t.Health == "healthy" && t.State == "running" {
			continue
		}
		first, more := firstLine(t.Message)
		out = append(out, fmt.Sprintf("  task %s (%s, %s): %s", s.bold(Clean(t.ID)), Clean(t.State), Clean(t.Health), first))
		out = append(out, indent(Lines(more, lastLines), "    | ")...)
	}
	return out
}

// Now says what is served at this moment, as far as the Deploy's own record proves it.
func Now(v deploy.View) string {
	if len(v.Apps) > 0 && v.State != deploy.Stuck {
		var parts []string
		for _, d := range v.Apps {
			parts = append(parts, Now(d))
		}
		return strings.Join(parts, "\n      ")
	}
	app := Clean(v.App)
	switch v.State {
	case deploy.Succeeded:
		return serving(v) + draining(v)
	case deploy.RolledBack, deploy.Aborted, deploy.Superseded:
		before := fmt.Sprintf("%s is on spec %d as before", app, v.FromSpec)
		if v.FromSpec == 0 {
			before = app + " has no committed spec, as before, and no route"
		}
		back := 0
		for _, h := range v.Hosts {
			if h.Vote == deploy.VoteAborted {
				back++
			}
		}
		if back == 0 {
			return before + "; no host had been switched"
		}
		return fmt.Sprintf("%s; %s proved that %s back as before", before, plural(back, "host"), isAre(back))
	case deploy.Stuck:
		text := "old and new tasks are all kept alive, nothing is killed"
		missing := hostsWithout(v, deploy.VoteAborted)
		if asked := v.ReasonCode != string(deploy.CodeInTheWay) && v.ReasonCode != string(deploy.CodeUndecided); asked && len(missing) > 0 {
			text += "; no answer yet from " + Clean(strings.Join(missing, ", "))
		}
		return text + "; it ends by itself when the missing answer comes"
	default:
		if v.FromSpec == 0 {
			return app + " has no committed spec yet"
		}
		return fmt.Sprintf("%s is committed on spec %d", app, v.FromSpec)
	}
}

func isAre(n int) string {
	if n == 1 {
		return "it is"
	}
	return "they are"
}

func serving(v deploy.View) string {
	app := Clean(v.App)
	verified := 0
	for _, h := range v.Hosts {
		if h.Vote == deploy.VoteVerified {
			verified++
		}
	}
	switch {
	case v.Kind == string(deploy.KindStop) || v.Spec == 0:
		if len(v.Hosts) == 0 {
			return app + " is stopped"
		}
		return fmt.Sprintf("%s is stopped; its routes are gone from %d of %s", app, verified, plural(len(v.Hosts), "host"))
	case v.ReasonCode == string(deploy.CodeUnchanged):
		return fmt.Sprintf("%s is on spec %d, which has this content already", app, v.Spec)
	case len(v.Hosts) == 0:
		return fmt.Sprintf("%s runs spec %d", app, v.Spec)
	default:
		return fmt.Sprintf("%s serves spec %d, verified on %d of %s", app, v.Spec, verified, plural(len(v.Hosts), "host"))
	}
}

func draining(v deploy.View) string {
	switch d := v.Drain; {
	case d == nil:
		return ""
	case d.Done && d.Forced:
		return "; old upstreams were cut at the drain deadline"
	case d.Done:
		return "; old upstreams are drained"
	case len(d.Waiting) > 0:
		return "; old upstreams drain on " + Clean(strings.Join(d.Waiting, ", "))
	default:
		return "; old upstreams drain"
	}
}

// Next is the one command to run next, or "".
func Next(v deploy.View) string {
	if v.NextCommand != "" {
		return Clean(v.NextCommand)
	}
	switch v.State {
	case deploy.Running, "paused":
		return "cutover watch " + Clean(v.DeployID)
	case deploy.Stuck:
		return "cutover lb hosts"
	case deploy.RolledBack:
		for _, h := range v.Hosts {
			if h.Vote == deploy.VoteFailed {
				return "cutover lb show " + Clean(h.Name)
			}
		}
		return "cutover status " + Clean(v.App)
	default:
		return ""
	}
}
