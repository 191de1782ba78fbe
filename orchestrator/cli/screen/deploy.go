package screen

import (
	"fmt"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// Header is the first line about a Deploy: its id first, then what moves where.
func Header(v deploy.View, s Style) string {
	line := s.bold(Clean(v.DeployID)) + "  " + orDash(Clean(v.Kind)) + " " + s.bold(Clean(v.App)) + "  " + Move(v)
	if v.Actor != "" {
		line += "  by " + Clean(v.Actor)
	}
	return line
}

// Move says from which Spec to which: "spec 3 -> 4 (1.4.2)".
func Move(v deploy.View) string {
	if len(v.Apps) > 0 {
		var parts []string
		for _, d := range v.Apps {
			parts = append(parts, Clean(d.App)+" "+Move(d))
		}
		return strings.Join(parts, ", ")
	}
	from, to := "none", "none"
	if v.FromSpec > 0 {
		from = fmt.Sprint(v.FromSpec)
	}
	if v.Spec > 0 && v.Kind != string(deploy.KindStop) {
		to = fmt.Sprint(v.Spec)
	}
	line := "spec " + from + " -> " + to
	if v.Version != "" && to != "none" {
		line += " (" + Clean(v.Version) + ")"
	}
	return line
}

// Event is an event as an appended line, with its time since the Deploy's start; "" for one that people need not see.
func Event(e deploy.Event, started time.Time, s Style) string {
	msg, _ := firstLine(e.Msg)
	var text string
	switch e.Type {
	case "end":
		return "" // the outcome follows
	case "step":
		text = s.bold(Clean(e.Step))
		if msg != "" {
			text += ": " + msg
		}
	case "host":
		text = Clean(e.Host) + ": " + msg + proved(e, s)
	case "task":
		text = Clean(e.Task) + ": " + msg
	default:
		text = msg
	}
	if e.View != nil && len(e.View.Apps) > 0 {
		text = Clean(e.App) + ": " + text
	}
	return fmt.Sprintf("%9s  %-4s  %s", "+"+Duration(e.At.Sub(started)), Clean(e.Type), text)
}

// proved adds what the Host's proxy reported to the event of its vote.
func proved(e deploy.Event, s Style) string {
	if e.View == nil {
		return ""
	}
	for _, h := range e.View.Hosts {
		if h.Name == e.Host && h.Evidence != nil && len(h.Evidence.Upstreams) > 0 {
			registered, healthy, all := count(h)
			return s.dim(fmt.Sprintf("  (proxy reports %d/%d registered, %d/%d healthy)", registered, all, healthy, all))
		}
	}
	return ""
}

func count(h deploy.HostView) (registered, healthy, all int) {
	if h.Evidence == nil {
		return 0, 0, 0
	}
	for _, u := range h.Evidence.Upstreams {
		if u.Registered {
			registered++
		}
		if u.Healthy {
			healthy++
		}
	}
	return registered, healthy, len(h.Evidence.Upstreams)
}

// Waiting says what a Deploy waits for now, in one line.
func Waiting(v deploy.View) string {
	var names []string
	what := ""
	switch deploy.StepName(v.Step) {
	case deploy.StepLaunching, deploy.StepChecking:
		what = "tasks to be healthy"
		for _, t := range v.Tasks {
			if t.Role != "old" && t.Health != "healthy" {
				name := Clean(t.ID)
				if t.Message != "" {
					msg, _ := firstLine(t.Message)
					name += " (" + msg + ")"
				}
				names = append(names, name)
			}
		}
	case deploy.StepGathering:
		what = "the other Apps of the lock-step to be ready"
	case deploy.StepPreparing:
		what, names = "hosts to be ready", hostsWithout(v, deploy.VoteReady, deploy.VoteVerified)
	case deploy.StepActivating, deploy.StepCommitting:
		what, names = "hosts to verify", hostsWithout(v, deploy.VoteVerified)
		if len(names) == 0 {
			what = "the decision to be recorded"
		}
	case deploy.StepRestoring, deploy.StepRestoreStuck:
		what, names = "hosts to restore", hostsWithout(v, deploy.VoteAborted)
	case deploy.StepDraining, deploy.StepDrainStuck:
		what = "old upstreams to drain"
		if v.Drain != nil {
			names = v.Drain.Waiting
		}
	default:
		return "step " + orDash(Clean(v.Step))
	}
	if len(names) == 0 {
		return what
	}
	const most = 6
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	return what + ": " + Clean(strings.Join(names, ", ")) + more
}

func hostsWithout(v deploy.View, votes ...deploy.Vote) []string {
	var names []string
hosts:
	for _, h := range v.Hosts {
		for _, vote := range votes {
			if h.Vote == vote {
				continue hosts
			}
		}
		names = append(names, h.Name)
	}
	return names
}

// Steps lists the steps with the time that each took.
func Steps(v deploy.View, now time.Time, s Style) []string {
	var out []string
	widest := len("STUCK")
	if s.Marks {
		widest = 1
	}
	for i, step := range v.Steps {
		last := i == len(v.Steps)-1
		if last && deploy.StepName(step.Step) == deploy.StepDone {
			continue
		}
		end := now
		if !last {
			end = v.Steps[i+1].At
		}
		mark, name := "done", s.good
		switch {
		case last && v.State == deploy.Stuck:
			mark, name = "STUCK", s.bad
		case last:
			mark, name = "now", s.warn
		}
		if s.Marks {
			mark = map[string]string{"done": "✓", "now": "▸", "STUCK": "✗"}[mark]
		}
		pad := strings.Repeat(" ", max(0, widest-visible(mark)))
		out = append(out, fmt.Sprintf("  %s%s %-14s %8s", name(mark), pad, Clean(step.Step), Duration(end.Sub(step.At))))
	}
	return out
}

func paintVote(vote deploy.Vote, s Style) string {
	switch vote {
	case deploy.VoteVerified:
		return s.good(string(vote))
	case deploy.VoteFailed:
		return s.bad(string(vote))
	case deploy.VoteReady, deploy.VoteAborted:
		return s.warn(string(vote))
	default:
		return Clean(string(vote))
	}
}

// Hosts is the table of Hosts: vote, generation, and each upstream as the proxy itself reported it.
func Hosts(v deploy.View, s Style) []string {
	if len(v.Apps) > 0 {
		var out []string
		for _, d := range v.Apps {
			if hosts := Hosts(d, s); len(hosts) > 0 {
				out = append(append(out, s.bold(Clean(d.App))+" ("+Clean(d.DeployID)+")"), hosts...)
			}
		}
		return out
	}
	if len(v.Hosts) == 0 {
		return nil
	}
	t := table{head: []string{"HOST", "GROUP", "PROXY", "VOTE", "GEN", "UPSTREAM", "ADDRESS", "REGISTERED", "HEALTHY", "STATUS"}}
	for _, h := range v.Hosts {
		lead := []string{Clean(h.Name), Clean(h.Group), orDash(Clean(h.Proxy)), paintVote(h.Vote, s), "-"}
		if h.Evidence == nil || len(h.Evidence.Upstreams) == 0 {
			note := "none reported"
			if h.Evidence != nil {
				lead[4] = fmt.Sprint(h.Evidence.Generation)
				note = "none in the target"
			}
			t.add(append(lead, s.dim(note), "-", "-", "-", "-")...)
			continue
		}
		lead[4] = fmt.Sprint(h.Evidence.Generation)
		for _, u := range h.Evidence.Upstreams {
			t.add(append(lead, Clean(u.Name), Clean(u.Address), yesNo(s, u.Registered), yesNo(s, u.Healthy), Clean(u.Status))...)
			lead = []string{"", "", "", "", ""}
		}
	}
	return t.lines(s)
}

// HostSummaries is one line for each Host, where Hosts would be too long.
func HostSummaries(v deploy.View, s Style) []string {
	if len(v.Hosts) == 0 {
		return nil
	}
	t := table{head: []string{"HOST", "GROUP", "PROXY", "VOTE", "GEN", "REGISTERED", "HEALTHY", "REASON"}}
	for _, h := range v.Hosts {
		registered, healthy, all := count(h)
		gen, reg, ok := "-", "-", "-"
		if h.Evidence != nil {
			gen, reg, ok = fmt.Sprint(h.Evidence.Generation), fmt.Sprintf("%d/%d", registered, all), fmt.Sprintf("%d/%d", healthy, all)
		}
		reason, _ := firstLine(h.Reason)
		t.add(Clean(h.Name), Clean(h.Group), orDash(Clean(h.Proxy)), paintVote(h.Vote, s), gen, reg, ok, reason)
	}
	return t.lines(s)
}

// Frame is the whole picture of a Deploy that goes on, for a terminal of the given size.
func Frame(v deploy.View, notes []string, now time.Time, width, height int, hint string, s Style) []string {
	out := append([]string{Header(v, s)}, Steps(v, now, s)...)
	healthy, wanted := 0, 0
	for _, t := range v.Tasks {
		if t.Role != "old" {
			wanted++
			if t.Health == "healthy" {
				healthy++
			}
		}
	}
	if wanted > 0 {
		out = append(out, fmt.Sprintf("  tasks   %d of %d healthy", healthy, wanted))
	}
	tail := []string{s.dim("  waiting for " + Waiting(v))}
	for _, n := range notes {
		tail = append(tail, s.warn("  "+Clean(n)))
	}
	tail = append(tail, s.dim(hint))
	hosts := Hosts(v, s)
	if len(out)+len(hosts)+len(tail) >= height {
		hosts = HostSummaries(v, s)
	}
	out = append(append(out, hosts...), tail...)
	if len(out) >= height && height > 2 { // Never more than fits, or redrawing would scroll: the end is what matters.
		out = append(out[:1:1], out[len(out)-height+2:]...)
	}
	for i := range out {
		out[i] = Cut(out[i], width)
	}
	return out
}
