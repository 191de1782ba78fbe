package engine

import (
	"context"
	"strings"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// This file reads what a task wrote, to explain a failure.

// fetchOutput reads the last lines of a task's stderr and stdout, with a short deadline.
func (e *Engine) fetchOutput(deployID, task string) {
	t := e.s.task(task)
	if t == nil {
		e.batch.do(func() { e.post(func() { e.outputRead(deployID, task, "") }) })
		return
	}
	r := ref(t)
	e.batch.do(func() {
		select {
		case e.slots <- struct{}{}:
		default:
			return // too many at once: the Deploy goes on without it when its time is over
		}
		e.done.Add(1)
		go func() {
			defer e.done.Done()
			defer func() { <-e.slots }()
			ctx, cancel := context.WithTimeout(e.ctx, deploy.OutputTimeout)
			defer cancel()
			text := e.lastLines(ctx, r)
			e.post(func() { e.outputRead(deployID, task, text) })
		}()
	})
}

func (e *Engine) outputRead(deployID, task, text string) {
	if d := e.s.deploys.get(deployID); d != nil {
		e.feed(d, deploy.OutputRead{Task: task, Text: text})
	}
}

// lastLines reads the end of stderr, and of stdout if stderr has nothing.
func (e *Engine) lastLines(ctx context.Context, r TaskRef) string {
	for _, file := range []string{"stderr", "stdout"} {
		data, _, err := e.ports.Logs.ReadOutput(ctx, r, file, -1, 4096)
		if err != nil {
			e.log.Info("output not read", "task", r.TaskID, "file", file, "error", err)
			continue
		}
		if text := tail(string(data), 10); text != "" {
			return text
		}
	}
	return ""
}

// tail is the last n lines, with what no terminal should get taken out.
func tail(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r >= ' ' && r != 0x7f {
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, "?"))
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
