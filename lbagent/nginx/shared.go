package nginx

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/probe"
)

// What both drivers do in the same way.

// targets are the checks of a Section.
func targets(s driver.Section) []probe.Target {
	out := make([]probe.Target, 0, len(s.Upstreams))
	for _, u := range s.Upstreams {
		out = append(out, probe.Target{Name: u.Name, Address: u.Address, Health: u.Health})
	}
	return out
}

// bounded gives a call a deadline of its own.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, callTimeout)
}

// request is what both drivers do. A status passes if the upstream made it.
func request(ctx context.Context, c *probe.Client, p *probe.Prober, app, name, host string) error {
	t, ok := p.Target(app, name)
	if !ok {
		return fmt.Errorf("request to %s/%s: no such upstream is registered", app, name)
	}
	if t.Health.Kind != driver.HealthHTTP {
		a, err := c.Connect(ctx, t.Address)
		switch {
		case err != nil:
			return fmt.Errorf("request to %s/%s at %s: %w", app, name, t.Address, err)
		case !a.Connected:
			return fmt.Errorf("request to %s/%s: nginx's worker %s cannot connect to %s", app, name, a.Worker, t.Address)
		}
		return nil
	}
	if host == "" || host == "*" {
		host = t.Address.String()
	}
	a, err := c.Get(ctx, t.Address, t.Health.Path, host)
	switch {
	case err != nil:
		return fmt.Errorf("request to %s/%s at %s: %w", app, name, t.Address, err)
	case !a.FromUpstream:
		return fmt.Errorf("request to %s/%s: nginx's worker %s got no answer of %s (status %d is nginx's own)", app, name, a.Worker, t.Address, a.Status)
	}
	return nil
}

// cutDraining shuts down the connections of all workers to one draining upstream.
func cutDraining(ctx context.Context, log *slog.Logger, f family, s driver.Section, name string) error {
	i := slices.IndexFunc(s.Upstreams, func(u driver.Upstream) bool { return u.Name == name })
	if i < 0 {
		return nil // gone already: no session can be left that we know of
	}
	u := s.Upstreams[i]
	if u.Mode != driver.Draining {
		return fmt.Errorf("cut %s/%s: it is %s, only a draining upstream is cut", s.App, name, u.Mode)
	}
	n, err := cutConns(ctx, f, u.Address)
	if err != nil {
		return fmt.Errorf("cut %s/%s: %w", s.App, name, err)
	}
	log.Info("sessions cut", "app", s.App, "upstream", name, "connections", n)
	return nil
}
