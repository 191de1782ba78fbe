package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/cli/screen"
	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// drifted is what `lb drift` prints as JSON. A Host that did not answer is in Unknown with the reason.
type drifted struct {
	Hosts   []wire.HostDrift   `json:"hosts"`
	Unknown []screen.HostError `json:"unknown"`
}

func (a *app) lbDriftCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drift [HOST]",
		Short: "Show what differs between what is committed, on disk and running, with the likely cause",
		Long: `Compares everything on the hosts now: every file of Cutover's, and what the running proxy holds. A transaction that is open,
an upstream that drains and a removed server that is only remembered are no differences.

Exit codes:
  0    no host differs
  1    usage or internal error
  2    something differs (it may be on its way to be put right: see "repair" and "left alone")
  9    not authorised, or the orchestrator or a host is unreachable, and no other host differs`,
		Args: cobra.MaximumNArgs(1),
	}
	var group string
	conn := addConnection(cmd)
	cmd.Flags().StringVar(&group, "group", "", "only the hosts of this group")
	a.addOutput(cmd)
	cmd.ValidArgsFunction = a.completeHosts(conn)
	cmd.RunE = a.read(conn, func(ctx context.Context, c *client.Client, args []string) error {
		names := args
		if len(args) == 0 {
			list, err := c.Hosts(ctx)
			if err != nil {
				return err
			}
			if group != "" && !slices.ContainsFunc(list, func(h wire.Host) bool { return h.Group == group }) {
				return &deploy.Refusal{Kind: deploy.RefusedNotFound, Detail: fmt.Sprintf("no host is of group %q; cutover lb hosts lists them", group)}
			}
			for _, h := range list {
				if h.Membership.Asked() && (group == "" || h.Group == group) {
					names = append(names, h.Name)
				}
			}
		} else if group != "" {
			return &usageError{errors.New("give a host or --group, not both")}
		}
		return a.drift(ctx, c, names, len(args) == 1)
	})
	return cmd
}

// drift asks the Hosts one by one. A single one that does not answer is the command's failure; among several it is told,
// and the others are compared all the same.
func (a *app) drift(ctx context.Context, c *client.Client, names []string, single bool) error {
	all := drifted{Hosts: []wire.HostDrift{}, Unknown: []screen.HostError{}}
	differ := false
	for _, name := range names {
		d, err := c.HostDrift(ctx, name)
		switch {
		case err == nil:
			all.Hosts = append(all.Hosts, d)
			differ = differ || len(d.Differences)+d.LeftOut > 0
		case single || wire.ExitOf(problemOf(err).Kind) != deploy.ExitUnreachable || ctx.Err() != nil:
			return err
		default:
			all.Unknown = append(all.Unknown, screen.HostError{Host: name, Error: problemOf(err).Detail})
		}
	}
	err := a.answer(all, func(s screen.Style) []string { return screen.LBDrift(all.Hosts, all.Unknown, a.Now(), s) })
	switch {
	case err != nil:
		return err
	case differ:
		return &ExitError{Code: deploy.ExitDiffers}
	case len(all.Unknown) > 0:
		return &ExitError{Code: deploy.ExitUnreachable}
	}
	return nil
}
