package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cutover/cutover/dev/supervisor"
	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/internal/pki"
	"github.com/cutover/cutover/mesosframework/localmesos"
	"github.com/cutover/cutover/orchestrator"
	"github.com/cutover/cutover/orchestrator/auth"
	"github.com/cutover/cutover/orchestrator/registry"
	"github.com/cutover/cutover/orchestrator/txn"
)

// Bounds of starting and stopping.
const (
	startTimeout = 20 * time.Second // of the local Mesos and the supervisors
	hostsTimeout = 15 * time.Second // for the Hosts to be ready to take changes; then dev is ready without them
	stopTimeout  = 20 * time.Second
	pidsEvery    = 200 * time.Millisecond
)

// Run runs the cluster until ctx ends, then stops everything that it started. It writes dev.json and prints "ready" to
// out when Deploys can be taken. Killing the process instead leaves tasks, lbagents and proxies serving, and the next Run
// on the same directory adopts them; so does an error (FAIL-STATIC). On *orchestrator.TermOver the caller must end the
// process at once.
func Run(ctx context.Context, opts Options, out io.Writer) error {
	opts, kinds, err := opts.check()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(opts.DataDir, 0o700); err != nil {
		return err
	}
	lock, err := lockDir(opts.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	c := &devCluster{opts: opts, out: out}
	err = c.start(ctx, kinds)
	if err == nil {
		err = c.serve(ctx)
	}
	var over *orchestrator.TermOver
	if errors.As(err, &over) {
		return err
	}
	if err != nil && ctx.Err() == nil {
		return c.abandon(context.WithoutCancel(ctx), err)
	}
	return errors.Join(err, c.stop(context.WithoutCancel(ctx)))
}

// lockDir keeps two clusters off one directory.
func lockDir(dir string) (*os.File, error) {
	f, err := flock.Try(filepath.Join(dir, "dev.lock"))
	if !errors.Is(err, flock.ErrHeld) {
		return f, err
	}
	if i, err := ReadInfo(dir); err == nil && i.PID > 0 {
		return nil, fmt.Errorf("cutover dev runs on %s already (pid %d, API %s): stop it, or choose another --data-dir", dir, i.PID, i.APIURL)
	}
	return nil, fmt.Errorf("cutover dev runs on %s already: stop it, or choose another --data-dir", dir)
}

// devCluster is a running cluster.
type devCluster struct {
	opts   Options
	out    io.Writer
	layout layout
	token  string
	mesos  *localmesos.Cluster
	orch   *orchestrator.Orchestrator // the only one, in this process
	orchs  *several                   // or several, in processes of their own
	last   Info
	// fresh are the Hosts that did not run before this start; nil once the cluster has served.
	fresh []hostSpec
}

func (c *devCluster) start(ctx context.Context, kinds []string) error {
	dir := c.opts.DataDir
	var err error
	if c.layout, err = openLayout(dir, kinds); err != nil {
		return err
	}
	if err := c.checkShared(); err != nil {
		return err
	}
	if err := endOrchestrators(ctx, dir); err != nil {
		return err
	}
	listener, err := listenRemembered(c.opts.API, c.layout.API)
	if err != nil {
		return fmt.Errorf("listen for the API: %w", err)
	}
	listening := false
	defer func() {
		if !listening {
			_ = listener.Close()
		}
	}()
	mesosAddr, err := freeAddress(c.layout.Mesos)
	if err != nil {
		return err
	}
	if now := listener.Addr().String(); c.layout.API != "" && c.layout.API != now && c.opts.API != now {
		fmt.Fprintf(c.out, "cutover dev: %s, the API's address until now, is in use: the API is at %s\n", c.layout.API, now)
	}
	c.layout.API, c.layout.Mesos = listener.Addr().String(), mesosAddr
	if err := c.layout.save(dir); err != nil {
		return err
	}
	if c.token, err = auth.LoadOrCreateSecret(filepath.Join(dir, "token")); err != nil {
		return err
	}
	ca, err := pki.OpenAuthority(filepath.Join(dir, "pki", "ca"), cluster)
	if err != nil {
		return err
	}
	ownTLS := filepath.Join(dir, "pki", "orchestrator")
	if err := ca.Issue(ownTLS, "orchestrator", "dev"); err != nil {
		return err
	}
	conf, err := pki.Config(ownTLS, cluster, "lbagent")
	if err != nil {
		return err
	}
	tokens, err := c.tokens()
	if err != nil {
		return err
	}
	startCtx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.startHosts(startCtx, ca); err != nil {
		return err
	}
	if err := c.startMesos(startCtx); err != nil {
		return err
	}
	if c.opts.Orchestrators > 1 {
		listening = true
		_ = listener.Close() // the first of them listens there
		c.orchs, err = c.startSeveral(startCtx, ownTLS)
		return err
	}
	hosts := make([]orchestrator.Host, len(c.layout.Hosts))
	for i, h := range c.layout.Hosts {
		hosts[i] = orchestrator.Host{Name: h.Name, Group: group, AgentURL: "https://" + h.agent().String()}
	}
	policy, err := txn.ParsePolicy(c.opts.Policy)
	if err != nil {
		return err
	}
	catalog, err := orchestrator.CatalogConfig{Address: c.opts.Catalog, Env: c.env}.Load()
	if err != nil {
		return err
	}
	listening = true // the orchestrator closes it from here on
	c.orch, err = orchestrator.New(ctx, orchestrator.Options{
		DataDir: filepath.Join(dir, "orchestrator"), Cluster: cluster, Listener: listener, Masters: []string{c.mesos.Addr()},
		Groups: []registry.Group{{Name: group, Policy: policy}}, Hosts: hosts, Catalog: catalog, TLS: conf, Tokens: tokens, Version: c.opts.Version, Logger: c.opts.Logger,
		RestoreDeadline: c.opts.RestoreDeadline, ExactHosts: true,
		StartCommand: func(host string) string { return c.opts.Exe + " supervise " + hostDir(dir, host) },
		// Its supervisor starts it again at once.
		RestartCommand: func(host string) string {
			return fmt.Sprintf("kill -9 %d  # the lbagent of %s", pidOf(hostDir(dir, host), processAgent), host)
		},
	})
	if err != nil {
		return err
	}
	return c.orch.Start(ctx)
}

// checkShared keeps the state of a directory where it is: with one orchestrator in the directory, with several in Consul and
// Redis. The Hosts know what the one knew, and would take the other for a stranger.
func (c *devCluster) checkShared() error {
	shared := c.opts.Orchestrators > 1
	_, err := os.Stat(filepath.Join(c.opts.DataDir, "orchestrator"))
	switch {
	case shared && !c.layout.Shared && err == nil:
		return fmt.Errorf("the state of %s is in the directory itself: several orchestrators need another --data-dir", c.opts.DataDir)
	case !shared && c.layout.Shared:
		return fmt.Errorf("the state of %s is in Consul and Redis: give --orchestrators, --store and --consul as before", c.opts.DataDir)
	}
	c.layout.Shared = shared
	return nil
}

// env is the environment of the processes of this cluster.
func (c *devCluster) env(name string) string {
	for _, e := range c.opts.Env {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

func (c *devCluster) tokens() (*auth.Tokens, error) {
	return auth.NewTokens(auth.Entry{Actor: "dev", Hash: auth.HashOf(c.token), CreatedAt: time.Now()})
}

// startHosts brings every Host's supervisor up, all at once, and stops those that are no longer asked for.
func (c *devCluster) startHosts(ctx context.Context, ca *pki.Authority) error {
	for _, h := range c.layout.Hosts {
		if _, alive, err := supervisor.Read(hostDir(c.opts.DataDir, h.Name), "supervisor"); err == nil && !alive {
			c.fresh = append(c.fresh, h)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, h := range c.layout.Leaving {
		g.Go(func() error { return supervisor.Terminate(ctx, hostDir(c.opts.DataDir, h.Name)) })
	}
	for _, h := range c.layout.Hosts {
		if err := h.prepare(c.opts, ca); err != nil {
			return err
		}
		g.Go(func() error {
			_, err := supervisor.Launch(ctx, []string{c.opts.Exe, "supervise"}, hostDir(c.opts.DataDir, h.Name))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	c.layout.Leaving = nil
	return c.layout.save(c.opts.DataDir)
}

// startMesos starts the local Mesos. Agents are added, never taken away: nobody would know the tasks of one that is gone,
// nor stop them.
func (c *devCluster) startMesos(ctx context.Context) error {
	n, err := agentsOf(filepath.Join(c.opts.DataDir, "mesos"))
	if err != nil {
		return err
	}
	if n > c.opts.Agents {
		fmt.Fprintf(c.out, "cutover dev: this directory has %d Mesos agents, all of them are started: agents can be added, not taken away\n", n)
	}
	n = max(n, c.opts.Agents)
	agents := make([]localmesos.AgentSpec, n)
	for i := range agents {
		agents[i] = localmesos.AgentSpec{
			IP:         addressFrom(c.layout.Net, byte(i+1)).String(),
			Hostname:   fmt.Sprintf("agent-%d", i+1),
			Resources:  "cpus:64;mem:65536;disk:200000;ports:[31000-31999]",
			Attributes: map[string]string{"agent": fmt.Sprintf("a%d", i+1), "rack": fmt.Sprintf("r%d", i%3+1)},
		}
	}
	c.mesos, err = localmesos.New(localmesos.Options{
		Dir: filepath.Join(c.opts.DataDir, "mesos"), Listen: c.layout.Mesos, Agents: agents, Name: cluster, Logger: c.opts.Logger.With("part", "localmesos"),
		SupervisorArgv: []string{c.opts.Exe, "task-supervisor"},
	})
	if err != nil {
		return err
	}
	return c.mesos.Start(ctx)
}

// agentsOf counts the agents that the local Mesos has in dir: agent-1, agent-2, and so on.
func agentsOf(dir string) (n int, err error) {
	for n < maxAgents {
		if _, err := os.Stat(filepath.Join(dir, fmt.Sprintf("agent-%d", n+1))); errors.Is(err, os.ErrNotExist) {
			return n, nil
		} else if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// freeAddress returns the remembered loopback address if it is free, else another one.
func freeAddress(remembered string) (string, error) {
	ln, err := listenRemembered("127.0.0.1:0", remembered)
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// serve says "ready" and keeps dev.json true until ctx ends.
func (c *devCluster) serve(ctx context.Context) error {
	ended := make(chan error, 1)
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ended <- c.wait(waiting) }()
	if late := c.awaitHosts(ctx); len(late) > 0 {
		fmt.Fprintf(c.out, "cutover dev: ready without %v: see cutover lb hosts\n", late)
	}
	if err := c.writeInfo(); err != nil {
		return err
	}
	fmt.Fprintln(c.out, "ready")
	c.fresh = nil
	tick := time.NewTicker(pidsEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-tick.C:
			if err := c.writeInfo(); err != nil {
				c.opts.Logger.Error("dev.json is not current", "err", err)
			}
		}
	}
}

// wait blocks until ctx ends, or the orchestrator in this process does.
func (c *devCluster) wait(ctx context.Context) error {
	if c.orch != nil {
		return c.orch.Wait(ctx)
	}
	<-ctx.Done()
	return nil
}

// late returns the Hosts that cannot take changes yet.
func (c *devCluster) late(ctx context.Context) []string {
	if c.orchs != nil {
		return c.orchs.late(ctx, c.layout.Hosts)
	}
	var late []string
	for _, h := range c.orch.Hosts() {
		if s := registry.Standing(h.Membership.Standing); s != registry.Member && s != registry.Joining {
			continue // somebody has taken it out
		}
		if !h.Connected || h.Problem != "" {
			late = append(late, h.Name)
		}
	}
	return late
}

// awaitHosts waits until every Host can take changes, and returns the names of those that are late.
func (c *devCluster) awaitHosts(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, hostsTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		late := c.late(ctx)
		if len(late) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			slices.Sort(late)
			return late
		case <-tick.C:
		}
	}
}

// writeInfo writes dev.json if anything in it has changed.
func (c *devCluster) writeInfo() error {
	i := Info{
		APIURL: "http://" + c.layout.API, UIURL: "http://" + c.layout.API, MesosURL: c.mesos.URL(), Token: c.token, PID: os.Getpid(),
		Hosts: []HostInfo{},
	}
	for _, h := range c.layout.Hosts {
		i.Hosts = append(i.Hosts, h.info(c.opts.DataDir))
	}
	if c.orchs != nil {
		i.Orchestrators = c.orchs.info()
	}
	if reflect.DeepEqual(i, c.last) {
		return nil
	}
	if err := i.write(c.opts.DataDir); err != nil {
		return err
	}
	c.last = i
	return nil
}

// abandon ends this process's part after why, and takes no traffic away (FAIL-STATIC): tasks go on, and so do Hosts, apart
// from those that this very start brought up and that never served.
func (c *devCluster) abandon(ctx context.Context, why error) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	errs := []error{why}
	if c.orch != nil {
		errs = append(errs, c.orch.Stop(ctx))
	}
	errs = append(errs, endOrchestrators(ctx, c.opts.DataDir))
	if c.mesos != nil {
		c.mesos.Stop()
	}
	for _, h := range c.fresh {
		errs = append(errs, supervisor.Terminate(ctx, hostDir(c.opts.DataDir, h.Name)))
	}
	left := 0
	for _, h := range c.layout.Hosts {
		if _, alive, err := supervisor.Read(hostDir(c.opts.DataDir, h.Name), "supervisor"); err == nil && alive {
			left++
		}
	}
	if left > 0 {
		errs = append(errs, fmt.Errorf("%d of %d hosts, and the tasks of %s, go on as they are: see to the cause and start again", left, len(c.layout.Hosts), c.opts.DataDir))
	}
	return errors.Join(errs...)
}

// stop ends everything that was started: Deploys, tasks, lbagents and proxies.
func (c *devCluster) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	var errs []error
	if c.orch != nil {
		errs = append(errs, c.orch.Stop(ctx))
	}
	errs = append(errs, endOrchestrators(ctx, c.opts.DataDir))
	g, gctx := errgroup.WithContext(ctx)
	for _, h := range slices.Concat(c.layout.Hosts, c.layout.Leaving) {
		g.Go(func() error { return supervisor.Terminate(gctx, hostDir(c.opts.DataDir, h.Name)) })
	}
	if c.mesos != nil {
		c.mesos.KillTasks(ctx)
		c.mesos.Stop()
	}
	errs = append(errs, g.Wait())
	if err := os.Remove(InfoFile(c.opts.DataDir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
