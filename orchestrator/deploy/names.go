package deploy

import (
	"fmt"
	"strings"
)

// maxUpstreamName is what the proxies accept.
const maxUpstreamName = 64

// TaskID names one incarnation of an instance. Unique is an id that is never used twice; for the tasks of a Deploy it is
// made from the Deploy's id and a counter, so that a restart between storing and launching makes the same name again.
func TaskID(app string, spec uint64, instance int, unique string) string {
	return fmt.Sprintf("%s.%d.%d.%s", app, spec, instance, unique)
}

// MemberUnique is the unique part of a Deploy's n-th task.
func MemberUnique(deploy string, n int) string { return fmt.Sprintf("%s-%d", deploy, n) }

// UpstreamName is the task's name in the proxies: [a-zA-Z0-9._-]{1,64}, unique per incarnation because the task's unique
// part is kept whole and only the App's name is cut.
func UpstreamName(task string) string {
	if len(task) <= maxUpstreamName {
		return task
	}
	app, rest, _ := strings.Cut(task, ".")
	keep := max(maxUpstreamName-1-len(rest), 0)
	if keep < len(app) {
		app = app[:keep]
	}
	name := app + "." + rest
	return strings.TrimPrefix(name[max(0, len(name)-maxUpstreamName):], ".")
}
