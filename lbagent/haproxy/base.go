package haproxy

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/netip"
	"text/template"
)

//go:embed base.cfg.tmpl
var baseText string

var baseTemplate = template.Must(template.New("base.cfg").Option("missingkey=error").Parse(baseText))

// Base are the values of the example of an owner's configuration.
type Base struct {
	// RuntimeSocket is the worker's stats socket.
	RuntimeSocket string
	// Source is the address that HAProxy connects and probes from; the kernel chooses if it is the zero Addr.
	Source netip.Addr
	// PidFile is written by the master, if given.
	PidFile string
}

// ExampleBase renders an owner's base configuration as Cutover likes it: what `cutover dev` and the tests use, and what
// an owner may start from. It holds nothing of Cutover's: HAProxy gets Dir/current/ from its command line.
//
//	haproxy -W -S MASTER_SOCKET,mode,600 -f BASE -f DIR/current/
func ExampleBase(b Base) ([]byte, error) {
	for _, path := range []string{b.RuntimeSocket, b.PidFile} {
		if path != "" && !plainPath.MatchString(path) {
			return nil, fmt.Errorf("haproxy base configuration: path %q: want letters, digits and /._-", path)
		}
	}
	if b.RuntimeSocket == "" || len(b.RuntimeSocket) > maxSocketPath {
		return nil, fmt.Errorf("haproxy base configuration: runtime socket %q: want a path of at most %d bytes", b.RuntimeSocket, maxSocketPath)
	}
	var out bytes.Buffer
	if err := baseTemplate.Execute(&out, b); err != nil {
		return nil, fmt.Errorf("haproxy base configuration: %w", err)
	}
	return out.Bytes(), nil
}
