package master

import (
	"fmt"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/mesosframework/localmesos/resource"
	"github.com/cutover/cutover/mesosframework/localmesos/validate"
)

// accept is ACCEPT: any invalid offer makes the whole call void; otherwise
// each task stands for itself, and what is not used is declined.
func (m *Master) accept(f *framework, call *scheduler.Call_Accept) {
	offers, bad := m.acceptable(f, call.OfferIDs)
	if bad != "" {
		for _, o := range offers {
			m.recover(o, resource.Set{}, nil, false)
		}
		m.refuseOperations(f, call.Operations, bad)
		return
	}
	first := offers[0]
	available := resource.Set{}
	for _, o := range offers {
		available = available.Add(o.resources)
		m.forget(o)
	}
	remaining := available
	for _, op := range call.Operations {
		switch op.Type {
		case mesos.Offer_Operation_LAUNCH:
			if op.Launch == nil {
				continue
			}
			for _, info := range op.Launch.TaskInfos {
				if op.ID != nil {
					f.sendStatus(taskError(info, "The `id` field cannot be set on LAUNCH operations"))
					continue
				}
				remaining = m.launch(f, first, info, remaining)
			}
		case mesos.Offer_Operation_LAUNCH_GROUP:
			m.refuseGroup(f, op)
		default:
			m.operationError(f, op, fmt.Sprintf("local Mesos does not implement the operation %s", op.Type))
		}
	}
	// One filter for all that is left, as if it had been one offer.
	whole := &offer{framework: f, agent: first.agent, role: first.role}
	m.recover(whole, remaining, call.Filters, true)
}

// acceptable returns the offers that are named and valid, and the fault of the
// first that is not.
func (m *Master) acceptable(f *framework, ids []mesos.OfferID) (valid []*offer, bad string) {
	if len(ids) == 0 {
		return nil, "No offers specified"
	}
	seen := map[string]bool{}
	fault := func(text string) {
		if bad == "" {
			bad = text
		}
	}
	for _, id := range ids {
		if seen[id.Value] {
			fault(fmt.Sprintf("Duplicate offer %s in offer list", id.Value))
			continue
		}
		seen[id.Value] = true
		o := m.offers[id.Value]
		if o == nil || o.framework != f {
			fault(fmt.Sprintf("Offer %s is no longer valid", id.Value))
			continue
		}
		if len(valid) > 0 {
			switch first := valid[0]; {
			case first.role != o.role:
				// The missing quotes are Mesos's.
				fault(fmt.Sprintf("Aggregated offers must be allocated to the same role. Offer %s uses role '%s but another is using role '%s",
					id.Value, o.role, first.role))
			case first.agent != o.agent:
				fault(fmt.Sprintf("Aggregated offers must belong to one single agent. Offer %s uses agent %s and agent %s",
					id.Value, o.agent.id, first.agent.id))
			}
		}
		valid = append(valid, o)
	}
	return valid, bad
}

// refuseOperations tells every task and operation of a void ACCEPT.
func (m *Master) refuseOperations(f *framework, ops []mesos.Offer_Operation, bad string) {
	for _, op := range ops {
		var tasks []mesos.TaskInfo
		switch {
		case op.Launch != nil:
			tasks = op.Launch.TaskInfos
		case op.LaunchGroup != nil:
			tasks = op.LaunchGroup.TaskGroup.Tasks
		default:
			m.operationError(f, op, "Operation attempted with invalid offers: "+bad)
		}
		for _, info := range tasks {
			f.sendStatus(masterStatus(info.TaskID.Value, info.AgentID.Value, f.orLost(mesos.TASK_DROPPED),
				mesos.REASON_INVALID_OFFERS, "Task launched with invalid offers: "+bad))
		}
	}
}

// operationError gives feedback for an operation that wants some.
func (m *Master) operationError(f *framework, op mesos.Offer_Operation, text string) {
	if op.ID == nil {
		m.log.Warn("operation refused", "framework", f.id, "type", op.Type, "reason", text)
		return
	}
	f.send(&scheduler.Event{Type: scheduler.Event_UPDATE_OPERATION_STATUS, UpdateOperationStatus: &scheduler.Event_UpdateOperationStatus{
		Status: mesos.OperationStatus{OperationID: op.ID, State: mesos.OPERATION_ERROR, Message: &text},
	}})
}

// refuseGroup: task groups are not there, and a real master's answer to a
// group that cannot run is this one.
func (m *Master) refuseGroup(f *framework, op mesos.Offer_Operation) {
	if op.LaunchGroup == nil {
		return
	}
	for _, info := range op.LaunchGroup.TaskGroup.Tasks {
		f.sendStatus(masterStatus(info.TaskID.Value, info.AgentID.Value, mesos.TASK_ERROR, mesos.REASON_TASK_GROUP_INVALID,
			"local Mesos does not run task groups: launch the tasks with LAUNCH"))
	}
}

func taskError(info mesos.TaskInfo, text string) mesos.TaskStatus {
	return masterStatus(info.TaskID.Value, info.AgentID.Value, mesos.TASK_ERROR, mesos.REASON_TASK_INVALID, text)
}

// launch validates one task, charges it, and orders it; it returns what is
// left.
func (m *Master) launch(f *framework, o *offer, info mesos.TaskInfo, available resource.Set) resource.Set {
	bad := validate.Task(&info, validate.LaunchContext{
		FrameworkID: f.id, AgentID: o.agent.id, Role: o.role, Available: available,
		Known:       func(id string) bool { return f.tasks[id] != nil },
		Unreachable: func(id string) bool { return f.unreachable[id] != nil },
	})
	if bad == "" && info.Executor != nil {
		bad = "local Mesos does not run executors: use TaskInfo.command instead of TaskInfo.executor"
	}
	if bad != "" {
		f.sendStatus(taskError(info, bad))
		return available
	}
	t := &task{info: info, framework: f.id, agent: o.agent.id, role: o.role, state: mesos.TASK_STAGING, held: true}
	f.tasks[info.TaskID.Value] = t
	o.agent.used = o.agent.used.Add(t.resources())
	o.agent.handle.Run(f.info, info)
	return available.Sub(t.resources())
}
