package consulclient

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/internal/clientauth"
)

// Options say how to reach Consul. The zero value is enough for an agent on this machine without access control.
type Options struct {
	Token string // of Consul's access control; never logged
	// TLS is for https; nil means the system's roots and no client certificate.
	TLS *tls.Config
	// DialTimeout bounds one attempt to connect. Default 3 s.
	DialTimeout time.Duration
	// MaxAnswer is how many bytes an answer may have; reading a longer one fails. Default: as many as Consul sends.
	MaxAnswer int64
}

// FromEnv returns the Options that Consul's own environment variables say: CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE,
// CONSUL_CACERT, CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY. tokenFile, if not empty, goes before both of the token's.
func FromEnv(env func(string) string, tokenFile string) (out Options, err error) {
	out.Token = env("CONSUL_HTTP_TOKEN")
	if file := cmp.Or(tokenFile, env("CONSUL_HTTP_TOKEN_FILE")); file != "" {
		if out.Token, err = clientauth.Secret(file); err != nil {
			return out, fmt.Errorf("token of Consul: %w", err)
		}
	}
	out.TLS, err = clientauth.TLS(env("CONSUL_CACERT"), env("CONSUL_CLIENT_CERT"), env("CONSUL_CLIENT_KEY"))
	if err != nil {
		return out, fmt.Errorf("TLS of Consul: %w", err)
	}
	return out, nil
}

// CheckAddress refuses what is no address of a Consul agent, http://HOST:PORT or https://HOST:PORT. Plain http is for an agent
// on this machine only: it would carry the token and the decisions in the clear.
func CheckAddress(address string) error {
	_, err := parse(address)
	return err
}

func parse(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("address of Consul: want http://HOST:PORT or https://HOST:PORT: %w", err)
	}
	if u.Host == "" || u.User != nil || u.RawQuery != "" || (u.Path != "" && u.Path != "/") || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, errors.New("address of Consul: want http://HOST:PORT or https://HOST:PORT, and the token in its own option")
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("address of Consul: http://%s would send the token in the clear: use https, or the agent on this machine", u.Host)
	}
	return u, nil
}

// New returns a client of the Consul agent at address; see CheckAddress. The returned function closes idle connections.
func New(address string, opts Options) (*api.Client, func(), error) {
	u, err := parse(address)
	if err != nil {
		return nil, nil, err
	}
	dialer := &net.Dialer{Timeout: cmp.Or(opts.DialTimeout, 3*time.Second), KeepAlive: 15 * time.Second}
	transport := &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: opts.TLS, TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute,
	}
	var carrier http.RoundTripper = transport
	if opts.MaxAnswer > 0 {
		carrier = bounded{transport, opts.MaxAnswer}
	}
	client, err := api.NewClient(&api.Config{
		Address: u.Host, Scheme: u.Scheme, Token: opts.Token, HttpClient: &http.Client{Transport: carrier},
	})
	if err != nil {
		transport.CloseIdleConnections()
		return nil, nil, fmt.Errorf("client of Consul at %s: %w", address, err)
	}
	return client, transport.CloseIdleConnections, nil
}

// bounded cuts answers off that are too large, so that reading one fails.
type bounded struct {
	http.RoundTripper
	limit int64
}

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, b.limit), resp.Body}
	}
	return resp, err
}
