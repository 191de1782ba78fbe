package orchestrator_test

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cutover/cutover/internal/pki"
	"github.com/cutover/cutover/orchestrator"
)

func TestSharedConfig(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.OpenAuthority(filepath.Join(dir, "ca"), "main")
	if err != nil {
		t.Fatal(err)
	}
	tlsDir := filepath.Join(dir, "tls")
	if err := ca.Issue(tlsDir, "orchestrator", "a", net.IPv4(10, 0, 0, 1)); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	loopback, lan, all := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7480}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 7480}, &net.TCPAddr{IP: net.IPv4zero, Port: 7480}
	const redis, consul = "redis://127.0.0.1:6379", "http://127.0.0.1:8500"
	for name, c := range map[string]struct {
		conf   orchestrator.SharedConfig
		env    map[string]string
		listen *net.TCPAddr
		tls    string
		want   string // in the error
		check  func(*orchestrator.Shared) bool
	}{
		"alone":              {listen: loopback, check: func(s *orchestrator.Shared) bool { return s == nil }},
		"only consul":        {conf: orchestrator.SharedConfig{Consul: consul}, listen: loopback, want: "need both"},
		"only redis":         {env: map[string]string{"CUTOVER_STORE": redis}, listen: loopback, want: "need both"},
		"password in a flag": {conf: orchestrator.SharedConfig{Store: "redis://:s3cret@127.0.0.1:6379", Consul: consul}, listen: loopback, want: "CUTOVER_STORE_PASSWORD"},
		"password in the environment": {conf: orchestrator.SharedConfig{Store: redis, Consul: consul}, env: map[string]string{"CUTOVER_STORE_PASSWORD": "s3cret"}, listen: loopback,
			check: func(s *orchestrator.Shared) bool {
				return s.Redis == "redis://:s3cret@127.0.0.1:6379" && s.Advertise == "http://127.0.0.1:7480" && s.Name != "" && s.TLS == nil
			}},
		"secrets in files": {conf: orchestrator.SharedConfig{Store: redis, Consul: consul, StorePasswordFile: secret, ConsulTokenFile: secret}, listen: loopback,
			check: func(s *orchestrator.Shared) bool {
				return strings.Contains(s.Redis, "s3cret") && s.ConsulOptions.Token == "s3cret"
			}},
		"token in the environment": {conf: orchestrator.SharedConfig{Store: redis, Consul: consul}, env: map[string]string{"CONSUL_HTTP_TOKEN": "t"}, listen: loopback,
			check: func(s *orchestrator.Shared) bool { return s.ConsulOptions.Token == "t" }},
		"another machine": {conf: orchestrator.SharedConfig{Store: redis, Consul: consul}, listen: lan, tls: tlsDir,
			check: func(s *orchestrator.Shared) bool { return s.Advertise == "https://10.0.0.1:7480" && s.TLS != nil }},
		"another machine without TLS": {conf: orchestrator.SharedConfig{Store: redis, Consul: consul}, listen: lan, want: "--tls-dir"},
		"every address":               {conf: orchestrator.SharedConfig{Store: redis, Consul: consul}, listen: all, tls: tlsDir, want: "--advertise"},
	} {
		t.Run(name, func(t *testing.T) {
			c.conf.Env = func(k string) string { return c.env[k] }
			got, err := c.conf.Load("main", c.listen, c.tls)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cret") {
					t.Errorf("error %v, want %q", err, c.want)
				}
				return
			}
			if err != nil || !c.check(got) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	for name, c := range map[string]struct {
		conf orchestrator.CatalogConfig
		want string // in the error
		none bool
	}{
		"no catalog":     {none: true},
		"a catalog":      {conf: orchestrator.CatalogConfig{Address: consul, Service: "lb", TokenFile: secret}},
		"only a service": {conf: orchestrator.CatalogConfig{Service: "lb"}, want: "--catalog"},
		"no such token":  {conf: orchestrator.CatalogConfig{Address: consul, TokenFile: secret + "x"}, want: secret + "x"},
	} {
		c.conf.Env = func(string) string { return "" }
		got, err := c.conf.Load()
		switch {
		case c.want != "":
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || (got == nil) != c.none:
			t.Errorf("%s: %+v, %v", name, got, err)
		case got != nil && (got.Address != consul || got.Service != "lb" || got.Client.Token != "s3cret"):
			t.Errorf("%s: %+v", name, got)
		}
	}
	if conf, err := orchestrator.ServeTLS(loopback, tlsDir); conf != nil || err != nil {
		t.Errorf("on loopback: %v %v", conf, err)
	}
	if conf, err := orchestrator.ServeTLS(lan, tlsDir); conf == nil || err != nil {
		t.Errorf("on another address: %v %v", conf, err)
	}
	if _, err := orchestrator.ServeTLS(lan, ""); err == nil || !strings.Contains(err.Error(), "10.0.0.1:7480") {
		t.Errorf("without TLS: %v", err)
	}
}

// A follower recognises the leader by a certificate of the role orchestrator, and nobody else's: tokens travel there.
func TestFollowersRecogniseOrchestrators(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.OpenAuthority(filepath.Join(dir, "ca"), "main")
	if err != nil {
		t.Fatal(err)
	}
	follower := filepath.Join(dir, "follower")
	if err := ca.Issue(follower, "orchestrator", "b", net.IPv4(10, 0, 0, 2)); err != nil {
		t.Fatal(err)
	}
	conf := orchestrator.SharedConfig{Store: "redis://127.0.0.1:6379", Consul: "http://127.0.0.1:8500", Env: func(string) string { return "" }}
	shared, err := conf.Load("main", &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 7480}, follower)
	if err != nil {
		t.Fatal(err)
	}
	for role, want := range map[string]bool{"orchestrator": true, "lbagent": false} {
		own := filepath.Join(dir, role)
		if err := ca.Issue(own, role, "a", net.IPv4(127, 0, 0, 1)); err != nil {
			t.Fatal(err)
		}
		serve, err := orchestrator.ServeTLS(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 7480}, own)
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.TLS = serve
		server.StartTLS()
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: shared.TLS}}
		resp, err := client.Get(strings.Replace(server.URL, "http:", "https:", 1))
		if err == nil {
			resp.Body.Close()
		}
		if (err == nil) != want {
			t.Errorf("a server with the certificate of an %s: %v", role, err)
		}
		client.CloseIdleConnections()
		server.Close()
	}
}

func TestHostCommand(t *testing.T) {
	if orchestrator.HostCommand("") != nil {
		t.Error("no template has a command")
	}
	if got := orchestrator.HostCommand("start {host} # on {host}")("lb1"); got != "start lb1 # on lb1" {
		t.Errorf("got %q", got)
	}
}
