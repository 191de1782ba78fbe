package localmesos

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/internal/leaktest"
)

// childEnv makes the test binary a cluster on that directory, until it is
// killed.
const childEnv = "LOCALMESOS_TEST_CLUSTER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		c, err := New(Options{Dir: dir})
		if err == nil {
			err = c.Start(context.Background())
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(c.URL())
		select {}
	}
	leaktest.Main(m)
}

func startCluster(t *testing.T, o Options) *Cluster {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		c.KillTasks(ctx)
		c.Stop()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStartStop(t *testing.T) {
	o := Options{Dir: t.TempDir(), Agents: DefaultAgents(3)}
	c := startCluster(t, o)
	if _, err := New(o); err == nil {
		t.Fatal("two clusters on one directory")
	}
	ids := map[string]bool{}
	for _, a := range c.Agents() {
		ids[a.ID] = true
	}
	c.Stop()
	again := startCluster(t, o)
	for _, a := range again.Agents() {
		if !ids[a.ID] {
			t.Fatalf("agent %s got the new id %s", a.Hostname, a.ID)
		}
	}
}

// TestRestartAdoptsTasks is the restart of the whole cluster on its directory:
// tasks live on, what ended meanwhile is told with its real status, what was
// not acknowledged comes again, and a task can still be killed.
func TestRestartAdoptsTasks(t *testing.T) {
	o := Options{Dir: t.TempDir(), Agents: DefaultAgents(2)}
	c := startCluster(t, o)
	f := subscribe(t, c.URL(), "")
	offer := f.offers()[0]
	f.launch(offer, "long", "sleep 1000", "short", "while ! test -e go; do sleep 0.01; done; exit 7", "trap", "trap 'exit 5' TERM; : > trapped; while :; do sleep 0.01; done")
	pids := map[string]uint32{}
	for _, task := range []string{"long", "short", "trap"} {
		s := f.stateUnordered(task, mesos.TASK_RUNNING)
		pids[task] = *s.ContainerStatus.ExecutorPID
	}
	for deadline := time.Now().Add(waitFor); ; time.Sleep(time.Millisecond) { // it runs before it has set its trap
		if _, err := os.Stat(filepath.Join(sandbox(t, o.Dir, "trap"), "trapped")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the trap was not set")
		}
	}
	f.noAcks = true
	f.kill("trap") // its KILLING and KILLED stay without acknowledgement
	killing := f.state("trap", mesos.TASK_KILLING)
	f.close()
	c.Stop()
	finish(t, o.Dir, "short")

	c = startCluster(t, o)
	again := subscribe(t, c.URL(), f.id)
	if again.id != f.id {
		t.Fatalf("framework id %s, want %s", again.id, f.id)
	}
	repeated := again.stateUnordered("trap", mesos.TASK_KILLING)
	if !bytes.Equal(repeated.UUID, killing.UUID) {
		t.Fatal("the update that was not acknowledged came with another uuid")
	}
	if s := again.stateUnordered("trap", mesos.TASK_KILLED); *s.Message != "Command exited with status 5" {
		t.Fatalf("trap: %s", *s.Message)
	}
	if s := again.stateUnordered("short", mesos.TASK_FAILED); *s.Message != "Command exited with status 7" || *s.Source != mesos.SOURCE_EXECUTOR {
		t.Fatalf("short: %s by %s", *s.Message, *s.Source)
	}
	again.call(&scheduler.Call{Type: scheduler.Call_RECONCILE, Reconcile: &scheduler.Call_Reconcile{}})
	if s := again.state("long", mesos.TASK_RUNNING); *s.Reason != mesos.REASON_RECONCILIATION || *s.ContainerStatus.ExecutorPID != pids["long"] {
		t.Fatalf("long: %v", s)
	}
	again.kill("long")
	again.state("long", mesos.TASK_KILLED)
}

// TestKill9 kills the process of the cluster: tasks serve on, and the next
// cluster on the directory adopts them.
func TestKill9(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(exe)
	child.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	f := subscribe(t, strings.TrimSpace(url), "")
	f.launch(f.offers()[0], "t", "sleep 1000", "short", "while ! test -e go; do sleep 0.01; done")
	pid := *f.stateUnordered("t", mesos.TASK_RUNNING).ContainerStatus.ExecutorPID
	f.stateUnordered("short", mesos.TASK_RUNNING)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	f.close()
	finish(t, dir, "short")

	c := startCluster(t, Options{Dir: dir})
	again := subscribe(t, c.URL(), f.id)
	again.stateUnordered("short", mesos.TASK_FINISHED)
	again.call(&scheduler.Call{Type: scheduler.Call_RECONCILE, Reconcile: &scheduler.Call_Reconcile{}})
	s := again.await("the answer", func(e *scheduler.Event) bool {
		return e.Type == scheduler.Event_UPDATE && e.Update.Status.TaskID.Value == "t" && e.Update.Status.GetReason() == mesos.REASON_RECONCILIATION
	}).Update.Status
	if *s.State != mesos.TASK_RUNNING || *s.ContainerStatus.ExecutorPID != pid {
		t.Fatalf("%v", s)
	}
	again.kill("t")
	again.state("t", mesos.TASK_KILLED)
}

// TestKilledBetweenStartingAndRunning: the agent was killed when it had written
// TASK_STARTING and not yet TASK_RUNNING. The next one says what is missing.
func TestKilledBetweenStartingAndRunning(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	c := startCluster(t, o)
	f := subscribe(t, c.URL(), "")
	f.noAcks = true
	f.launch(f.offers()[0], "t", "sleep 1000")
	f.state("t", mesos.TASK_STARTING)
	f.close()
	c.Stop()
	logs, err := filepath.Glob(filepath.Join(o.Dir, "agent-*/meta/tasks/*/updates"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("logs: %v %v", logs, err)
	}
	data, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.IndexByte(data, '\n') + 1
	if err := os.Truncate(logs[0], int64(first)); err != nil {
		t.Fatal(err)
	}

	c = startCluster(t, o)
	again := subscribe(t, c.URL(), f.id)
	again.state("t", mesos.TASK_STARTING)
	again.state("t", mesos.TASK_RUNNING)
	again.kill("t")
	again.state("t", mesos.TASK_KILLED)
}

// sandbox is the path of the task's one sandbox.
func sandbox(t *testing.T, dir, task string) string {
	t.Helper()
	boxes, err := filepath.Glob(filepath.Join(dir, "agent-*/work/slaves/*/frameworks/*/executors", task, "runs/latest"))
	if err != nil || len(boxes) != 1 {
		t.Fatalf("sandboxes of %s: %v %v", task, boxes, err)
	}
	return boxes[0]
}

// finish lets the task that waits for its file "go" end, and waits until its
// warden has written so.
func finish(t *testing.T, dir, task string) {
	t.Helper()
	box := sandbox(t, dir, task)
	container, err := os.Readlink(box)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(box, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(waitFor); ; {
		exits, _ := filepath.Glob(filepath.Join(dir, "agent-*/meta/tasks", container, "exit"))
		if len(exits) == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the task did not end")
		}
		time.Sleep(time.Millisecond)
	}
}

// TestWardenKilled: the end of a task whose warden is gone is not invented.
func TestWardenKilled(t *testing.T) {
	c := startCluster(t, Options{})
	f := subscribe(t, c.URL(), "")
	f.launch(f.offers()[0], "t", "sleep 1000")
	s := f.state("t", mesos.TASK_RUNNING)
	if err := syscall.Kill(int(*s.ContainerStatus.ExecutorPID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := f.state("t", mesos.TASK_FAILED); *s.Reason != mesos.REASON_EXECUTOR_TERMINATED || *s.Source != mesos.SOURCE_AGENT {
		t.Fatalf("%v", s)
	}
}

// TestKillAndRestoreAgent is the fault of a partition, without its wait.
func TestKillAndRestoreAgent(t *testing.T) {
	c := startCluster(t, Options{})
	f := subscribe(t, c.URL(), "")
	f.launch(f.offers()[0], "t", "sleep 1000")
	f.state("t", mesos.TASK_RUNNING)
	if err := c.KillAgent(1); err != nil {
		t.Fatal(err)
	}
	if s := f.state("t", mesos.TASK_UNREACHABLE); s.UnreachableTime == nil {
		t.Fatal("no unreachable_time")
	}
	if err := c.RestoreAgent(1); err != nil {
		t.Fatal(err)
	}
	if s := f.state("t", mesos.TASK_RUNNING); *s.Reason != mesos.REASON_AGENT_REREGISTERED {
		t.Fatalf("%v", s)
	}
	if c.KillAgent(2) == nil || c.StartAgent(1) == nil {
		t.Fatal("nonsense was accepted")
	}
}

// TestLostAndRepeatedUpdates are the delivery faults.
func TestLostAndRepeatedUpdates(t *testing.T) {
	var mu sync.Mutex
	var lost time.Time
	c := startCluster(t, Options{Copies: func(_ string, s mesos.TaskStatus) int {
		mu.Lock()
		defer mu.Unlock()
		if *s.State == mesos.TASK_STARTING {
			return 2
		}
		if *s.State == mesos.TASK_RUNNING && lost.IsZero() {
			lost = time.Now()
			return 0
		}
		return 1
	}})
	f := subscribe(t, c.URL(), "")
	f.launch(f.offers()[0], "t", "sleep 1000")
	first := f.state("t", mesos.TASK_STARTING)
	second := f.state("t", mesos.TASK_STARTING)
	if !bytes.Equal(first.UUID, second.UUID) {
		t.Fatal("a repeated update has another uuid")
	}
	f.state("t", mesos.TASK_RUNNING) // the agent repeats it after 10 s
	mu.Lock()
	defer mu.Unlock()
	if d := time.Since(lost); d < 9*time.Second {
		t.Fatalf("the lost update came again after %v", d)
	}
}

// TestSandboxIsAFence: neither path nor link leads out of a sandbox.
func TestSandboxIsAFence(t *testing.T) {
	c := startCluster(t, Options{})
	f := subscribe(t, c.URL(), "")
	f.launch(f.offers()[0], "t", "ln -s /etc/passwd link; ln -s / dir; mkfifo pipe; echo ok > file; sleep 1000")
	f.state("t", mesos.TASK_RUNNING)
	base := "http://" + c.Agents()[0].Addr + "/files/read?offset=0&path="
	run := "/frameworks/" + f.id + "/executors/t/runs/latest/"
	var got struct{ Data string }
	for deadline := time.Now().Add(waitFor); got.Data != "ok\n"; {
		if getJSON(t, base+run+"file", &got); time.Now().After(deadline) {
			t.Fatal("the file did not come")
		}
		time.Sleep(time.Millisecond)
	}
	for _, p := range []string{run + "link", run + "dir/etc/passwd", run + "../../../../../../../../../etc/passwd", "/etc/passwd", run + "pipe",
		c.Agents()[0].Dir + "/meta/agent.json"} {
		if code := getJSON(t, base+url.QueryEscape(p), nil); code != http.StatusNotFound {
			t.Errorf("%s: %d", p, code)
		}
	}
}

// TestManyTasks starts the tasks of 20 Apps and tells what they cost;
// the bound is far above what is normal and catches only a leak of a kind.
func TestManyTasks(t *testing.T) {
	c := startCluster(t, Options{})
	f := subscribe(t, c.URL(), "")
	var pairs []string
	for i := range 80 {
		pairs = append(pairs, fmt.Sprintf("t%d", i), "exec sleep 1000")
	}
	began := time.Now()
	f.launch(f.offers()[0], pairs...)
	var wardens int64
	seen := map[string]bool{}
	for len(seen) < 80 {
		e := f.await("RUNNING", func(e *scheduler.Event) bool {
			return e.Type == scheduler.Event_UPDATE && *e.Update.Status.State == mesos.TASK_RUNNING
		})
		s := e.Update.Status
		if !seen[s.TaskID.Value] {
			seen[s.TaskID.Value] = true
			wardens += proportional(t, int(*s.ContainerStatus.ExecutorPID))
		}
	}
	t.Logf("80 tasks running after %v; wardens use %d KiB in all (PSS)", time.Since(began), wardens)
	if wardens > 80*8<<10 && !raceEnabled {
		t.Errorf("a warden costs %d KiB", wardens/80)
	}
}

// proportional is the proportional set size of a process in KiB.
func proportional(t *testing.T, pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n
		}
	}
	return 0
}

// TestLaunchLatency tells how long ACCEPT -> RUNNING takes.
func TestLaunchLatency(t *testing.T) {
	c := startCluster(t, Options{})
	f := subscribe(t, c.URL(), "")
	var took []time.Duration
	for i := range 5 {
		offer := f.offers()[0]
		began := time.Now()
		f.launch(offer, fmt.Sprintf("t%d", i), "sleep 1000")
		f.state(fmt.Sprintf("t%d", i), mesos.TASK_RUNNING)
		took = append(took, time.Since(began))
	}
	t.Logf("ACCEPT to RUNNING, one at a time: %v", took)
}
