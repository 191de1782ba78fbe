package daemon

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/cutover/cutover/internal/consulclient"
	"github.com/cutover/cutover/lbagent/announce"
)

// Announce says where the Host announces itself.
type Announce struct {
	// Consul is the address of the Consul agent of this machine: http://127.0.0.1:8500.
	Consul string `yaml:"consul" json:"consul"`
	// Service is the name of the service whose instances are Hosts; default: cutover-lbagent.
	Service string `yaml:"service,omitempty" json:"service,omitempty"`
	// AgentURL is where the orchestrator reaches the lbagent; default: the address of listen.
	AgentURL string `yaml:"agent_url,omitempty" json:"agent_url,omitempty"`
	// TokenFile holds the token of Consul; default: CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE. CONSUL_CACERT and its like are heard.
	TokenFile string `yaml:"token_file,omitempty" json:"token_file,omitempty"`
	// Withdraw takes the entry out when the lbagent is stopped; otherwise it stays.
	Withdraw bool `yaml:"withdraw,omitempty" json:"withdraw,omitempty"`
}

// announcement are the options of the Announcer, without what is secret.
func (c Config) announcement() announce.Options {
	o := announce.Options{
		Consul: c.Announce.Consul, Service: c.Announce.Service, Cluster: c.Cluster, Group: c.Group, Host: c.Name, AgentURL: c.Announce.AgentURL,
	}
	if o.AgentURL == "" {
		scheme := "https://"
		if c.TLSDir == "" {
			scheme = "http://"
		}
		o.AgentURL = scheme + c.Listen
	}
	if ready, err := netip.ParseAddrPort(c.ReadyListen); err == nil {
		if addr := ready.Addr(); addr.IsUnspecified() { // the Consul agent that asks is on this machine
			ready = netip.AddrPortFrom(loopback(addr), ready.Port())
		}
		o.ReadyURL = "http://" + ready.String() + "/readyz"
	}
	return o
}

func loopback(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// announcer makes the Announcer, or nil if the Host does not announce itself.
func (c Config) announcer(env func(string) string, log *slog.Logger) (*announce.Announcer, error) {
	if c.Announce == nil {
		return nil, nil
	}
	o := c.announcement()
	o.Logger = log.With("part", "announce")
	var err error
	if o.Client, err = consulclient.FromEnv(env, c.Announce.TokenFile); err != nil {
		return nil, err
	}
	return announce.New(o)
}

// announced runs the lbagent while the Host announces itself, and withdraws the entry after a stop if that is wanted.
func (c Config) announced(ctx context.Context, a *announce.Announcer, log *slog.Logger, run func(context.Context) error) error {
	defer a.Close()
	announcing, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); a.Run(announcing) }()
	err := run(ctx)
	cancel()
	<-done
	if c.Announce.Withdraw && err == nil && ctx.Err() != nil {
		if err := a.Withdraw(context.WithoutCancel(ctx)); err != nil {
			log.Warn("this host stays announced", "error", err)
		}
	}
	return err
}
