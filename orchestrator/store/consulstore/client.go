package consulstore

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/consul/api"
)

// Prefix returns where the keys of a cluster are when nothing else is said.
func Prefix(cluster string) string { return "cutover/" + cluster }

// LeaderKey returns the key below prefix whose lock the leader holds; the session in a store.Fence is checked on it.
func LeaderKey(prefix string) string { return prefix + "/leader" }

// ClientOptions say how to reach Consul. The zero value is enough for an agent on this machine without access control.
type ClientOptions struct {
	Token string // of Consul's access control
	// TLS is for https; nil means the system's roots and no client certificate.
	TLS *tls.Config
	// DialTimeout bounds one attempt to connect. Default 3 s.
	DialTimeout time.Duration
}

// NewClient returns a client of the Consul agent at address, http://HOST:PORT or https://HOST:PORT. Plain http is for
// an agent on this machine only: it would carry the token and the decisions in the clear. The returned function closes
// idle connections.
func NewClient(address string, opts ClientOptions) (*api.Client, func(), error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, nil, fmt.Errorf("address of Consul: want http://HOST:PORT or https://HOST:PORT: %w", err)
	}
	if u.Host == "" || u.User != nil || (u.Path != "" && u.Path != "/") || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, nil, errors.New("address of Consul: want http://HOST:PORT or https://HOST:PORT, and the token in its own option")
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, nil, fmt.Errorf("address of Consul: http://%s would send the token in the clear: use https, or the agent on this machine", u.Host)
	}
	dialer := &net.Dialer{Timeout: cmp.Or(opts.DialTimeout, 3*time.Second), KeepAlive: 15 * time.Second}
	transport := &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: opts.TLS, TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute,
	}
	client, err := api.NewClient(&api.Config{
		Address: u.Host, Scheme: u.Scheme, Token: opts.Token, HttpClient: &http.Client{Transport: transport},
	})
	if err != nil {
		transport.CloseIdleConnections()
		return nil, nil, fmt.Errorf("client of Consul at %s: %w", address, err)
	}
	return client, transport.CloseIdleConnections, nil
}
