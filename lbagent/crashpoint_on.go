//go:build crashpoints

package lbagent

import (
	"os"

	"golang.org/x/sys/unix"
)

// crashpoint ends the process as kill -9 does if CUTOVER_CRASH_AT names this moment. Test builds only.
func crashpoint(label string) {
	if os.Getenv("CUTOVER_CRASH_AT") == label {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}
