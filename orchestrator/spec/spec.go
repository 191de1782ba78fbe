package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Limits of a Spec.
const (
	MaxSource    = 1 << 20   // bytes of input that are parsed at all
	MaxCanonical = 256 << 10 // bytes of the canonical form
	MaxInstances = 1000
	MaxPorts     = 16
)

// The kinds that are built.
const (
	KindService = "service"
	KindWorker  = "worker"
)

// Spec is one immutable revision of an App's description, with every default filled in.
type Spec struct {
	Name        string            `json:"name"`
	Kind        string            `json:"kind"`
	Version     string            `json:"version,omitempty"`
	Instances   int               `json:"instances"`
	Command     string            `json:"command"`
	Artifacts   []Artifact        `json:"artifacts,omitempty"`
	Env         map[string]string `json:"env,omitempty"`
	Resources   Resources         `json:"resources"`
	Constraints []Constraint      `json:"constraints,omitempty"`
	// Health is nil for an App that is healthy as long as it runs.
	Health *Health `json:"health,omitempty"`
	Kill   Kill    `json:"kill"`
	Routes []Route `json:"routes,omitempty"`
	Deploy Deploy  `json:"deploy"`
}

// Artifact is a file that is fetched into the task's sandbox before its command starts.
type Artifact struct {
	URI        string `json:"uri"`
	SHA256     string `json:"sha256,omitempty"` // lower-case hex
	Extract    bool   `json:"extract,omitempty"`
	Executable bool   `json:"executable,omitempty"`
}

// Resources is what one task needs.
type Resources struct {
	CPUs   float64 `json:"cpus"`
	Memory Bytes   `json:"memory"`
	Disk   Bytes   `json:"disk"`
	Ports  int     `json:"ports"`
}

// Constraint says on which agents tasks may run.
type Constraint struct {
	Attribute string `json:"attribute"`
	Operator  string `json:"operator"`
	Value     string `json:"value,omitempty"`
}

// Health is how one task is checked, by the orchestrator's prober and by the proxies alike. Exactly one of HTTP and TCP
// is set.
type Health struct {
	HTTP     *HTTPCheck `json:"http,omitempty"`
	TCP      *TCPCheck  `json:"tcp,omitempty"`
	Interval Duration   `json:"interval"`
	Timeout  Duration   `json:"timeout"`
	Rise     int        `json:"rise"`
	Fall     int        `json:"fall"`
	// Grace is how long a task may take until its first success.
	Grace Duration `json:"grace"`
}

// HTTPCheck is a GET that must answer 2xx or 3xx.
type HTTPCheck struct {
	Path string `json:"path"`
	Port int    `json:"port"` // index into the task's ports
}

// TCPCheck is a connect.
type TCPCheck struct {
	Port int `json:"port"` // index into the task's ports
}

// Port is the index of the port that is checked.
func (h *Health) Port() int {
	if h.HTTP != nil {
		return h.HTTP.Port
	}
	return h.TCP.Port
}

// String names the check for people: "GET /healthz on port 0 every 500ms".
func (h *Health) String() string {
	if h == nil {
		return "stays running"
	}
	what := "connect to"
	if h.HTTP != nil {
		what = "GET " + h.HTTP.Path + " on"
	}
	return fmt.Sprintf("%s port %d every %s", what, h.Port(), time.Duration(h.Interval))
}

// Kill is how a task is ended.
type Kill struct {
	Signal string   `json:"signal"`
	Grace  Duration `json:"grace"`
}

// Route is where an App's traffic enters. Host and Path are normalised, so equal routes are equal values.
type Route struct {
	Group string `json:"group"`
	Host  string `json:"host"`
	Path  string `json:"path"`
	Port  int    `json:"port"` // index into the task's ports
	Strip bool   `json:"strip,omitempty"`
}

// Key is the identity of a route: two Apps may not have the same one. Nested paths are different keys.
func (r Route) Key() string { return r.Group + " " + r.Host + r.Path }

// String is the route as people write it: "public *"/shop.
func (r Route) String() string { return r.Group + ":" + r.Host + r.Path }

// Deploy is how a Spec is rolled out.
type Deploy struct {
	Strategy string   `json:"strategy"`
	Deadline Duration `json:"deadline"` // start to Commit
	Drain    Duration `json:"drain"`    // from Commit
}

// Groups are the names of the Groups that the Spec names, in order, each once.
func (s Spec) Groups() []string {
	var out []string
	for _, r := range s.Routes { // sorted by group
		if len(out) == 0 || out[len(out)-1] != r.Group {
			out = append(out, r.Group)
		}
	}
	return out
}

// RoutePort is the index of the port that a Group's routes lead to. All routes of one Group have the same.
func (s Spec) RoutePort(group string) int {
	for _, r := range s.Routes {
		if r.Group == group {
			return r.Port
		}
	}
	return 0
}

// WithInstances is the Spec scaled to n tasks.
func (s Spec) WithInstances(n int) Spec {
	s.Instances = n
	return s
}

// Canonical is the one JSON form of the Spec.
func (s Spec) Canonical() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		// Unreachable: every field marshals, and Parse let no NaN or infinity in.
		panic("spec: canonical form: " + err.Error())
	}
	return b
}

// Digest identifies the content of the Spec: SHA-256 of the canonical form, in hex.
func (s Spec) Digest() string { return digest(s.Canonical()) }

// TemplateDigest identifies what one task is made from. Tasks whose template is unchanged are kept by a Deploy. The label
// version is part of it, so that a task never runs under a version that it was not started for.
func (s Spec) TemplateDigest() string {
	s.Instances = 0
	s.Deploy = Deploy{}
	ports := map[string]int{}
	for _, r := range s.Routes {
		ports[r.Group] = r.Port
	}
	s.Routes = nil
	b, err := json.Marshal(struct {
		Spec  Spec
		Ports map[string]int // a task's upstream address depends on it
	}{s, ports})
	if err != nil {
		panic("spec: template: " + err.Error())
	}
	return digest(b)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Duration is a time.Duration written as "500ms".
type Duration time.Duration

// MarshalText writes the duration as Go does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Bytes is a size written as "64MiB".
type Bytes int64

var units = []struct {
	suffix string
	size   int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// MiB is the size in mebibytes, as Mesos counts.
func (b Bytes) MiB() float64 { return float64(b) / (1 << 20) }

// MarshalText writes the size in the largest unit that divides it.
func (b Bytes) MarshalText() ([]byte, error) {
	if b == 0 {
		return []byte("0"), nil
	}
	for _, u := range units {
		if int64(b)%u.size == 0 {
			return []byte(strconv.FormatInt(int64(b)/u.size, 10) + u.suffix), nil
		}
	}
	return nil, fmt.Errorf("size %d has no unit", int64(b))
}

// UnmarshalText reads a size with its unit.
func (b *Bytes) UnmarshalText(text []byte) error {
	v, err := parseBytes(string(text))
	*b = Bytes(v)
	return err
}

func parseBytes(s string) (int64, error) {
	if s == "0" {
		return 0, nil
	}
	for _, u := range units {
		num, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
		if err != nil || f < 0 || f*float64(u.size) > 1<<50 || f != f {
			return 0, fmt.Errorf("%q is not a size: write a number and B, KiB, MiB, GiB or TiB", s)
		}
		return int64(f * float64(u.size)), nil
	}
	return 0, fmt.Errorf("%q needs a unit: B, KiB, MiB, GiB or TiB", s)
}
