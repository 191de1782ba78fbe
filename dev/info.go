package dev

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/cutover/cutover/internal/atomicfile"
)

// Info is dev.json: everything that a tool needs to find this cluster. A stable contract: tools rely on it.
type Info struct {
	APIURL   string     `json:"api_url"`
	UIURL    string     `json:"ui_url"`
	MesosURL string     `json:"mesos_url"`
	Token    string     `json:"token"`
	PID      int        `json:"pid"`
	Hosts    []HostInfo `json:"hosts"`
	// Orchestrators are there if they are processes of their own; APIURL is the first one's.
	Orchestrators []OrchestratorInfo `json:"orchestrators,omitempty"`
}

// OrchestratorInfo is one of several orchestrators in dev.json.
type OrchestratorInfo struct {
	Name          string `json:"name"`
	APIURL        string `json:"api_url"`
	PID           int    `json:"pid"`
	SupervisorPID int    `json:"supervisor_pid"`
}

// HostInfo is one Host in dev.json. ProxyPID is the proxy's master.
type HostInfo struct {
	Name          string `json:"name"`
	Proxy         string `json:"proxy"` // haproxy or nginx
	Driver        string `json:"driver"`
	Group         string `json:"group"`
	FrontendURL   string `json:"frontend_url"`
	AgentURL      string `json:"agent_url"`
	ReadyURL      string `json:"ready_url"` // what an upstream balancer would watch
	SupervisorPID int    `json:"supervisor_pid"`
	AgentPID      int    `json:"agent_pid"`
	ProxyPID      int    `json:"proxy_pid"`
}

// InfoFile is where a data directory's dev.json is.
func InfoFile(dir string) string { return filepath.Join(dir, "dev.json") }

// ReadInfo reads the dev.json of a data directory.
func ReadInfo(dir string) (Info, error) {
	var i Info
	data, err := os.ReadFile(InfoFile(dir))
	if err != nil {
		return i, err
	}
	return i, json.Unmarshal(data, &i)
}

// write replaces dev.json atomically. It holds the token, so only its owner may read it.
func (i Info) write(dir string) error {
	data, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(InfoFile(dir), append(data, '\n'))
}
