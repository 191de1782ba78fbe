package validate

import (
	"fmt"
	"strings"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

func healthCheck(t *mesos.TaskInfo) string {
	if t.HealthCheck == nil {
		return ""
	}
	if e := healthCheckInfo(t.HealthCheck); e != "" {
		return "Task uses invalid health check: " + e
	}
	return ""
}

func healthCheckInfo(h *mesos.HealthCheck) string {
	switch h.Type {
	case mesos.HealthCheck_COMMAND:
		if h.Command == nil {
			return "Expecting 'command' to be set for COMMAND health check"
		}
		if e := checkCommand(h.Command); e != "" {
			return fmt.Sprintf(e, "Command health check")
		}
	case mesos.HealthCheck_HTTP:
		if h.HTTP == nil {
			return "Expecting 'http' to be set for HTTP health check"
		}
		if s := h.HTTP.GetScheme(); h.HTTP.Scheme != nil && s != "http" && s != "https" {
			return fmt.Sprintf("Unsupported HTTP health check scheme: '%s'", s)
		}
		if p := h.HTTP.GetPath(); h.HTTP.Path != nil && !strings.HasPrefix(p, "/") {
			return fmt.Sprintf("The path '%s' of HTTP health check must start with '/'", p)
		}
	case mesos.HealthCheck_TCP:
		if h.TCP == nil {
			return "Expecting 'tcp' to be set for TCP health check"
		}
	default:
		return unknownType("HealthCheck must specify 'type'")
	}
	return seconds([]amount{
		{"delay_seconds", h.DelaySeconds}, {"grace_period_seconds", h.GracePeriodSeconds},
		{"interval_seconds", h.IntervalSeconds}, {"timeout_seconds", h.TimeoutSeconds},
	})
}

func check(t *mesos.TaskInfo) string {
	if t.Check == nil {
		return ""
	}
	if e := checkInfo(t.Check); e != "" {
		return "Task uses invalid check: " + e
	}
	return ""
}

func checkInfo(c *mesos.CheckInfo) string {
	switch c.Type {
	case mesos.CheckInfo_COMMAND:
		if c.Command == nil {
			return "Expecting 'command' to be set for COMMAND check"
		}
		if e := checkCommand(&c.Command.Command); e != "" {
			return fmt.Sprintf(e, "Command check")
		}
	case mesos.CheckInfo_HTTP:
		if c.HTTP == nil {
			return "Expecting 'http' to be set for HTTP check"
		}
		if p := c.HTTP.GetPath(); c.HTTP.Path != nil && !strings.HasPrefix(p, "/") {
			return fmt.Sprintf("The path '%s' of HTTP check must start with '/'", p)
		}
	case mesos.CheckInfo_TCP:
		if c.TCP == nil {
			return "Expecting 'tcp' to be set for TCP check"
		}
	default:
		return unknownType("CheckInfo must specify 'type'")
	}
	return seconds([]amount{
		{"delay_seconds", c.DelaySeconds}, {"interval_seconds", c.IntervalSeconds}, {"timeout_seconds", c.TimeoutSeconds},
	})
}

// unknownType is the text for an absent type. A type that is named UNKNOWN
// decodes to the same value in mesos-go and cannot be told from it.
func unknownType(absent string) string { return absent }

// checkCommand returns a format with the name of the kind of check, or "".
func checkCommand(c *mesos.CommandInfo) string {
	if c.Value == nil {
		if c.GetShell() {
			return "%s must contain 'shell command'"
		}
		return "%s must contain 'executable path'"
	}
	if e := commandInfo(c); e != "" {
		return "%s's `CommandInfo` is invalid: " + strings.ReplaceAll(e, "%", "%%")
	}
	return ""
}

type amount struct {
	name  string
	value *float64
}

func seconds(amounts []amount) string {
	for _, a := range amounts {
		if a.value != nil && *a.value < 0 {
			return fmt.Sprintf("Expecting '%s' to be non-negative", a.name)
		}
	}
	return ""
}
