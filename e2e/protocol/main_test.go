package protocol

import (
	"os"
	"runtime/debug"
	"testing"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // states are many and short-lived
	os.Exit(m.Run())
}
