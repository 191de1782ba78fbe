package e2e

import (
	"os/exec"
	"sync"
	"syscall"
)

// keepRunning starts `cutover dev` again whenever it ends, as its service would, until the returned function is called. The
// cluster's own start, kill9 and shutdown must not be called meanwhile.
func (c *cluster) keepRunning() (stop func()) {
	c.kept = true
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c.mu.Lock()
			done := c.done
			c.mu.Unlock()
			select {
			case <-end:
				return
			case <-done:
			}
			if err := c.restart(); err != nil {
				c.t.Errorf("start cutover dev again: %v", err)
				return
			}
		}
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			close(end)
			<-ended
			c.kept = false
		})
	}
	c.t.Cleanup(stop)
	return stop
}

// restart starts `cutover dev` and does not wait until it is ready.
func (c *cluster) restart() error {
	cmd := exec.Command(c.bin, append([]string{"dev", "--data-dir", c.dir}, c.args...)...)
	cmd.Stdout, cmd.Stderr = c.out, c.out
	cmd.Dir, cmd.SysProcAttr = c.dir, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	c.mu.Lock()
	c.dev, c.done = cmd, done
	c.mu.Unlock()
	return nil
}

// orchestratorPID is the process that leads now.
func (c *cluster) orchestratorPID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dev.Process.Pid
}
