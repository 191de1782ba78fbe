package dev

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cutover/cutover/dev/supervisor"
)

// A start that fails takes no traffic away (FAIL-STATIC): what a killed cutover dev left behind goes on. Nor does it
// forget Mesos agents, whose tasks nobody would know.
func TestFailedStartLeavesWhatServes(t *testing.T) {
	dir, err := os.MkdirTemp("", "cut-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// Stands for the supervisor that survived the kill -9.
	survivor := exec.Command("sleep", "1000")
	if err := survivor.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = survivor.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = survivor.Process.Kill()
		<-ended
	})
	id, err := supervisor.Identify(survivor.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(hostDir(dir, "lb-haproxy-1"), "run", "supervisor.json"), data)
	write(t, filepath.Join(dir, "orchestrator", "state.db"), []byte("not a database"))

	o := Options{DataDir: dir, API: "127.0.0.1:0", LB: "haproxy=1", Agents: 2, Orchestrators: 1, Policy: "all", Exe: "/bin/true", Logger: slog.New(slog.DiscardHandler)}
	var out bytes.Buffer
	for _, agents := range []int{2, 1} {
		o.Agents = agents
		err = Run(t.Context(), o, &out)
		if err == nil || !strings.Contains(err.Error(), "state.db") || !strings.Contains(err.Error(), "1 of 1 hosts") {
			t.Fatalf("started with a damaged store, or does not say what goes on: %v", err)
		}
		if !id.Alive() {
			t.Fatal("the failed start stopped a Host that was serving")
		}
	}
	if !strings.Contains(out.String(), "has 2 Mesos agents") {
		t.Errorf("it does not say that both agents are started: %q", out.String())
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
