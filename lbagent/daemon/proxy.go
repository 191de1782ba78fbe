package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// ExecProxy prepares the published tree and becomes the Host's proxy: on success it does not return. The proxy's master
// keeps this process's pid, so that whoever started it supervises the proxy itself. What is damaged in the tree is written
// again as journaled, whatever the policy on drift: a proxy that starts comes back to the journal.
func (c Config) ExecProxy(log *slog.Logger) error {
	c.restore = true
	if err := c.Bootstrap(log); err != nil {
		return fmt.Errorf("prepare the tree that the proxy loads: %w", err)
	}
	argv := c.proxyArgv()
	binary, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("start the proxy: %w", err)
	}
	return syscall.Exec(binary, argv, os.Environ())
}

func (c Config) proxyArgv() []string {
	if c.Proxy.Kind == HAProxy {
		return []string{
			c.Proxy.binary(), "-W", "-S", c.Proxy.MasterSocket + ",mode,600",
			"-f", c.Proxy.Base, "-f", filepath.Join(c.Proxy.Dir, "current") + "/",
		}
	}
	// Until it has read its configuration, nginx logs to where it was compiled to, which only root may write: with -e that is
	// stderr, so the supervisor's log says why nginx does not start.
	return []string{c.Proxy.binary(), "-c", c.Proxy.Base, "-p", filepath.Dir(c.Proxy.Base) + "/", "-e", "stderr", "-g", "daemon off;"}
}
