package lbagent

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cutover/cutover/internal/pidfd"
	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/participant/journal"
)

// Options of an Agent. Name, Group, Cluster, Dir, Listen and Driver are required.
type Options struct {
	// Name of the Host, and the Group and Cluster that it belongs to.
	Name    string
	Group   string
	Cluster string

	// Dir holds the journal. It must exist, be private (0700), and belong to this agent alone.
	Dir string

	// Listen is ip:port. TLS may be nil on a loopback address only; otherwise it must verify client certificates.
	Listen string
	TLS    *tls.Config

	// ReadyListen is ip:port of a second listener, in the clear, that answers GET /readyz and nothing else, for upstream
	// balancers that cannot show a certificate; "": none.
	ReadyListen string

	// Driver drives the proxy. The Agent closes it.
	Driver driver.Driver
	// Frontend are the addresses where clients reach the proxy; their connections are counted when the Host is to be out
	// of traffic. None: nothing is counted, so nothing is proved.
	Frontend []netip.AddrPort

	// Version of the agent, for HostState.
	Version string
	// Logger is required to be set or is slog's discard.
	Logger *slog.Logger
	// Registry holds the metrics and is what /metrics shows; nil: a new one.
	Registry *prometheus.Registry

	// JournalFS is for tests; nil: the operating system's.
	JournalFS journal.FS
	// JournalSize is how many bytes of records call for a compaction. For tests; 0: the journal's default.
	JournalSize int64
	// Listener is for tests; nil: Listen is opened. The Agent closes it.
	Listener net.Listener
	// WatchProcess watches the process that has the pid, and says when that one was started. For tests; nil: the kernel's word.
	WatchProcess func(pid int) (ProcessWatch, time.Time, error)
}

// ProcessWatch is the end of one process as an event. Wait blocks until the process has ended (true) or Close was called
// (false).
type ProcessWatch interface {
	Wait() bool
	Close()
}

var hostName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$`)

// validate fills the defaults and says what is wrong.
func (o *Options) validate() error {
	for what, v := range map[string]string{"Name": o.Name, "Group": o.Group, "Cluster": o.Cluster} {
		if !hostName.MatchString(v) {
			return fmt.Errorf("lbagent option %s is %q: it must match %s", what, v, hostName)
		}
	}
	if o.Dir == "" {
		return errors.New("lbagent option Dir is missing: name the directory of the journal")
	}
	if o.Driver == nil {
		return errors.New("lbagent option Driver is missing")
	}
	if err := checkListen(o.Listen, o.TLS); err != nil {
		return err
	}
	if o.ReadyListen != "" {
		if _, err := netip.ParseAddrPort(o.ReadyListen); err != nil {
			return fmt.Errorf("lbagent address of the readiness endpoint %q must be an IP address and a port: %w", o.ReadyListen, err)
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	if o.WatchProcess == nil {
		o.WatchProcess = watchProcess
	}
	return nil
}

// watchProcess looks at the start of the process when the pid cannot change hands unnoticed any more.
func watchProcess(pid int) (ProcessWatch, time.Time, error) {
	w, err := pidfd.Open(pid)
	if err != nil {
		return nil, time.Time{}, err
	}
	stat, err := procfs.ReadStat(pid)
	if err != nil {
		w.Close()
		return nil, time.Time{}, err
	}
	return w, stat.Started(), nil
}

// checkListen refuses to take orders in the clear from anywhere but this machine.
func checkListen(listen string, conf *tls.Config) error {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("lbagent listen address %q: %w", listen, err)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return fmt.Errorf("lbagent listen address %q must be an IP address and a port: %w", listen, err)
	}
	if conf == nil && !addr.IsLoopback() {
		return fmt.Errorf("lbagent listens on %s, which is not loopback, without TLS: give it a certificate and the client CA", listen)
	}
	if conf != nil && conf.ClientAuth != tls.RequireAndVerifyClientCert {
		return errors.New("lbagent TLS must require and verify client certificates: whoever reaches the port could move traffic")
	}
	return nil
}
