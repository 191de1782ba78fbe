package validate

import (
	"fmt"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/resource"
)

// LaunchContext is what a master knows when it validates a task.
type LaunchContext struct {
	FrameworkID string
	AgentID     string // of the offers
	Role        string // of the offers
	// Available is what remains of the offers after the tasks before it.
	Available resource.Set
	// Known tells whether the framework has a task of that id now;
	// Unreachable whether one of its unreachable tasks has it.
	Known, Unreachable func(taskID string) bool
}

// Task checks a task of a LAUNCH. On success the resources of the task carry
// the allocation to the role of the offers.
func Task(task *mesos.TaskInfo, lc LaunchContext) string {
	id := task.TaskID.Value
	if e := ID(id); e != "" {
		return e
	}
	if lc.Known(id) {
		return "Task has duplicate ID: " + id
	}
	if lc.Unreachable(id) {
		return "Task reuses the ID of an unreachable task: " + id
	}
	if a := task.AgentID.Value; a != lc.AgentID {
		return fmt.Sprintf("Task uses invalid agent %s while agent %s is expected", a, lc.AgentID)
	}
	for _, check := range []func(*mesos.TaskInfo) string{
		killPolicy, maxCompletionTime, check, healthCheck, resources, command, container, limits,
	} {
		if e := check(task); e != "" {
			return e
		}
	}
	if (task.Command == nil) == (task.Executor == nil) {
		return "Task should have at least one (but not both) of CommandInfo or ExecutorInfo present"
	}
	if task.Executor != nil {
		if e := executor(task.Executor, lc.FrameworkID); e != "" {
			return e
		}
	}
	return fits(task, lc)
}

func killPolicy(t *mesos.TaskInfo) string {
	if t.KillPolicy != nil && t.KillPolicy.GracePeriod != nil && t.KillPolicy.GracePeriod.Nanoseconds < 0 {
		return "Task's 'kill_policy.grace_period' must be non-negative"
	}
	return ""
}

func maxCompletionTime(t *mesos.TaskInfo) string {
	if t.MaxCompletionTime != nil && t.MaxCompletionTime.Nanoseconds < 0 {
		return "Task's `max_completion_time` must be non-negative"
	}
	return ""
}

func resources(t *mesos.TaskInfo) string {
	if len(t.Resources) == 0 {
		return "Task uses no resources"
	}
	for _, r := range t.Resources {
		if e := oneResource(r); e != "" {
			return e
		}
	}
	return ""
}

func oneResource(r mesos.Resource) string {
	bad := func(why string) string {
		return fmt.Sprintf("Resource '%s' is invalid: %s", resource.Text([]mesos.Resource{r}), why)
	}
	if r.Name == "" {
		return "Empty resource name"
	}
	typ := mesos.SCALAR
	if r.Type != nil {
		typ = *r.Type
	}
	switch typ {
	case mesos.SCALAR:
		if r.Scalar == nil || r.Ranges != nil || r.Set != nil {
			return bad("Invalid scalar resource")
		}
		if r.Scalar.Value < 0 {
			return bad("Invalid scalar resource: value <= 0")
		}
	case mesos.RANGES:
		if r.Ranges == nil || r.Scalar != nil || r.Set != nil {
			return bad("Invalid ranges resource")
		}
		for _, g := range r.Ranges.Range {
			if g.Begin > g.End {
				return bad("Invalid ranges resource: begin > end")
			}
		}
	case mesos.SET:
		if r.Set == nil || r.Scalar != nil || r.Ranges != nil {
			return bad("Invalid set resource")
		}
	default:
		return bad("Unsupported resource type")
	}
	return ""
}

func command(t *mesos.TaskInfo) string {
	if t.Command == nil {
		return ""
	}
	if e := commandInfo(t.Command); e != "" {
		return "Task's `CommandInfo` is invalid: " + e
	}
	return ""
}

func commandInfo(c *mesos.CommandInfo) string {
	if c.Environment == nil {
		return ""
	}
	for _, v := range c.Environment.Variables {
		typ := mesos.Environment_Variable_VALUE
		if v.Type != nil {
			typ = *v.Type
		}
		switch typ {
		case mesos.Environment_Variable_SECRET:
			if v.Secret == nil {
				return fmt.Sprintf("Environment variable '%s' of type 'SECRET' must have a secret set", v.Name)
			}
			if v.Value != nil {
				return fmt.Sprintf("Environment variable '%s' of type 'SECRET' must not have a value set", v.Name)
			}
		case mesos.Environment_Variable_VALUE:
			if v.Value == nil {
				return fmt.Sprintf("Environment variable '%s' of type 'VALUE' must have a value set", v.Name)
			}
			if v.Secret != nil {
				return fmt.Sprintf("Environment variable '%s' of type 'VALUE' must not have a secret set", v.Name)
			}
		default:
			return fmt.Sprintf("Environment variable '%s' of type 'UNKNOWN' is not allowed", v.Name)
		}
	}
	return ""
}

func container(t *mesos.TaskInfo) string {
	c := t.Container
	if c == nil {
		return ""
	}
	if c.Type != nil && *c.Type == mesos.ContainerInfo_DOCKER && c.Docker == nil {
		return "Task's `ContainerInfo` is invalid: DockerInfo 'docker' is not set for DOCKER typed ContainerInfo"
	}
	for _, v := range c.Volumes {
		n := 0
		for _, set := range []bool{v.HostPath != nil, v.Image != nil, v.Source != nil} {
			if set {
				n++
			}
		}
		if n != 1 {
			return "Task's `ContainerInfo` is invalid: Invalid volume: Only one of them should be set: 'host_path', 'image' and 'source'"
		}
	}
	return ""
}

func limits(t *mesos.TaskInfo) string {
	for name := range t.Limits {
		if name != "cpus" && name != "mem" {
			return "Only cpus and mem may be included in a task's resource limits"
		}
	}
	request := resource.Of(t.Resources)
	if l, ok := t.Limits["cpus"]; ok && l.Value < request.Scalar("cpus") {
		return "The cpu limit must be greater than or equal to the cpu request"
	}
	if l, ok := t.Limits["mem"]; ok && l.Value < request.Scalar("mem") {
		return "The memory limit must be greater than or equal to the memory request"
	}
	return ""
}

func executor(e *mesos.ExecutorInfo, frameworkID string) string {
	if bad := ID(e.ExecutorID.Value); bad != "" {
		return bad
	}
	if e.FrameworkID != nil && e.FrameworkID.Value != frameworkID {
		return fmt.Sprintf("ExecutorInfo has an invalid FrameworkID (Actual: %s vs Expected: %s)", e.FrameworkID.Value, frameworkID)
	}
	if e.Type == mesos.ExecutorInfo_DEFAULT {
		return "'ExecutorInfo.type' must be 'CUSTOM'"
	}
	if e.Command == nil {
		return "'ExecutorInfo.command' must be set for 'CUSTOM' executor"
	}
	return ""
}

// fits charges the task to the offers. Every resource must be allocated to
// the role of the offers (which is filled in when absent) and reserved for
// nobody, as all resources of local agents are.
func fits(t *mesos.TaskInfo, lc LaunchContext) string {
	plain := true
	for i := range t.Resources {
		r := &t.Resources[i]
		if r.AllocationInfo == nil {
			role := lc.Role
			r.AllocationInfo = &mesos.Resource_AllocationInfo{Role: &role}
		}
		if r.AllocationInfo.GetRole() != lc.Role || len(r.Reservations) > 0 || r.Reservation != nil ||
			r.GetRole() != "*" || r.Disk != nil || r.Revocable != nil || r.Shared != nil || r.Set != nil {
			plain = false
		}
	}
	if !plain || !lc.Available.Contains(resource.Of(t.Resources)) {
		return fmt.Sprintf("Total resources %s required by task and its executor is more than available %s",
			resource.Text(t.Resources), resource.Text(lc.Available.Mesos(lc.Role)))
	}
	return ""
}
