package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/internal/pidfd"
)

// stopGrace is how long a process may take to end after SIGTERM before its group is killed.
const stopGrace = 5 * time.Second

// maxLog is the size at which a process's log is turned over, at its next start; one older file is kept.
const maxLog = 16 << 20

// ErrRunning says that another supervisor already keeps this directory.
var ErrRunning = errors.New("a supervisor already runs for this directory")

// Run keeps the processes of c running until ctx ends, then stops them. It is the body of one process: its caller
// cancels ctx on SIGTERM. Killing it leaves the processes running, to be adopted by the next one.
func Run(ctx context.Context, c Config, log *slog.Logger) error {
	if err := os.MkdirAll(filepath.Join(c.Dir, "run"), 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(c.Dir, "log"), 0o700); err != nil {
		return err
	}
	lock, err := flock.Try(filepath.Join(c.Dir, "run", "supervisor.lock"))
	if errors.Is(err, flock.ErrHeld) {
		return fmt.Errorf("%s: %w", c.Dir, ErrRunning)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	self, err := Identify(os.Getpid())
	if err != nil {
		return err
	}
	if err := record(c.Dir, "supervisor", self); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, p := range c.Processes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			(&keeper{dir: c.Dir, process: p, log: log.With("process", p.Name)}).keep(ctx)
		}()
	}
	wg.Wait()
	return nil
}

// keeper keeps one process running; used by one goroutine.
type keeper struct {
	dir     string
	process Process
	log     *slog.Logger
}

func (k *keeper) keep(ctx context.Context) {
	var pause time.Duration
	for ctx.Err() == nil {
		began := time.Now()
		id, done, err := k.adoptOrStart()
		if err != nil {
			k.log.Error("cannot start", "err", err)
		} else {
			select {
			case <-done:
				k.log.Warn("ended", "pid", id.PID, "after", time.Since(began).Round(time.Millisecond).String())
			case <-ctx.Done():
				k.stop(id, done)
				return
			}
			killGroup(id.PID)
		}
		if time.Since(began) > 5*time.Second {
			pause = 0
		} else {
			pause = min(max(2*pause, 50*time.Millisecond), MaxPause)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// adoptOrStart returns the running process and a channel that is closed when it has ended.
func (k *keeper) adoptOrStart() (Identity, <-chan struct{}, error) {
	if id, alive, err := Read(k.dir, k.process.Name); err == nil && alive {
		done, err := watch(id)
		if err == nil {
			k.log.Info("adopted", "pid", id.PID)
			return id, done, nil
		}
	} else if err == nil && id.PID > 0 {
		// It died while no supervisor looked: its children may still hold its ports.
		killGroup(id.PID)
	}
	return k.start()
}

func (k *keeper) start() (Identity, <-chan struct{}, error) {
	out, err := k.openLog()
	if err != nil {
		return Identity{}, nil, err
	}
	defer out.Close()
	cmd := exec.Command(k.process.Argv[0], k.process.Argv[1:]...)
	cmd.Dir = k.process.Dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, k.process.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return Identity{}, nil, fmt.Errorf("start %s: %w", k.process.Argv[0], err)
	}
	done := make(chan struct{})
	id, err := Identify(cmd.Process.Pid)
	if err == nil {
		err = record(k.dir, k.process.Name, id)
	}
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	if err != nil {
		// Not recorded means not adoptable: it would run twice after our own death.
		_ = cmd.Process.Kill()
		<-done
		return Identity{}, nil, fmt.Errorf("record %s: %w", k.process.Name, err)
	}
	k.log.Info("started", "pid", id.PID)
	return id, done, nil
}

func (k *keeper) openLog() (*os.File, error) {
	name := filepath.Join(k.dir, "log", k.process.Name+".log")
	if st, err := os.Stat(name); err == nil && st.Size() > maxLog {
		if err := os.Rename(name, name+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

func (k *keeper) stop(id Identity, done <-chan struct{}) {
	if id.Alive() {
		_ = syscall.Kill(id.PID, syscall.SIGTERM)
	}
	select {
	case <-done:
	case <-time.After(stopGrace):
		k.log.Warn("did not stop: killed", "pid", id.PID)
	}
	killGroup(id.PID)
	_ = os.Remove(IdentityFile(k.dir, k.process.Name))
}

// watch returns a channel that is closed when a process that is not our child has ended.
func watch(id Identity) (<-chan struct{}, error) {
	w, err := pidfd.Open(id.PID)
	if err != nil {
		return nil, err
	}
	if !id.Alive() { // between the check and the open the pid may have changed hands
		w.Close()
		return nil, os.ErrProcessDone
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer w.Close()
		w.Wait()
	}()
	return done, nil
}

// killGroup kills what is left of a process group. A leader's pid is not given to another process while its group
// exists, so this cannot hit a stranger that was started after it.
func killGroup(pgid int) {
	if pgid > 1 {
		_ = syscall.Kill(-pgid, syscall.SIGKILL)
	}
}
