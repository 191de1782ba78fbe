package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Binaries under test, built once.
var cutoverBin, sampleBin string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cutover-e2e-")
	if err == nil {
		cutoverBin, sampleBin = filepath.Join(dir, "cutover"), filepath.Join(dir, "sample")
		for bin, pkg := range map[string]string{cutoverBin: "../cmd/cutover", sampleBin: "../deployments/demo/sample"} {
			cmd := exec.Command("go", "build", "-o", bin, pkg)
			cmd.Stderr = os.Stderr
			if err = cmd.Run(); err != nil {
				break
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the binaries under test:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}
