package screen

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// Apps is the table of Apps.
func Apps(apps []deploy.AppView, s Style) []string {
	if len(apps) == 0 {
		return []string{"no Apps yet; start one with: cutover deploy -f app.yaml"}
	}
	t := table{head: []string{"APP", "KIND", "STATE", "SPEC", "VERSION", "HEALTHY", "ROUTES", "OPEN DEPLOY"}}
	var problems []string
	for _, a := range apps {
		state := Clean(a.State)
		if a.State == "running" && a.Healthy >= a.Instances {
			state = s.good(state)
		} else if a.State == "running" {
			state = s.warn(state)
		}
		spec := "-"
		if a.Spec > 0 {
			spec = fmt.Sprint(a.Spec)
		}
		t.add(Clean(a.Name), Clean(a.Kind), state, spec, orDash(Clean(a.Version)), fmt.Sprintf("%d/%d", a.Healthy, a.Instances),
			orDash(Clean(strings.Join(a.Routes, " "))), orDash(Clean(a.OpenDeploy)))
		for _, p := range a.Problems {
			problems = append(problems, s.warn(Clean(a.Name)+": "+Clean(p)))
		}
	}
	return append(t.lines(s), problems...)
}

// Tasks is the table of tasks.
func Tasks(tasks []deploy.TaskView, s Style) []string {
	if len(tasks) == 0 {
		return []string{"no tasks"}
	}
	t := table{head: []string{"TASK", "APP", "SPEC", "STATE", "HEALTH", "ROLE", "AGENT", "ADDRESS", "MESSAGE"}}
	for _, task := range tasks {
		health := Clean(task.Health)
		switch task.Health {
		case "healthy":
			health = s.good(health)
		case "unhealthy":
			health = s.bad(health)
		}
		message, _ := firstLine(task.Message)
		t.add(Clean(task.ID), Clean(task.App), fmt.Sprint(task.Spec), Clean(task.State), health, orDash(Clean(task.Role)),
			orDash(Clean(task.Agent)), orDash(Clean(task.Address)), message)
	}
	return t.lines(s)
}

// Deploys is the table of Deploys, newest first.
func Deploys(deploys []deploy.View, now time.Time, s Style) []string {
	if len(deploys) == 0 {
		return []string{"no Deploys yet"}
	}
	t := table{head: []string{"DEPLOY", "APP", "KIND", "SPEC", "STATE", "STEP", "AGE", "BY", "REASON"}}
	for _, v := range deploys {
		state := words(v.State)
		switch v.State {
		case deploy.Succeeded:
			state = s.good(state)
		case deploy.Running:
			state = s.warn(state)
		default:
			state = s.bad(state)
		}
		reason, _ := firstLine(v.Reason)
		t.add(Clean(v.DeployID), Clean(v.App), Clean(v.Kind), strings.TrimPrefix(Move(v), "spec "), state, Clean(v.Step),
			Duration(now.Sub(v.StartedAt)), orDash(Clean(v.Actor)), Cut(reason, 60))
	}
	return t.lines(s)
}

// Status is one Deploy at rest: `cutover status DEPLOY`.
func Status(v deploy.View, now time.Time, s Style) []string {
	out := append([]string{Header(v, s)}, Steps(v, now, s)...)
	if v.State == deploy.Running {
		out = append(out, Hosts(v, s)...)
	}
	return append(out, Outcome(v, now, s)...)
}

// App is one App with its tasks: `cutover status APP`.
func App(a deploy.AppView, s Style) []string {
	out := Apps([]deploy.AppView{a}, s)
	var alive []deploy.TaskView
	for _, t := range a.Tasks {
		if !Ended(t) {
			alive = append(alive, t)
		}
	}
	if len(alive) > 0 {
		out = append(append(out, ""), Tasks(alive, s)...)
	}
	if ended := len(a.Tasks) - len(alive); ended > 0 {
		out = append(out, s.dim(fmt.Sprintf("%s ended before: cutover tasks %s", plural(ended, "task"), Clean(a.Name))))
	}
	return out
}

// Ended reports whether a task is over for good.
func Ended(t deploy.TaskView) bool {
	switch t.State {
	case "finished", "failed", "killed", "lost":
		return true
	}
	return false
}

// LBHosts is the table of load-balancer Hosts.
func LBHosts(list wire.HostList, now time.Time, s Style) []string {
	if len(list.Hosts) == 0 {
		return append([]string{"no hosts; without any, no Deploy with routes can succeed"}, sources(list.Sources, s)...)
	}
	t := table{head: []string{"HOST", "GROUP", "PROXY", "VERSION", "PROXY PID", "AGENT", "LAST SEEN", "MEMBERSHIP", "SOURCE", "SECTIONS", "DRIFT", "OPEN"}}
	var notes []string
	for _, h := range needFirst(list.Hosts) {
		agent := s.good("connected")
		switch {
		case h.Connected:
		case !h.Membership.Asked():
			agent = "-"
		default:
			agent = s.bad("away")
		}
		seen := "never"
		if h.LastSeen != nil {
			seen = Duration(now.Sub(*h.LastSeen)) + " ago"
		}
		t.add(Clean(h.Name), Clean(h.Group), orDash(Clean(h.Proxy)), orDash(Clean(h.ProxyVersion)), fmt.Sprint(h.ProxyPID), agent, seen, standing(h, s), orDash(Clean(h.Membership.Source)),
			fmt.Sprint(h.Sections), driftCell(h, s), orDash(Clean(strings.Join(h.OpenTxns, " "))))
		notes = append(notes, hostProblems(h, s)...)
	}
	return slices.Concat(t.lines(s), notes, sources(list.Sources, s))
}

// sources is what is wrong with the catalogs that announce Hosts.
func sources(list []wire.Source, s Style) []string {
	var out []string
	for _, src := range list {
		if src.Problem != "" {
			line := fmt.Sprintf("the catalog (%s) cannot be read", Clean(src.Source))
			if src.Since != nil {
				line += " since " + src.Since.UTC().Format(time.RFC3339)
			}
			out = append(out, s.warn(line+": "+Clean(src.Problem)+"; every host stays what it is"))
		}
		for _, r := range src.Refused {
			out = append(out, s.warn(fmt.Sprintf("the catalog (%s): not taken: %s", Clean(src.Source), Clean(r))))
		}
	}
	return out
}

// driftCell is the number of differences of a Host; "cutover lb drift" tells them.
func driftCell(h wire.Host, s Style) string {
	if h.Drift == 0 {
		return "-"
	}
	return s.bad(fmt.Sprint(h.Drift))
}

func hostProblems(h wire.Host, s Style) []string {
	var out []string
	for _, p := range h.Problems {
		out = append(out, s.bad(Clean(h.Name)+": "+Clean(p)))
	}
	if n := h.Membership.Notice; n != "" {
		out = append(out, s.warn(Clean(h.Name)+": "+Clean(n)))
	}
	return out
}

// hostNotes are the problems of a Host, and what its proxy cannot do whatever its state.
func hostNotes(h wire.Host, s Style) []string {
	out := hostProblems(h, s)
	for _, l := range h.Limits {
		out = append(out, s.dim(Clean(h.Name)+": "+Clean(l)))
	}
	return out
}

// staleReading is how old a reading may be before its age is told: one that was made for the command is younger.
const staleReading = 5 * time.Second

// LBShow is the committed and the running state of a Host side by side.
func LBShow(show wire.HostShow, now time.Time, s Style) []string {
	h := show.Host
	agent := s.good("connected")
	if !h.Connected {
		agent = s.bad("away: what runs is not known")
	}
	out := []string{fmt.Sprintf("%s  group %s  %s %s  proxy pid %d  agent %s", s.bold(Clean(h.Name)), Clean(h.Group), orDash(Clean(h.Proxy)), Clean(h.ProxyVersion), h.ProxyPID, agent)}
	out = append(out, hostNotes(h, s)...)
	if len(show.Sections) == 0 {
		return append(out, "no Sections: this host routes nothing of Cutover's")
	}
	for _, section := range show.Sections {
		verdict := s.good("agrees")
		if !section.Agrees {
			verdict = s.bad("DIFFERS")
			if section.Difference != "" {
				verdict += ": " + Clean(section.Difference)
			}
		}
		line := fmt.Sprintf("%s  spec %d  version %s  %s", s.bold(Clean(section.App)), section.Spec, orDash(Clean(section.Version)), verdict)
		if at := section.ReadAt; at != nil && now.Sub(*at) > staleReading {
			line += s.warn("  as read " + Duration(now.Sub(*at)) + " ago")
		}
		if section.Open != "" {
			line += s.warn("  transaction open: " + Clean(section.Open))
		}
		out = append(out, "", line)
		for _, r := range section.Routes {
			out = append(out, "  route "+Clean(r))
		}
		out = append(out, indent(sideBySide(section, s), "  ")...)
		if section.Digest != "" {
			out = append(out, s.dim("  digest of the running set: "+Clean(section.Digest)))
		}
	}
	return out
}

// sideBySide joins both sets by the upstream's name, which is unique per task incarnation.
func sideBySide(section wire.SectionShow, s Style) []string {
	running := map[string]deploy.UpstreamView{}
	for _, u := range section.Running {
		running[u.Name] = u
	}
	t := table{head: []string{"UPSTREAM", "ADDRESS", "COMMITTED", "RUNNING", "HEALTHY", "STATUS", "SESSIONS"}}
	row := func(name, address, committed string, u deploy.UpstreamView, runs bool) {
		if !runs {
			t.add(Clean(name), Clean(address), committed, s.bad("absent"), "-", "-", "-")
			return
		}
		if u.Address != address {
			address += " runs at " + u.Address
		}
		t.add(Clean(name), Clean(address), committed, mode(u), yesNo(s, u.Healthy), orDash(Clean(u.Status)), fmt.Sprint(u.Sessions))
	}
	for _, c := range section.Committed {
		u, runs := running[c.Name]
		delete(running, c.Name)
		row(c.Name, c.Address, mode(c), u, runs)
	}
	for _, u := range section.Running {
		if _, left := running[u.Name]; left {
			row(u.Name, u.Address, "-", u, true)
		}
	}
	if len(t.rows) == 0 {
		return []string{"no upstreams"}
	}
	return t.lines(s)
}

func mode(u deploy.UpstreamView) string {
	if u.Mode == "" { // what is committed has none: the modes are a proxy's
		return fmt.Sprintf("weight %d", u.Weight)
	}
	return fmt.Sprintf("%s %d", Clean(u.Mode), u.Weight)
}

// Problem is a refusal for people: what, each thing that is wrong, what to run next. Source names the file that Problems are about.
func Problem(p *wire.ProblemDetails, source string, s Style) []string {
	head := "refused"
	if p.Kind == wire.KindInternal || p.Kind == deploy.RefusedUnavailable {
		head = "failed"
	}
	out := []string{s.bad(head) + ": " + Clean(p.Detail) + " (" + Clean(string(p.Kind)) + ")"}
	for _, problem := range p.Problems {
		where := Clean(source)
		if problem.Line > 0 {
			where += fmt.Sprintf(":%d", problem.Line)
			if problem.Column > 0 {
				where += fmt.Sprintf(":%d", problem.Column)
			}
		}
		if problem.Field != "" {
			where = strings.TrimPrefix(where+": "+Clean(problem.Field), ": ")
		}
		out = append(out, "  "+strings.TrimPrefix(where+": ", ": ")+Clean(problem.Reason))
	}
	if p.OpenDeploy != "" {
		out = append(out, "next: cutover watch "+Clean(p.OpenDeploy)+"   (or: cutover abort "+Clean(p.OpenDeploy)+")")
	}
	return out
}
