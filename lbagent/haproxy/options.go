package haproxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// Frontend is one public listener that the group's template declares.
type Frontend struct {
	Name  string           // [a-z0-9_-]{1,32}
	Binds []netip.AddrPort // at least one; an unspecified address listens on all
}

// Options configure a Driver. Dir, BaseConfig, RuntimeSocket, MasterSocket, Frontends and Logger are required.
type Options struct {
	// Dir is ours alone. HAProxy's unit loads Dir/current/ after the owner's base configuration:
	// haproxy -W -S MASTER -f BASE -f Dir/current/
	Dir string
	// BaseConfig is the owner's file. It is read to be validated, never written.
	BaseConfig string
	// Binary is the haproxy that the unit starts; "haproxy" if empty.
	Binary string
	// RuntimeSocket is the worker's stats socket ("level admin expose-fd listeners" in the owner's global section).
	RuntimeSocket string
	// MasterSocket is the master's command line (-S).
	MasterSocket string
	// Frontends are the listeners that the Frame declares.
	Frontends []Frontend

	// Pool is the number of spare backends that each common class starts with; 64 if zero. Classes of long health
	// timeouts start with a quarter of it.
	Pool int
	// ReloadTimeout bounds the wait for a new worker; 30 s if zero.
	ReloadTimeout time.Duration
	// RecheckAfter is how long after the last Publish the whole is checked again in the background; 5 s if zero.
	RecheckAfter time.Duration

	// Journaled says what the journal of this Host wants published of an App; false: it does not know the App. It is asked
	// only for Apps whose file is damaged. Nil: nothing is known.
	Journaled func(app string) (driver.Section, bool)
	// Restore: HAProxy is about to start on the tree, so a damaged file of an App is written again as journaled. Without it
	// such a file is left for Survey to tell and Mend to put right.
	Restore bool

	Logger *slog.Logger
}

const (
	defaultPool          = 64
	maxPool              = 1 << 12
	defaultReloadTimeout = 30 * time.Second
	defaultRecheckAfter  = 5 * time.Second
	// maxSocketPath leaves room for the suffix that haproxy appends while it binds (".PID.tmp") within the 108 bytes of
	// a unix socket's address.
	maxSocketPath = 90
)

var (
	// plainPath is what may stand unquoted in a configuration file, a map argument and a runtime command.
	plainPath    = regexp.MustCompile(`^/[A-Za-z0-9/._-]+$`)
	frontendName = regexp.MustCompile(`^[a-z0-9_-]{1,32}$`)
)

// withDefaults returns the Options with defaults filled in, or what is wrong with them.
func (o Options) withDefaults() (Options, error) {
	if o.Binary == "" {
		o.Binary = "haproxy"
	}
	if o.Pool == 0 {
		o.Pool = defaultPool
	}
	if o.ReloadTimeout == 0 {
		o.ReloadTimeout = defaultReloadTimeout
	}
	if o.RecheckAfter == 0 {
		o.RecheckAfter = defaultRecheckAfter
	}
	var errs []error
	for _, p := range []struct{ name, path string }{
		{"Dir", o.Dir}, {"BaseConfig", o.BaseConfig}, {"RuntimeSocket", o.RuntimeSocket}, {"MasterSocket", o.MasterSocket},
	} {
		if !plainPath.MatchString(p.path) || filepath.Clean(p.path) != p.path {
			errs = append(errs, fmt.Errorf("%s %q: want a clean absolute path of letters, digits and /._-", p.name, p.path))
		}
	}
	if s := o.agentSocket(); len(s) > maxSocketPath {
		errs = append(errs, fmt.Errorf("Dir %q is too long: %s has %d bytes, a socket of haproxy may have %d", o.Dir, s, len(s), maxSocketPath))
	}
	if o.Pool < 1 || o.Pool > maxPool {
		errs = append(errs, fmt.Errorf("Pool %d: want 1 to %d", o.Pool, maxPool))
	}
	if o.ReloadTimeout < 0 || o.RecheckAfter < 0 {
		errs = append(errs, errors.New("ReloadTimeout and RecheckAfter: want positive durations"))
	}
	if o.Logger == nil {
		errs = append(errs, errors.New("Logger is missing"))
	}
	if len(o.Frontends) == 0 {
		errs = append(errs, errors.New("Frontends: want at least one"))
	}
	seen := map[string]bool{}
	for _, f := range o.Frontends {
		if !frontendName.MatchString(f.Name) || seen[f.Name] {
			errs = append(errs, fmt.Errorf("frontend name %q: want [a-z0-9_-]{1,32}, each once", f.Name))
		}
		seen[f.Name] = true
		if len(f.Binds) == 0 {
			errs = append(errs, fmt.Errorf("frontend %s binds no address", f.Name))
		}
		for _, b := range f.Binds {
			if !b.IsValid() || b.Port() == 0 || b.Addr().Zone() != "" {
				errs = append(errs, fmt.Errorf("frontend %s: cannot bind %s: want an address and a port", f.Name, b))
			}
		}
	}
	if len(errs) > 0 {
		return o, fmt.Errorf("haproxy driver: %w", errors.Join(errs...))
	}
	return o, nil
}

func (o Options) currentDir() string         { return filepath.Join(o.Dir, "current") }
func (o Options) slotsDir() string           { return filepath.Join(o.Dir, "slots") }
func (o Options) stateFile() string          { return filepath.Join(o.Dir, "servers.state") }
func (o Options) stagingDir() string         { return filepath.Join(o.Dir, "staging") }
func (o Options) agentSocket() string        { return filepath.Join(o.Dir, "agent.sock") }
func (o Options) mapFile(name string) string { return filepath.Join(o.currentDir(), name) }

// The maps, by their file names.
const (
	routesMap = "routes.map"
	healthMap = "health.map"
	warmMap   = "warm.map"
)
