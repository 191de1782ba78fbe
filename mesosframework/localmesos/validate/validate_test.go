package validate

import (
	"strings"
	"testing"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/resource"
)

// The texts of single faults are compared with recordings in package replay;
// here are the order of the checks and what the recordings do not show.

func ptr[T any](v T) *T { return &v }

func good() mesos.TaskInfo {
	return mesos.TaskInfo{
		TaskID: mesos.TaskID{Value: "t"}, AgentID: mesos.AgentID{Value: "a"}, Name: "t",
		Command: &mesos.CommandInfo{Value: ptr("true")},
		Resources: []mesos.Resource{
			{Name: "cpus", Type: mesos.SCALAR.Enum(), Scalar: &mesos.Value_Scalar{Value: 0.1}},
			{Name: "ports", Type: mesos.RANGES.Enum(), Ranges: &mesos.Value_Ranges{Range: []mesos.Value_Range{{Begin: 31000, End: 31000}}}},
		},
	}
}

func launchContext(t *testing.T) LaunchContext {
	t.Helper()
	s, err := resource.Parse("cpus:3.999;mem:8191;disk:20000;ports:[31000-31099]")
	if err != nil {
		t.Fatal(err)
	}
	no := func(string) bool { return false }
	return LaunchContext{FrameworkID: "f", AgentID: "a", Role: "*", Available: s, Known: no, Unreachable: no}
}

func TestTask(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*mesos.TaskInfo)
		want   string
	}{
		{"good", func(*mesos.TaskInfo) {}, ""},
		{"text of what is available", func(i *mesos.TaskInfo) { i.Resources[0].Scalar.Value = 100 },
			"Total resources cpus(allocated: *):100; ports(allocated: *):[31000-31000] required by task and its executor is more than available " +
				"ports(allocated: *):[31000-31099]; cpus(allocated: *):3.999; mem(allocated: *):8191; disk(allocated: *):20000"},
		{"a persistent volume is no disk", func(i *mesos.TaskInfo) { i.Resources[0].Disk = &mesos.Resource_DiskInfo{} }, "Total resources "},
		{"id before agent", func(i *mesos.TaskInfo) { i.TaskID.Value, i.AgentID.Value = "a/b", "x" }, "'a/b' contains invalid characters"},
		{"resources before command", func(i *mesos.TaskInfo) { i.Resources, i.Command = nil, nil }, "Task uses no resources"},
		{"inverted range", func(i *mesos.TaskInfo) { i.Resources[1].Ranges.Range[0].Begin = 40000 }, "Resource 'ports:[]' is invalid"},
		{"memory limit", func(i *mesos.TaskInfo) {
			i.Resources = append(i.Resources, mesos.Resource{Name: "mem", Type: mesos.SCALAR.Enum(), Scalar: &mesos.Value_Scalar{Value: 32}})
			i.Limits = map[string]mesos.Value_Scalar{"mem": {Value: 1}}
		}, "The memory limit must be greater than or equal to the memory request"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			info := good()
			tt.change(&info)
			got := Task(&info, launchContext(t))
			if (got == "") != (tt.want == "") || !strings.HasPrefix(got, tt.want) {
				t.Fatalf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestRole(t *testing.T) {
	for role, ok := range map[string]bool{"*": true, "a": true, "a/b": true, "": false, "a/": false, "a//b": false, "..": false, "-a": false, "a/*": false} {
		if got := Role(role); (got == "") != ok {
			t.Errorf("Role(%q) = %q", role, got)
		}
	}
}
