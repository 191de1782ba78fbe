package leaktest

import (
	"fmt"
	"io"
	"os"
	"time"

	"go.uber.org/goleak"
)

// patience is how long what was told to end may take.
const patience = 30 * time.Second

// Main is the body of a TestMain: it runs the tests, looks for what they left running, and ends the process.
func Main(m interface{ Run() int }) { os.Exit(Run(m)) }

// Run is Main for those who end the process themselves; it returns the exit code.
func Run(m interface{ Run() int }) int { return run(m, patience, os.Stderr) }

func run(m interface{ Run() int }, patience time.Duration, out io.Writer) int {
	if code := m.Run(); code != 0 {
		return code
	}
	for deadline := time.Now().Add(patience); ; {
		err := goleak.Find() // which has a patience of its own, of half a second
		if err == nil {
			return 0
		}
		if time.Now().After(deadline) {
			fmt.Fprintln(out, "the tests passed, and left something running:", err)
			return 1
		}
	}
}
