package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/localmesos/actor"
	"github.com/cutover/cutover/mesosframework/localmesos/link"
	"github.com/cutover/cutover/mesosframework/localmesos/resource"
)

// Master is what an agent needs of its master. Its methods do not block.
type Master interface {
	Register(link.Registration)
	Update(link.Update)
}

// Options configure an agent.
type Options struct {
	Dir        string // owned by the agent
	Hostname   string
	IP         string // where the agent listens, and its tasks' address
	Port       int    // 0 picks one
	Resources  resource.Set
	Attributes []mesos.Attribute
	// SupervisorArgv starts a task's warden.
	SupervisorArgv []string
	// HonourKillPolicy makes Kill.kill_policy count, as an agent with
	// --http_command_executor does; the default agent ignores it.
	HonourKillPolicy bool
	// MaxLog bounds each output file of a task, in bytes.
	MaxLog int64
	// KeepSandboxes is how many sandboxes of ended tasks are kept.
	KeepSandboxes int
	// LaunchDelay is waited between the order and the launch of a task.
	LaunchDelay time.Duration
	Version     string
	Logger      *slog.Logger
}

// Agent is one agent. Its methods are safe for concurrent use.
type Agent struct {
	opts   Options
	log    *slog.Logger
	master Master
	actor  *actor.Actor
	server *http.Server
	addr   string // host:port
	start  time.Time
	served chan struct{}
	ctx    context.Context // ends with the agent
	cancel context.CancelFunc

	// Below: owned by the actor.
	id         string
	frameworks map[string]*mesos.FrameworkInfo
	tasks      map[taskKey]*task
	completed  []completedTask // oldest first
	registered bool

	background sync.WaitGroup // what Stop waits for
}

type taskKey struct{ framework, task string }

// completedTask is what is kept of a task that ended and was acknowledged.
type completedTask struct {
	framework string
	info      mesos.TaskInfo
	state     mesos.TaskState
	container string
	statuses  []mesos.TaskStatus
}

// New makes an agent; it listens, but does nothing before Start.
func New(o Options, master Master) (*Agent, error) {
	a := &Agent{
		opts: o, log: o.Logger.With("agent", o.Hostname), master: master,
		frameworks: map[string]*mesos.FrameworkInfo{}, tasks: map[taskKey]*task{}, served: make(chan struct{}),
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	for _, dir := range []string{a.metaDir("frameworks"), a.metaDir("tasks"), filepath.Join(o.Dir, "work")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("local Mesos agent %s: %w", o.Hostname, err)
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort(o.IP, fmt.Sprint(o.Port)))
	if err != nil {
		return nil, fmt.Errorf("local Mesos agent %s: listen: %w (choose another port or address)", o.Hostname, err)
	}
	a.addr = l.Addr().String()
	a.server = &http.Server{
		Handler: a.handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	a.actor = actor.New()
	go func() {
		defer close(a.served)
		if err := a.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.log.Error("agent HTTP server ended", "error", err)
		}
	}()
	return a, nil
}

// Addr returns the host:port on which the agent listens.
func (a *Agent) Addr() string { return a.addr }

func (a *Agent) pid() string { return "slave(1)@" + a.addr }

func (a *Agent) metaDir(parts ...string) string {
	return filepath.Join(append([]string{a.opts.Dir, "meta"}, parts...)...)
}

func (a *Agent) workDir() string { return filepath.Join(a.opts.Dir, "work") }

type identity struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
}

const diskFormat = 1

// Start adopts what is on disk and registers with the master.
func (a *Agent) Start() error {
	data, err := os.ReadFile(a.metaDir("agent.json"))
	var who identity
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return fmt.Errorf("local Mesos agent %s: %w", a.opts.Hostname, err)
	default:
		if err := json.Unmarshal(data, &who); err != nil {
			return fmt.Errorf("local Mesos agent %s: %s is damaged (%w): move %s away to start anew",
				a.opts.Hostname, a.metaDir("agent.json"), err, a.opts.Dir)
		}
		if who.Format != diskFormat {
			return fmt.Errorf("local Mesos agent %s: %s has format %d, this version reads %d: move %s away to start anew",
				a.opts.Hostname, a.metaDir("agent.json"), who.Format, diskFormat, a.opts.Dir)
		}
	}
	var failed error
	err = a.actor.Call(context.Background(), func() {
		a.start = time.Now()
		a.id = who.ID
		if failed = a.recover(); failed == nil {
			a.register()
		}
	})
	return errors.Join(err, failed)
}

// register tells the master everything. On the actor.
func (a *Agent) register() {
	r := link.Registration{Info: a.info(), PID: a.pid()}
	for _, fw := range a.frameworks {
		r.Frameworks = append(r.Frameworks, *fw)
	}
	for _, t := range a.tasks {
		if s, ok := t.snapshot(); ok {
			r.Tasks = append(r.Tasks, s)
		}
	}
	a.master.Register(r)
}

// info describes the agent. On the actor.
func (a *Agent) info() mesos.AgentInfo {
	_, port, _ := net.SplitHostPort(a.addr)
	var p int32
	_, _ = fmt.Sscan(port, &p)
	info := mesos.AgentInfo{Hostname: a.opts.Hostname, Port: &p, Resources: a.opts.Resources.Mesos(""), Attributes: a.opts.Attributes}
	if a.id != "" {
		info.ID = &mesos.AgentID{Value: a.id}
	}
	return info
}

// Registered is the master's answer: the agent's id, now or as ever. Updates
// that wait for an acknowledgement are sent again.
func (a *Agent) Registered(id string) {
	a.actor.Post(func() {
		if a.id != id {
			a.id = id
			data, _ := json.Marshal(identity{Format: diskFormat, ID: id})
			if err := writeSynced(a.metaDir(), "agent.json", data); err != nil {
				a.log.Error("agent id not on disk: a restart will make a new agent", "error", err)
			}
		}
		a.registered = true
		for _, t := range a.tasks {
			t.resend()
		}
	})
}

// Reregister registers again, as after a partition.
func (a *Agent) Reregister() { a.actor.Post(a.register) }

// Run launches a task.
func (a *Agent) Run(fw mesos.FrameworkInfo, info mesos.TaskInfo) {
	a.actor.Post(func() {
		a.keepFramework(fw)
		key := taskKey{fw.ID.GetValue(), info.TaskID.Value}
		if a.tasks[key] != nil {
			a.log.Error("task ordered twice; the second order is dropped", "task", key.task)
			return
		}
		t := newTask(a, fw, info)
		a.tasks[key] = t
		t.begin()
	})
}

// Kill asks a task's end; unknown tasks are none of the agent's business.
func (a *Agent) Kill(framework, taskID string, policy *mesos.KillPolicy) {
	a.actor.Post(func() {
		if t := a.tasks[taskKey{framework, taskID}]; t != nil {
			t.kill(policy)
		}
	})
}

// Acknowledge tells that the framework has an update.
func (a *Agent) Acknowledge(framework, taskID string, uuid []byte) {
	a.actor.Post(func() {
		if t := a.tasks[taskKey{framework, taskID}]; t != nil {
			t.acknowledge(uuid)
		}
	})
}

// FrameworkUpdated tells that a framework came back or changed: the heads of
// its streams are sent at once.
func (a *Agent) FrameworkUpdated(fw mesos.FrameworkInfo) {
	a.actor.Post(func() {
		if a.frameworks[fw.ID.GetValue()] == nil {
			return
		}
		a.keepFramework(fw)
		for key, t := range a.tasks {
			if key.framework == fw.ID.GetValue() {
				t.resend()
			}
		}
	})
}

// FrameworkRemoved ends all tasks of a framework, without a word to it.
func (a *Agent) FrameworkRemoved(id string) {
	a.actor.Post(func() {
		for key, t := range a.tasks {
			if key.framework == id {
				t.remove()
			}
		}
		a.forgetFramework(id)
	})
}

// Leave ends all tasks without a word: the master marked the agent gone.
func (a *Agent) Leave() {
	a.actor.Post(func() {
		for _, t := range a.tasks {
			t.remove()
		}
	})
}

// ended takes a task off the list; it is called by the task's actor.
func (a *Agent) ended(t *task, done completedTask) {
	a.actor.Post(func() {
		delete(a.tasks, t.key)
		a.completed = append(a.completed, done)
		a.collect()
		t.stopSoon()
		for key := range a.tasks {
			if key.framework == t.key.framework {
				return
			}
		}
		a.forgetFramework(t.key.framework)
	})
}

// collect removes the oldest sandboxes above the number that is kept.
func (a *Agent) collect() {
	for len(a.completed) > a.opts.KeepSandboxes {
		old := a.completed[0]
		a.completed = a.completed[1:]
		dir := a.sandbox(old.framework, old.info.TaskID.Value, old.container)
		a.background.Add(1)
		go func() {
			defer a.background.Done()
			_ = os.RemoveAll(dir)
			// The parents go when they are empty but for a dangling link.
			runs := filepath.Dir(dir)
			if left, err := filepath.Glob(filepath.Join(runs, "*")); err == nil && len(left) <= 1 {
				if _, err := os.Stat(filepath.Join(runs, "latest")); errors.Is(err, os.ErrNotExist) {
					_ = os.Remove(filepath.Join(runs, "latest"))
					_ = os.Remove(runs)
					_ = os.Remove(filepath.Dir(runs))
				}
			}
		}()
	}
}

// sandbox returns the directory of one run.
func (a *Agent) sandbox(framework, executor, container string) string {
	return filepath.Join(a.workDir(), "slaves", a.id, "frameworks", framework, "executors", executor, "runs", container)
}

// Stop ends the agent and leaves its tasks alone.
func (a *Agent) Stop() {
	_ = a.server.Close()
	<-a.served
	a.cancel()
	var tasks []*task
	_ = a.actor.Call(context.Background(), func() {
		for _, t := range a.tasks {
			tasks = append(tasks, t)
		}
	})
	a.actor.Stop()
	for _, t := range tasks {
		t.stop()
	}
	a.background.Wait()
}

// KillTasks ends every task's processes at once, without updates, and waits
// until they are gone or the context ends.
func (a *Agent) KillTasks(ctx context.Context) {
	var tasks []*task
	_ = a.actor.Call(ctx, func() {
		for _, t := range a.tasks {
			tasks = append(tasks, t)
		}
	})
	var all sync.WaitGroup
	for _, t := range tasks {
		all.Go(func() { t.killNow(ctx) })
	}
	all.Wait()
}
