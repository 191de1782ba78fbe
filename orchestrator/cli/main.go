package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// Options are what a run of the command line is made of.
type Options struct {
	// Version of this release.
	Version string
	// Commands makes the commands that are no clients of the API: the daemons.
	Commands []func() *cobra.Command

	In       io.Reader
	Out, Err io.Writer
	// Env looks up an environment variable; "" if it is not set.
	Env func(string) string
	// Terminal is the size of the terminal that Out is, and whether it is one.
	Terminal func() (width, height int, ok bool)
	// Now is the clock for what is shown.
	Now func() time.Time
}

// OS returns the Options of this process.
func OS(version string) Options {
	return Options{
		Version: version, In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Getenv, Now: time.Now,
		Terminal: func() (int, int, bool) {
			fd := int(os.Stdout.Fd())
			if !term.IsTerminal(fd) {
				return 0, 0, false
			}
			width, height, err := term.GetSize(fd)
			return width, height, err == nil
		},
	}
}

// ExitError ends a command with an exit code of its own. Err, if there is one, is reported like every other error.
type ExitError struct {
	Code int
	Err  error
}

// Error returns the cause's text.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *ExitError) Unwrap() error { return e.Err }

const exitCodes = `Exit codes:
  0    reached what was asked
  1    usage, invalid input or internal error
  3    failed, and safely rolled back
  4    failed, and not yet safe (stuck)
  5    paused or inconclusive
  6    superseded or aborted
  7    the watch timed out, the Deploy is still running
  8    locked: another Deploy of the App is open
  9    not authorised, or the orchestrator is unreachable
  130  interrupted: detached, the Deploy goes on`

// Main runs one command and returns its exit code. The end of ctx is an interrupt.
func Main(ctx context.Context, args []string, opts Options) int {
	a := &app{Options: opts, mode: guessMode(args)}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return deploy.ExitReached
	}
	return a.report(ctx, err)
}

// app is one run of the command line.
type app struct {
	Options
	mode outputMode
	// source names the spec that problems are about.
	source string
	// files are the parts of source, if there are several.
	files []specFile
	// suffix is appended to the commands that are shown as the next ones, so that they reach the same orchestrator.
	suffix string
	// note shows what goes on beside the command's output. Never nil once a command runs.
	note func(string)
}

func (a *app) root() *cobra.Command {
	a.note = func(text string) { fmt.Fprintln(a.Err, "cutover: "+text) }
	root := &cobra.Command{
		Use:   "cutover",
		Short: "Deploy applications on Mesos, and move their traffic on every load balancer as one transaction",
		Long: "Cutover deploys applications on an Apache Mesos cluster and moves the traffic to them on every nginx and HAProxy host as one transaction: " +
			"a deploy succeeds only after every host proved, from its own running proxy, that each new upstream is registered and healthy. " +
			"Otherwise everything is put back.\n\n" + exitCodes,
		SilenceErrors: true, SilenceUsage: true,
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetFlagErrorFunc(flagError)
	for _, command := range []func() *cobra.Command{
		a.deployCommand, a.statusCommand, a.watchCommand, a.abortCommand, a.rollbackCommand, a.scaleCommand, a.stopCommand,
		a.appsCommand, a.tasksCommand, a.logsCommand, a.lbCommand, a.validateCommand, a.versionCommand,
	} {
		root.AddCommand(command())
	}
	for _, command := range a.Commands {
		root.AddCommand(command())
	}
	root.SetHelpCommand(helpCommand())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	asUsage(root)
	return root
}

// report says why a command failed, and returns its exit code.
func (a *app) report(ctx context.Context, err error) int {
	var exit *ExitError
	if errors.As(err, &exit) && exit.Err == nil {
		return exit.Code
	}
	// A request that an interrupt cut off is no failure of the orchestrator.
	if ctx.Err() != nil {
		fmt.Fprintln(a.Err, "interrupted")
		return deploy.ExitInterrupted
	}
	p := problemOf(err)
	a.printProblem(p)
	if exit != nil {
		return exit.Code
	}
	return wire.ExitOf(p.Kind)
}

// problemOf gives every error the one shape.
func problemOf(err error) *wire.ProblemDetails {
	var (
		problem     *wire.ProblemDetails
		refusal     *deploy.Refusal
		usage       *usageError
		unreachable *client.Unreachable
	)
	switch {
	case errors.As(err, &problem):
		return problem
	case errors.As(err, &refusal):
		p := wire.FromRefusal(refusal)
		p.Status = 0 // refused here, without a request
		return p
	case errors.As(err, &unreachable):
		p := wire.NewProblem(deploy.RefusedUnavailable, 0, unreachable.Error()+
			"; check that it runs (cutover dev, or the orchestrator's service), and the address: --api, CUTOVER_API, or --data-dir of a dev cluster")
		p.Status = 0 // nobody answered
		return p
	case errors.As(err, &usage):
		p := wire.NewProblem(deploy.RefusedInvalid, 0, err.Error())
		p.Status = 0
		return p
	default:
		p := wire.NewProblem(wire.KindInternal, 0, err.Error())
		p.Status = 0
		return p
	}
}
