package cli

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/cli/screen"
	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
)

// recentDeploys is how many Deploys `status` lists.
const recentDeploys = 10

// allDeploys is the most that the API lists at once.
const allDeploys = 500

func notFound(err error) bool {
	var refusal *deploy.Refusal
	return errors.As(err, &refusal) && refusal.Kind == deploy.RefusedNotFound
}

// read makes the RunE of a command that only reads.
func (a *app) read(conn *connection, run func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client(conn)
		if err != nil {
			return err
		}
		defer c.Close()
		return run(cmd.Context(), c, args)
	}
}

func (a *app) watchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watch DEPLOY",
		Short: "Follow a Deploy to its end",
		Long:  "Exits with the Deploy's outcome. Ctrl-C ends the watch, never the Deploy.\n\n" + exitCodes,
		Args:  cobra.ExactArgs(1),
	}
	conn, wait := addConnection(cmd), addWait(cmd)
	a.addOutput(cmd, modeJSONL)
	cmd.RunE = a.read(conn, func(ctx context.Context, c *client.Client, args []string) error {
		if err := wait.check(); err != nil {
			return err
		}
		v, err := c.Deploy(ctx, args[0])
		if err != nil {
			return err
		}
		return a.wait(ctx, c, v, reaching(deploy.WaitFor(wait.until)), wait.timeout)
	})
	return cmd
}

// overview is what `status` without an argument prints as JSON.
type overview struct {
	Apps    []deploy.AppView `json:"apps"`
	Deploys []deploy.View    `json:"deploys"`
}

// appStatus is what `status APP` prints as JSON: the App, and its open or else its last Deploy.
type appStatus struct {
	deploy.AppView
	Deploy *deploy.View `json:"deploy,omitempty"`
}

func (a *app) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [APP|DEPLOY]",
		Short: "Show how things stand: all Apps, one App, or one Deploy",
		Args:  cobra.MaximumNArgs(1),
	}
	conn := addConnection(cmd)
	a.addOutput(cmd)
	cmd.ValidArgsFunction = a.completeApps(conn)
	cmd.RunE = a.read(conn, func(ctx context.Context, c *client.Client, args []string) error {
		if len(args) == 0 {
			return a.statusAll(ctx, c)
		}
		v, err := c.Deploy(ctx, args[0])
		if err == nil {
			return a.answer(v, func(s screen.Style) []string {
				out := screen.Status(v, a.Now(), s)
				if next := a.next(v); next != "" {
					out = append(out, next)
				}
				return out
			})
		}
		if !notFound(err) {
			return err
		}
		return a.statusApp(ctx, c, args[0])
	})
	return cmd
}

func (a *app) statusAll(ctx context.Context, c *client.Client) error {
	apps, err := c.Apps(ctx)
	if err != nil {
		return err
	}
	deploys, err := c.Deploys(ctx, "", recentDeploys)
	if err != nil {
		return err
	}
	stuck, err := a.stuck(ctx, c, deploys)
	if err != nil {
		return err
	}
	deploys = append(stuck, slices.DeleteFunc(deploys, func(v deploy.View) bool { return v.State == deploy.Stuck })...)
	return a.answer(overview{apps, deploys}, func(s screen.Style) []string {
		out := screen.StuckDeploys(stuck, s)
		out = append(out, screen.Apps(apps, s)...)
		if len(deploys) > 0 {
			out = append(append(out, ""), screen.Deploys(deploys, a.Now(), s)...)
		}
		return out
	})
}

// stuck are all Deploys that are stuck, however old: nothing else needs somebody more.
func (a *app) stuck(ctx context.Context, c *client.Client, newest []deploy.View) ([]deploy.View, error) {
	if len(newest) == recentDeploys {
		var err error
		if newest, err = c.Deploys(ctx, "", allDeploys); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(slices.Clone(newest), func(v deploy.View) bool { return v.State != deploy.Stuck }), nil
}

func (a *app) statusApp(ctx context.Context, c *client.Client, name string) error {
	v, err := c.App(ctx, name)
	if notFound(err) {
		return &deploy.Refusal{Kind: deploy.RefusedNotFound, Detail: fmt.Sprintf("there is no App and no Deploy %q; cutover apps lists the Apps, cutover status the newest Deploys", name)}
	}
	if err != nil {
		return err
	}
	status := appStatus{AppView: v}
	if id := first(v.OpenDeploy, v.LastDeploy); id != "" {
		last, err := c.Deploy(ctx, id)
		if err != nil && !notFound(err) {
			return err
		}
		if err == nil {
			status.Deploy = &last
		}
	}
	return a.answer(status, func(s screen.Style) []string {
		out := screen.App(v, s)
		if status.Deploy != nil {
			out = append(append(out, ""), screen.Status(*status.Deploy, a.Now(), s)...)
			if next := a.next(*status.Deploy); next != "" {
				out = append(out, next)
			}
		}
		return out
	})
}

func (a *app) appsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "apps", Short: "List the Apps", Args: cobra.NoArgs}
	conn := addConnection(cmd)
	a.addOutput(cmd)
	cmd.RunE = a.read(conn, func(ctx context.Context, c *client.Client, _ []string) error {
		apps, err := c.Apps(ctx)
		if err != nil {
			return err
		}
		return a.answer(wire.AppList{Apps: apps}, func(s screen.Style) []string { return screen.Apps(apps, s) })
	})
	return cmd
}

func (a *app) tasksCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "tasks [APP]", Short: "List the tasks, of one App or of all", Args: cobra.MaximumNArgs(1)}
	conn := addConnection(cmd)
	a.addOutput(cmd)
	cmd.ValidArgsFunction = a.completeApps(conn)
	cmd.RunE = a.read(conn, func(ctx context.Context, c *client.Client, args []string) error {
		app := ""
		if len(args) == 1 {
			app = args[0]
			if _, err := c.App(ctx, app); err != nil {
				return err // a mistyped name must not look like an App without tasks
			}
		}
		tasks, err := c.Tasks(ctx, app)
		if err != nil {
			return err
		}
		return a.answer(wire.TaskList{Tasks: tasks}, func(s screen.Style) []string { return screen.Tasks(tasks, s) })
	})
	return cmd
}

func (a *app) lbCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "lb", Short: "Look at the load-balancer hosts, and say who is a member"}

	hosts := &cobra.Command{Use: "hosts", Short: "List the hosts, with what is wrong on each", Args: cobra.NoArgs}
	conn := addConnection(hosts)
	a.addOutput(hosts)
	hosts.RunE = a.read(conn, func(ctx context.Context, c *client.Client, _ []string) error {
		list, err := c.HostList(ctx)
		if err != nil {
			return err
		}
		return a.answer(list, func(s screen.Style) []string { return screen.LBHosts(list, a.Now(), s) })
	})
	cmd.AddCommand(hosts, a.lbShowCommand(), a.lbDriftCommand())
	cmd.AddCommand(a.lbAdmitCommand(), a.lbReadmitCommand(), a.lbDrainCommand(), a.lbExcludeCommand(), a.lbRemoveCommand(), a.lbResolveCommand(), a.lbLogCommand())
	return cmd
}

// shown is what `lb show` prints as JSON.
type shown struct {
	Hosts []wire.HostShow `json:"hosts"`
}

func (a *app) lbShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show [HOST]",
		Short: "Show what is committed and what each host's proxy runs, side by side",
		Long:  "Reads the running proxies now. Without HOST: every host that was admitted.",
		Args:  cobra.MaximumNArgs(1),
	}
	conn := addConnection(cmd)
	a.addOutput(cmd)
	cmd.ValidArgsFunction = a.completeHosts(conn)
	cmd.RunE = a.read(conn, func(ctx context.Context, c *client.Client, args []string) error {
		names := args
		if len(names) == 0 {
			list, err := c.Hosts(ctx)
			if err != nil {
				return err
			}
			for _, h := range list {
				if h.Membership.Asked() {
					names = append(names, h.Name)
				}
			}
		}
		all := shown{Hosts: []wire.HostShow{}}
		for _, name := range names {
			show, err := c.ShowHost(ctx, name)
			if err != nil {
				return err
			}
			all.Hosts = append(all.Hosts, show)
		}
		return a.answer(all, func(s screen.Style) []string {
			var out []string
			for i, show := range all.Hosts {
				if i > 0 {
					out = append(out, "")
				}
				out = append(out, screen.LBShow(show, a.Now(), s)...)
			}
			if len(all.Hosts) == 0 {
				out = screen.LBHosts(wire.HostList{}, a.Now(), s)
			}
			return out
		})
	})
	return cmd
}

func (a *app) completeHosts(conn *connection) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		a.note = func(string) {}
		c, err := a.client(conn)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
		defer cancel()
		list, err := c.Hosts(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names := make([]string, len(list))
		for i, h := range list {
			names[i] = h.Name
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) validateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate -f FILE",
		Short: "Check a spec, without starting anything",
		Long: "Checks the spec by itself. With --api or --data-dir the orchestrator checks it too: its groups, and the routes of other Apps.\n\n" +
			"A spec to begin with:\n\n" + exampleSpec,
		Args: cobra.NoArgs,
	}
	var files []string
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "the App spec, YAML or JSON; - is standard input; several are checked as one lock-step")
	must(cmd.MarkFlagFilename("file", "yaml", "yml", "json"))
	conn := addConnection(cmd)
	a.addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		source, err := a.readSpecs(files)
		if err != nil {
			return err
		}
		if _, problems := spec.ParseAll(source); len(problems) > 0 {
			return &deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: a.source + " is not a valid spec", Problems: problems}
		}
		if conn.given() {
			c, err := a.client(conn)
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.Validate(cmd.Context(), source); err != nil {
				return err
			}
		}
		return a.answer(wire.Validated{Valid: true}, func(s screen.Style) []string { return []string{screen.Clean(a.source) + " is valid"} })
	}
	return cmd
}

// versionTimeout is how long `version` waits: every orchestrator answers it by itself, and at once.
const versionTimeout = 5 * time.Second

// versions is what `version` prints as JSON.
type versions struct {
	Version  string        `json:"version"`
	Go       string        `json:"go"`
	Platform string        `json:"platform"`
	Server   *wire.Version `json:"server,omitempty"`
}

// standing says what an orchestrator that is one of several is now, and which one leads.
func standing(v wire.Version) string {
	var ago time.Duration
	if v.LeaderHeardAgo != nil {
		ago = time.Duration(*v.LeaderHeardAgo * float64(time.Second))
	}
	out := ", " + screen.Clean(v.Name) + ": "
	switch {
	case v.Name == "":
		return ""
	case v.Role == wire.RoleLeader:
		return out + "leads"
	case ago > wire.LeaderStale:
		out += "who leads is not known: Consul has not answered for " + screen.Duration(ago)
		if v.Leader != nil {
			out += "; " + screen.Clean(v.Leader.Name) + " at " + screen.Clean(v.Leader.URL) + " led then"
		}
		return out
	case v.Leader == nil:
		return out + "nobody leads"
	}
	out += "follows " + screen.Clean(v.Leader.Name) + " at " + screen.Clean(v.Leader.URL)
	if v.LeaderHeardAgo != nil {
		out += " (Consul said so " + screen.Duration(ago) + " ago)"
	}
	return out
}

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "Print the version, with --api or --data-dir the orchestrator's too", Args: cobra.NoArgs}
	conn := addConnection(cmd)
	a.addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v := versions{Version: a.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
		if conn.given() {
			c, err := a.client(conn)
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), versionTimeout)
			defer cancel()
			server, err := c.Version(ctx)
			if err != nil {
				return err
			}
			v.Server = &server
		}
		return a.answer(v, func(screen.Style) []string {
			out := []string{"cutover " + v.Version + " (" + v.Go + ", " + v.Platform + ")"}
			if v.Server != nil {
				out = append(out, "orchestrator "+screen.Clean(v.Server.Version)+" (API "+screen.Clean(v.Server.API)+")"+standing(*v.Server))
			}
			return out
		})
	}
	return cmd
}
