package nginx

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"

	"github.com/cutover/cutover/lbagent/driver"
)

// IncludeName is the name, beside the owner's base configuration, of the link to the published tree.
const IncludeName = "cutover"

// Options configure either driver. Dir, BaseConfig, Listen and Logger are required.
type Options struct {
	// Dir is the driver's own directory, absolute; Bootstrap makes it.
	Dir string
	// BaseConfig is the owner's nginx.conf, absolute.
	BaseConfig string
	// Prefix is what nginx is started with (-p); default: the directory of BaseConfig.
	Prefix string
	// Binary is the nginx to validate with; default "nginx".
	Binary string
	// Listen are the addresses of the Group's frontends on this Host.
	Listen []netip.AddrPort
	// SourceAddress is the address that nginx connects and checks from; the zero Addr leaves it to the kernel.
	SourceAddress netip.Addr
	// ErrorLog is nginx's error log, which the reload driver reads for the reason of a failed reload; default: what the
	// base configuration says.
	ErrorLog string
	// DictMiB is the size of the shared dictionary of the Lua driver in MiB; default 32.
	DictMiB int
	// KeepGenerations is how many generations the reload driver keeps on disk; default 10.
	KeepGenerations int
	// ProbeConcurrency bounds the checks in flight; default 64.
	ProbeConcurrency int
	// Journaled says what the journal of this Host wants published of an App; false: it does not know the App. It is asked
	// only for Apps whose file is damaged. Nil: nothing is known.
	Journaled func(app string) (driver.Section, bool)
	// Restore: nginx is about to start on the tree, so what is damaged in it is written again as journaled, and what a killed
	// nginx left is cleared away. Without it such a file is left for Survey to tell and Mend to put right.
	Restore bool
	Logger  *slog.Logger
}

// plainPath is what we put into configuration files and Lua strings without quoting.
var plainPath = regexp.MustCompile(`^/[A-Za-z0-9._/+=@,-]+$`)

// maxSocketPath is what fits into the kernel's sockaddr_un.
const maxSocketPath = 107

func (o Options) normal() (Options, error) {
	if !plainPath.MatchString(o.Dir) || !plainPath.MatchString(o.BaseConfig) {
		return o, fmt.Errorf("nginx: Dir %q and BaseConfig %q must be absolute paths of letters, digits and ._/+=@,-", o.Dir, o.BaseConfig)
	}
	o.Dir, o.BaseConfig = filepath.Clean(o.Dir), filepath.Clean(o.BaseConfig)
	o.Prefix = cmp.Or(o.Prefix, filepath.Dir(o.BaseConfig))
	o.Binary = cmp.Or(o.Binary, "nginx")
	o.DictMiB = cmp.Or(o.DictMiB, 32)
	o.KeepGenerations = max(cmp.Or(o.KeepGenerations, 10), 2)
	o.ProbeConcurrency = cmp.Or(o.ProbeConcurrency, 64)
	if o.DictMiB < 1 || o.DictMiB > 4096 || o.ProbeConcurrency < 1 || o.ProbeConcurrency > 4096 {
		return o, fmt.Errorf("nginx: DictMiB %d and ProbeConcurrency %d must be in 1..4096", o.DictMiB, o.ProbeConcurrency)
	}
	if len(o.Listen) == 0 {
		return o, errors.New("nginx: no Listen address: the Group's template declares at least one frontend")
	}
	for _, l := range o.Listen {
		if !l.IsValid() || l.Port() == 0 || l.Addr().Zone() != "" {
			return o, fmt.Errorf("nginx: Listen address %q is not IP:PORT", l)
		}
	}
	if longest := (paths{o.Dir}).generationSocket(1 << 40); len(longest) > maxSocketPath {
		return o, fmt.Errorf("nginx: Dir %q is too long for unix sockets below it (%d bytes, the kernel allows %d): use a shorter Dir", o.Dir, len(longest), maxSocketPath)
	}
	if o.Logger == nil {
		return o, errors.New("nginx: no Logger")
	}
	return o, nil
}

// paths are the places below Dir.
type paths struct{ dir string }

func (p paths) run() string           { return filepath.Join(p.dir, "run") }
func (p paths) agentSocket() string   { return filepath.Join(p.dir, "run", "agent.sock") }
func (p paths) probeSocket() string   { return filepath.Join(p.dir, "run", "probe.sock") }
func (p paths) connectSocket() string { return filepath.Join(p.dir, "run", "connect.sock") }
func (p paths) current() string       { return filepath.Join(p.dir, "current") }
func (p paths) epoch() string         { return filepath.Join(p.dir, "epoch") }
func (p paths) lock() string          { return filepath.Join(p.dir, "lock") }
func (p paths) frames() string        { return filepath.Join(p.dir, "frames") }
func (p paths) apps() string          { return filepath.Join(p.dir, "apps") }
func (p paths) gens() string          { return filepath.Join(p.dir, "gens") }
func (p paths) stage() string         { return filepath.Join(p.dir, "stage") }

func (p paths) sectionFile(app string) string {
	return filepath.Join(p.apps(), app+sectionSuffix)
}

func (p paths) generationSocket(n uint64) string {
	return filepath.Join(p.dir, "run", fmt.Sprintf("g%d.sock", n))
}

func (p paths) generation(n uint64) string {
	return filepath.Join(p.gens(), generationName(n))
}

// tree is what current points to: the part of a generation that is a function of the Sections alone.
func (p paths) tree(n uint64) string { return filepath.Join(p.generation(n), treeDir) }

func generationName(n uint64) string { return fmt.Sprintf("gen-%d", n) }

// sectionSuffix ends the name of a published Section; the Lua code knows it too.
const sectionSuffix = ".section"
