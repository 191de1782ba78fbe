package daemon

import (
	"os/exec"
	"path/filepath"
)

// systemDirs are where distributions put the programs of daemons. They are not on the PATH of Debian's ordinary users, who
// may run a proxy all the same (`cutover dev`).
var systemDirs = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// ProxyBinary is the program of a kind of proxy: the one on PATH, else the one of the system. Without either it is the bare
// name, so that whoever runs it says that it is missing.
func ProxyBinary(kind string) string {
	return findBinary(program(kind), systemDirs)
}

func findBinary(name string, dirs []string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range dirs {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return name
}

func program(kind string) string {
	if kind == HAProxy {
		return "haproxy"
	}
	return "nginx"
}

// binary is the program that the configuration names, or the one that is found.
func (p Proxy) binary() string {
	if p.Binary != "" {
		return p.Binary
	}
	return ProxyBinary(p.Kind)
}
