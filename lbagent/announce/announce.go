package announce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cutover/cutover/internal/consulclient"
	"github.com/cutover/cutover/proto/announcement"
)

const (
	// callTimeout bounds one call of the Consul agent.
	callTimeout = 5 * time.Second
	// maxAnswer bounds its answer.
	maxAnswer = 1 << 20
	// retryMin and retryMax bound the pause after a failure.
	retryMin, retryMax = time.Second, 30 * time.Second
	// What Consul checks, and how often.
	checkInterval, checkTimeout = "5s", "2s"
)

// Options of an Announcer. Consul, Cluster, Group, Host, AgentURL and Logger are required.
type Options struct {
	// Consul is the address of the Consul agent of this machine; see consulclient.CheckAddress.
	Consul string
	Client consulclient.Options
	// Service is the name of the service; announcement.Service by default.
	Service              string
	Cluster, Group, Host string
	// AgentURL is where the orchestrator reaches the lbagent: https, or http on a loopback address.
	AgentURL string
	// ReadyURL is the readiness endpoint, which Consul asks; empty: Consul only connects to the lbagent.
	ReadyURL string
	Logger   *slog.Logger
	// Every is how often the entry is looked for. Default 30 s.
	Every time.Duration
}

// Check fills the defaults and says what is wrong.
func (o *Options) Check() error {
	o.Service, o.Every = cmp.Or(o.Service, announcement.Service), cmp.Or(o.Every, 30*time.Second)
	if strings.ContainsAny(o.Service, "/?#% ") || len(o.Service) > 128 {
		return fmt.Errorf("service %q: want a name as in Consul", o.Service)
	}
	if _, err := o.registration(); err != nil {
		return err
	}
	return consulclient.CheckAddress(o.Consul)
}

// registration is the entry.
func (o *Options) registration() (*api.AgentServiceRegistration, error) {
	u, err := url.Parse(o.AgentURL)
	if err != nil {
		return nil, fmt.Errorf("agent_url: want https://ADDRESS:PORT: %w", err)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || port == 0 || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("agent_url %q: want https://ADDRESS:PORT", o.AgentURL)
	}
	ip := net.ParseIP(u.Hostname())
	switch {
	case u.Hostname() == "" || ip != nil && ip.IsUnspecified():
		return nil, fmt.Errorf("agent_url %q: nobody can reach that: name the address at which the orchestrator reaches this lbagent", o.AgentURL)
	case u.Scheme == "http" && (ip == nil || !ip.IsLoopback()):
		return nil, fmt.Errorf("agent_url %q: http is for loopback addresses only", o.AgentURL)
	}
	check := &api.AgentServiceCheck{CheckID: o.id() + "-ready", Interval: checkInterval, Timeout: checkTimeout}
	if o.ReadyURL != "" {
		check.Name, check.HTTP, check.Method = "the host is ready for client traffic", o.ReadyURL, http.MethodGet
	} else {
		check.Name, check.TCP = "the lbagent listens", u.Host
	}
	meta := map[string]string{announcement.Cluster: o.Cluster, announcement.Group: o.Group, announcement.Host: o.Host, announcement.Scheme: u.Scheme}
	if o.ReadyURL != "" {
		meta[announcement.Ready] = o.ReadyURL
	}
	return &api.AgentServiceRegistration{ID: o.id(), Name: o.Service, Address: u.Hostname(), Port: int(port), Meta: meta, Check: check}, nil
}

// id of the entry in the Consul agent.
func (o *Options) id() string { return o.Service + "-" + o.Cluster + "-" + o.Host }

// same: the entry that Consul has says what ours says. Consul does not tell what it asks of a check; the meta does.
func same(want *api.AgentServiceRegistration, have *api.AgentService) bool {
	return have.Service == want.Name && have.Address == want.Address && have.Port == want.Port && maps.Equal(have.Meta, want.Meta)
}

// Announcer keeps the entry of one Host.
type Announcer struct {
	opts   Options
	want   *api.AgentServiceRegistration
	client *api.Client
	close  func()
}

// New returns an Announcer. Nothing is asked yet.
func New(opts Options) (*Announcer, error) {
	if opts.Logger == nil {
		return nil, errors.New("announce: Logger is required")
	}
	if err := opts.Check(); err != nil {
		return nil, err
	}
	want, err := opts.registration()
	if err != nil {
		return nil, err
	}
	opts.Client.MaxAnswer = maxAnswer
	client, closeIdle, err := consulclient.New(opts.Consul, opts.Client)
	if err != nil {
		return nil, err
	}
	return &Announcer{opts, want, client, closeIdle}, nil
}

// Close closes idle connections; Run must have returned.
func (a *Announcer) Close() { a.close() }

// Run keeps the entry until ctx ends, and leaves it there. A Consul that is away is waited for.
func (a *Announcer) Run(ctx context.Context) {
	log := a.opts.Logger.With("consul", a.opts.Consul, "service", a.opts.Service)
	failed := false
	for pause := retryMin; ctx.Err() == nil; {
		wrote, err := a.ensure(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !failed {
				log.Warn("this host is not announced; it is tried again, and whoever is a member stays one", "error", err)
			}
			failed = true
			sleep(ctx, pause)
			pause = min(2*pause, retryMax)
			continue
		case wrote || failed:
			log.Info("this host is announced", "agent_url", a.opts.AgentURL)
		}
		failed, pause = false, retryMin
		sleep(ctx, a.opts.Every)
	}
}

// ensure writes the entry if it is not there as it should be: a Consul agent may have lost its data, or somebody has changed it.
func (a *Announcer) ensure(ctx context.Context) (wrote bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	have, _, err := a.client.Agent().Service(a.want.ID, (&api.QueryOptions{}).WithContext(ctx))
	var status api.StatusError
	switch {
	case err == nil && same(a.want, have):
		return false, nil
	case err != nil && !(errors.As(err, &status) && status.Code == http.StatusNotFound):
		return false, fmt.Errorf("look for the entry %s: %w", a.want.ID, err)
	}
	if err := a.client.Agent().ServiceRegisterOpts(a.want, api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)); err != nil {
		return false, fmt.Errorf("register %s: %w", a.want.ID, err)
	}
	return true, nil
}

// Withdraw takes the entry out. The orchestrator keeps the Host what it is, and says that nobody announces it.
func (a *Announcer) Withdraw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := a.client.Agent().ServiceDeregisterOpts(a.want.ID, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("withdraw %s: %w", a.want.ID, err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
