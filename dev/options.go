package dev

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/cutover/cutover/internal/consulclient"
	"github.com/cutover/cutover/orchestrator/txn"
)

// Options of a one-machine cluster.
type Options struct {
	// DataDir holds everything; made if it is not there. Unix sockets live below it, so its path should be short.
	DataDir string
	// API is the loopback address of the API; port 0 picks a free one, remembered in DataDir.
	API string
	// LB names the Hosts: "haproxy=2,nginx=2".
	LB string
	// Agents is the number of Mesos agents.
	Agents int
	// Orchestrators is how many there are. One (or 0) runs in this process; more are processes of their own, which share
	// Store (a Redis URL) and Consul (a URL); both belong to this cluster alone.
	Orchestrators int
	Store, Consul string
	// Catalog is the URL of a Consul in whose catalog Hosts announce themselves, those of this cluster too; "": none.
	Catalog string
	// SessionTTL is the leader's in Consul; 0 means its default.
	SessionTTL time.Duration
	// Env is for the orchestrators and lbagents that are processes of their own: tokens and passwords.
	Env []string
	// Policy of the Group: how many Hosts may be missing from a Commit ("all", "all-but(1)", "percent(80)"); "" is all.
	Policy string
	// RestoreDeadline is the orchestrator's; 0 means its default.
	RestoreDeadline time.Duration
	// Exe is the binary whose hidden commands run the supervisors, lbagents, proxies and tasks.
	Exe     string
	Version string
	Logger  *slog.Logger
}

// maxAgents is how many addresses there are for agents, below those of the Hosts.
const maxAgents = 90

// maxDataDir leaves room for the longest socket path below it.
const maxDataDir = 60

func (o Options) check() (Options, []string, error) {
	kinds, err := ParseLB(o.LB)
	if err != nil {
		return o, nil, err
	}
	if o.Agents < 1 || o.Agents > maxAgents {
		return o, nil, fmt.Errorf("--agents %d: want 1 to %d", o.Agents, maxAgents)
	}
	if _, err := txn.ParsePolicy(o.Policy); err != nil {
		return o, nil, fmt.Errorf("--%w", err)
	}
	if o.Catalog != "" {
		if err := consulclient.CheckAddress(o.Catalog); err != nil {
			return o, nil, fmt.Errorf("--catalog: %w", err)
		}
	}
	o.Orchestrators = max(o.Orchestrators, 1)
	if err := o.checkSeveral(); err != nil {
		return o, nil, err
	}
	if o.DataDir, err = filepath.Abs(o.DataDir); err != nil {
		return o, nil, fmt.Errorf("data directory: %w", err)
	}
	if len(o.DataDir) > maxDataDir {
		return o, nil, fmt.Errorf("--data-dir %s has %d bytes, and sockets below it may have about 100 in all: choose a path of at most %d", o.DataDir, len(o.DataDir), maxDataDir)
	}
	return o, kinds, nil
}
