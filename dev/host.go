package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/cutover/cutover/dev/supervisor"
	"github.com/cutover/cutover/internal/atomicfile"
	"github.com/cutover/cutover/internal/pki"
	"github.com/cutover/cutover/lbagent/daemon"
	"github.com/cutover/cutover/lbagent/haproxy"
	"github.com/cutover/cutover/lbagent/nginx"
)

const (
	cluster = "dev"
	group   = "public"
)

// Names of a Host's supervised processes.
const (
	processAgent = "lbagent"
	processProxy = "proxy"
)

func hostDir(dataDir, name string) string { return filepath.Join(dataDir, "hosts", name) }

// makeDirs makes a supervised directory with the given folders.
func makeDirs(dir string, folders ...string) error {
	for _, d := range append([]string{"run", "log"}, folders...) {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// prepare writes what one Host's processes need: certificate, the owner's base configuration (once; it is the owner's
// from then on), the lbagent's and the supervisor's configuration.
func (h hostSpec) prepare(opts Options, ca *pki.Authority) error {
	dir := hostDir(opts.DataDir, h.Name)
	if err := makeDirs(dir, "agent"); err != nil {
		return err
	}
	tlsDir := filepath.Join(dir, "tls")
	if err := ca.Issue(tlsDir, "lbagent", h.Name, net.IP(h.Address.AsSlice())); err != nil {
		return fmt.Errorf("certificate of %s: %w", h.Name, err)
	}
	c := daemon.Config{
		Cluster: cluster, Group: group, Name: h.Name, Dir: filepath.Join(dir, "agent"), Listen: h.agent().String(), ReadyListen: h.ready().String(), TLSDir: tlsDir,
		Proxy: daemon.Proxy{
			Kind: h.driver(), Dir: filepath.Join(dir, "proxy"), Base: filepath.Join(dir, h.baseName()),
			Listen: []netip.AddrPort{h.frontend()}, Source: h.Address,
			RuntimeSocket: filepath.Join(dir, "run", "haproxy.sock"), MasterSocket: filepath.Join(dir, "run", "master.sock"),
		},
	}
	var env []string
	if opts.Catalog != "" {
		c.Announce = &daemon.Announce{Consul: opts.Catalog, Withdraw: true} // the Host ends with its cluster
		for _, e := range opts.Env {
			if strings.HasPrefix(e, "CONSUL_") { // what else is secret is not for Hosts
				env = append(env, e)
			}
		}
	}
	if err := h.writeBase(c.Proxy); err != nil {
		return fmt.Errorf("base configuration of %s: %w", h.Name, err)
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "lbagent.json")
	if err := atomicfile.Write(file, data); err != nil {
		return err
	}
	return supervisor.Config{Dir: dir, Processes: []supervisor.Process{
		{Name: processProxy, Argv: []string{opts.Exe, "proxy", "--config", file}, Dir: dir},
		{Name: processAgent, Argv: []string{opts.Exe, "lbagent", "--config", file}, Dir: dir, Env: env},
	}}.Save()
}

// driver is the kind that the lbagent knows the proxy by.
func (h hostSpec) driver() string {
	if h.Kind == KindNginx {
		return daemon.NginxLua
	}
	return h.Kind
}

// proxy is the name of the proxy's program.
func (h hostSpec) proxy() string {
	if h.Kind == KindHAProxy {
		return "haproxy"
	}
	return "nginx"
}

func (h hostSpec) baseName() string {
	if h.Kind == KindHAProxy {
		return "haproxy.cfg"
	}
	return "nginx.conf"
}

func (h hostSpec) writeBase(p daemon.Proxy) error {
	if _, err := os.Stat(p.Base); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var text []byte
	var err error
	if h.Kind == KindHAProxy {
		text, err = haproxy.ExampleBase(haproxy.Base{RuntimeSocket: p.RuntimeSocket, Source: h.Address})
	} else {
		text, err = nginx.RenderExampleBase(nginx.ExampleBase{Lua: h.Kind == KindNginx, Binary: daemon.ProxyBinary(h.driver()), PIDFile: "run/nginx.pid", ErrorLog: "log/nginx-error.log"})
	}
	if err != nil {
		return err
	}
	return atomicfile.Write(p.Base, text)
}

// info reads what runs of the Host now.
func (h hostSpec) info(dataDir string) HostInfo {
	dir := hostDir(dataDir, h.Name)
	return HostInfo{
		Name: h.Name, Proxy: h.proxy(), Driver: h.driver(), Group: group,
		FrontendURL: "http://" + h.frontend().String(), AgentURL: "https://" + h.agent().String(), ReadyURL: "http://" + h.ready().String() + "/readyz",
		SupervisorPID: pidOf(dir, "supervisor"), AgentPID: pidOf(dir, processAgent), ProxyPID: pidOf(dir, processProxy),
	}
}
