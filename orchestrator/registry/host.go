package registry

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
)

// Host is one declared load-balancer Host. Names are unique in the cluster.
type Host struct {
	Name     string
	Group    string
	AgentURL string // of its lbagent: https, or http on a loopback address
	// TLS is the client's configuration for https (mutual TLS: with the orchestrator's certificate); nil means the
	// system's roots and no client certificate.
	TLS *tls.Config
}

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)

func checkName(what, name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%s name %q: use 1 to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends", what, name)
	}
	return nil
}

// CheckHost says what is wrong with a declaration.
func CheckHost(h Host) error {
	if err := checkName("host", h.Name); err != nil {
		return err
	}
	if err := checkName("group", h.Group); err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	if err := checkURL(h.AgentURL); err != nil {
		return fmt.Errorf("host %s: agent URL %q: %w", h.Name, h.AgentURL, err)
	}
	return nil
}

// checkURL refuses what would carry decisions in the clear over a network.
func checkURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("want http://ADDRESS:PORT or https://ADDRESS:PORT: %w", err)
	}
	if u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return errors.New("want http://ADDRESS:PORT or https://ADDRESS:PORT")
	}
	if u.Scheme == "http" {
		ip := net.ParseIP(u.Hostname())
		if u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return errors.New("http is for loopback addresses only: use https with client certificates")
		}
	}
	return nil
}
