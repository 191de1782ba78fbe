package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/cli/screen"
	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/spec"
)

// changeFlags are those of every command that changes something and then waits.
type changeFlags struct {
	conn   *connection
	wait   *waitFlags
	detach bool
	key    string
	reason string
}

func (a *app) addChange(cmd *cobra.Command) *changeFlags {
	f := &changeFlags{conn: addConnection(cmd), wait: addWait(cmd)}
	a.addOutput(cmd, modeJSONL)
	cmd.Flags().BoolVar(&f.detach, "detach", false, "do not wait: print the deploy id and exit 0")
	cmd.Flags().StringVar(&f.key, "idempotency-key", "", "name of this request: repeated with the same key it starts nothing new (a CI run's id)")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for the audit record")
	cmd.Long = strings.TrimSpace(cmd.Long + "\n\n" + exitCodes)
	return f
}

func (f *changeFlags) check() error {
	if len(f.key) > wire.MaxIdempotencyKeyBytes {
		return &usageError{fmt.Errorf("--idempotency-key is longer than %d bytes", wire.MaxIdempotencyKeyBytes)}
	}
	if len(f.reason) > wire.MaxReasonBytes {
		return &usageError{fmt.Errorf("--reason is longer than %d bytes", wire.MaxReasonBytes)}
	}
	return f.wait.check()
}

// change asks for a change and waits for its Deploy. With undo, a Deploy that the request did not start (it was open) is being put
// back, and being back is what was asked for.
func (a *app) change(ctx context.Context, f *changeFlags, undo bool, ask func(context.Context, *client.Client, client.Change) (deploy.View, error)) error {
	if err := f.check(); err != nil {
		return err
	}
	c, err := a.client(f.conn)
	if err != nil {
		return err
	}
	defer c.Close()
	asking, cancel := context.WithTimeout(ctx, f.wait.timeout)
	defer cancel()
	key := first(f.key, client.NewKey())
	v, err := ask(asking, c, client.Change{Reason: f.reason, Key: key})
	if err != nil {
		if ctx.Err() != nil {
			fmt.Fprintf(a.Err, "interrupted before the answer came: the request may have arrived\n  look:   cutover status%s\n  repeat: the same command with --idempotency-key %s\n", a.suffix, key)
		}
		return err
	}
	if f.detach {
		return a.answer(v, func(s screen.Style) []string {
			out := []string{screen.Header(v, s)}
			if v.State != deploy.Running {
				out = append(out, screen.Outcome(v, a.Now(), s)...)
			}
			return append(out, "watch: cutover watch "+screen.Clean(v.DeployID)+a.suffix)
		})
	}
	ended := reaching(deploy.WaitFor(f.wait.until))
	if undo && v.Kind != string(deploy.KindRollback) {
		ended = undoing
		a.note(fmt.Sprintf("putting back the open Deploy %s of %s: spec %d -> %d", v.DeployID, v.App, v.Spec, v.FromSpec))
	}
	return a.wait(ctx, c, v, ended, f.wait.timeout)
}

func (a *app) deployCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deploy -f FILE [-f FILE]...",
		Short: "Move an App to the spec in a file, or several in lock-step",
		Long: "Starts the new tasks, moves the traffic to them on every host once each of them proved them healthy, and drains the old ones. " +
			"If any host disagrees, everything is put back. Several files, or several documents in one, are one lock-step: all Apps commit in one decision, or none does; an abort of one is of all. The deploy id is printed first; the command waits for that Deploy only. Ctrl-C detaches, and never aborts.",
		Example: "  cutover deploy -f app.yaml\n  cutover deploy -f app.yaml -o json --idempotency-key \"$CI_RUN_ID\"\n  generate | cutover deploy -f - --wait-for drained\n  cutover deploy -f api.yaml -f web.yaml",
		Args:    cobra.NoArgs,
	}
	var files []string
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "the App spec, YAML or JSON; - is standard input; more than one is a lock-step")
	must(cmd.MarkFlagFilename("file", "yaml", "yml", "json"))
	f := a.addChange(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		source, err := a.readSpecs(files)
		if err != nil {
			return err
		}
		return a.change(cmd.Context(), f, false, func(ctx context.Context, c *client.Client, change client.Change) (deploy.View, error) {
			return c.Submit(ctx, source, change)
		})
	}
	return cmd
}

func (a *app) scaleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scale APP INSTANCES",
		Short: "Change the number of an App's instances",
		Long:  "A Deploy like any other; the tasks that run are kept. 0 empties the App's routes.",
		Args:  cobra.ExactArgs(2),
	}
	f := a.addChange(cmd)
	cmd.ValidArgsFunction = a.completeApps(f.conn)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		n, err := strconv.Atoi(args[1])
		if err != nil || n < 0 || n > spec.MaxInstances {
			return &usageError{fmt.Errorf("INSTANCES %q: want a number from 0 to %d", args[1], spec.MaxInstances)}
		}
		return a.change(cmd.Context(), f, false, func(ctx context.Context, c *client.Client, change client.Change) (deploy.View, error) {
			return c.Scale(ctx, args[0], n, change)
		})
	}
	return cmd
}

func (a *app) stopCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stop APP",
		Short: "Remove an App's routes from every host, then its tasks",
		Long:  "The App stays listed as stopped, its paths become free; deploy or rollback brings it back.",
		Args:  cobra.ExactArgs(1),
	}
	f := a.addChange(cmd)
	cmd.ValidArgsFunction = a.completeApps(f.conn)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.change(cmd.Context(), f, false, func(ctx context.Context, c *client.Client, change client.Change) (deploy.View, error) {
			return c.Stop(ctx, args[0], change)
		})
	}
	return cmd
}

func (a *app) rollbackCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback APP",
		Short: "Go back to the spec that was committed before, or end the open Deploy",
		Long: "Prints from which spec to which it goes. While a Deploy is open, restoring or stuck, this is its abort, and exits 0 when every host is back. " +
			"It is never refused by a lock, and runs before everything that waits.",
		Args: cobra.ExactArgs(1),
	}
	var to uint64
	cmd.Flags().Uint64Var(&to, "to", 0, "spec to go to (default: the one committed before the current one)")
	f := a.addChange(cmd)
	cmd.ValidArgsFunction = a.completeApps(f.conn)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("to") && to == 0 {
			return &usageError{fmt.Errorf("--to 0: specs count from 1")}
		}
		return a.change(cmd.Context(), f, true, func(ctx context.Context, c *client.Client, change client.Change) (deploy.View, error) {
			return c.Rollback(ctx, args[0], to, change)
		})
	}
	return cmd
}

func (a *app) abortCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "abort DEPLOY|APP",
		Short: "Put back an open Deploy",
		Long:  "Exits 0 when everything is as it was before the Deploy. After Commit there is nothing to abort: use rollback.",
		Args:  cobra.ExactArgs(1),
	}
	f := a.addChange(cmd)
	cmd.ValidArgsFunction = a.completeApps(f.conn)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.change(cmd.Context(), f, true, func(ctx context.Context, c *client.Client, change client.Change) (deploy.View, error) {
			return c.Abort(ctx, args[0], change)
		})
	}
	return cmd
}
