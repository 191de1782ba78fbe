package e2e

import (
	"fmt"
	"strings"
	"time"
)

// specFile is the sample App's Spec with what a drill changes.
type specFile struct {
	Name      string
	Version   string
	Instances int
	Flags     string // of the sample
	Command   string // instead of the sample
	Path      string
	Deadline  time.Duration
	Drain     time.Duration
	Grace     time.Duration
	Interval  time.Duration
	Rise      int
}

// shop is the sample App at a version. It drains for much longer than the slow requests of the loads take, also on a busy machine:
// none of them is cut, and whoever has no more of them has drained at once.
func shop(version string, flags ...string) specFile {
	return specFile{Name: "shop", Version: version, Instances: 4, Flags: strings.Join(flags, " "), Path: "/shop", Deadline: 60 * time.Second,
		Drain: 10 * time.Second, Grace: 20 * time.Second, Interval: 200 * time.Millisecond, Rise: 1}
}

func (s specFile) yaml() string {
	command := s.Command
	if command == "" {
		command = fmt.Sprintf("exec %s --addr $HOST:$PORT0 --version %s %s", sampleBin, s.Version, s.Flags)
	}
	return fmt.Sprintf(`name: %s
kind: service
version: %q
instances: %d
command: %q
resources: {cpus: 0.1, memory: 32MiB, ports: 1}
health: {http: {path: /healthz, port: 0}, interval: %s, timeout: 1s, rise: %d, fall: 2, grace: %s}
kill: {signal: TERM, grace: 10s}
routes: [{group: public, host: "*", path: %s, port: 0}]
deploy: {strategy: blue-green, deadline: %s, drain: %s}
`, s.Name, s.Version, s.Instances, command, s.Interval, s.Rise, s.Grace, s.Path, s.Deadline, s.Drain)
}
