package orchestrator

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/cutover/cutover/internal/clientauth"
	"github.com/cutover/cutover/internal/consulclient"
	"github.com/cutover/cutover/internal/pki"
	"github.com/cutover/cutover/orchestrator/registry/consulcatalog"
)

// roleOrchestrator is in the certificates of orchestrators.
const roleOrchestrator = "orchestrator"

// SharedConfig is how several orchestrators are configured: flags, and the environment for what others must not see.
//
//	CUTOVER_STORE                            the address of Redis, also with a password
//	CUTOVER_STORE_PASSWORD                   its password
//	CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE  the token of Consul
//	CONSUL_CACERT, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY
type SharedConfig struct {
	Store, StorePasswordFile, StoreCA string
	Consul, ConsulTokenFile           string
	Name, Advertise                   string
	SessionTTL                        time.Duration
	// Env is the environment.
	Env func(string) string
}

// Load returns the Shared of an orchestrator that listens on listener and has its certificate in tlsDir (or none); nil
// if the configuration names neither Redis nor Consul: then it is alone.
func (c SharedConfig) Load(cluster string, listener net.Addr, tlsDir string) (*Shared, error) {
	if c.Store != "" && hasPassword(c.Store) {
		return nil, errors.New("--store: other users of this machine can read a password in an argument: give it in CUTOVER_STORE_PASSWORD or --store-password-file")
	}
	if c.Store == "" {
		c.Store = c.Env("CUTOVER_STORE")
	}
	switch {
	case c.Store == "" && c.Consul == "":
		return nil, nil
	case c.Store == "" || c.Consul == "":
		return nil, errors.New("several orchestrators need both: --consul for what decides, --store for the rest; without both, one orchestrator keeps everything in --data-dir")
	}
	s := &Shared{Consul: c.Consul, Name: c.Name, Advertise: c.Advertise, SessionTTL: c.SessionTTL}
	var err error
	if s.Redis, err = c.redis(); err != nil {
		return nil, err
	}
	if s.RedisTLS, err = clientauth.TLS(c.StoreCA, "", ""); err != nil {
		return nil, fmt.Errorf("--store-ca: %w", err)
	}
	if s.ConsulOptions, err = consulclient.FromEnv(c.Env, c.ConsulTokenFile); err != nil {
		return nil, err
	}
	if s.Name == "" {
		if s.Name, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("--name: %w", err)
		}
	}
	scheme := "http"
	if !isLoopback(listener) {
		scheme = "https"
	}
	if s.Advertise == "" {
		if ip := listener.(*net.TCPAddr).IP; ip.IsUnspecified() {
			return nil, fmt.Errorf("--advertise is needed with --listen %s: the URL at which the other orchestrators reach this one", listener)
		}
		s.Advertise = scheme + "://" + listener.String()
	}
	if strings.HasPrefix(s.Advertise, "https://") {
		if tlsDir == "" {
			return nil, errors.New("--advertise https needs --tls-dir: the other orchestrators are known by their certificates")
		}
		if s.TLS, err = pki.Config(tlsDir, cluster, roleOrchestrator); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// CatalogConfig is how the catalog that announces Hosts is configured: flags, and the environment as for SharedConfig.
type CatalogConfig struct {
	// Address of a Consul agent; empty: there is no catalog.
	Address, Service, TokenFile string
	// Env is the environment.
	Env func(string) string
}

// Load returns the options of the catalog; nil if there is none.
func (c CatalogConfig) Load() (*consulcatalog.Options, error) {
	if c.Address == "" {
		if c.Service != "" {
			return nil, errors.New("--catalog-service is the name of a service in the Consul at --catalog: give that, too")
		}
		return nil, nil
	}
	client, err := consulclient.FromEnv(c.Env, c.TokenFile)
	if err != nil {
		return nil, err
	}
	return &consulcatalog.Options{Address: c.Address, Client: client, Service: c.Service}, nil
}

func hasPassword(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	_, has := u.User.Password()
	return has
}

// redis returns the address with the password that was given apart. Errors do not quote it.
func (c SharedConfig) redis() (string, error) {
	password := c.Env("CUTOVER_STORE_PASSWORD")
	if c.StorePasswordFile != "" {
		var err error
		if password, err = clientauth.Secret(c.StorePasswordFile); err != nil {
			return "", fmt.Errorf("--store-password-file: %w", err)
		}
	}
	if password == "" {
		return c.Store, nil
	}
	u, err := url.Parse(c.Store)
	if err != nil {
		return "", errors.New("--store: want redis://HOST:PORT or rediss://HOST:PORT")
	}
	u.User = url.UserPassword(u.User.Username(), password)
	return u.String(), nil
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// ServeTLS returns the TLS of the API at addr: nil, plain HTTP, on a loopback address, and elsewhere the certificate in
// tlsDir. Who asks is known by a token, so no client certificate is asked for.
func ServeTLS(addr net.Addr, tlsDir string) (*tls.Config, error) {
	if isLoopback(addr) {
		return nil, nil
	}
	if tlsDir == "" {
		return nil, fmt.Errorf("--listen %s: tokens travel there, so other addresses than loopback ones need TLS: give --tls-dir, or put a TLS proxy in front", addr)
	}
	return pki.ServerConfig(tlsDir)
}
