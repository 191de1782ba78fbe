package agent

import (
	"os"
	"path/filepath"
	"sort"
	"strings"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// defaultPath is the PATH of a task that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is the whole environment of the task: what Mesos sets, then what
// the task sets, and nothing of the agent's own. The executor's variables for a
// connection to the agent are there for programs that look at them; there is
// no executor API behind them.
func (t *task) environment() []string {
	a := t.agent
	vars := map[string]string{
		"LIBPROCESS_IP":                        a.opts.IP,
		"LIBPROCESS_PORT":                      "0",
		"MESOS_AGENT_ENDPOINT":                 a.addr,
		"MESOS_ALLOCATION_ROLE":                "*",
		"MESOS_CHECKPOINT":                     "1",
		"MESOS_DIRECTORY":                      t.sandbox(),
		"MESOS_EXECUTOR_ID":                    t.key.task,
		"MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": "5secs",
		"MESOS_FRAMEWORK_ID":                   t.key.framework,
		"MESOS_HTTP_COMMAND_EXECUTOR":          "0",
		"MESOS_RECOVERY_TIMEOUT":               "15mins",
		"MESOS_SANDBOX":                        t.sandbox(),
		"MESOS_SLAVE_ID":                       t.agentID(),
		"MESOS_SLAVE_PID":                      a.pid(),
		"MESOS_SUBSCRIPTION_BACKOFF_MAX":       "2secs",
		"PATH":                                 defaultPath,
	}
	if a.opts.HonourKillPolicy {
		vars["MESOS_HTTP_COMMAND_EXECUTOR"] = "1"
	}
	for _, r := range t.info.Resources {
		if r.AllocationInfo != nil && r.AllocationInfo.Role != nil {
			vars["MESOS_ALLOCATION_ROLE"] = *r.AllocationInfo.Role
		}
	}
	setVariables(vars, t.info.Command.GetEnvironment())
	return flatten(vars)
}

func setVariables(vars map[string]string, env *mesos.Environment) {
	if env == nil {
		return
	}
	for _, v := range env.Variables {
		switch {
		case v.Value != nil:
			vars[v.Name] = *v.Value
		case v.Secret != nil && v.Secret.Value != nil:
			vars[v.Name] = string(v.Secret.Value.Data)
		}
	}
}

func flatten(vars map[string]string) []string {
	out := make([]string, 0, len(vars))
	for k, v := range vars {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return out
}

// argv returns the program and arguments of a command: a shell's, or the
// command's own, looked up in the PATH of env.
func argv(c *mesos.CommandInfo, env []string, dir string) (path string, args []string) {
	if c.GetShell() {
		return "/bin/sh", []string{"sh", "-c", c.GetValue()}
	}
	path = c.GetValue()
	args = c.Arguments
	if len(args) == 0 {
		args = []string{path}
	}
	if strings.Contains(path, "/") {
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return path, args
	}
	for _, kv := range env {
		list, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for p := range strings.SplitSeq(list, ":") {
			if st, err := os.Stat(filepath.Join(p, path)); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
				return filepath.Join(p, path), args
			}
		}
	}
	return path, args
}
