package driver

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// Mode is what a proxy does with an upstream.
type Mode uint8

// The modes. An upstream that is in no mode is gone: a driver may keep a disabled tombstone of it, outside of what is
// read and compared.
const (
	// Warm: registered and checked by the proxy, and gets no request. Never in the files.
	Warm Mode = iota + 1
	// Serving: registered, checked, routable.
	Serving
	// Draining: registered and checked, its sessions go on, and it gets no new request. In the files at weight 0.
	Draining
)

// String returns the word used in evidence and logs.
func (m Mode) String() string {
	switch m {
	case Warm:
		return "warm"
	case Serving:
		return "serving"
	case Draining:
		return "draining"
	default:
		return fmt.Sprintf("mode(%d)", uint8(m))
	}
}

// HealthKind is how a proxy checks an upstream.
type HealthKind uint8

// The kinds. With HealthNone the proxy does not check, and the upstream counts as green once a connect worked.
const (
	HealthNone HealthKind = iota
	HealthTCP
	HealthHTTP
)

// Health is the check of one upstream by the proxy. Rise and Fall are counts of consecutive results, at least 1.
type Health struct {
	Kind     HealthKind
	Path     string // HealthHTTP only
	Interval time.Duration
	Timeout  time.Duration
	Rise     int
	Fall     int
}

// Upstream is one task's address as the proxy knows it. Name is unique per task incarnation, so nothing that a proxy
// says of a name can be about an earlier task. Names match [a-zA-Z0-9._-]{1,64}.
type Upstream struct {
	Name    string
	Address netip.AddrPort
	Weight  int // 1..256; a draining upstream keeps the weight that it had
	Mode    Mode
	Health  Health
}

// Route is where an App's traffic enters: a host name in lower case ("*" for any) and a path prefix that starts with a
// slash and matches on segment boundaries. Strip removes the prefix before the request is passed on.
type Route struct {
	Host  string
	Path  string
	Strip bool
}

// Section is all that the proxy should hold for one App. No routes and no upstreams: the App is absent.
// Routes are active exactly when they are listed: while a new App is only warm, its Section has no routes.
type Section struct {
	App       string
	Routes    []Route
	Upstreams []Upstream
}

// Process names the running proxy. A driver reads it from the proxy and from the kernel, never from a pid file alone.
type Process struct {
	MasterPID int
	WorkerPID int       // the current worker; nginx: the lowest pid among the current workers
	StartedAt time.Time // of the worker
	Version   string    // as the proxy reports it
}

// startTolerance is by how much two looks may tell the start of one process differently: the boot time that it is counted from
// moves with the clock.
const startTolerance = 2 * time.Second

// Same says whether both are one process: a pid alone may have changed hands.
func (p Process) Same(q Process) bool {
	return p.MasterPID == q.MasterPID && p.WorkerPID == q.WorkerPID && p.StartedAt.Sub(q.StartedAt).Abs() < startTolerance
}

// Before says that a process which started then is none of p's, though it has a pid of theirs: a master starts before its workers.
func (p Process) Before(started time.Time) bool { return started.Sub(p.StartedAt) >= startTolerance }

// Row is one upstream as the running proxy reported it.
type Row struct {
	Name    string
	Address netip.AddrPort
	Weight  int
	Mode    Mode
	// Green: the proxy's own checks passed in full and none is in flight.
	Green bool
	// Red: the proxy does not route to it because its checks failed. A row may be neither (still rising, a check in
	// progress): then it is not Green yet and has not lapsed either.
	Red bool
	// Status is what the proxy said, in its own words.
	Status string
	// Sessions and queued requests in all workers, those that are leaving included.
	Sessions int
}

// Reading is what the running proxy reported, bracketed by its identity.
type Reading struct {
	Process  Process
	At       time.Time
	Sections map[string]SectionReading // by App; an absent App has no entry
	// Tombstones counts the removed upstreams that the proxy still remembers. Told by a reading of all Apps only.
	Tombstones int
}

// SectionReading is the part of one App. Rows are sorted by name, Routes by host and path.
type SectionReading struct {
	Routes []Route
	Rows   []Row
	// Digest equals Digest(s) for the Section s that the rows and routes describe, unless something is Foreign.
	Digest string
	// Foreign are sentences about what else the running proxy holds of the App; see Mark.
	Foreign []string
}

// Info says what a driver found when it checked the contract with the owner's configuration.
type Info struct {
	// Proxy is "haproxy", "nginx-lua" or "nginx-reload".
	Proxy   string
	Version string
	// ReloadPerChange: every Converge that changes routable state reloads the proxy.
	ReloadPerChange bool
	// Limits are sentences for the owner about what this version cannot do.
	Limits []string
}

// Collector is a Driver of a proxy that remembers what was removed until it is reloaded.
type Collector interface {
	// Reload makes the proxy load its configuration anew, and returns when the new process has answered and holds what the
	// old one held, or with the reason why not. No request is lost.
	Reload(ctx context.Context) error
}

// Driver drives one running proxy. Calls for different Apps may run concurrently; the caller never makes two for the
// same App at once. Every call honours its context, and has a bound of its own when the context has none.
//
// Errors that a participant tells apart: *RefusedError (the proxy's checker said no), ErrBusy (a reload is under way:
// try again), ErrProxyDown (the proxy does not answer), ErrProxyMismatch (something answers that is not the proxy that
// it should be: a stolen port, an old worker, a reload that did not happen).
type Driver interface {
	// Check verifies the contract of the owner's base configuration with the running proxy (the include or -f of the
	// published tree, master-worker mode, sockets, modules). The error says what to change in which file.
	Check(ctx context.Context) (Info, error)

	// Stage renders want in the place of the App's published Section and asks the proxy's own checker about the whole,
	// without touching what is published or running. The cost does not grow with the number of Apps (a full validation
	// is cached). Refused: *RefusedError with the checker's output.
	Stage(ctx context.Context, want Section) error

	// Publish makes want what the proxy loads for this App when it restarts or is reloaded by its owner: atomically, and
	// durable (fsync of files and directories) when it returns. Serving is rendered with its weight, Draining with
	// weight 0, Warm not at all. It does not change the running proxy.
	Publish(ctx context.Context, want Section) error

	// Converge makes the running proxy hold exactly want for this App: missing upstreams are added without being
	// routable before they are in their mode, Serving ones become routable before others drain, superfluous ones are
	// removed last. It is idempotent and works from any state of the proxy, a freshly restarted one included. A driver
	// that must reload does it here, and returns when the new worker has answered, or with the reason why it has not.
	// Converge does not wait for checks: an upstream that is added directly as Serving is the caller's responsibility.
	Converge(ctx context.Context, want Section) error

	// Read reports the running state of the given Apps (none given: of all).
	Read(ctx context.Context, apps ...string) (Reading, error)

	// Request sends one real request to the named upstream of the App through the proxy's own worker, on a listener that
	// only this agent reaches: a GET of the upstream's health path with the given Host header (a connect where health is
	// TCP or none). A status made by the upstream passes, whatever it is; one made by the proxy fails.
	Request(ctx context.Context, app, name, host string) error

	// Cut closes the sessions that are still open on a Draining upstream, in all workers.
	Cut(ctx context.Context, app, name string) error

	// Process names the proxy process that runs now. ErrProxyDown if there is none.
	Process(ctx context.Context) (Process, error)

	// Apps lists the Apps that the published tree or the running proxy hold, sorted.
	Apps(ctx context.Context) ([]string, error)

	// PublishedDigest is the digest of the App's published files ("" if it has none): what UNDO compares on disk.
	PublishedDigest(ctx context.Context, app string) (string, error)

	// Survey compares with what this driver published: every file of its own (Frame, Sections, links), the owner's include
	// of them, and what the last Read of all Apps found in the proxy that is of no App. It changes nothing, and a file that
	// was not touched costs one lstat(2).
	Survey(ctx context.Context) ([]Difference, error)

	// Mend puts right what Survey tells, the owner's configuration apart: files are written again, what belongs to nobody
	// is taken out of the proxy, and a proxy that has loaded an altered file is made to load the right one where that costs
	// no request. What a Section says of an App, as published last, stays (NEVER-ZERO).
	Mend(ctx context.Context) error

	// Close ends the driver's own goroutines and connections. The proxy runs on.
	Close() error
}
