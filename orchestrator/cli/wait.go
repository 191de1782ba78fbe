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

const (
	// defaultTimeout is longer than the deadline of any sensible Spec and its drain: the Deploy's own deadline ends the wait first.
	defaultTimeout = 30 * time.Minute
	// replaySilence ends the replay of the events of a Deploy that is at its end.
	replaySilence = 2 * time.Second
	// finalTimeout bounds asking for the last View.
	finalTimeout = 5 * time.Second
	// refreshTimeout bounds asking for a View to show while it waits.
	refreshTimeout = time.Second
)

// waitFlags are how long, and what for, a command waits.
type waitFlags struct {
	until   string
	timeout time.Duration
}

func addWait(cmd *cobra.Command) *waitFlags {
	w := &waitFlags{}
	cmd.Flags().StringVar(&w.until, "wait-for", string(deploy.WaitSucceeded), "what to wait for: succeeded (every host proved it), or drained (also: the old upstreams are gone)")
	cmd.Flags().DurationVar(&w.timeout, "timeout", defaultTimeout, "how long to wait; then exit 7, and the Deploy goes on")
	must(cmd.RegisterFlagCompletionFunc("wait-for", cobra.FixedCompletions([]string{string(deploy.WaitSucceeded), string(deploy.WaitDrained)}, cobra.ShellCompDirectiveNoFileComp)))
	return w
}

func (w *waitFlags) check() error {
	switch w.until {
	case string(deploy.WaitSucceeded), string(deploy.WaitDrained):
	case "canary", "paused":
		return &usageError{fmt.Errorf("--wait-for %s is not built yet; want succeeded or drained", w.until)}
	default:
		return &usageError{fmt.Errorf("--wait-for %q: want succeeded or drained", w.until)}
	}
	if w.timeout <= 0 {
		return &usageError{fmt.Errorf("--timeout %s: want more than 0", w.timeout)}
	}
	return nil
}

// verdict says what a Deploy's state means to the command that waits for it.
type verdict func(deploy.View) (code int, done bool)

// reaching is the verdict of a command that moves an App somewhere.
func reaching(until deploy.WaitFor) verdict {
	return func(v deploy.View) (int, bool) { return deploy.ExitCode(v, until) }
}

// undoing is the verdict of a command that ends an open Deploy: back on the committed Spec is what was asked for. A Deploy that
// was committed before the abort came is not.
func undoing(v deploy.View) (int, bool) {
	if v.State == deploy.Succeeded {
		return deploy.ExitUsage, true
	}
	return deploy.RollbackExitCode(v)
}

// errTimeout ends a wait whose time is over.
var errTimeout = errors.New("the watch timed out")

// wait shows a Deploy until the verdict is done, and ends with its exit code as an *ExitError.
func (a *app) wait(ctx context.Context, c *client.Client, v deploy.View, ended verdict, timeout time.Duration) error {
	p := a.printer()
	p.start(v)
	w := &waiter{app: a, client: c, view: v, ended: ended, printer: p}
	code, done := ended(v)
	var err error
	if !done || a.mode == modeJSONL {
		code, err = w.follow(ctx, timeout, done)
	}
	if err != nil {
		p.stop()
		return err
	}
	if err := p.finish(w.view, code); err != nil {
		return err
	}
	if code == deploy.ExitReached {
		return nil
	}
	return &ExitError{Code: code}
}

// waiter follows one Deploy.
type waiter struct {
	app     *app
	client  *client.Client
	view    deploy.View // the newest known
	ended   verdict
	printer printer
	// stale says that something happened which the newest View does not show: events of tasks carry none.
	stale bool
}

// update is something that the stream of events said.
type update struct {
	event *deploy.Event
	view  *deploy.View
	note  string
	more  chan<- bool // answered for events and views
}

// feed hands what Follow hears to the loop that shows it; the two meet, so nothing queues up.
type feed struct {
	ctx context.Context
	to  chan<- update
}

var _ client.Watcher = feed{}

func (f feed) Event(e deploy.Event) bool { return f.give(update{event: &e}) }
func (f feed) View(v deploy.View) bool   { return f.give(update{view: &v}) }

func (f feed) give(u update) bool {
	answer := make(chan bool, 1)
	u.more = answer
	select {
	case f.to <- u:
		return <-answer
	case <-f.ctx.Done():
		return false
	}
}

func (f feed) note(text string) {
	select {
	case f.to <- update{note: text}:
	case <-f.ctx.Done():
	}
}

// follow returns the exit code, or why there is none. A replay tells the events of a Deploy that is at its end already.
func (w *waiter) follow(ctx context.Context, timeout time.Duration, replay bool) (int, error) {
	inner, cancel := context.WithTimeoutCause(ctx, timeout, errTimeout)
	defer cancel()
	updates := make(chan update)
	source := feed{ctx: inner, to: updates}
	before := w.app.note
	w.app.note = source.note
	defer func() { w.app.note = before }()

	followed := make(chan error, 1)
	go func() { followed <- w.client.Follow(inner, w.view.DeployID, 0, source) }()
	ticks := time.NewTicker(w.printer.tick())
	defer ticks.Stop()
	silent := time.NewTimer(replaySilence)
	defer silent.Stop()
	if !replay {
		silent.Stop()
	}
	decided, code := replay, 0
	if replay {
		code, _ = w.ended(w.view)
	}
	for {
		select {
		case u := <-updates:
			if replay {
				silent.Reset(replaySilence)
			}
			if u.note != "" {
				w.printer.note(u.note)
				continue
			}
			w.take(u)
			if !replay {
				code, decided = w.ended(w.view)
			}
			u.more <- replay || !decided
		case err := <-followed:
			if decided {
				return code, nil
			}
			return w.over(ctx, inner, err)
		case <-ticks.C:
			w.refresh(inner)
			w.printer.waiting(w.view, w.app.Now())
		case <-silent.C:
			cancel() // Follow ends, and the code is decided
		}
	}
}

// take notes what is new. An older View, which a replay tells, does not replace a newer one.
func (w *waiter) take(u update) {
	newer := u.view
	if u.event != nil {
		newer = u.event.View
	}
	switch {
	case newer == nil:
		w.stale = true
	case len(newer.Steps) >= len(w.view.Steps):
		w.view, w.stale = *newer, false
	}
	if u.event != nil {
		w.printer.event(*u.event, w.view)
	}
}

// refresh asks for the Deploy if the newest View is not the newest state. Without an answer the old one is shown on.
func (w *waiter) refresh(ctx context.Context) {
	if !w.stale {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	if v, err := w.client.Deploy(ctx, w.view.DeployID); err == nil && len(v.Steps) >= len(w.view.Steps) {
		w.view, w.stale = v, false
	}
}

// over decides what it means that the stream of events is over without a verdict.
func (w *waiter) over(ctx, inner context.Context, err error) (int, error) {
	if err == nil {
		return w.last(ctx)
	}
	if inner.Err() == nil {
		return 0, err // the orchestrator refused
	}
	if ctx.Err() != nil {
		w.printer.stop()
		w.detached()
		if w.app.mode != modeText {
			if err := w.app.object(w.view); err != nil {
				return 0, err
			}
		}
		return 0, &ExitError{Code: deploy.ExitInterrupted}
	}
	var unreachable *client.Unreachable
	if errors.As(err, &unreachable) {
		p := problemOf(unreachable)
		p.Detail = fmt.Sprintf("timed out, and the orchestrator does not answer: whether Deploy %s goes on is not known here. %s", w.view.DeployID, p.Detail)
		return 0, p
	}
	return deploy.ExitTimeout, nil
}

// last asks for the Deploy once more: its events are over.
func (w *waiter) last(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, finalTimeout)
	defer cancel()
	v, err := w.client.Deploy(ctx, w.view.DeployID)
	if err != nil {
		return 0, err
	}
	w.view = v
	if code, done := w.ended(v); done {
		return code, nil
	}
	return 0, wire.NewProblem(wire.KindInternal, 0, fmt.Sprintf("Deploy %s is over in state %s, step %s, which is no end that was waited for", v.DeployID, v.State, v.Step))
}

// detached says how to come back, or how to stop what goes on.
func (w *waiter) detached() {
	id := screen.Clean(w.view.DeployID)
	fmt.Fprintf(w.app.Err, "detached: the Deploy goes on\n  watch: cutover watch %s%s\n  abort: cutover abort %s%s\n", id, w.app.suffix, id, w.app.suffix)
}

// next is the line with the one command to run next, or "".
func (a *app) next(v deploy.View) string {
	cmd := screen.Next(v)
	if cmd == "" {
		return ""
	}
	if strings.HasPrefix(cmd, "cutover ") {
		cmd += a.suffix
	}
	return "next: " + cmd
}
