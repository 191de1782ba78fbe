package mesosframework

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os/user"
	"strings"
	"time"
)

// Journal is where the framework writes what must be durable before Mesos hears
// of it. All methods must be durable when they return nil.
type Journal interface {
	// FrameworkID returns the saved id, "" if there is none.
	FrameworkID(ctx context.Context) (string, error)
	// SaveFrameworkID saves the id that a master gave. It must refuse to replace
	// another one.
	SaveFrameworkID(ctx context.Context, id string) error
	// SaveLaunching saves tasks just before they are launched. If it returns an
	// error none is launched, and each is placed anew later, under the same id.
	SaveLaunching(ctx context.Context, launches []Launch) error
}

// Listener hears of tasks. Its methods may take their time, but a slow one ends
// the subscription when queues fill up.
type Listener interface {
	// HandleSubscribed is called after each subscription, before any offer or
	// update of it, and returns all tasks that have not ended, for
	// reconciliation: they are asked about in this order. An error ends the
	// subscription; it is tried again.
	HandleSubscribed(ctx context.Context, s Subscription) ([]TaskRef, error)
	// HandleUpdate is called for each update, in order per task, concurrently
	// for different tasks. It returns nil when what the update means is durable;
	// only then Mesos gets its acknowledgement, and only then the ports of an
	// ended task are free as far as the framework knows (Options.PortBlocked must
	// know better by then). The same update may come again: it must be idempotent.
	HandleUpdate(ctx context.Context, u Update) error
	// HandleLost is called when the framework gives a task up, in order with the
	// updates of the task. An error is retried.
	HandleLost(ctx context.Context, l Loss) error
	// HandleDisconnected is called when a subscription has ended. Tasks go on.
	HandleDisconnected(ctx context.Context, reason error)
}

// Subscription describes one subscription.
type Subscription struct {
	FrameworkID string
	// Master is the base URL of the leading master.
	Master        string
	MasterVersion string
	// Number counts the subscriptions of this process, from 1.
	Number uint64
}

// Credentials are sent as HTTP Basic authentication. They never appear in logs.
type Credentials struct {
	Principal, Secret string
}

// String hides the secret.
func (c Credentials) String() string { return c.Principal + ":***" }

// LogValue hides the secret.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Options of a Framework. Masters, Name, Journal and Listener are required.
type Options struct {
	// Masters are base URLs or host:port of masters; any of them may lead.
	Masters []string
	// TLS configures https connections to masters and agents.
	TLS *tls.Config
	// Credentials for the master; they go to a master that is not in Masters
	// (found by redirect) only with ForwardCredentials.
	Credentials        *Credentials
	ForwardCredentials bool
	// AgentCredentials for the agents' /files endpoints.
	AgentCredentials *Credentials

	Name string
	// User runs the tasks; the user of this process by default.
	User string
	// Role is the Mesos role; "*" by default.
	Role     string
	Hostname string // of the framework, shown by Mesos
	WebUIURL string
	// FrameworkID, if set, is used when the Journal has none: Mesos accepts ids
	// that a framework brings along.
	FrameworkID string
	// FailoverTimeout is how long Mesos keeps the tasks without us; a week by
	// default, less than an hour is refused.
	FailoverTimeout time.Duration

	Journal  Journal
	Listener Listener
	Logger   *slog.Logger
	// PortBlocked reports ports that must not be given out yet. It is called
	// while a lock is held: it must be fast and must not call the Framework.
	PortBlocked func(agentID, host string, port uint16) bool

	// MaxPending bounds the tasks that wait for offers; 10,000 by default.
	MaxPending int
	// MaxRecord bounds one event of the stream, in bytes; 256 MiB by default
	// (50,000 offers are about 13 MiB).
	MaxRecord int
	// MaxEvents bounds the events between reader and core, 65,536 by default: the
	// answers to a reconciliation of all tasks come in one burst. MaxUpdates bounds
	// the updates of one lane that wait for the Listener; 1,024 by default.
	MaxEvents, MaxUpdates int
	// Lanes is the number of concurrent HandleUpdate calls and acknowledgements;
	// 64 by default.
	Lanes int
	// Gather is how long the first offers wait for those of other agents; 10 ms by default.
	Gather time.Duration
	// LaunchTimeout is how long a launch may go without any update before Mesos
	// is asked about it (three times, then it is killed); 30 s by default.
	LaunchTimeout time.Duration
	// StagingTimeout is how long a task may stay in TASK_STAGING (fetching); 10 min by default.
	StagingTimeout time.Duration
	// ReconcileInterval is the time between full reconciliations; 10 min by default.
	ReconcileInterval time.Duration
	// CallTimeout bounds one call; 15 s by default. StoreTimeout bounds one call
	// of the Journal or the Listener; 30 s by default.
	CallTimeout, StoreTimeout time.Duration
	// BackoffBase and BackoffMax bound the random wait between attempts to
	// subscribe; 250 ms and 15 s by default.
	BackoffBase, BackoffMax time.Duration
	// Seed makes placements reproducible; 0 picks one.
	Seed uint64
}

// withDefaults checks the options and fills them in.
func (o Options) withDefaults() (Options, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("mesosframework: "+format, args...)) }
	if len(o.Masters) == 0 {
		bad("no master given")
	}
	for _, m := range o.Masters {
		if _, err := parseMaster(m); err != nil {
			errs = append(errs, err)
		}
	}
	if o.Name == "" {
		bad("the framework's name is empty")
	}
	if o.Journal == nil || o.Listener == nil {
		bad("Journal and Listener are required")
	}
	if o.FrameworkID != "" {
		if err := validID(o.FrameworkID); err != nil {
			bad("framework id: %w", err)
		}
	}
	if o.User == "" {
		if u, err := user.Current(); err == nil {
			o.User = u.Username
		} else {
			bad("the user of this process has no name; set one: %w", err)
		}
	}
	if o.Role == "" {
		o.Role = "*"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ints := []struct {
		v   *int
		def int
	}{{&o.MaxPending, 10_000}, {&o.MaxRecord, 256 << 20}, {&o.MaxEvents, 65_536}, {&o.MaxUpdates, 1024}, {&o.Lanes, 64}}
	for _, i := range ints {
		if *i.v == 0 {
			*i.v = i.def
		}
		if *i.v < 0 {
			bad("a limit is negative")
		}
	}
	durations := []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&o.FailoverTimeout, 7 * 24 * time.Hour}, {&o.Gather, 10 * time.Millisecond}, {&o.LaunchTimeout, 30 * time.Second},
		{&o.StagingTimeout, 10 * time.Minute}, {&o.ReconcileInterval, 10 * time.Minute}, {&o.CallTimeout, 15 * time.Second},
		{&o.StoreTimeout, 30 * time.Second}, {&o.BackoffBase, 250 * time.Millisecond}, {&o.BackoffMax, 15 * time.Second},
	}
	for _, d := range durations {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < 0 {
			bad("a duration is negative")
		}
	}
	if o.FailoverTimeout < time.Hour {
		bad("failover timeout %s: a master would kill all tasks when we are away for that long; at least 1h", o.FailoverTimeout)
	}
	return o, errors.Join(errs...)
}

// parseMaster turns an entry of Options.Masters into a base URL.
func parseMaster(s string) (*url.URL, error) {
	if strings.HasPrefix(s, "zk://") {
		return nil, fmt.Errorf("mesosframework: master %q: finding the leader through ZooKeeper is not built; list the masters as host:port", s)
	}
	full := s
	if !strings.Contains(s, "://") {
		full = "http://" + s
	}
	u, err := url.Parse(full)
	if err != nil {
		return nil, fmt.Errorf("mesosframework: master %q: %w", s, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("mesosframework: master %q is not host:port or http(s)://host:port", u.Redacted())
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}
