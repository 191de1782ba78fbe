package consultest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/internal/servertest"
)

// Options of Start. The zero value gives a server without access control.
type Options struct {
	// ACL turns access control on, with everything denied to whoever has no token; Server.Token is the token that may do all.
	ACL bool
}

// Server is a running Consul server. Kill, Stop, Freeze, Thaw and Start act on the process; data and ports stay the same.
type Server struct {
	*servertest.Process
	// URL is the address of its HTTP API.
	URL string
	// Token may do everything; empty without ACL.
	Token string
}

// managementToken is any UUID: the server lives on loopback for the time of one test.
const managementToken = "5d9e1cf1-6f43-4a5f-9f3c-0d0f6a1f7f35"

// Start runs a new server, which has a leader when Start returns.
func Start(t testing.TB, opts Options) *Server {
	t.Helper()
	binary := servertest.Binary(t, "consul", "CONSUL_BIN", "run `make .bin/consul`")
	dir, err := os.MkdirTemp("", "consul")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ports := servertest.FreePorts(t, 3)
	off := -1
	config := map[string]any{
		"server": true, "bootstrap_expect": 1, "data_dir": filepath.Join(dir, "data"), "node_name": "test", "datacenter": "test",
		"bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "advertise_addr": "127.0.0.1",
		"ports": map[string]int{
			"http": ports[0], "server": ports[1], "serf_lan": ports[2],
			"serf_wan": off, "dns": off, "https": off, "grpc": off, "grpc_tls": off,
		},
		// The raft of one server has nobody to wait for. A term's length is the test's own choice.
		"performance": map[string]any{"raft_multiplier": 1}, "session_ttl_min": "1s",
		"connect": map[string]any{"enabled": false}, "ui_config": map[string]any{"enabled": false},
		"leave_on_terminate": false, "disable_update_check": true, "log_level": "warn",
	}
	s := &Server{URL: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}
	if opts.ACL {
		s.Token = managementToken
		config["acl"] = map[string]any{
			"enabled": true, "default_policy": "deny", "tokens": map[string]any{"initial_management": s.Token},
		}
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	s.Process = servertest.Start(t, dir, binary, []string{"agent", "-config-file", file}, func(ctx context.Context) error {
		return s.leads(ctx, client)
	})
	return s
}

// leads is nil when the server can write: it has a leader, and a write with the token goes through.
func (s *Server) leads(ctx context.Context, client *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, s.URL+"/v1/kv/consultest-ready", strings.NewReader("1"))
	if err != nil {
		return err
	}
	req.Header.Set("X-Consul-Token", s.Token)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

// Client returns a client of the server that may do everything.
func (s *Server) Client(t testing.TB) *api.Client {
	t.Helper()
	config := api.DefaultConfig()
	config.Address, config.Token = s.URL, s.Token
	client, err := api.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(config.Transport.CloseIdleConnections)
	return client
}
