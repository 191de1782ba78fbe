package dev

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cutover/cutover/internal/consulclient"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
)

// Options of a one-machine cluster.
type Options struct {
	// DataDir holds everything; made if it is not there. Unix sockets live below it, so its path should be short.
	DataDir string
	// API is the loopback address of the API; port 0 picks a free one, remembered in DataDir.
	API string
	// LB names the Hosts: "haproxy=2,nginx=2"; "none" is a cluster without a Host.
	LB string
	// Agents is the number of Mesos agents.
	Agents int
	// Orchestrators is how many there are. One runs in this process; more are processes of their own, which share
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

// check says what is wrong with the options before anything is started. What it returns is a *deploy.Refusal: the caller's
// mistake, not a failure.
func (o Options) check() (Options, []string, error) {
	o, kinds, err := o.validate()
	if err != nil {
		return o, nil, &deploy.Refusal{Kind: deploy.RefusedInvalid, Detail: err.Error() + "; see cutover dev --help"}
	}
	return o, kinds, nil
}

func (o Options) validate() (Options, []string, error) {
	kinds, err := ParseLB(o.LB)
	if err != nil {
		return o, nil, err
	}
	if o.DataDir == "" {
		return o, nil, errors.New("--data-dir is empty: name a directory that holds everything")
	}
	if err := checkAPI(o.API); err != nil {
		return o, nil, err
	}
	if o.RestoreDeadline < 0 {
		return o, nil, fmt.Errorf("--restore-deadline %s: want more than 0s (0s is its default, 1m0s)", o.RestoreDeadline)
	}
	if o.SessionTTL < 0 {
		return o, nil, fmt.Errorf("--session-ttl %s: want more than 0s (0s is its default, 10s)", o.SessionTTL)
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

// checkAPI says whether the API can be asked for at this address.
func checkAPI(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("--api %q: want HOST:PORT, as 127.0.0.1:7480", addr)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("--api %q: cutover dev listens on loopback addresses only, as 127.0.0.1:7480", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("--api %q: want a port from 0 to 65535; 0 picks a free one", addr)
	}
	return nil
}
