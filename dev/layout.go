package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cutover/cutover/internal/atomicfile"
)

// frontendPort is where the proxies of a dev cluster listen, each on its own address.
const frontendPort = 8080

// agentPort is where the lbagents listen, each on its Host's address; readyPort where they answer an upstream balancer.
const (
	agentPort = 8600
	readyPort = 8601
)

// firstHost is the last byte of the first Host's address.
const firstHost = 101

// Kinds of Hosts that --lb names.
const (
	KindHAProxy     = "haproxy"
	KindNginx       = "nginx"        // with Lua
	KindNginxReload = "nginx-reload" // without Lua: every change reloads
)

// hostSpec is one Host of the cluster.
type hostSpec struct {
	Name    string     `json:"name"`
	Kind    string     `json:"kind"`
	Address netip.Addr `json:"address"`
}

func (h hostSpec) frontend() netip.AddrPort { return netip.AddrPortFrom(h.Address, frontendPort) }
func (h hostSpec) ready() netip.AddrPort    { return netip.AddrPortFrom(h.Address, readyPort) }
func (h hostSpec) agent() netip.AddrPort    { return netip.AddrPortFrom(h.Address, agentPort) }

// layout is what a data directory remembers between starts (DIR/layout.json).
type layout struct {
	// Net is the cluster's own /24 of the loopback network: Mesos agents from .1, Hosts from firstHost. Two clusters on one
	// machine never share an address, so neither can meet the other's tasks or proxies.
	Net   netip.Addr `json:"net"`
	API   string     `json:"api"`
	Mesos string     `json:"mesos"`
	// Shared: the state is in Consul and Redis, since there are several orchestrators.
	Shared bool       `json:"shared,omitempty"`
	Hosts  []hostSpec `json:"hosts"`
	// Leaving are no longer asked for; they are remembered until they have been stopped, so that a kill -9 leaves none behind.
	Leaving []hostSpec `json:"leaving,omitempty"`
}

// noHosts is the --lb of a cluster without a Host: nothing that has a route can be deployed there.
const noHosts = "none"

// maxOfKind is how many Hosts of one kind there may be: all of three kinds have room from .101 to .254.
const maxOfKind = 50

// ParseLB reads "haproxy=2,nginx=2" into the kinds of the Hosts, in order. No Host at all has to be said: "none".
func ParseLB(s string) ([]string, error) {
	if s == noHosts {
		return nil, nil
	}
	var kinds []string
	seen := map[string]bool{}
	for part := range strings.SplitSeq(s, ",") {
		kind, count, ok := strings.Cut(strings.TrimSpace(part), "=")
		n, err := strconv.Atoi(count)
		if !ok || err != nil || n < 0 || n > maxOfKind {
			return nil, fmt.Errorf("--lb %q: %q is not KIND=COUNT with a count of 0 to %d, as haproxy=2,nginx=2", s, part, maxOfKind)
		}
		switch kind {
		case KindHAProxy, KindNginx, KindNginxReload:
		default:
			return nil, fmt.Errorf("--lb %q: unknown kind %q (one of %s, %s, %s)", s, kind, KindHAProxy, KindNginx, KindNginxReload)
		}
		if seen[kind] {
			return nil, fmt.Errorf("--lb %q: %s is named twice", s, kind)
		}
		seen[kind] = true
		for range n {
			kinds = append(kinds, kind)
		}
	}
	if len(kinds) == 0 {
		return nil, fmt.Errorf("--lb %q: no host is left, and nothing with a route can be deployed on none; want a count of 1 or more, or --lb %s if that is meant", s, noHosts)
	}
	return kinds, nil
}

// openLayout reads what dir remembers, or decides it for the given kinds. Existing Hosts keep their names and addresses;
// kinds that are no longer asked for are leaving.
func openLayout(dir string, kinds []string) (l layout, err error) {
	file := filepath.Join(dir, "layout.json")
	data, err := os.ReadFile(file)
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &l); err != nil {
			return l, fmt.Errorf("read %s: %w", file, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		l.Net = clusterNet(dir)
	default:
		return l, err
	}
	wanted := map[string]int{}
	for _, k := range kinds {
		wanted[k]++
	}
	have := map[string]int{}
	used := map[netip.Addr]bool{} // of those that leave too: they still listen there
	leaving := map[string]hostSpec{}
	for _, h := range l.Leaving {
		leaving[h.Name], used[h.Address] = h, true
	}
	var kept []hostSpec
	for _, h := range l.Hosts {
		used[h.Address] = true
		if have[h.Kind] >= wanted[h.Kind] {
			leaving[h.Name] = h
			continue
		}
		have[h.Kind]++
		kept = append(kept, h)
	}
	next := addressFrom(l.Net, firstHost)
	for _, k := range []string{KindHAProxy, KindNginx, KindNginxReload} {
		for have[k] < wanted[k] {
			have[k]++
			name := fmt.Sprintf("lb-%s-%d", k, have[k])
			if h, ok := leaving[name]; ok { // it stays after all
				delete(leaving, name)
				kept = append(kept, h)
				continue
			}
			for used[next] {
				next = next.Next()
			}
			used[next] = true
			kept = append(kept, hostSpec{Name: name, Kind: k, Address: next})
		}
	}
	l.Hosts, l.Leaving = kept, slices.SortedFunc(maps.Values(leaving), func(a, b hostSpec) int { return strings.Compare(a.Name, b.Name) })
	return l, l.save(dir)
}

func (l layout) save(dir string) error {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, "layout.json"), data)
}

// clusterNet picks a /24 of 127.64.0.0/10 by the directory's path, and the next one if that is another cluster's: there are
// many directories, and few networks.
func clusterNet(dir string) netip.Addr {
	h := fnv.New32a()
	_, _ = h.Write([]byte(dir))
	var first netip.Addr
	for n := range 64 {
		sum := h.Sum32()
		own := netip.AddrFrom4([4]byte{127, 64 + byte(sum>>8)%64, byte(sum), 0})
		if unused(own) {
			return own
		}
		if n == 0 {
			first = own
		}
		_, _ = h.Write([]byte{0})
	}
	return first // whoever cannot listen there says why
}

// unused reports that nobody listens where the first Host of a cluster does.
func unused(own netip.Addr) bool {
	h := hostSpec{Address: addressFrom(own, firstHost)}
	for _, at := range []netip.AddrPort{h.frontend(), h.agent(), h.ready()} {
		ln, err := net.Listen("tcp", at.String())
		if err != nil {
			return false
		}
		_ = ln.Close()
	}
	return true
}

func addressFrom(base netip.Addr, last byte) netip.Addr {
	a := base.As4()
	a[3] = last
	return netip.AddrFrom4(a)
}

// listenRemembered listens on addr; a port 0 means the remembered address if it is still free, else a new one.
func listenRemembered(addr, remembered string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", addr, err)
	}
	if port == "0" && remembered != "" {
		if rh, _, err := net.SplitHostPort(remembered); err == nil && rh == host {
			if ln, err := net.Listen("tcp", remembered); err == nil {
				return ln, nil
			}
		}
	}
	return net.Listen("tcp", addr)
}
