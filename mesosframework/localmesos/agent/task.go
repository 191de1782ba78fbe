package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/actor"
	"github.com/cutover/cutover/mesosframework/localmesos/executor"
	"github.com/cutover/cutover/mesosframework/localmesos/supervise"
	"github.com/cutover/cutover/mesosframework/localmesos/validate"
)

// task is one command task with its executor. Fields of the first block never
// change after begin; those of the second belong to the task's actor.
type task struct {
	agent     *Agent
	key       taskKey
	info      mesos.TaskInfo
	container string
	log       *slog.Logger
	actor     *actor.Actor
	ctx       context.Context // ends with the task or the agent
	cancel    context.CancelFunc
	waits     sync.WaitGroup
	stopOnce  sync.Once

	machine    executor.Machine
	stream     executor.Stream
	journal    *journal
	proc       *supervise.Task
	phase      phase
	silent     bool // removed with its framework: says nothing more
	retry      *actor.Timer
	grace      *actor.Timer
	completion *actor.Timer
	stopChecks context.CancelFunc

	viewMu sync.Mutex
	view   view
}

// view is what others may know of a task.
type view struct {
	state           mesos.TaskState
	last, forwarded *mesos.TaskStatus
	statuses        []mesos.TaskStatus // newest of each state, for the state endpoint
	proc            *supervise.Task
	done            bool // removed with its framework, or acknowledged to the end
}

type phase int

const (
	preparing phase = iota // sandbox and fetcher
	running                // a process was started
	ended                  // terminal update made
)

func newTask(a *Agent, fw mesos.FrameworkInfo, info mesos.TaskInfo) *task {
	return makeTask(a, fw, info, newUUID())
}

func makeTask(a *Agent, fw mesos.FrameworkInfo, info mesos.TaskInfo, container string) *task {
	t := &task{
		agent: a, key: taskKey{fw.ID.GetValue(), info.TaskID.Value}, info: info, container: container,
		log: a.log.With("task", info.TaskID.Value), actor: actor.New(),
	}
	t.view.state = mesos.TASK_STAGING
	t.ctx, t.cancel = context.WithCancel(a.ctx)
	t.machine.Config = machineConfig(fw, info, a.opts.HonourKillPolicy)
	return t
}

func machineConfig(fw mesos.FrameworkInfo, info mesos.TaskInfo, honour bool) executor.Config {
	c := executor.Config{
		KillingState: validate.HasCapability(&fw, mesos.FrameworkInfo_Capability_TASK_KILLING_STATE),
		HonourPolicy: honour,
		Grace:        executor.DefaultGrace,
	}
	if p := info.KillPolicy; p != nil && p.GracePeriod != nil {
		c.Grace = time.Duration(p.GracePeriod.Nanoseconds)
	}
	if m := info.MaxCompletionTime; m != nil {
		c.MaxCompletion = time.Duration(m.Nanoseconds)
	}
	if h := info.HealthCheck; h != nil {
		c.HasHealth = true
		c.HealthGrace = seconds(h.GracePeriodSeconds, 10)
		c.HealthFails = 3
		if h.ConsecutiveFailures != nil {
			c.HealthFails = *h.ConsecutiveFailures
		}
	}
	if info.Check != nil {
		c.CheckType = info.Check.Type
	}
	return c
}

func seconds(v *float64, def float64) time.Duration {
	if v != nil {
		def = *v
	}
	return time.Duration(def * float64(time.Second))
}

// newUUID returns a random (version 4) UUID in its text form.
func newUUID() string {
	b := newUUIDBytes()
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func newUUIDBytes() []byte {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return b
}

func (t *task) sandbox() string {
	return t.agent.sandbox(t.key.framework, t.key.task, t.container)
}

func (t *task) meta() string { return t.agent.metaDir("tasks", t.container) }

// begin writes the task down, then fetches and launches.
func (t *task) begin() {
	t.actor.Post(func() {
		if err := t.checkpoint(); err != nil {
			t.refuse(*launchFailed("%v", err))
			return
		}
		t.waits.Go(func() {
			bad := t.prepare()
			t.actor.Post(func() { t.prepared(bad) })
		})
	})
}

// refusal is a launch that ends before there is a process.
type refusal struct {
	state   mesos.TaskState
	reason  mesos.TaskStatus_Reason
	message string
	// bare leaves the executor out of the update: there never was one.
	bare bool
}

func launchFailed(format string, args ...any) *refusal {
	return &refusal{mesos.TASK_FAILED, mesos.REASON_CONTAINER_LAUNCH_FAILED, "Failed to launch container: " + fmt.Sprintf(format, args...), false}
}

// prepare does all that must be there before the process; it runs on a
// goroutine of its own and may take long.
func (t *task) prepare() *refusal {
	if bad := unsupported(&t.info); bad != nil {
		return bad
	}
	if d := t.agent.opts.LaunchDelay; d > 0 {
		select {
		case <-time.After(d):
		case <-t.ctx.Done():
			return nil
		}
	}
	return t.fetchAll(t.ctx, &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true})
}

// unsupported refuses what a real agent without cgroups, docker, images and
// CNI refuses, in its words; and what only the local agent lacks, in plain
// ones.
func unsupported(info *mesos.TaskInfo) *refusal {
	for _, l := range []struct{ name, text, isolator string }{{"cpus", "CPU", "cpu"}, {"mem", "Memory", "mem"}} {
		if _, ok := info.Limits[l.name]; ok {
			return &refusal{mesos.TASK_DROPPED, mesos.REASON_GC_ERROR, l.text +
				" limits can only be set on tasks launched in Mesos containers when the agent has loaded the 'cgroups/" +
				l.isolator + "' isolator", true}
		}
	}
	c := info.Container
	if c == nil {
		return nil
	}
	if c.Type != nil && *c.Type == mesos.ContainerInfo_DOCKER {
		return &refusal{mesos.TASK_FAILED, mesos.REASON_EXECUTOR_TERMINATED, "Abnormal executor termination: unknown container", false}
	}
	if c.Mesos != nil && c.Mesos.Image != nil {
		kind := "DOCKER"
		if c.Mesos.Image.Type != nil {
			kind = c.Mesos.Image.Type.String()
		}
		return launchFailed("Unsupported container image type: %s", kind)
	}
	for _, n := range c.NetworkInfos {
		if n.Name != nil {
			return launchFailed("Unknown CNI network '%s'", *n.Name)
		}
	}
	if len(c.Volumes) > 0 {
		return launchFailed("local Mesos has no volumes: use paths of this machine")
	}
	return nil
}

// prepared goes on after prepare. On the actor.
func (t *task) prepared(bad *refusal) {
	if t.phase != preparing {
		return // killed meanwhile
	}
	if t.silent {
		t.finish()
		return
	}
	if bad != nil {
		t.refuse(*bad)
		return
	}
	c := t.info.Command
	if c.GetValue() == "" {
		// As Mesos: not validated, and the executor dies of it.
		t.phase = ended
		t.send(executor.Update{State: mesos.TASK_STARTING})
		t.refuse(refusal{mesos.TASK_FAILED, mesos.REASON_EXECUTOR_TERMINATED, "Executor terminated", false})
		return
	}
	proc, err := supervise.Launch(t.agent.opts.SupervisorArgv, t.meta(), t.spec())
	if err != nil {
		t.log.Error("launch failed", "error", err)
		t.refuse(*launchFailed("%v", err))
		return
	}
	t.attach(proc)
	t.step(executor.Started{})
}

// refuse ends a task that has no process.
func (t *task) refuse(r refusal) {
	t.phase = ended
	t.sendStatus(r.state, func(s *mesos.TaskStatus) {
		s.Source = mesos.SOURCE_AGENT.Enum()
		s.Reason = r.reason.Enum()
		s.Message = &r.message
		if !r.bare {
			s.ExecutorID = &mesos.ExecutorID{Value: t.key.task}
		}
	})
}

// attach watches the end of a process.
func (t *task) attach(proc *supervise.Task) {
	t.proc, t.phase = proc, running
	t.viewMu.Lock()
	t.view.proc = proc
	t.viewMu.Unlock()
	t.waits.Go(func() {
		select {
		case <-proc.Done():
			r := proc.Result()
			t.actor.Post(func() { t.exited(r) })
		case <-t.ctx.Done():
		}
	})
}

func (t *task) exited(r supervise.Result) {
	t.phase = ended
	t.step(executor.Exited{Status: r.Status, Known: r.Known})
	if t.silent {
		t.finish()
	}
}

// step feeds the machine and does what it says.
func (t *task) step(e executor.Event) {
	m, effects := t.machine.Step(e, time.Now())
	t.machine = m
	t.do(effects)
}

func (t *task) do(effects []executor.Effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case executor.Send:
			t.send(e.Update)
		case executor.Signal:
			if t.proc == nil {
				break
			}
			if err := t.proc.Signal(e.Signal); err != nil {
				t.log.Warn("signal failed", "signal", e.Signal, "error", err)
			}
		case executor.SetGrace:
			t.grace.Cancel()
			t.grace = t.actor.After(e.After, func() { t.step(executor.GraceOver{}) })
		case executor.SetCompletion:
			t.completion.Cancel()
			t.completion = t.actor.After(e.After, func() { t.step(executor.TimeOver{}) })
		case executor.StartChecks:
			t.startChecks()
		case executor.StopChecks:
			if t.stopChecks != nil {
				t.stopChecks()
			}
		}
	}
	if t.machine.Ended {
		t.grace.Cancel()
		t.completion.Cancel()
	}
}

// kill asks for the end; it may be called from anywhere.
func (t *task) kill(policy *mesos.KillPolicy) {
	t.actor.Post(func() {
		switch t.phase {
		case preparing:
			t.cancel()
			t.refuse(refusal{mesos.TASK_KILLED, mesos.REASON_TASK_KILLED_DURING_LAUNCH, "Killed before delivery to the executor", false})
		case running:
			var e executor.Kill
			if policy != nil && policy.GracePeriod != nil {
				d := time.Duration(policy.GracePeriod.Nanoseconds)
				e.Grace = &d
			}
			if !t.machine.Killed {
				t.journal.kill()
			}
			t.step(e)
		case ended: // its last update says so
		}
	})
}

// remove ends the task without a word; on the agent's actor.
func (t *task) remove() {
	t.actor.Post(func() {
		if t.silent {
			return
		}
		t.hush()
		t.journal.remove()
		switch t.phase {
		case preparing:
			t.cancel()
		case running:
			t.step(executor.Kill{})
		case ended:
			t.finish()
		}
	})
}

// finish takes the task off the agent: nobody waits for it any more.
func (t *task) finish() {
	t.retry.Cancel()
	t.cancel()
	t.journal.close()
	if err := os.RemoveAll(t.meta()); err != nil {
		t.log.Warn("the files of an ended task stay", "error", err)
	}
	t.viewMu.Lock()
	t.view.done = true
	done := completedTask{framework: t.key.framework, info: t.info, state: t.view.state, container: t.container, statuses: t.view.statuses}
	t.viewMu.Unlock()
	t.agent.ended(t, done)
}

// stopSoon stops the task's actor in the background; for the agent's actor,
// which must not wait for it.
func (t *task) stopSoon() {
	t.agent.background.Go(t.stop)
}

// stop ends the watching of the task, not the task.
func (t *task) stop() {
	t.stopOnce.Do(func() {
		t.cancel()
		t.actor.Stop()
		t.retry.Cancel()
		t.grace.Cancel()
		t.completion.Cancel()
		if t.proc != nil {
			t.proc.Release()
		}
		t.waits.Wait()
		t.journal.close()
	})
}

// killNow ends the task's processes without an update.
func (t *task) killNow(ctx context.Context) {
	var proc *supervise.Task
	err := t.actor.Call(ctx, func() {
		t.hush()
		t.journal.remove()
		if t.phase == preparing {
			t.cancel()
		}
		proc = t.proc
	})
	if err != nil || proc == nil {
		return
	}
	_ = proc.Signal(syscall.SIGKILL)
	select {
	case <-proc.Done():
	case <-ctx.Done():
		t.log.Error("task still runs", "pid", proc.TaskPID(), "error", ctx.Err())
	}
}

// spec is what the warden runs.
func (t *task) spec() supervise.Spec {
	env := t.environment()
	c := t.info.Command
	s := supervise.Spec{
		Env: env, Dir: t.sandbox(), MaxLog: t.agent.opts.MaxLog,
		Stdout: filepath.Join(t.sandbox(), "stdout"), Stderr: filepath.Join(t.sandbox(), "stderr"),
	}
	s.Path, s.Argv = argv(c, env, s.Dir)
	return s
}

var errNoJournal = errors.New("the task's directory could not be made")
