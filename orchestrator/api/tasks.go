package api

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

type tasksInput struct {
	App string `query:"app" maxLength:"63" doc:"only this App's"`
}

type taskListOutput struct{ Body wire.TaskList }

type logsInput struct {
	ID     string `path:"id" maxLength:"255" doc:"id of the task"`
	File   string `query:"file" enum:"stdout,stderr" default:"stdout"`
	Offset int64  `query:"offset" minimum:"-1" default:"-1" doc:"of the first byte wanted; -1: the last limit bytes"`
	Limit  int    `query:"limit" minimum:"1" maximum:"1048576" default:"65536" doc:"most bytes of the answer"`
}

type logsOutput struct{ Body wire.LogChunk }

func (h *Handler) registerTasks(api huma.API) {
	const tag = "Tasks"
	huma.Register(api, get(api, "/v1/tasks", "listTasks", tag, "List tasks", "Of one App or of all."),
		func(ctx context.Context, in *tasksInput) (*taskListOutput, error) {
			list, err := h.service(ctx).Tasks(ctx, in.App)
			if err != nil {
				return nil, h.failure(ctx, "listing tasks", err)
			}
			return &taskListOutput{Body: wire.TaskList{Tasks: append([]deploy.TaskView{}, list...)}}, nil
		})

	huma.Register(api, get(api, "/v1/tasks/{id}/logs", "readLogs", tag, "Read a task's output",
		"A piece of a file in the task's sandbox. Bytes that are no UTF-8 are replaced; offsets count the file's own bytes."),
		func(ctx context.Context, in *logsInput) (*logsOutput, error) {
			chunk, err := h.service(ctx).Logs(ctx, in.ID, in.File, in.Offset, in.Limit)
			if err != nil {
				return nil, h.failure(ctx, "reading the task's output", err)
			}
			return &logsOutput{Body: chunk}, nil
		})
}
