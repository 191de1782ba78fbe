package orchestrator

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/auth"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/registry/consulcatalog"
)

// Host is a declared load-balancer Host.
type Host struct {
	Name     string `yaml:"name"`
	Group    string `yaml:"group"`
	AgentURL string `yaml:"agent_url"`
}

// Options of an Orchestrator. All but the durations are required.
type Options struct {
	// DataDir holds the store and the leader's lock of an orchestrator that is alone; nobody else's.
	DataDir string
	// Shared makes it one of several, with the state in Consul and Redis; then DataDir is not used.
	Shared *Shared
	// Cluster names the cluster in every message to a Host.
	Cluster string
	// Listener is where the API is served; the Orchestrator closes it.
	Listener net.Listener
	// Masters are the Mesos masters: host:port or base URLs.
	Masters []string
	// Groups may be declared without Hosts; those that Hosts name need not be listed.
	Groups []registry.Group
	Hosts  []Host
	// ExactHosts: see registry.Options.Exact.
	ExactHosts bool
	// Catalog is a Consul in whose catalog Hosts announce themselves; nil: none. Cluster and Logger are filled in.
	Catalog *consulcatalog.Options
	// TLS is shown to the lbagents, and verifies them; nil only if all of them are on loopback addresses.
	TLS *tls.Config
	// Serve is the TLS of the API; nil: plain HTTP, on a loopback address only.
	Serve *tls.Config
	// Tokens are the API's.
	Tokens  *auth.Tokens
	Version string
	Logger  *slog.Logger

	// RestoreDeadline is how long Hosts may take to prove that an aborted transaction is undone before the Deploy is
	// stuck; 60 s by default.
	RestoreDeadline time.Duration
	// StartCommand is what starts the lbagent of a Host, for people; systemctl by default.
	StartCommand func(host string) string
	// RestartCommand is what restarts one that hangs; systemctl by default.
	RestartCommand func(host string) string
}

// HostCommand is a command about a Host as a template says it, with the Host's name in the place of {host}; nil for an empty
// template, which leaves the default.
func HostCommand(template string) func(host string) string {
	if template == "" {
		return nil
	}
	return func(host string) string { return strings.ReplaceAll(template, "{host}", host) }
}

func (o Options) validate() error {
	var errs []error
	for what, missing := range map[string]bool{
		"DataDir (--data-dir)": o.DataDir == "" && o.Shared == nil, "Cluster (--cluster)": o.Cluster == "", "Listener": o.Listener == nil,
		"Masters (--mesos HOST:PORT)": len(o.Masters) == 0, "Tokens": o.Tokens == nil, "Logger": o.Logger == nil,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("orchestrator option %s is missing", what))
		}
	}
	if o.RestoreDeadline < 0 {
		errs = append(errs, fmt.Errorf("--restore-deadline %s: want more than 0s", o.RestoreDeadline))
	}
	if o.Shared != nil && o.Shared.SessionTTL < 0 {
		errs = append(errs, fmt.Errorf("--session-ttl %s: want more than 0s", o.Shared.SessionTTL))
	}
	if o.Catalog != nil {
		_, err := o.catalog()
		errs = append(errs, err)
	}
	if o.Shared != nil {
		errs = append(errs, o.Shared.validate())
	}
	return errors.Join(errs...)
}

// catalog completes the options of the catalog.
func (o Options) catalog() (consulcatalog.Options, error) {
	c := *o.Catalog
	c.Cluster, c.Logger = o.Cluster, o.Logger
	if err := c.Check(); err != nil {
		return c, fmt.Errorf("catalog: %w", err)
	}
	return c, nil
}
