package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cutover/cutover/dev/supervisor"
	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/orchestrator/auth"
	"github.com/cutover/cutover/orchestrator/client"
)

// maxOrchestrators is how many addresses there are for them, between those of the agents and those of the Hosts.
const maxOrchestrators = 9

// orchestratorPort is where those but the first answer, each on its own address.
const orchestratorPort = "7480"

// processOrchestrator is the name of an orchestrator's supervised process.
const processOrchestrator = "orchestrator"

func orchestratorDir(dataDir, name string) string {
	return filepath.Join(dataDir, "orchestrators", name)
}

// several are the orchestrators of a cluster that has more than one: processes of their own, each under a supervisor of
// its own.
type several struct {
	dataDir string
	names   []string
	api     []string // addresses, in the same order
	client  *client.Client
}

// startSeveral starts n orchestrators that share Consul and Redis.
func (c *devCluster) startSeveral(ctx context.Context, tlsDir string) (*several, error) {
	dir := c.opts.DataDir
	s := &several{dataDir: dir}
	for i := range c.opts.Orchestrators {
		s.names = append(s.names, "orch-"+strconv.Itoa(i+1))
		address := c.layout.API
		if i > 0 {
			address = net.JoinHostPort(addressFrom(c.layout.Net, byte(maxAgents+i)).String(), orchestratorPort)
		}
		s.api = append(s.api, address)
	}
	if err := c.writeShared(); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	for i, name := range s.names {
		own := orchestratorDir(dir, name)
		argv := []string{
			c.opts.Exe, "orchestrator", "--name", name, "--listen", s.api[i], "--cluster", cluster, "--consul", c.opts.Consul,
			"--mesos", c.mesos.Addr(), "--hosts", filepath.Join(dir, "hosts.json"), "--tokens", filepath.Join(dir, "tokens.json"), "--tls-dir", tlsDir,
			"--agent-start-command", c.opts.Exe + " supervise " + hostDir(dir, "{host}"),
			"--agent-restart-command", restartCommand(hostDir(dir, "{host}")),
			"--restore-deadline", c.opts.RestoreDeadline.String(), "--session-ttl", c.opts.SessionTTL.String(), "--catalog", c.opts.Catalog, "--log-level", "info",
		}
		conf := supervisor.Config{Dir: own, Processes: []supervisor.Process{
			// In the environment, where others cannot read a password.
			{Name: processOrchestrator, Argv: argv, Dir: own, Env: append([]string{"CUTOVER_STORE=" + c.opts.Store}, c.opts.Env...)},
		}}
		if err := makeDirs(own); err != nil {
			return nil, err
		}
		if err := conf.Save(); err != nil {
			return nil, err
		}
		g.Go(func() error {
			_, err := supervisor.Launch(ctx, []string{c.opts.Exe, "supervise"}, own)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var err error
	s.client, err = client.New(client.Options{URL: "http://" + s.api[0], Token: c.token})
	return s, err
}

// restartCommand kills the lbagent of a host, which its supervisor starts again at once. The pid is read by whoever runs the
// command: it changes while the orchestrators run.
func restartCommand(hostDir string) string {
	return fmt.Sprintf(`kill -9 "$(sed 's/[^0-9]*\([0-9]*\).*/\1/' '%s')"`, supervisor.IdentityFile(hostDir, processAgent))
}

// writeShared writes what all orchestrators are configured by.
func (c *devCluster) writeShared() error {
	tokens, err := c.tokens()
	if err != nil {
		return err
	}
	if err := auth.SaveTokens(filepath.Join(c.opts.DataDir, "tokens.json"), tokens); err != nil {
		return err
	}
	type host struct {
		Name     string `json:"name"`
		Group    string `json:"group"`
		AgentURL string `json:"agent_url"`
	}
	var doc struct {
		Groups []map[string]string `json:"groups"`
		Hosts  []host              `json:"hosts"`
	}
	doc.Groups = []map[string]string{{"name": group, "policy": c.opts.Policy}}
	for _, h := range c.layout.Hosts {
		doc.Hosts = append(doc.Hosts, host{Name: h.Name, Group: group, AgentURL: "https://" + h.agent().String()})
	}
	data, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(c.opts.DataDir, "hosts.json"), data)
}

// late returns the Hosts that cannot take changes yet; all of them while nobody leads.
func (s *several) late(ctx context.Context, all []hostSpec) []string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	hosts, err := s.client.Hosts(ctx)
	var out []string
	for _, h := range all {
		ready := false
		for _, got := range hosts {
			out := got.Membership.Standing == "excluded" || got.Membership.Standing == "removed"
			ready = ready || err == nil && got.Name == h.Name && (out || got.Connected && len(got.Problems) == 0)
		}
		if !ready {
			out = append(out, h.Name)
		}
	}
	return out
}

// endOrchestrators ends the orchestrators that run as processes of their own, of this start or of one before: those that are
// made anew have the current addresses, and nothing that serves depends on them (FAIL-STATIC).
func endOrchestrators(ctx context.Context, dataDir string) error {
	dirs, err := filepath.Glob(orchestratorDir(dataDir, "*"))
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, dir := range dirs {
		g.Go(func() error { return supervisor.Terminate(ctx, dir) })
	}
	return g.Wait()
}

func (s *several) info() []OrchestratorInfo {
	var out []OrchestratorInfo
	for i, name := range s.names {
		dir := orchestratorDir(s.dataDir, name)
		out = append(out, OrchestratorInfo{
			Name: name, APIURL: "http://" + s.api[i], PID: pidOf(dir, processOrchestrator), SupervisorPID: pidOf(dir, "supervisor"),
		})
	}
	return out
}

// pidOf is the pid of a supervised process, or 0.
func pidOf(dir, name string) int {
	id, alive, err := supervisor.Read(dir, name)
	if err != nil || !alive {
		return 0
	}
	return id.PID
}

// checkSeveral says whether the options of several orchestrators make sense together.
func (o Options) checkSeveral() error {
	switch {
	case o.Orchestrators < 1 || o.Orchestrators > maxOrchestrators:
		return fmt.Errorf("--orchestrators %d: want 1 to %d", o.Orchestrators, maxOrchestrators)
	case o.Orchestrators == 1 && (o.Store != "" || o.Consul != ""):
		return errors.New("--store and --consul are for --orchestrators 2 or more")
	case o.Orchestrators > 1 && (o.Store == "" || o.Consul == ""):
		return errors.New("--orchestrators 2 or more need --store redis://... and --consul http://..., which this cluster has for itself")
	}
	return nil
}
