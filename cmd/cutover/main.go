package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/cutover/cutover/orchestrator/cli"
)

// version is set when a release is built (-ldflags "-X main.version=...").
var version string

func main() {
	// The first signal ends the context, so that what runs can end well. A second one ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	opts := cli.OS(releaseVersion())
	opts.Commands = daemons()
	os.Exit(cli.Main(ctx, os.Args[1:], opts))
}

// releaseVersion is the version that was set at build, or else the commit that was built.
func releaseVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	commit, changed := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			commit = "-" + s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "-changed"
		}
	}
	return "devel" + commit + changed
}
