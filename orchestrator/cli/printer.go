package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/cutover/cutover/orchestrator/cli/screen"
	"github.com/cutover/cutover/orchestrator/deploy"
)

const (
	// stillWaiting is how often a log says that nothing new is no hang.
	stillWaiting = 30 * time.Second
	// redraw is how often a terminal's times move on.
	redraw = time.Second
	// keptNotes is how many notes a terminal shows.
	keptNotes = 3
)

// printer shows a Deploy while a command waits for it. It is used by one goroutine.
type printer interface {
	// start shows the Deploy's id, before any wait.
	start(deploy.View)
	event(e deploy.Event, v deploy.View)
	note(text string)
	// tick is how often waiting is called.
	tick() time.Duration
	waiting(v deploy.View, now time.Time)
	// finish shows the end, with the exit code that it means.
	finish(v deploy.View, code int) error
	// stop ends the picture without an end of the Deploy.
	stop()
}

func (a *app) printer() printer {
	lines := &linePrinter{app: a, out: a.Out, style: a.style()}
	switch {
	case a.mode == modeJSON:
		lines.out, lines.style = a.Err, screen.Style{}
		return &jsonPrinter{lines}
	case a.mode == modeJSONL:
		lines.out, lines.style = a.Err, screen.Style{}
		return &jsonlPrinter{linePrinter: lines}
	}
	if _, _, tty := a.screenSize(); tty {
		return &framePrinter{app: a, style: lines.style}
	}
	return lines
}

// linePrinter appends one line for each change: a log, read later.
type linePrinter struct {
	app     *app
	out     interface{ Write([]byte) (int, error) }
	style   screen.Style
	started time.Time
}

func (p *linePrinter) print(line string) {
	if line != "" {
		fmt.Fprintln(p.out, line)
	}
}

func (p *linePrinter) start(v deploy.View) {
	p.started = v.StartedAt
	p.print(screen.Header(v, p.style))
}

func (p *linePrinter) event(e deploy.Event, _ deploy.View) {
	p.print(screen.Event(e, p.started, p.style))
}

func (p *linePrinter) note(text string) { fmt.Fprintln(p.app.Err, "cutover: "+screen.Clean(text)) }

func (p *linePrinter) tick() time.Duration { return stillWaiting }

func (p *linePrinter) waiting(v deploy.View, now time.Time) {
	p.print(fmt.Sprintf("%9s        still waiting for %s", "+"+screen.Duration(now.Sub(p.started)), screen.Waiting(v)))
}

func (p *linePrinter) finish(v deploy.View, code int) error {
	for _, l := range p.app.outcome(v, code, p.style) {
		p.print(l)
	}
	return nil
}

func (p *linePrinter) stop() {}

// outcome is the end as text, with the command to run next.
func (a *app) outcome(v deploy.View, code int, s screen.Style) []string {
	out := screen.Outcome(v, a.Now(), s)
	if code == deploy.ExitTimeout {
		out = append([]string{"timed out: the Deploy goes on"}, out...)
	}
	if next := a.next(v); next != "" {
		out = append(out, next)
	}
	return out
}

// jsonPrinter keeps standard output for the final object.
type jsonPrinter struct{ *linePrinter }

func (p *jsonPrinter) finish(v deploy.View, code int) error {
	if err := p.linePrinter.finish(v, code); err != nil {
		return err
	}
	return p.app.object(v)
}

// jsonlPrinter prints each event as one line, then the final object.
type jsonlPrinter struct {
	*linePrinter
	broken error // standard output is gone
}

func (p *jsonlPrinter) event(e deploy.Event, _ deploy.View) {
	data, err := json.Marshal(e)
	if err == nil {
		_, err = fmt.Fprintf(p.app.Out, "%s\n", data)
	}
	if p.broken == nil {
		p.broken = err
	}
}

func (p *jsonlPrinter) waiting(deploy.View, time.Time) {}

func (p *jsonlPrinter) finish(v deploy.View, code int) error {
	if p.broken != nil {
		return p.broken
	}
	if err := p.linePrinter.finish(v, code); err != nil {
		return err
	}
	return p.app.object(v)
}

// framePrinter redraws one picture in place.
type framePrinter struct {
	app   *app
	style screen.Style
	notes []string
	drawn int // lines of the picture that is on the screen
	view  deploy.View
}

func (p *framePrinter) start(v deploy.View) { p.draw(v) }

func (p *framePrinter) event(e deploy.Event, v deploy.View) {
	if e.View == nil && e.Type != "step" { // the steps are in the picture
		if line := screen.Event(e, v.StartedAt, screen.Style{}); line != "" {
			p.keep(strings.TrimSpace(line))
		}
	}
	p.draw(v)
}

func (p *framePrinter) note(text string) {
	p.keep(text)
	p.draw(p.view)
}

func (p *framePrinter) keep(note string) {
	p.notes = append(p.notes, note)
	if len(p.notes) > keptNotes {
		p.notes = p.notes[len(p.notes)-keptNotes:]
	}
}

func (p *framePrinter) tick() time.Duration { return redraw }

func (p *framePrinter) waiting(v deploy.View, _ time.Time) { p.draw(v) }

func (p *framePrinter) draw(v deploy.View) {
	p.view = v
	width, height, _ := p.app.screenSize()
	id := screen.Clean(v.DeployID)
	hint := "Ctrl-C detaches.   abort: cutover abort " + id + p.app.suffix
	p.replace(screen.Frame(v, p.notes, p.app.Now(), width, height, hint, p.style))
}

// replace puts lines in the place of the picture before, in one write so that it does not flicker.
func (p *framePrinter) replace(lines []string) {
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	b.WriteString("\r\x1b[J")
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	p.drawn = len(lines)
	fmt.Fprint(p.app.Out, b.String())
}

func (p *framePrinter) finish(v deploy.View, code int) error {
	out := append([]string{screen.Header(v, p.style)}, screen.Steps(v, p.app.Now(), p.style)...)
	p.replace(append(out, p.app.outcome(v, code, p.style)...))
	return nil
}

func (p *framePrinter) stop() { p.drawn = 0 }
