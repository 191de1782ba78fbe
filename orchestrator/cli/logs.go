package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutover/cutover/orchestrator/cli/screen"
	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
)

const (
	// logPoll is how often a followed log is asked for more; the tasks' state is asked for every taskPolls-th time.
	logPoll   = 500 * time.Millisecond
	taskPolls = 4
	// maxLogBytes is the most that one request asks for.
	maxLogBytes = 1 << 20
)

// logPiece is what `logs` prints as JSON: one object a line.
type logPiece struct {
	Task   string `json:"task"`
	File   string `json:"file"`
	Data   string `json:"data"`
	Offset int64  `json:"offset"`
	Next   int64  `json:"next"`
}

func (a *app) logsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "logs TASK|APP",
		Short: "Print what a task wrote, or all tasks of an App",
		Args:  cobra.ExactArgs(1),
	}
	l := &logReader{app: a, next: map[string]int64{}}
	cmd.Flags().BoolVarP(&l.follow, "follow", "f", false, "go on with what comes, until the tasks have ended")
	cmd.Flags().StringVar(&l.file, "file", "stdout", "stdout or stderr")
	cmd.Flags().IntVar(&l.tail, "tail", 64<<10, "how many of the last bytes to start with")
	must(cmd.RegisterFlagCompletionFunc("file", cobra.FixedCompletions([]string{"stdout", "stderr"}, cobra.ShellCompDirectiveNoFileComp)))
	conn := addConnection(cmd)
	a.addOutput(cmd)
	cmd.ValidArgsFunction = a.completeApps(conn)
	cmd.RunE = a.read(conn, func(ctx context.Context, c *client.Client, args []string) error {
		if l.file != "stdout" && l.file != "stderr" {
			return &usageError{fmt.Errorf("--file %q: want stdout or stderr", l.file)}
		}
		if l.tail < 1 || l.tail > maxLogBytes {
			return &usageError{fmt.Errorf("--tail %d: want 1 to %d", l.tail, maxLogBytes)}
		}
		l.client = c
		return l.run(ctx, args[0])
	})
	return cmd
}

// logReader prints the logs of some tasks.
type logReader struct {
	app    *app
	client *client.Client
	follow bool
	file   string
	tail   int

	prefix bool             // several tasks: each line says whose it is
	open   map[string]bool  // tasks whose last line has no end yet
	next   map[string]int64 // offset to ask from, by task
}

func (l *logReader) run(ctx context.Context, ref string) error {
	tasks, err := l.tasksOf(ctx, ref)
	if err != nil {
		return err
	}
	l.prefix, l.open = len(tasks) > 1, map[string]bool{}
	for _, task := range tasks {
		if _, err := l.read(ctx, task, l.tail); err != nil {
			return err
		}
	}
	for l.follow && len(tasks) > 0 {
		if tasks, err = l.poll(ctx, tasks); err != nil {
			return err
		}
	}
	return nil
}

// tasksOf takes a task's id or an App's name.
func (l *logReader) tasksOf(ctx context.Context, ref string) ([]string, error) {
	if _, err := l.client.App(ctx, ref); err != nil {
		if notFound(err) {
			return []string{ref}, nil // also a task that is not listed any more: its sandbox may be there
		}
		return nil, err
	}
	list, err := l.client.Tasks(ctx, ref)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, t := range list {
		if !screen.Ended(t) {
			ids = append(ids, t.ID)
		}
	}
	if len(ids) == 0 {
		return nil, &deploy.Refusal{Kind: deploy.RefusedNotFound, Detail: fmt.Sprintf("%s has no running tasks; cutover tasks %s lists those that ended", ref, ref)}
	}
	return ids, nil
}

// read prints what a task wrote since the last time, and reports whether there was anything.
func (l *logReader) read(ctx context.Context, task string, limit int) (bool, error) {
	offset, started := l.next[task]
	if !started {
		offset = -1
	}
	chunk, err := l.client.Logs(ctx, task, l.file, offset, limit)
	if err != nil {
		return false, err
	}
	if started && chunk.Offset < offset {
		l.app.note(fmt.Sprintf("the %s of %s was rotated: what was not read of the old file is left out", l.file, task))
		l.next[task] = 0
		return true, nil
	}
	l.next[task] = chunk.Next
	if chunk.Data == "" {
		if !started && l.app.mode != modeText && !l.follow {
			return false, l.app.object(logPiece{Task: task, File: l.file, Offset: chunk.Offset, Next: chunk.Next})
		}
		return false, nil
	}
	if l.app.mode != modeText {
		return true, l.app.object(logPiece{Task: task, File: l.file, Data: chunk.Data, Offset: chunk.Offset, Next: chunk.Next})
	}
	data := chunk.Data
	if !started && chunk.Offset > 0 { // the tail begins somewhere in a line: half of one would mislead
		if _, rest, ok := strings.Cut(data, "\n"); ok {
			data = rest
		}
	}
	_, err = fmt.Fprint(l.app.Out, l.label(task, data))
	return true, err
}

// label puts the task before each of its lines if there are several tasks. The text itself is printed as it is: who asks for a
// log wants its bytes.
func (l *logReader) label(task, data string) string {
	if !l.prefix {
		return data
	}
	var b strings.Builder
	for _, line := range strings.SplitAfter(data, "\n") {
		if line == "" {
			continue
		}
		if !l.open[task] {
			b.WriteString(task + "  ")
		}
		b.WriteString(line)
		l.open[task] = !strings.HasSuffix(line, "\n")
	}
	if l.open[task] { // another task may be next
		b.WriteString("\n")
		l.open[task] = false
	}
	return b.String()
}

// poll waits, reads, and returns the tasks that may still write. An orchestrator that is away is waited for.
func (l *logReader) poll(ctx context.Context, tasks []string) ([]string, error) {
	for range taskPolls {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(logPoll):
		}
		for _, task := range tasks {
			for more := true; more; {
				var err error
				if more, err = l.read(ctx, task, maxLogBytes); err != nil {
					return l.away(ctx, tasks, err)
				}
			}
		}
	}
	list, err := l.client.Tasks(ctx, "")
	if err != nil {
		return l.away(ctx, tasks, err)
	}
	alive := map[string]bool{}
	for _, t := range list {
		alive[t.ID] = !screen.Ended(t)
	}
	var left []string
	for _, task := range tasks {
		if alive[task] {
			left = append(left, task)
			continue
		}
		// What it wrote between the last read and its end.
		if _, err := l.read(ctx, task, maxLogBytes); err != nil && !notFound(err) {
			return l.away(ctx, tasks, err)
		}
	}
	return left, nil
}

// away goes on with the same tasks if nobody answered, and ends with every other error.
func (l *logReader) away(ctx context.Context, tasks []string, err error) ([]string, error) {
	var unreachable *client.Unreachable
	if ctx.Err() == nil && errors.As(err, &unreachable) {
		l.app.note(err.Error() + "; trying again")
		return tasks, nil
	}
	return nil, err
}
