//go:build crashpoints

package lbagent

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// crashFile, in the agent's working directory, holds the label at which it dies next. It is removed before that, so the
// agent that is started in its place lives.
const crashFile = "crash-at"

// crashpoint ends the process as kill -9 does if the environment's CUTOVER_CRASH_AT names this moment (each time), or
// crashFile does (once). Test builds only.
func crashpoint(label string) {
	if os.Getenv("CUTOVER_CRASH_AT") != label {
		if at, err := os.ReadFile(crashFile); err != nil || strings.TrimSpace(string(at)) != label || os.Remove(crashFile) != nil {
			return
		}
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}
