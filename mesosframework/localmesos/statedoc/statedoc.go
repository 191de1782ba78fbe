package statedoc

import (
	"encoding/json"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/resource"
	"github.com/cutover/cutover/mesosframework/localmesos/wire"
)

// Resources prints a set of resources.
func Resources(s resource.Set) map[string]any {
	doc := map[string]any{"cpus": s.Scalar("cpus"), "mem": s.Scalar("mem"), "disk": s.Scalar("disk"), "gpus": 0.0}
	for _, n := range s.Names() {
		if len(s.Ranges(n)) > 0 {
			doc[n] = s.RangesText(n)
		} else {
			doc[n] = s.Scalar(n)
		}
	}
	return doc
}

// Full prints resources as the messages that they are.
func Full(rs []mesos.Resource) []json.RawMessage {
	out := []json.RawMessage{}
	for i := range rs {
		out = append(out, wire.MarshalJSON(&rs[i]))
	}
	return out
}

// Attributes prints a list of attributes.
func Attributes(attributes []mesos.Attribute) map[string]any {
	doc := map[string]any{}
	for _, at := range attributes {
		switch {
		case at.Text != nil:
			doc[at.Name] = at.Text.Value
		case at.Scalar != nil:
			doc[at.Name] = at.Scalar.Value
		}
	}
	return doc
}

// Task prints a command task; a role is left out when empty.
func Task(framework, role string, info *mesos.TaskInfo, state mesos.TaskState, statuses []mesos.TaskStatus) map[string]any {
	var past []any
	for _, s := range statuses {
		row := map[string]any{"state": s.GetState().String(), "timestamp": s.GetTimestamp()}
		if s.Healthy != nil {
			row["healthy"] = *s.Healthy
		}
		if c := s.ContainerStatus; c != nil {
			shown := mesos.ContainerStatus{ContainerID: c.ContainerID, NetworkInfos: c.NetworkInfos}
			row["container_status"] = json.RawMessage(wire.MarshalJSON(&shown))
		}
		past = append(past, row)
	}
	doc := map[string]any{
		"id": info.TaskID.Value, "name": info.Name, "framework_id": framework, "executor_id": "",
		"slave_id": info.AgentID.Value, "state": state.String(), "resources": Resources(resource.Of(info.Resources)), "statuses": past,
	}
	if role != "" {
		doc["role"] = role
	}
	if info.Labels != nil {
		doc["labels"] = info.Labels.Labels
	}
	if info.Discovery != nil {
		doc["discovery"] = json.RawMessage(wire.MarshalJSON(info.Discovery))
	}
	return doc
}
