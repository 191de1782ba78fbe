package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/cutover/cutover/internal/flock"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/haproxy"
	"github.com/cutover/cutover/lbagent/nginx"
	"github.com/cutover/cutover/lbagent/participant"
	"github.com/cutover/cutover/lbagent/participant/journal"
	"go.yaml.in/yaml/v3"
)

// Kinds of proxies.
const (
	HAProxy     = "haproxy"
	NginxLua    = "nginx-lua"
	NginxReload = "nginx-reload"
)

// Config is a Host's configuration file (YAML or JSON; unknown keys are errors).
type Config struct {
	Cluster string `yaml:"cluster" json:"cluster"`
	Group   string `yaml:"group" json:"group"`
	Name    string `yaml:"name" json:"name"` // of this Host
	// Dir holds the journal; the lbagent's own.
	Dir string `yaml:"dir" json:"dir"`
	// Listen is where the orchestrator reaches the lbagent. Anything but loopback needs tls_dir.
	Listen string `yaml:"listen" json:"listen"`
	// ReadyListen is where upstream balancers ask for /readyz, in the clear; nothing else is answered there. Empty: nowhere.
	ReadyListen string `yaml:"ready_listen,omitempty" json:"ready_listen,omitempty"`
	// TLSDir holds ca.pem, cert.pem and key.pem of this Host.
	TLSDir string `yaml:"tls_dir,omitempty" json:"tls_dir,omitempty"`
	// Announce is where this Host announces itself; absent: nowhere.
	Announce *Announce `yaml:"announce,omitempty" json:"announce,omitempty"`
	Proxy    Proxy     `yaml:"proxy" json:"proxy"`

	// restore: the proxy is about to start on the tree.
	restore bool
}

// Proxy is the Host's proxy.
type Proxy struct {
	Kind string `yaml:"kind" json:"kind"` // haproxy, nginx-lua or nginx-reload
	// Dir is where the published tree lives; the driver's own.
	Dir string `yaml:"dir" json:"dir"`
	// Base is the owner's configuration file; only read.
	Base string `yaml:"base" json:"base"`
	// Binary is the proxy's program; default: haproxy or nginx, found on PATH or among the system's daemons.
	Binary string `yaml:"binary,omitempty" json:"binary,omitempty"`
	// Listen are the addresses of the Group's frontend on this Host.
	Listen []netip.AddrPort `yaml:"listen" json:"listen"`
	// Source is the address that nginx connects and checks from (HAProxy: the owner's `source`).
	Source netip.Addr `yaml:"source,omitempty" json:"source,omitzero"`
	// RuntimeSocket and MasterSocket are HAProxy's.
	RuntimeSocket string `yaml:"runtime_socket,omitempty" json:"runtime_socket,omitempty"`
	MasterSocket  string `yaml:"master_socket,omitempty" json:"master_socket,omitempty"`
}

var name = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// maxConfig bounds the file.
const maxConfig = 1 << 20

// Load reads and checks a configuration file.
func Load(file string) (Config, error) {
	var c Config
	st, err := os.Stat(file)
	if err != nil {
		return c, fmt.Errorf("read the lbagent's configuration: %w", err)
	}
	if st.Size() > maxConfig {
		return c, fmt.Errorf("%s is larger than %d bytes", file, maxConfig)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return c, fmt.Errorf("read the lbagent's configuration: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	if err := c.validate(); err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func (c Config) validate() error {
	var errs []error
	for what, v := range map[string]string{"cluster": c.Cluster, "group": c.Group, "name": c.Name} {
		if !name.MatchString(v) {
			errs = append(errs, fmt.Errorf("%s: %q is not a name of lower-case letters, digits, dots and hyphens", what, v))
		}
	}
	for what, v := range map[string]string{"dir": c.Dir, "proxy.dir": c.Proxy.Dir, "proxy.base": c.Proxy.Base} {
		if !filepath.IsAbs(v) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", what, v))
		}
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		errs = append(errs, fmt.Errorf("listen: %w", err))
	} else if ip := net.ParseIP(host); c.TLSDir == "" && (ip == nil || !ip.IsLoopback()) {
		errs = append(errs, fmt.Errorf("listen: %s is not a loopback address, so tls_dir must hold this Host's certificate", c.Listen))
	}
	if _, err := netip.ParseAddrPort(c.ReadyListen); c.ReadyListen != "" && err != nil {
		errs = append(errs, fmt.Errorf("ready_listen: %w", err))
	}
	if c.Announce != nil {
		o := c.announcement()
		if err := o.Check(); err != nil {
			errs = append(errs, fmt.Errorf("announce: %w", err))
		}
	}
	switch c.Proxy.Kind {
	case HAProxy, NginxLua, NginxReload:
	default:
		errs = append(errs, fmt.Errorf("proxy.kind: %q is none of %s, %s, %s", c.Proxy.Kind, HAProxy, NginxLua, NginxReload))
	}
	return errors.Join(errs...)
}

// journaled says what the journal wants published of an App. The journal is read when somebody asks for the first time.
func (c Config) journaled(log *slog.Logger) func(app string) (driver.Section, bool) {
	read := sync.OnceValue(func() participant.Durable {
		d, err := journal.Read(c.Dir)
		if err != nil {
			log.Error("a published file is damaged, and the journal cannot be read", "err", err)
		}
		return d
	})
	return func(app string) (driver.Section, bool) { return read().Published(app) }
}

func (c Config) haproxy(log *slog.Logger) haproxy.Options {
	return haproxy.Options{
		Dir: c.Proxy.Dir, BaseConfig: c.Proxy.Base, Binary: c.Proxy.binary(),
		RuntimeSocket: c.Proxy.RuntimeSocket, MasterSocket: c.Proxy.MasterSocket,
		Frontends: []haproxy.Frontend{{Name: "cutover", Binds: c.Proxy.Listen}},
		Journaled: c.journaled(log), Restore: c.restore,
		Logger: log,
	}
}

func (c Config) nginx(log *slog.Logger) nginx.Options {
	return nginx.Options{
		Dir: c.Proxy.Dir, BaseConfig: c.Proxy.Base, Binary: c.Proxy.binary(),
		Listen: c.Proxy.Listen, SourceAddress: c.Proxy.Source,
		Journaled: c.journaled(log), Restore: c.restore,
		Logger: log,
	}
}

// bootstrapWait bounds the wait of the proxy for the lbagent, or the other way round. Neither takes long.
const bootstrapWait = time.Minute

// Bootstrap makes the published tree exist and be valid. It is idempotent, and changes nothing that a running proxy uses.
// The proxy and the lbagent start at the same time and both call it: one waits for the other.
func (c Config) Bootstrap(log *slog.Logger) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), bootstrapWait)
	defer cancel()
	lock, err := flock.Lock(ctx, filepath.Join(c.Dir, "bootstrap.lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	switch c.Proxy.Kind {
	case HAProxy:
		return haproxy.Bootstrap(c.haproxy(log))
	case NginxLua:
		return nginx.BootstrapLua(c.nginx(log))
	default:
		return nginx.BootstrapReload(c.nginx(log))
	}
}

// newDriver makes the driver of the Host's proxy. The proxy need not run yet.
func (c Config) newDriver(log *slog.Logger) (driver.Driver, error) {
	switch c.Proxy.Kind {
	case HAProxy:
		return haproxy.New(c.haproxy(log))
	case NginxLua:
		return nginx.NewLua(c.nginx(log))
	default:
		return nginx.NewReload(c.nginx(log))
	}
}
