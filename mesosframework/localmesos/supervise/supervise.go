package supervise

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/internal/pidfd"
	"github.com/cutover/cutover/mesosframework/localmesos/supervise/warden"
)

// Spec says what a task runs.
type Spec = warden.Spec

// startDeadline bounds the time from the start of the warden to its report
// that the task was started. It is generous: the machine may be busy.
const startDeadline = 30 * time.Second

// Result is how a task ended.
type Result struct {
	// Status is the raw wait status, valid when Known.
	Status syscall.WaitStatus
	// Known is false when the warden died before it could say; what was left
	// of the task has then been killed.
	Known bool
}

// Task is a task whose warden lives or lived. Its methods are safe for
// concurrent use.
type Task struct {
	dir    string
	pid    int // of the warden
	proc   warden.Process
	pidfd  *pidfd.Watch
	done   chan struct{}
	gone   chan struct{} // closed when the watching has ended
	once   sync.Once
	result Result
}

// Launch writes the spec into dir (which it makes), starts a warden by argv,
// and returns when the task runs, or could not be executed (ended with status
// 1). The warden survives this process.
func Launch(argv []string, dir string, spec Spec) (*Task, error) {
	data, err := spec.Encode()
	if err != nil {
		return nil, fmt.Errorf("launch task: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("launch task: %w", err)
	}
	if err := warden.WriteFile(dir, warden.SpecFile, data, false); err != nil {
		return nil, fmt.Errorf("launch task: %w", err)
	}
	lock, err := flock.Try(filepath.Join(dir, warden.LockFile))
	if err != nil {
		return nil, fmt.Errorf("launch task: %w", err) // ErrHeld: a warden already runs there
	}
	defer lock.Close() // the warden keeps the lock by its own descriptor
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("launch task: %w", err)
	}
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("launch task: %w", err)
	}
	defer null.Close()
	proc, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir: "/",
		// One thread of Go code is enough, and a collector that hardly ever
		// runs: a warden allocates a few kilobytes in its life.
		Env:   []string{warden.Env + "=" + dir, "GOMAXPROCS=1", "GOGC=400"},
		Files: []*os.File{null, null, null, w, lock},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	_ = w.Close()
	if err != nil {
		return nil, fmt.Errorf("launch task: start %s: %w", argv[0], err)
	}
	t := &Task{dir: dir, pid: proc.Pid}
	_ = proc.Release() // reaped in watch
	_ = r.SetReadDeadline(time.Now().Add(startDeadline))
	line, err := io.ReadAll(io.LimitReader(r, 256))
	if err == nil {
		t.proc, err = warden.ParseProcess(string(line))
	}
	if err != nil {
		_ = syscall.Kill(t.pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(t.pid, nil, 0, nil)
		t.killRest()
		return nil, fmt.Errorf("launch task: the warden in %s did not start it: %w", dir, err)
	}
	if err := t.watch(); err != nil {
		_ = t.Signal(syscall.SIGKILL) // a task that nobody watches must not run
		return nil, err
	}
	return t, nil
}

// ErrNeverRan says that a task's warden was never started.
var ErrNeverRan = errors.New("the task never ran")

// Adopt finds the task of dir again after this process was started anew. It
// returns ErrNeverRan when there was none.
func Adopt(dir string) (*Task, error) {
	t := &Task{dir: dir}
	lock, err := flock.Try(filepath.Join(dir, warden.LockFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNeverRan
	}
	if err != nil && !errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("adopt task: %w", err)
	}
	defer lock.Close() // nil while a warden lives
	if err == nil {    // no warden lives
		sup, err := os.ReadFile(filepath.Join(dir, warden.SupervisorFile))
		if errors.Is(err, os.ErrNotExist) {
			return nil, ErrNeverRan
		}
		if err != nil {
			return nil, fmt.Errorf("adopt task: %w", err)
		}
		if p, err := warden.ParseProcess(string(sup)); err == nil {
			t.pid = p.PID
		}
		t.proc, _ = t.readProcess(warden.StartedFile)
		t.done, t.gone = make(chan struct{}), make(chan struct{})
		t.finish()
		close(t.gone)
		return t, nil
	}
	// A warden lives; the records that it writes first appear at once.
	for deadline := time.Now().Add(startDeadline); ; {
		sup, err1 := t.readProcess(warden.SupervisorFile)
		task, err2 := t.readProcess(warden.StartedFile)
		if err1 == nil && err2 == nil {
			t.pid, t.proc = sup.PID, task
			if err := t.watch(); err != nil {
				return nil, err
			}
			return t, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("adopt task: the warden in %s never started its task", dir)
		}
		// Only on recovery, and only while the warden is in its first
		// milliseconds.
		time.Sleep(5 * time.Millisecond)
	}
}

func (t *Task) readProcess(name string) (warden.Process, error) {
	data, err := os.ReadFile(filepath.Join(t.dir, name))
	if err != nil {
		return warden.Process{}, err
	}
	return warden.ParseProcess(string(data))
}

// watch waits for the end of the warden in the background, on the runtime's
// poller: it costs a goroutine, no thread.
func (t *Task) watch() error {
	t.done, t.gone = make(chan struct{}), make(chan struct{})
	var err error
	t.pidfd, err = pidfd.Open(t.pid)
	if errors.Is(err, unix.ESRCH) {
		t.finish()
		close(t.gone)
		return nil
	}
	if err != nil {
		return fmt.Errorf("the warden of %s: %w", t.dir, err)
	}
	go func() {
		defer close(t.gone)
		if !t.pidfd.Wait() {
			return // released
		}
		// Reap it if it is ours; otherwise this does nothing.
		_, _ = syscall.Wait4(t.pid, nil, syscall.WNOHANG, nil)
		t.finish()
		t.pidfd.Close()
	}()
	return nil
}

// finish learns how the task ended, kills what a dead warden left, and closes
// done.
func (t *Task) finish() {
	data, err := os.ReadFile(filepath.Join(t.dir, warden.ExitFile))
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			t.result = Result{Status: syscall.WaitStatus(n), Known: true}
		}
	}
	if !t.result.Known {
		t.killRest()
	}
	close(t.done)
}

// killRest ends the task of a warden that is no more.
func (t *Task) killRest() {
	if t.proc.PID == 0 {
		t.proc, _ = t.readProcess(warden.StartedFile)
	}
	_ = t.Signal(syscall.SIGKILL)
}

// Done is closed when the task has ended.
func (t *Task) Done() <-chan struct{} { return t.done }

// Result returns how the task ended; it is valid once Done is closed.
func (t *Task) Result() Result { return t.result }

// PID returns the pid of the warden.
func (t *Task) PID() int { return t.pid }

// TaskPID returns the pid of the task's first process, which leads its
// process group; 0 when it could not be executed.
func (t *Task) TaskPID() int { return t.proc.PID }

// Signal sends a signal to the task's process group. A task that has ended is
// no error.
func (t *Task) Signal(sig syscall.Signal) error {
	if t.proc.PID <= 1 {
		return nil
	}
	if now, err := warden.Look(t.proc.PID); err != nil || now.Start != t.proc.Start {
		return nil //nolint:nilerr // ended: the pid may be somebody else's by now
	}
	if err := syscall.Kill(-t.proc.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal task in %s: %w", t.dir, err)
	}
	return nil
}

// Release stops watching. The task and its warden live on; a warden that is a
// child of this process is reaped by whoever inherits it.
func (t *Task) Release() {
	t.once.Do(func() {
		if t.pidfd != nil {
			t.pidfd.Close()
		}
	})
	<-t.gone
}
