package supervisor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Launch starts the supervisor of dir as a process of its own (argv + dir), unless it runs already. It returns when the
// supervisor has taken its lock and recorded itself, or ctx ends.
func Launch(ctx context.Context, argv []string, dir string) (Identity, error) {
	if id, alive, err := Read(dir, "supervisor"); err != nil {
		return id, err
	} else if alive {
		return id, nil
	}
	if err := os.MkdirAll(filepath.Join(dir, "log"), 0o700); err != nil {
		return Identity{}, err
	}
	logName := filepath.Join(dir, "log", "supervisor.log")
	out, err := os.OpenFile(logName, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return Identity{}, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], append(argv[1:len(argv):len(argv)], dir)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return Identity{}, fmt.Errorf("start the supervisor of %s: %w", dir, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // reaps it while we live; it does not end with us
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if id, alive, err := Read(dir, "supervisor"); err == nil && alive && id.PID == cmd.Process.Pid {
			return id, nil
		}
		select {
		case err := <-ended:
			return Identity{}, fmt.Errorf("the supervisor of %s ended at once (%w): see %s", dir, err, logName)
		case <-ctx.Done():
			return Identity{}, fmt.Errorf("the supervisor of %s did not start: %w: see %s", dir, context.Cause(ctx), logName)
		case <-tick.C:
		}
	}
}

// Terminate asks the supervisor of dir to stop its processes and itself, and waits until it has ended or ctx ends.
func Terminate(ctx context.Context, dir string) error {
	id, alive, err := Read(dir, "supervisor")
	if err != nil || !alive {
		return err
	}
	done, err := watch(id)
	if err != nil {
		return nil //nolint:nilerr // it ended meanwhile
	}
	if err := syscall.Kill(id.PID, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the supervisor of %s (pid %d): %w", dir, id.PID, err)
	}
	_ = syscall.Kill(id.PID, syscall.SIGCONT) // it may have been stopped
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the supervisor of %s (pid %d) did not stop: %w", dir, id.PID, context.Cause(ctx))
	}
}
