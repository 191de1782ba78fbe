package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cutover/cutover/dev"
	"github.com/cutover/cutover/dev/supervisor"
	"github.com/cutover/cutover/internal/pki"
	"github.com/cutover/cutover/lbagent/daemon"
	"github.com/cutover/cutover/orchestrator"
	"github.com/cutover/cutover/orchestrator/auth"
	"github.com/cutover/cutover/orchestrator/cli"
	"github.com/cutover/cutover/proto/announcement"
)

// daemons makes the commands that are no clients of the API: the daemons, and the supervisors under `cutover dev`.
func daemons() []func() *cobra.Command {
	return []func() *cobra.Command{devCommand, orchestratorCommand, lbagentCommand, superviseCommand, proxyCommand}
}

func logger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, cli.Usage(fmt.Errorf("--log-level %q: want debug, info, warn or error", level))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}

func devCommand() *cobra.Command {
	var o dev.Options
	var level string
	cmd := &cobra.Command{
		Use: "dev", Short: "Run a whole cluster on this machine: Mesos, orchestrator, load-balancer hosts", Args: cobra.NoArgs,
		Long: "Starts a local Mesos, the orchestrator, and load-balancer hosts with a real proxy each, and prints \"ready\" when deploys can be taken. " +
			"DIR/dev.json says how to reach everything. SIGTERM or Ctrl-C stops all of it; kill -9 leaves tasks and proxies serving, " +
			"and the next start on the same DIR goes on with them.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Logger, err = logger(level); err != nil {
				return err
			}
			if o.Exe, err = os.Executable(); err != nil {
				return err
			}
			o.Version = releaseVersion()
			for _, name := range []string{"CUTOVER_STORE_PASSWORD", "CONSUL_HTTP_TOKEN", "CONSUL_CACERT"} {
				if v := os.Getenv(name); v != "" {
					o.Env = append(o.Env, name+"="+v)
				}
			}
			return lead(dev.Run(cmd.Context(), o, cmd.OutOrStdout()))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.DataDir, "data-dir", ".cutover", "`DIR` that holds everything")
	f.StringVar(&o.API, "api", "127.0.0.1:7480", "loopback `ADDR` of the API; port 0 picks a free one and remembers it")
	f.StringVar(&o.LB, "lb", "haproxy=2,nginx=2", "the `HOSTS`: haproxy=N, nginx=N (with Lua), nginx-reload=N; or none")
	f.IntVar(&o.Orchestrators, "orchestrators", 1, "`NUMBER` of orchestrators; more than one are processes of their own, and need --store and --consul")
	f.StringVar(&o.Store, "store", "", "`URL` of a Redis that this cluster has for itself, for several orchestrators")
	f.StringVar(&o.Consul, "consul", "", "`URL` of a Consul that this cluster has for itself, for several orchestrators")
	f.StringVar(&o.Catalog, "catalog", "", "`URL` of a Consul in whose catalog hosts announce themselves, those of this cluster too")
	f.DurationVar(&o.SessionTTL, "session-ttl", 0, "`TIME` after which Consul gives up a silent leader, for several orchestrators (default 10s, Consul's own minimum)")
	f.StringVar(&o.Policy, "policy", "all", "how many hosts may be missing from a commit: all (none), all-but(K), percent(P)")
	f.IntVar(&o.Agents, "agents", 2, "`NUMBER` of Mesos agents")
	f.DurationVar(&o.RestoreDeadline, "restore-deadline", 0, "`TIME` after which an abort that a host has not answered is stuck (default 1m0s)")
	f.StringVar(&level, "log-level", "warn", "`LEVEL` of the log on stderr: debug, info, warn, error")
	return cmd
}

// lead ends the process at once when the leader's term is over: nothing may be finished then.
func lead(err error) error {
	var over *orchestrator.TermOver
	if errors.As(err, &over) {
		fmt.Fprintln(os.Stderr, "cutover:", over)
		os.Exit(1)
	}
	return err
}

func orchestratorCommand() *cobra.Command {
	var (
		o                                           orchestrator.Options
		listen, tokenFile, tlsDir, hostsFile, level string
		startCommand, restartCommand                string
		shared                                      = orchestrator.SharedConfig{Env: os.Getenv}
		catalog                                     = orchestrator.CatalogConfig{Env: os.Getenv}
	)
	cmd := &cobra.Command{
		Use: "orchestrator", Short: "Run the orchestrator of a cluster, or one of several", Args: cobra.NoArgs,
		Long: "Alone it keeps its state in --data-dir. With --store and --consul it is one of several: one leads, the others answer reads " +
			"and forward to it, and take over when it ends.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Logger, err = logger(level); err != nil {
				return err
			}
			if o.Tokens, err = auth.LoadTokens(tokenFile); err != nil {
				return cli.Usage(fmt.Errorf("--tokens: %w", err))
			}
			if o.Hosts, o.Groups, err = orchestrator.LoadHosts(hostsFile); err != nil {
				return cli.Usage(fmt.Errorf("--hosts: %w", err))
			}
			catalog.TokenFile = shared.ConsulTokenFile
			if o.Catalog, err = catalog.Load(); err != nil {
				return cli.Usage(err)
			}
			var conf *tls.Config
			if tlsDir != "" {
				if conf, err = pki.Config(tlsDir, o.Cluster, "lbagent"); err != nil {
					return cli.Usage(fmt.Errorf("--tls-dir: %w", err))
				}
			}
			o.TLS, o.Version = conf, releaseVersion()
			o.StartCommand, o.RestartCommand = orchestrator.HostCommand(startCommand), orchestrator.HostCommand(restartCommand)
			if o.Listener, err = net.Listen("tcp", listen); err != nil {
				return fmt.Errorf("--listen: %w", err)
			}
			if o.Serve, err = orchestrator.ServeTLS(o.Listener.Addr(), tlsDir); err == nil {
				o.Shared, err = shared.Load(o.Cluster, o.Listener.Addr(), tlsDir)
			}
			if err != nil {
				return errors.Join(err, o.Listener.Close())
			}
			orch, err := orchestrator.New(cmd.Context(), o)
			if err != nil {
				return err
			}
			return lead(orch.Run(cmd.Context()))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.DataDir, "data-dir", "/var/lib/cutover/orchestrator", "`DIR` of the store of an orchestrator that is alone")
	f.StringVar(&shared.Store, "store", "", "`URL` of Redis (redis://HOST:PORT, rediss://...), for several orchestrators (CUTOVER_STORE)")
	f.StringVar(&shared.StorePasswordFile, "store-password-file", "", "`FILE` with the password of Redis (CUTOVER_STORE_PASSWORD)")
	f.StringVar(&shared.StoreCA, "store-ca", "", "`FILE` with the authority of a rediss:// store, PEM; empty: the system's")
	f.StringVar(&shared.Consul, "consul", "", "`URL` of a Consul agent, for several orchestrators; CONSUL_HTTP_TOKEN and CONSUL_CACERT are heard")
	f.StringVar(&catalog.Address, "catalog", "", "`URL` of a Consul agent in whose catalog hosts announce themselves, with the same token as --consul")
	f.StringVar(&catalog.Service, "catalog-service", "", "`NAME` of the service whose instances are hosts (default \""+announcement.Service+"\")")
	f.StringVar(&shared.ConsulTokenFile, "consul-token-file", "", "`FILE` with the token of Consul (CONSUL_HTTP_TOKEN_FILE)")
	f.DurationVar(&shared.SessionTTL, "session-ttl", 0, "`TIME` after which Consul gives up a silent leader, at least; twice as long at most (default 10s, Consul's own minimum)")
	f.StringVar(&shared.Name, "name", "", "`NAME` of this one of several orchestrators (default the machine's)")
	f.StringVar(&shared.Advertise, "advertise", "", "`URL` at which the other orchestrators reach this one (default that of --listen)")
	f.StringVar(&o.Cluster, "cluster", "main", "`NAME` of the cluster, the same at every lbagent")
	f.StringVar(&listen, "listen", "127.0.0.1:7480", "`ADDR` of the API; another than a loopback one is served with the certificate in --tls-dir")
	f.StringSliceVar(&o.Masters, "mesos", nil, "`MASTERS` of Mesos, host:port, comma separated")
	f.StringVar(&hostsFile, "hosts", "/etc/cutover/hosts.yaml", "`FILE` that declares groups and hosts")
	f.StringVar(&tokenFile, "tokens", "/etc/cutover/tokens.json", "`FILE` with the API's tokens (hashes)")
	f.StringVar(&tlsDir, "tls-dir", "/etc/cutover/tls", "`DIR` with ca.pem, cert.pem and key.pem; empty: plain HTTP to loopback lbagents")
	f.StringVar(&startCommand, "agent-start-command", "", "`COMMAND` that starts the lbagent of {host}, told to people when it is away (default systemctl)")
	f.StringVar(&restartCommand, "agent-restart-command", "", "`COMMAND` that restarts the lbagent of {host}, told to people when it hangs (default systemctl)")
	f.DurationVar(&o.RestoreDeadline, "restore-deadline", 0, "`TIME` after which an abort that a host has not answered is stuck (default 1m0s)")
	f.StringVar(&level, "log-level", "info", "`LEVEL` of the log on stderr")
	return cmd
}

func lbagentCommand() *cobra.Command {
	var file, level string
	cmd := &cobra.Command{
		Use: "lbagent", Short: "Run the agent of a load-balancer host", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(level)
			if err != nil {
				return err
			}
			c, err := daemon.Load(file)
			if err != nil {
				return cli.Usage(fmt.Errorf("--config: %w", err))
			}
			return c.Run(cmd.Context(), releaseVersion(), log)
		},
	}
	cmd.Flags().StringVar(&file, "config", "/etc/cutover/lbagent.yaml", "configuration `FILE` of this host")
	cmd.Flags().StringVar(&level, "log-level", "info", "`LEVEL` of the log on stderr")
	return cmd
}

func proxyCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "proxy", Short: "Prepare the published tree of this host and become its proxy", Args: cobra.NoArgs, Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			log, err := logger("info")
			if err != nil {
				return err
			}
			c, err := daemon.Load(file)
			if err != nil {
				return err
			}
			return c.ExecProxy(log)
		},
	}
	cmd.Flags().StringVar(&file, "config", "/etc/cutover/lbagent.yaml", "configuration `FILE` of this host")
	return cmd
}

func superviseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "supervise DIR", Short: "Keep the proxy and the lbagent of a dev host running", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			log, err := logger("info")
			if err != nil {
				return err
			}
			c, err := supervisor.Load(dir)
			if err != nil {
				return err
			}
			return supervisor.Run(cmd.Context(), c, log)
		},
	}
}
