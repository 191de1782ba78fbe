package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/cli/screen"
	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// This file is the commands about Hosts that change something.

const (
	// hostEvery is how often a Host that is waited for is looked at.
	hostEvery = 500 * time.Millisecond
	// quietFor is how long a drained Host must have had no client connection; the orchestrator asks for the same.
	quietFor = 5 * time.Second
)

// hostFlags are those of every command that changes a Host.
type hostFlags struct {
	conn    *connection
	reason  string
	key     string
	detach  bool
	timeout time.Duration
	sure    bool
}

func (a *app) addHostFlags(cmd *cobra.Command, wait string) *hostFlags {
	f := &hostFlags{conn: addConnection(cmd)}
	a.addOutput(cmd)
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for the audit record (required)")
	cmd.Flags().StringVar(&f.key, "idempotency-key", "", "name of this request: repeated with the same key it changes nothing more")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 2*time.Minute, wait)
	cmd.Args = cobra.ExactArgs(1)
	cmd.ValidArgsFunction = a.completeHosts(f.conn)
	return f
}

func (f *hostFlags) addDetach(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.detach, "detach", false, "do not wait")
}

func (f *hostFlags) addSure(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.sure, "i-know-it-gets-no-traffic", false, "your word, kept in the audit record, in the place of the host's own proof")
}

func (f *hostFlags) check() error {
	if strings.TrimSpace(f.reason) == "" {
		return &usageError{errors.New("--reason TEXT says why, for the audit record")}
	}
	if len(f.reason) > wire.MaxReasonBytes {
		return &usageError{fmt.Errorf("--reason is longer than %d bytes", wire.MaxReasonBytes)}
	}
	if len(f.key) > wire.MaxIdempotencyKeyBytes {
		return &usageError{fmt.Errorf("--idempotency-key is longer than %d bytes", wire.MaxIdempotencyKeyBytes)}
	}
	return nil
}

// changeHost asks for a change, again as long as transactions of the Group are undecided, and then waits until done says "".
func (a *app) changeHost(ctx context.Context, f *hostFlags, name string, ask func(context.Context, *client.Client, client.Change) (wire.Host, error), done func(wire.Host) string) error {
	if err := f.check(); err != nil {
		return err
	}
	c, err := a.client(f.conn)
	if err != nil {
		return err
	}
	defer c.Close()
	waiting, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	change := client.Change{Reason: f.reason, Key: first(f.key, client.NewKey())}
	host, err := ask(waiting, c, change)
	for said := false; isLocked(err) && pause(waiting, hostEvery); said = true {
		if !said {
			a.note(err.Error())
		}
		host, err = ask(waiting, c, change)
	}
	if err != nil {
		return err
	}
	said := ""
	for !f.detach && done != nil {
		left := done(host)
		if left == "" {
			break
		}
		if left != said {
			a.note(screen.Clean(name) + ": " + screen.Clean(left))
			said = left
		}
		if !pause(waiting, hostEvery) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := a.answer(host, func(s screen.Style) []string { return screen.LBHost(host, s) }); err != nil {
				return err
			}
			return &ExitError{Code: deploy.ExitTimeout}
		}
		if host, err = a.host(ctx, c, name); err != nil {
			return err
		}
	}
	return a.answer(host, func(s screen.Style) []string { return screen.LBHost(host, s) })
}

// host looks at a Host again.
func (a *app) host(ctx context.Context, c *client.Client, name string) (wire.Host, error) {
	list, err := c.Hosts(ctx)
	if err != nil {
		return wire.Host{}, err
	}
	for _, h := range list {
		if h.Name == name {
			return h, nil
		}
	}
	return wire.Host{}, &deploy.Refusal{Kind: deploy.RefusedNotFound, Detail: fmt.Sprintf("host %q is there no longer", name)}
}

func isLocked(err error) bool {
	var refusal *deploy.Refusal
	return errors.As(err, &refusal) && refusal.Kind == deploy.RefusedLocked
}

// pause waits, and reports whether ctx let it.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// becomeMember says what a Host lacks to be a member in traffic.
func becomeMember(h wire.Host) string {
	m := h.Membership
	switch {
	case m.Standing != "member":
		return m.Standing + ": " + first(m.Waiting, "it takes in what is committed")
	case m.Drained || h.Traffic == nil || h.Traffic.Ready:
		return ""
	}
	return "a member, not ready yet: " + strings.Join(h.Traffic.Reasons, "; ")
}

// becomeQuiet says what a drained Host lacks to be proven out of traffic.
func becomeQuiet(h wire.Host) string {
	t := h.Traffic
	switch {
	case !h.Connected || t == nil:
		return "it does not answer: its lbagent must run to turn its readiness red"
	case t.Ordered != "out" || t.Ready:
		return "its readiness turns red"
	case !t.Counted:
		return "its client connections are not counted yet (that needs CAP_NET_ADMIN; its lbagent's log says more)"
	case t.Sessions > 0:
		return fmt.Sprintf("readiness is red, %d client connections are there or have just ended", t.Sessions)
	case t.QuietSeconds < quietFor.Seconds():
		return "readiness is red, no client connection is left; it has to stay so for " + quietFor.String()
	}
	return ""
}

func (a *app) lbAdmitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "admit HOST --reason TEXT",
		Short: "Make an announced host a member of its group",
		Long: "The host gets the whole committed state, deletes what is not in it, and is a member, and ready, when its running proxy was read to serve it. " +
			"A host that neither the hosts file nor Consul announces needs --group and --agent-url.",
	}
	f := a.addHostFlags(cmd, "how long to wait until it is a member; then exit 7, and it goes on")
	f.addDetach(cmd)
	var group, url string
	cmd.Flags().StringVar(&group, "group", "", "`GROUP` of a host that is not announced, or announced more than once")
	cmd.Flags().StringVar(&url, "agent-url", "", "`URL` of the lbagent of a host that is not announced, or announced more than once")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.changeHost(cmd.Context(), f, args[0], func(ctx context.Context, c *client.Client, change client.Change) (wire.Host, error) {
			return c.Admit(ctx, args[0], group, url, change)
		}, becomeMember)
	}
	return cmd
}

func (a *app) lbReadmitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "readmit HOST --reason TEXT",
		Short: "Bring back a host that is excluded or drained",
		Long:  "An excluded host is synced first, as with admit. A drained one turns ready again.",
	}
	f := a.addHostFlags(cmd, "how long to wait until it is a member and ready; then exit 7, and it goes on")
	f.addDetach(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.changeHost(cmd.Context(), f, args[0], func(ctx context.Context, c *client.Client, change client.Change) (wire.Host, error) {
			return c.Readmit(ctx, args[0], change)
		}, becomeMember)
	}
	return cmd
}

func (a *app) lbDrainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drain HOST --reason TEXT",
		Short: "Take a host out of traffic: turn its readiness red, and wait until no client is left",
		Long: "Upstream balancers (ELB, keepalived, anycast) watch the readiness endpoint of the lbagent, /readyz, and move their traffic off a red host. " +
			"The command waits until the host has counted no client connection for " + quietFor.String() + ": that is the proof that exclude and remove ask for. " +
			"The host stays a member; readmit brings its traffic back.",
	}
	f := a.addHostFlags(cmd, "how long to wait until no client is left; then exit 7, and it stays drained")
	f.addDetach(cmd)
	f.addSure(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.changeHost(cmd.Context(), f, args[0], func(ctx context.Context, c *client.Client, change client.Change) (wire.Host, error) {
			return c.DrainHost(ctx, args[0], f.sure, change)
		}, becomeQuiet)
	}
	return cmd
}

func (a *app) lbExcludeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exclude HOST --reason TEXT",
		Short: "Take a host that gets no traffic out of its group, so that deploys need it no longer",
		Long: "Needs proof: drain the host first, or say --i-know-it-gets-no-traffic if it is dead or was taken out of traffic by other means. " +
			"Waits for the undecided transactions of the group. What the host has not answered is waited for no longer; it is synced before it is readmitted.",
	}
	f := a.addHostFlags(cmd, "how long to wait for undecided transactions; then exit 8, and nothing is changed")
	f.addSure(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.changeHost(cmd.Context(), f, args[0], func(ctx context.Context, c *client.Client, change client.Change) (wire.Host, error) {
			return c.Exclude(ctx, args[0], f.sure, change)
		}, nil)
	}
	return cmd
}

func (a *app) lbRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove HOST --reason TEXT",
		Short: "Take a host out for good",
		Long: "Needs the proof that exclude needs. Nobody talks to the host any longer, and what was kept for it is released. Take it out of the hosts file as well. " +
			"One that Consul announces stays removed until it is admitted again.",
	}
	f := a.addHostFlags(cmd, "how long to wait for undecided transactions; then exit 8, and nothing is changed")
	f.addSure(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.changeHost(cmd.Context(), f, args[0], func(ctx context.Context, c *client.Client, change client.Change) (wire.Host, error) {
			return c.RemoveHost(ctx, args[0], f.sure, change)
		}, nil)
	}
	return cmd
}

func (a *app) lbResolveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "resolve HOST|DEPLOY|APP",
		Short: "Settle what is stuck, now: restore again, sync again, and say what is left",
		Long:  "For a Deploy or an App: on the hosts that it waits for. Exits 0 when nothing is left, 4 if something is.",
		Args:  cobra.ExactArgs(1),
	}
	conn := addConnection(cmd)
	a.addOutput(cmd)
	var timeout time.Duration
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long to wait for the hosts; then exit 4, and the orchestrator goes on trying")
	cmd.ValidArgsFunction = a.completeHosts(conn)
	cmd.RunE = a.read(conn, func(ctx context.Context, c *client.Client, args []string) error {
		waiting, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		// One request takes a few seconds at most; the last one is heard out.
		r, err := c.Resolve(ctx, args[0], client.Change{})
		said := ""
		for err == nil && !r.Resolved {
			if left := unsettled(r); left != said {
				a.note("waiting, for " + timeout.String() + " at most: " + screen.Clean(left))
				said = left
			}
			if !pause(waiting, hostEvery) {
				break
			}
			r, err = c.Resolve(ctx, args[0], client.Change{})
		}
		if err != nil {
			return err
		}
		if err := a.answer(r, func(s screen.Style) []string { return screen.Resolution(r, s) }); err != nil {
			return err
		}
		if !r.Resolved {
			return &ExitError{Code: deploy.ExitStuck}
		}
		return nil
	})
	return cmd
}

// unsettled names the Hosts that are waited for, each with the first of what is left.
func unsettled(r wire.Resolution) string {
	var out []string
	for _, h := range r.Hosts {
		if h.Resolved {
			continue
		}
		text := h.Name
		if len(h.Remaining) > 0 {
			text += ": " + h.Remaining[0]
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

func (a *app) lbLogCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "log", Short: "List who changed the membership of which host, when, why and with what proof", Args: cobra.NoArgs}
	conn := addConnection(cmd)
	a.addOutput(cmd)
	var limit int
	cmd.Flags().IntVar(&limit, "limit", 50, "how many, newest first")
	cmd.RunE = a.read(conn, func(ctx context.Context, c *client.Client, _ []string) error {
		if limit < 1 || limit > 500 {
			return &usageError{fmt.Errorf("--limit %d: want 1 to 500", limit)}
		}
		list, err := c.HostChanges(ctx, limit)
		if err != nil {
			return err
		}
		return a.answer(wire.HostHistory{Changes: list}, func(s screen.Style) []string { return screen.HostChanges(list, s) })
	})
	return cmd
}
