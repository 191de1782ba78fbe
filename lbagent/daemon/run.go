package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/cutover/cutover/internal/pki"
	"github.com/cutover/cutover/lbagent"
)

// Run serves this Host until ctx ends. The proxy serves on in any case.
func (c Config) Run(ctx context.Context, version string, log *slog.Logger) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("the lbagent's directory: %w", err)
	}
	var conf *tls.Config
	if c.TLSDir != "" {
		var err error
		if conf, err = pki.Config(c.TLSDir, c.Cluster, "orchestrator"); err != nil {
			return err
		}
	}
	announcer, err := c.announcer(os.Getenv, log)
	if err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	// The proxy may start before or after: both find the same tree.
	if err := c.Bootstrap(log); err != nil {
		return fmt.Errorf("prepare the tree that the proxy loads: %w", err)
	}
	drv, err := c.newDriver(log)
	if err != nil {
		return err
	}
	agent, err := lbagent.New(lbagent.Options{
		Name: c.Name, Group: c.Group, Cluster: c.Cluster, Dir: c.Dir, Listen: c.Listen, ReadyListen: c.ReadyListen, TLS: conf,
		Driver: drv, Frontend: c.Proxy.Listen, Version: version, Logger: log,
	})
	if err != nil {
		return errors.Join(err, drv.Close())
	}
	if announcer == nil {
		return agent.Run(ctx)
	}
	return c.announced(ctx, announcer, log, agent.Run)
}
