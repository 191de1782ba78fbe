package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/driver"
)

// ownsListeners verifies that everything that listens where our frontends listen is this HAProxy: haproxy binds with
// SO_REUSEPORT, so a foreign process can share a port and take half of the connections, and a worker whose bind was
// stolen serves nothing while every exit code says that all is well. The kernel's table is asked; where we may not see
// into HAProxy's process (another user), the frontends are asked for the mark that only our Frame knows.
func (d *Driver) ownsListeners(ctx context.Context, p processes) error {
	of, err := d.ports.get(ctx, p, func(ctx context.Context, p processes) (processes, error) { return p, d.lookAtListeners(ctx, p) })
	if len(of.current) > 0 && (of.master != p.master || of.current[0] != p.current[0]) {
		return d.lookAtListeners(ctx, p) // somebody else asked, about other processes
	}
	return err
}

// listensFor is how long readings rely on the last look at the listeners: the kernel walks all connections for it.
const listensFor = time.Second

// stillListens is ownsListeners for readings, which come often.
func (d *Driver) stillListens(ctx context.Context, p processes) error {
	seen := d.listened.Load()
	if seen != nil && time.Since(seen.at) < listensFor && seen.master == p.master && seen.worker == p.current[0] {
		return nil
	}
	began := time.Now()
	if err := d.ownsListeners(ctx, p); err != nil {
		return err
	}
	d.listened.Store(&listened{at: began, master: p.master, worker: p.current[0]})
	return nil
}

// listened is a look at the listeners that found all of them.
type listened struct {
	at             time.Time
	master, worker int
}

func (d *Driver) lookAtListeners(ctx context.Context, p processes) error {
	families := []procfs.Family{procfs.IPv4}
	if slices.ContainsFunc(d.o.Frontends, bindsIPv6) {
		families = append(families, procfs.IPv6)
	}
	table, err := procfs.Listeners(p.current[0], families...)
	if err != nil {
		return fmt.Errorf("%w: listeners of worker %d: %w", driver.ErrProxyDown, p.current[0], err)
	}
	foreign := map[uint64]bool{}
	for _, l := range table {
		foreign[l.Inode] = slices.ContainsFunc(d.o.Frontends, func(f Frontend) bool {
			return slices.ContainsFunc(f.Binds, func(b netip.AddrPort) bool { return clashes(b, l.Local) })
		})
	}
	maps.DeleteFunc(foreign, func(_ uint64, clashes bool) bool { return !clashes })
	for _, pid := range slices.Concat(p.current, []int{p.master}, p.leaving) {
		left, err := procfs.Without(pid, foreign)
		switch {
		case errors.Is(err, fs.ErrPermission):
			return d.asksFrontends(ctx, p)
		case errors.Is(err, fs.ErrNotExist) && pid != p.current[0]:
			continue // it has left
		case err != nil:
			return fmt.Errorf("%w: sockets of process %d: %w", driver.ErrProxyDown, pid, err)
		}
		foreign = left
	}
	for _, f := range d.o.Frontends {
		for _, bind := range f.Binds {
			mine, err := owned(bind, table, foreign)
			if err != nil {
				return fmt.Errorf("frontend %s: %w", f.Name, err)
			}
			if !mine {
				return &driver.NotListeningError{Text: fmt.Sprintf("haproxy does not listen on %s: if somebody has disabled its frontend, "+
					"`enable frontend %s` on its socket takes that back; else look into its log, and restart it", bind, f.inHAProxy())}
			}
		}
	}
	return nil
}

// bindsIPv6 says whether sockets of IPv6 matter to the frontend. Where they do not, their table is not read: the kernel
// walks all connections to say that there is none.
func bindsIPv6(f Frontend) bool {
	return slices.ContainsFunc(f.Binds, func(b netip.AddrPort) bool { return b.Addr().Is6() })
}

// owned says whether something of ours listens on the bind address. It is an error if something else does.
func owned(bind netip.AddrPort, table []procfs.Conn, foreign map[uint64]bool) (mine bool, _ error) {
	for _, l := range table {
		if !clashes(bind, l.Local) {
			continue
		}
		if foreign[l.Inode] {
			return false, fmt.Errorf("%w: a foreign process listens on %s (socket inode %d): find it with `ss -ltnp` and stop it",
				driver.ErrProxyMismatch, l.Local, l.Inode)
		}
		mine = true
	}
	return mine, nil
}

// clashes says whether a socket that listens on l takes connections that are meant for bind. One on the unspecified
// address does not take those of a specific one; the other way round it does.
func clashes(bind, l netip.AddrPort) bool {
	if bind.Port() != l.Port() {
		return false
	}
	a, b := bind.Addr().Unmap(), l.Addr().Unmap()
	return a == b || bind.Addr().IsUnspecified() && a.Is4() == b.Is4()
}

// asksFrontends asks each frontend for the mark of our Frame and the worker's pid.
func (d *Driver) asksFrontends(ctx context.Context, p processes) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, Proxy: nil}
	defer transport.CloseIdleConnections()
	for _, f := range d.o.Frontends {
		for _, bind := range f.Binds {
			to := bind
			if bind.Addr().IsUnspecified() {
				to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), bind.Port())
				if bind.Addr().Is6() {
					to = netip.AddrPortFrom(netip.IPv6Loopback(), bind.Port())
				}
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+"/.well-known/cutover-frame", nil)
			if err != nil {
				return err
			}
			req.Header.Set("X-Cutover-Frame", d.tree.mark)
			resp, err := transport.RoundTrip(req)
			if err != nil {
				return fmt.Errorf("%w: frontend %s on %s: %w", driver.ErrProxyMismatch, f.Name, to, err)
			}
			text, err := io.ReadAll(io.LimitReader(resp.Body, 200))
			_ = resp.Body.Close()
			if want := fmt.Sprintf("%d %s", p.current[0], d.tree.mark); err != nil || strings.TrimSpace(string(text)) != want {
				return fmt.Errorf("%w: frontend %s: what answers on %s is not worker %d with our Frame: find it with `ss -ltnp`",
					driver.ErrProxyMismatch, f.Name, to, p.current[0])
			}
		}
	}
	return nil
}

// agentTransport opens connections to HAProxy's listener for the agent.
func (d *Driver) agentTransport() *http.Transport {
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			dialer := net.Dialer{Timeout: 5 * time.Second}
			return dialer.DialContext(ctx, "unix", d.o.agentSocket())
		},
	}
}
