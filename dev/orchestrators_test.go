package dev

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cutover/cutover/dev/supervisor"
)

// The hint that several orchestrators give is a command that a shell can run, and it names the lbagent of that host as its
// supervisor recorded it.
func TestRestartCommand(t *testing.T) {
	dir := hostDir(t.TempDir()+"/with a space", "lb1")
	if err := makeDirs(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(supervisor.IdentityFile(dir, processAgent), []byte(`{"pid":12345,"start_time":678}`), 0o600); err != nil {
		t.Fatal(err)
	}
	command, ok := strings.CutPrefix(restartCommand(dir), "kill -9 ")
	if !ok {
		t.Fatalf("%q is no kill", restartCommand(dir))
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", "echo "+command).CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != "12345" {
		t.Errorf("%s: %q, %v", command, got, err)
	}
}
