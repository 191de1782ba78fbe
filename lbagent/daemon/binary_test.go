package daemon

import (
	"os"
	"path/filepath"
	"testing"
)

// An ordinary user of Debian has no sbin on PATH, and haproxy and nginx are there.
func TestFindBinary(t *testing.T) {
	onPath, system := t.TempDir(), t.TempDir()
	put := func(dir, name string, mode os.FileMode) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	t.Setenv("PATH", onPath)
	put(system, "not-a-program", 0o600)
	daemon := put(system, "daemon", 0o700)
	put(system, "both", 0o700)
	both := put(onPath, "both", 0o700)
	for name, want := range map[string]string{"daemon": daemon, "both": both, "not-a-program": "not-a-program", "absent": "absent"} {
		if got := findBinary(name, []string{filepath.Join(system, "none"), system}); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
