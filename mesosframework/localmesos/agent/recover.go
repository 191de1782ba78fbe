package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/executor"
	"github.com/cutover/cutover/mesosframework/localmesos/link"
	"github.com/cutover/cutover/mesosframework/localmesos/supervise"
	"github.com/cutover/cutover/mesosframework/localmesos/wire"
)

// recover adopts what is on disk. On the actor. A task whose files are damaged
// is left alone and reported: one bad file must not keep the agent from the
// others.
func (a *Agent) recover() error {
	entries, err := os.ReadDir(a.metaDir("frameworks"))
	if err != nil {
		return fmt.Errorf("recover agent: %w", err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		var fw mesos.FrameworkInfo
		data, err := os.ReadFile(a.metaDir("frameworks", e.Name()))
		if err == nil {
			err = wire.UnmarshalJSON(data, &fw)
		}
		if err != nil || fw.ID == nil {
			a.log.Error("framework file unreadable, its tasks cannot be adopted", "file", e.Name(), "error", err)
			continue
		}
		a.frameworks[fw.ID.Value] = &fw
	}
	entries, err = os.ReadDir(a.metaDir("tasks"))
	if err != nil {
		return fmt.Errorf("recover agent: %w", err)
	}
	for _, e := range entries {
		if err := a.recoverTask(e.Name()); err != nil {
			a.log.Error("task not adopted", "container", e.Name(), "error", err)
		}
	}
	a.recoverCompleted()
	return nil
}

func (a *Agent) recoverTask(container string) error {
	dir := a.metaDir("tasks", container)
	data, err := os.ReadFile(filepath.Join(dir, "task.json"))
	if errors.Is(err, os.ErrNotExist) {
		return os.RemoveAll(dir) // never got as far as being a task
	}
	if err != nil {
		return err
	}
	var file taskFile
	if err := json.Unmarshal(data, &file); err != nil {
		return fmt.Errorf("task.json is damaged: %w", err)
	}
	if file.Format != diskFormat {
		return fmt.Errorf("task.json has format %d, this version reads %d", file.Format, diskFormat)
	}
	var info mesos.TaskInfo
	if err := wire.UnmarshalJSON(file.Task, &info); err != nil {
		return err
	}
	fw := a.frameworks[file.Framework]
	if fw == nil {
		return fmt.Errorf("its framework %s is not on disk", file.Framework)
	}
	records, size, err := readJournal(dir)
	if err != nil {
		return err
	}
	t := makeTask(a, *fw, info, container)
	t.journal, err = openJournal(dir, size)
	if err != nil {
		t.stop()
		return err
	}
	a.tasks[t.key] = t
	if !fw.GetCheckpoint() {
		// Its framework wants it so: the master has called it lost already.
		records = append(records, record{Kind: "remove"})
	}
	t.actor.Post(func() { t.resume(records) })
	// The master is told of the task's state, so wait until it is known.
	return t.actor.Call(a.ctx, func() {})
}

// resume puts the task where its log says it was. On the task's actor.
func (t *task) resume(records []record) {
	var last *mesos.TaskStatus
	killed, removed := false, false
	startedAt := time.Now()
	for _, r := range records {
		switch r.Kind {
		case "update":
			var s mesos.TaskStatus
			if err := wire.UnmarshalProto(r.Data, &s); err != nil || s.State == nil {
				continue
			}
			if last == nil && s.Timestamp != nil {
				startedAt = time.Unix(0, int64(*s.Timestamp*1e9))
			}
			t.noteLast(s)
			t.stream.Push(s)
			last = &s
		case "ack":
			if head := t.stream.Ack(r.Data); head != nil && link.Terminal(*head.State) {
				t.phase = ended
				t.finish()
				return
			}
		case "kill":
			killed = true
		case "remove":
			removed = true
		}
	}
	t.viewMu.Lock()
	if t.view.forwarded = t.stream.Head(); t.view.forwarded == nil {
		t.view.forwarded = last
	}
	t.viewMu.Unlock()
	if removed {
		t.hush()
	}
	if last != nil && link.Terminal(*last.State) {
		t.phase = ended
		if removed {
			t.finish()
		}
		return
	}
	proc, err := supervise.Adopt(t.meta())
	if err != nil {
		if !errors.Is(err, supervise.ErrNeverRan) {
			t.log.Error("task cannot be adopted", "error", err)
		}
		if removed {
			t.phase = ended
			t.finish()
			return
		}
		t.refuse(refusal{mesos.TASK_FAILED, mesos.REASON_EXECUTOR_TERMINATED, "Executor terminated", false})
		return
	}
	t.attach(proc)
	if last == nil && !removed {
		t.step(executor.Started{}) // stopped between the start and its update
		return
	}
	state := mesos.TASK_STAGING
	if last != nil {
		state = *last.State
		t.machine = t.machine.Recall(last.Healthy, last.CheckStatus)
	}
	var effects []executor.Effect
	if killed || removed {
		t.machine, effects = t.machine.ResumeKill(startedAt, time.Now())
	} else {
		t.machine, effects = t.machine.Resume(state, startedAt, time.Now())
	}
	t.do(effects)
}

// recoverCompleted lists the sandboxes that no task owns, so that they are
// kept and collected as before.
func (a *Agent) recoverCompleted() {
	if a.id == "" {
		return
	}
	runs, err := filepath.Glob(filepath.Join(a.workDir(), "slaves", a.id, "frameworks", "*", "executors", "*", "runs", "*"))
	if err != nil {
		return
	}
	live := map[string]bool{}
	for _, t := range a.tasks {
		live[t.container] = true
	}
	type aged struct {
		completedTask
		at time.Time
	}
	var found []aged
	for _, dir := range runs {
		container := filepath.Base(dir)
		st, err := os.Lstat(dir)
		if err != nil || !st.IsDir() || live[container] {
			continue
		}
		executorDir := filepath.Dir(filepath.Dir(dir))
		c := completedTask{framework: filepath.Base(filepath.Dir(filepath.Dir(executorDir))), container: container}
		c.info.TaskID.Value = filepath.Base(executorDir)
		found = append(found, aged{c, st.ModTime()})
	}
	slices.SortFunc(found, func(x, y aged) int { return x.at.Compare(y.at) })
	for _, f := range found {
		a.completed = append(a.completed, f.completedTask)
	}
	a.collect()
}
