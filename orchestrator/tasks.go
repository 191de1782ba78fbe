package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cutover/cutover/mesosframework"
	"github.com/cutover/cutover/mesosframework/placement"
	"github.com/cutover/cutover/orchestrator/engine"
)

// tasks gives the engine its TaskRunner and LogReader: the framework, in the engine's words.
type tasks struct{ framework *mesosframework.Framework }

var (
	_ engine.TaskRunner = tasks{}
	_ engine.LogReader  = tasks{}
)

func (t tasks) Launch(ctx context.Context, specs []engine.TaskSpec) error {
	out := make([]mesosframework.TaskSpec, len(specs))
	for i, s := range specs {
		out[i] = mesosframework.TaskSpec{
			ID: s.ID, App: s.App, Group: s.Group, Command: s.Command, Env: s.Env,
			CPUs: s.CPUs, MemoryMB: s.MemoryMB, DiskMB: s.DiskMB, Ports: s.Ports,
			KillGrace: s.KillGrace, Labels: s.Labels,
		}
		for _, a := range s.Artifacts {
			out[i].Artifacts = append(out[i].Artifacts, mesosframework.Artifact{URI: a.URI, SHA256: a.SHA256, Extract: a.Extract, Executable: a.Executable})
		}
		for _, c := range s.Constraints {
			out[i].Constraints = append(out[i].Constraints, placement.Constraint{Attribute: c.Attribute, Operator: placement.Operator(c.Operator), Value: c.Value})
		}
	}
	for i := range out {
		if err := out[i].Validate(); err != nil {
			return fmt.Errorf("%w: %w", engine.ErrInvalidTask, err)
		}
	}
	err := t.framework.Launch(ctx, out)
	if errors.Is(err, mesosframework.ErrDuplicateTask) {
		return nil // it was launched already, by an earlier call whose outcome was not seen
	}
	return err
}

func (t tasks) Kill(ctx context.Context, task string) error {
	err := t.framework.Kill(ctx, task)
	early := errors.Is(err, mesosframework.ErrUnknownTask) || errors.Is(err, mesosframework.ErrStopped)
	if early && t.framework.State().Stats.Subscriptions == 0 {
		return nil // after a restart: the first subscription tells the framework of the task and of the order
	}
	return err
}

func (t tasks) Pending() []engine.PendingTask {
	pending := t.framework.Pending()
	out := make([]engine.PendingTask, len(pending))
	for i, p := range pending {
		out[i] = engine.PendingTask{TaskID: p.TaskID, Why: p.Detail}
	}
	return out
}

// ReadOutput implements engine.LogReader.
func (t tasks) ReadOutput(ctx context.Context, task engine.TaskRef, file string, offset int64, limit int) ([]byte, int64, error) {
	ref := frameworkRef(task)
	return readOutput(offset, limit, func(offset int64, length int) (mesosframework.Chunk, error) {
		return t.framework.ReadSandbox(ctx, ref, file, offset, length)
	})
}

// readOutput reads whole chunks until limit bytes or the end of the file. Mesos does not say that an offset is past the end:
// where nothing comes, the end is asked for, and a smaller one returned. The file was rotated then.
func readOutput(offset int64, limit int, read func(offset int64, length int) (mesosframework.Chunk, error)) ([]byte, int64, error) {
	if offset < 0 {
		end, err := read(-1, 0)
		if err != nil {
			return nil, 0, err
		}
		offset = max(0, end.Offset-int64(limit))
	}
	var data []byte
	for len(data) < limit {
		c, err := read(offset+int64(len(data)), limit-len(data))
		if err != nil {
			return nil, 0, err
		}
		if len(c.Data) == 0 {
			break
		}
		data = append(data, c.Data...)
	}
	if len(data) == 0 && offset > 0 {
		end, err := read(-1, 0)
		if err != nil {
			return nil, 0, err
		}
		offset = min(offset, end.Offset)
	}
	return data, offset, nil
}

// prefix is what Mesos' task states begin with.
const prefix = "TASK_"

func engineState(s mesosframework.TaskState) engine.TaskState {
	return engine.TaskState(strings.ToLower(strings.TrimPrefix(string(s), prefix)))
}

func frameworkState(s engine.TaskState) mesosframework.TaskState {
	switch s {
	case "", engine.Queued, engine.Launching:
		return "" // nothing was heard of it yet
	default:
		return mesosframework.TaskState(prefix + strings.ToUpper(string(s)))
	}
}

func frameworkRef(r engine.TaskRef) mesosframework.TaskRef {
	return mesosframework.TaskRef{
		TaskID: r.TaskID, App: r.App, Group: r.Group, AgentID: r.AgentID, Hostname: r.Hostname, Host: r.Host,
		AgentURL: r.AgentURL, Attributes: r.Attributes, Ports: r.Ports, State: frameworkState(r.State), Kill: r.Kill,
	}
}

// taskEvents gives the framework its Journal and Listener: the engine, in the framework's words. The engine is set
// before the framework starts.
type taskEvents struct{ engine *engine.Engine }

var (
	_ mesosframework.Journal  = (*taskEvents)(nil)
	_ mesosframework.Listener = (*taskEvents)(nil)
)

func (t *taskEvents) FrameworkID(ctx context.Context) (string, error) {
	return t.engine.FrameworkID(ctx)
}

func (t *taskEvents) SaveFrameworkID(ctx context.Context, id string) error {
	return t.engine.SaveFrameworkID(ctx, id)
}

func (t *taskEvents) SaveLaunching(ctx context.Context, launches []mesosframework.Launch) error {
	out := make([]engine.Placement, len(launches))
	for i, l := range launches {
		out[i] = engine.Placement{
			TaskID: l.TaskID, AgentID: l.AgentID, Hostname: l.Hostname, Host: l.Host, AgentURL: l.AgentURL,
			Attributes: l.Attributes, Ports: l.Ports,
		}
	}
	return t.engine.SaveLaunching(ctx, out)
}

func (t *taskEvents) HandleSubscribed(ctx context.Context, _ mesosframework.Subscription) ([]mesosframework.TaskRef, error) {
	refs, err := t.engine.Unended(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]mesosframework.TaskRef, len(refs))
	for i, r := range refs {
		out[i] = frameworkRef(r)
	}
	return out, nil
}

func (t *taskEvents) HandleUpdate(ctx context.Context, u mesosframework.Update) error {
	return t.engine.HandleUpdate(ctx, engine.TaskUpdate{
		TaskID: u.TaskID, AgentID: u.AgentID, Host: u.Host, Ports: u.Ports,
		State: engineState(u.State), Reason: string(u.Reason), Message: u.Message,
	})
}

func (t *taskEvents) HandleLost(ctx context.Context, l mesosframework.Loss) error {
	detail := string(l.Reason)
	if l.Detail != "" {
		detail = fmt.Sprintf("%s: %s", l.Reason, l.Detail)
	}
	// After these two nothing ever ran under the id; after the others it may, and is being killed.
	never := l.Reason == mesosframework.LossRefused || l.Reason == mesosframework.LossNotLaunched
	return t.engine.HandleLost(ctx, l.Task.TaskID, detail, never)
}

func (t *taskEvents) HandleDisconnected(context.Context, error) {}
