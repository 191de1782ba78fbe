package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/cli/screen"
)

// outputMode is the form of what a command prints.
type outputMode string

const (
	modeText  outputMode = "text"
	modeJSON  outputMode = "json"
	modeJSONL outputMode = "jsonl"
)

// modeFlag is the value of -o: one of the modes that its command has.
type modeFlag struct {
	mode    *outputMode
	allowed []outputMode
}

var _ pflag.Value = modeFlag{}

func (f modeFlag) String() string {
	if f.mode == nil {
		return ""
	}
	return string(*f.mode)
}

func (f modeFlag) Type() string { return "format" }

func (f modeFlag) Set(s string) error {
	if !slices.Contains(f.allowed, outputMode(s)) {
		return fmt.Errorf("want %s", f.choices())
	}
	*f.mode = outputMode(s)
	return nil
}

func (f modeFlag) choices() string {
	words := make([]string, len(f.allowed))
	for i, m := range f.allowed {
		words[i] = string(m)
	}
	return strings.Join(words, ", ")
}

// addOutput gives a command -o with text, json and the modes named.
func (a *app) addOutput(cmd *cobra.Command, more ...outputMode) {
	guessed := a.mode // holds until the flag is parsed, so that even a usage error has the form that was asked for
	a.mode = modeText
	f := modeFlag{mode: &a.mode, allowed: append([]outputMode{modeText, modeJSON}, more...)}
	cmd.Flags().VarP(f, "output", "o", "output: "+f.choices())
	a.mode = guessed
	must(cmd.RegisterFlagCompletionFunc("output", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return strings.Split(f.choices(), ", "), cobra.ShellCompDirectiveNoFileComp
	}))
}

// must is for errors that only a mistake in this package can make.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// guessMode finds the output form in arguments that may be wrong otherwise.
func guessMode(args []string) outputMode {
	for i, arg := range args {
		value := ""
		switch {
		case arg == "--":
			return modeText
		case (arg == "-o" || arg == "--output") && i+1 < len(args):
			value = args[i+1]
		case strings.HasPrefix(arg, "--output="):
			value = strings.TrimPrefix(arg, "--output=")
		case strings.HasPrefix(arg, "-o"):
			value = strings.TrimPrefix(strings.TrimPrefix(arg, "-o"), "=")
		}
		if value == string(modeJSON) || value == string(modeJSONL) {
			return outputMode(value)
		}
	}
	return modeText
}

// style is how text looks on Out.
func (a *app) style() screen.Style {
	_, _, tty := a.screenSize()
	return screen.Style{Color: tty && a.Env("NO_COLOR") == "", Marks: tty}
}

// screenSize is the terminal to redraw in, if there is one. In CI a log is read, even where it pretends to be a terminal.
func (a *app) screenSize() (width, height int, ok bool) {
	if ci := a.Env("CI"); ci != "" && ci != "false" && ci != "0" || a.Env("TERM") == "dumb" {
		return 0, 0, false
	}
	return a.Terminal()
}

func (a *app) lines(lines []string) {
	for _, l := range lines {
		fmt.Fprintln(a.Out, l)
	}
}

// object prints one JSON object as one line.
func (a *app) object(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cli: encoding the answer: %w", err)
	}
	_, err = fmt.Fprintf(a.Out, "%s\n", data)
	return err
}

// answer prints an object, or its text.
func (a *app) answer(object any, text func(screen.Style) []string) error {
	if a.mode != modeText {
		return a.object(object)
	}
	a.lines(text(a.style()))
	return nil
}

func (a *app) printProblem(p *wire.ProblemDetails) {
	p = a.located(p)
	if a.mode != modeText {
		_ = a.object(p) // standard output is gone: nothing is left to tell it to
		return
	}
	for _, l := range screen.Problem(p, a.source, screen.Style{}) {
		fmt.Fprintln(a.Err, a.withSuffix(l))
	}
}

// withSuffix makes a shown command reach the same orchestrator as this one.
func (a *app) withSuffix(line string) string {
	if a.suffix == "" || !strings.HasPrefix(line, "next: cutover ") {
		return line
	}
	if cmd, rest, ok := strings.Cut(line, "   ("); ok {
		return cmd + a.suffix + "   (" + rest
	}
	return line + a.suffix
}
