package protocol

import (
	"fmt"
	"os"
	"runtime/debug"
	"testing"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // states are many and short-lived
	if name := os.Getenv(mutantEnv); name != "" {
		if err := tellMutant(name, os.Getenv(storyEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}
