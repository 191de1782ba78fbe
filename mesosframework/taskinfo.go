package mesosframework

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// taskInfo describes a placed task to Mesos. It takes the task's resources out
// of the stock, which must hold them.
func taskInfo(spec *TaskSpec, l *Launch, s stock) (mesos.TaskInfo, error) {
	var resources []mesos.Resource
	for _, want := range []struct {
		name   string
		amount float64
	}{{"cpus", spec.CPUs}, {"mem", spec.MemoryMB}, {"disk", spec.DiskMB}} {
		part, ok := s.scalar(want.name, want.amount)
		if !ok {
			return mesos.TaskInfo{}, fmt.Errorf("task %s: the offers of agent %s hold less %s than was placed on them", spec.ID, l.AgentID, want.name)
		}
		resources = append(resources, part...)
	}
	part, ok := s.ports(l.Ports)
	if !ok {
		return mesos.TaskInfo{}, fmt.Errorf("task %s: the offers of agent %s do not hold the ports %v", spec.ID, l.AgentID, l.Ports)
	}
	resources = append(resources, part...)

	env := placedEnv(spec, l)
	name := spec.Name
	if name == "" {
		name = spec.App
	}
	info := mesos.TaskInfo{
		Name:      name,
		TaskID:    mesos.TaskID{Value: spec.ID},
		AgentID:   mesos.AgentID{Value: l.AgentID},
		Resources: resources,
		Command:   commandInfo(spec, env),
		Discovery: discovery(spec, l),
	}
	if spec.KillGrace > 0 {
		info.KillPolicy = &mesos.KillPolicy{GracePeriod: &mesos.DurationInfo{Nanoseconds: spec.KillGrace.Nanoseconds()}}
	}
	if len(spec.Labels) > 0 {
		info.Labels = &mesos.Labels{}
		for _, k := range slices.Sorted(maps.Keys(spec.Labels)) {
			v := spec.Labels[k]
			info.Labels.Labels = append(info.Labels.Labels, mesos.Label{Key: k, Value: &v})
		}
	}
	return info, nil
}

// placedEnv gives what a task is told about where it is.
func placedEnv(spec *TaskSpec, l *Launch) map[string]string {
	env := map[string]string{
		"HOST":             l.Host,
		"TASK_ID":          spec.ID,
		"CUTOVER_TASK_ID":  spec.ID,
		"CUTOVER_APP":      spec.App,
		"CUTOVER_AGENT_ID": l.AgentID,
		"CUTOVER_HOSTNAME": l.Hostname,
	}
	var all []string
	for i, p := range l.Ports {
		s := strconv.Itoa(int(p))
		env["PORT"+strconv.Itoa(i)] = s
		all = append(all, s)
	}
	if len(all) > 0 {
		env["PORT"] = all[0]
		env["PORTS"] = strings.Join(all, ",")
	}
	return env
}

func commandInfo(spec *TaskSpec, placed map[string]string) *mesos.CommandInfo {
	pairs := make([]string, 0, 2*len(placed))
	for k, v := range placed {
		pairs = append(pairs, "${"+k+"}", v)
	}
	replace := strings.NewReplacer(pairs...)

	env := maps.Clone(placed)
	for k, v := range spec.Env {
		env[k] = replace.Replace(v)
	}
	variables := make([]mesos.Environment_Variable, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		v := env[k]
		variables = append(variables, mesos.Environment_Variable{Name: k, Value: &v})
	}
	args := make([]string, len(spec.Args))
	for i, a := range spec.Args {
		args[i] = replace.Replace(a)
	}

	c := &mesos.CommandInfo{Environment: &mesos.Environment{Variables: variables}}
	for _, a := range spec.Artifacts {
		// An archive with a digest is unpacked by the task, after the check.
		extract, executable := a.Extract && a.SHA256 == "", a.Executable
		uri := mesos.CommandInfo_URI{Value: a.URI, Extract: &extract, Executable: &executable}
		if a.OutputFile != "" {
			uri.OutputFile = &a.OutputFile
		}
		c.URIs = append(c.URIs, uri)
	}
	shell, value := len(spec.Args) == 0, spec.Command
	if checks := artifactChecks(spec.Artifacts); checks != "" {
		if !shell {
			// Only a shell can check first; it gives way to the program.
			value = "exec " + quoteAll(append([]string{spec.Command}, args...))
			shell = true
		}
		value = checks + value
	}
	if !shell {
		c.Arguments = append([]string{value}, args...)
	}
	c.Shell, c.Value = &shell, &value
	return c
}

// artifactChecks is the start of a shell command that checks digests and then
// unpacks archives, "" if there is nothing to check. No text of a user is in it
// but quoted file names and digests of hexadecimal digits.
func artifactChecks(artifacts []Artifact) string {
	var b strings.Builder
	for _, a := range artifacts {
		if a.SHA256 == "" {
			continue
		}
		file := quoteShell("./" + a.file())
		fmt.Fprintf(&b, "printf '%%s  %%s\\n' %s %s | sha256sum -c --status - || { printf 'cutover: the sha256 of %%s is not the one in the spec\\n' %s >&2; exit 67; }\n",
			strings.ToLower(a.SHA256), file, file)
		if a.Extract {
			if unpack := unpackCommand(a.file()); unpack != "" {
				fmt.Fprintf(&b, "%s %s || { printf 'cutover: cannot unpack %%s\\n' %s >&2; exit 67; }\n", unpack, file, file)
			}
		}
	}
	return b.String()
}

// unpackCommand is what unpacks a file of this name, as the Mesos fetcher
// would; "" for what it would leave alone.
func unpackCommand(name string) string {
	name = strings.ToLower(path.Base(name))
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"} {
		if strings.HasSuffix(name, suffix) {
			return "tar -xf"
		}
	}
	if strings.HasSuffix(name, ".zip") {
		return "unzip -o -q"
	}
	return ""
}

// quoteShell quotes a word for sh.
func quoteShell(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func quoteAll(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = quoteShell(w)
	}
	return strings.Join(out, " ")
}

// discovery lets Mesos-DNS and the like find the task.
func discovery(spec *TaskSpec, l *Launch) *mesos.DiscoveryInfo {
	name := spec.App
	d := &mesos.DiscoveryInfo{Visibility: mesos.CLUSTER, Name: &name}
	if len(l.Ports) > 0 {
		d.Ports = &mesos.Ports{}
		for i, p := range l.Ports {
			portName, protocol := "port"+strconv.Itoa(i), "tcp"
			d.Ports.Ports = append(d.Ports.Ports, mesos.Port{Number: uint32(p), Name: &portName, Protocol: &protocol})
		}
	}
	return d
}
