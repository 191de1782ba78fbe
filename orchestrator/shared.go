package orchestrator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/cutover/cutover/internal/consulclient"
	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/lead"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/consulstore"
	"github.com/cutover/cutover/orchestrator/store/redisstore"
	"github.com/cutover/cutover/orchestrator/store/splitstore"
)

// Shared makes this orchestrator one of several that lead one cluster in turn. All of them have the same cluster, hosts
// and tokens.
type Shared struct {
	// Name is this orchestrator's own; unique among them.
	Name string
	// Advertise is the URL at which the others reach its API: https, or http on a loopback address.
	Advertise string
	// TLS verifies the others where they are reached by https.
	TLS *tls.Config

	// Consul is the address of a Consul agent; it holds the lock and what decides.
	Consul        string
	ConsulOptions consulclient.Options
	// Redis is the address of the Redis that holds the rest, with its password. Never logged.
	Redis    string
	RedisTLS *tls.Config
	// SessionTTL is how long Consul keeps the lock of a leader that is silent, at least; lead.DefaultTTL by default.
	SessionTTL time.Duration
}

func (s *Shared) validate() error {
	var errs []error
	for what, missing := range map[string]bool{"Name": s.Name == "", "Consul": s.Consul == "", "Redis": s.Redis == ""} {
		if missing {
			errs = append(errs, fmt.Errorf("orchestrator option Shared.%s is missing", what))
		}
	}
	return errors.Join(append(errs, checkAdvertise(s.Advertise))...)
}

// checkAdvertise refuses an address on which tokens would travel in the clear.
func checkAdvertise(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("advertised address %q: want https://HOST:PORT, at which the other orchestrators reach this one", raw)
	}
	ip := net.ParseIP(u.Hostname())
	switch {
	case ip != nil && ip.IsUnspecified():
		return fmt.Errorf("advertised address %q: no other machine can reach that; name this one", raw)
	case u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()):
		return fmt.Errorf("advertised address %q: http is for loopback addresses only, since tokens travel there: listen with TLS", raw)
	}
	return nil
}

// shared is what one of several orchestrators has besides its terms.
type shared struct {
	opts      Shared
	cluster   string
	election  *lead.Consul
	transport *http.Transport
	standby   *standby
}

// openShared connects to Consul and begins to watch who leads.
func openShared(ctx context.Context, opts Options, cleanups *cleanups) (*shared, error) {
	s := &shared{opts: *opts.Shared, cluster: opts.Cluster}
	deciding, err := s.openConsul(ctx)
	if err != nil {
		return nil, err
	}
	cleanups.add("Consul", func(context.Context) error { return deciding.Close() })
	s.standby = &standby{open: s.openStores}
	cleanups.add("standby", func(context.Context) error { return s.standby.close() })
	client, closeIdle, err := consulclient.New(s.opts.Consul, s.opts.ConsulOptions)
	if err != nil {
		return nil, err
	}
	cleanups.add("Consul client", func(context.Context) error { closeIdle(); return nil })
	s.election, err = lead.NewConsul(lead.ConsulOptions{
		Client: client, Key: consulstore.LeaderKey(consulstore.Prefix(s.cluster)), Self: s.self(), Store: deciding,
		Logger: opts.Logger.With("part", "lead"), TTL: s.opts.SessionTTL,
	})
	if err != nil {
		return nil, err
	}
	cleanups.add("election", func(context.Context) error { s.election.Close(); return nil })
	s.transport = &http.Transport{
		// No proxy of the environment: tokens go straight to the leader.
		DialContext:     (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 5 * time.Second}).DialContext,
		TLSClientConfig: s.opts.TLS, TLSHandshakeTimeout: 2 * time.Second, ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost: 32, IdleConnTimeout: 90 * time.Second, ForceAttemptHTTP2: true, DisableCompression: true,
	}
	cleanups.add("connections to the leader", func(context.Context) error { s.transport.CloseIdleConnections(); return nil })
	return s, nil
}

func (s *shared) self() lead.Leader { return lead.Leader{Name: s.opts.Name, URL: s.opts.Advertise} }

func (s *shared) openConsul(ctx context.Context) (store.Store, error) {
	return consulstore.Open(ctx, s.opts.Consul, consulstore.Options{Client: s.opts.ConsulOptions, Prefix: consulstore.Prefix(s.cluster)})
}

// standing says who answers while this orchestrator does not lead.
func (s *shared) standing() api.Standing {
	out := api.Standing{Name: s.opts.Name, Service: s.standby, Transport: s.transport,
		Why: "no orchestrator leads at the moment: one takes over within a second of a hand-over, and about 20 s after a crash; ask again"}
	leader, known, changed := s.election.Leader()
	out.Heard = s.election.Heard()
	silent := time.Since(out.Heard)
	switch {
	case silent > wire.LeaderStale && (!known || leader == s.self()):
		out.Why = "who leads is not known: Consul has not answered this orchestrator lately; see that it runs and can be reached, and ask again"
	case !known:
	case leader == s.self():
		out.Why = "this orchestrator takes over: it reads the state; ask again"
	case leader.URL == "":
		out.Why = "the lock of the leader in Consul is held by something that is no orchestrator: see who holds " + consulstore.LeaderKey(consulstore.Prefix(s.cluster))
	default:
		out.Changed = changed
		out.Leader = &wire.Leader{Name: leader.Name, URL: leader.URL}
	}
	return out
}

// openStores opens what a term writes: its own handles, so that nothing of one term can be on its way in the next.
func (s *shared) openStores(ctx context.Context) (store.Store, error) {
	deciding, err := s.openConsul(ctx)
	if err != nil {
		return nil, err
	}
	rest, err := redisstore.Open(ctx, s.opts.Redis, redisstore.Options{Cluster: s.cluster, TLS: s.opts.RedisTLS})
	if err != nil {
		return nil, errors.Join(err, deciding.Close())
	}
	return splitstore.New(deciding, rest), nil
}
