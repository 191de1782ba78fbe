package haproxy

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// listener is a socket in the kernel's table of those that listen.
type listener struct {
	address netip.AddrPort
	inode   string
}

// ownsListeners verifies that everything that listens where our frontends listen is this HAProxy: haproxy binds with
// SO_REUSEPORT, so a foreign process can share a port and take half of the connections, and a worker whose bind was
// stolen serves nothing while every exit code says that all is well. The kernel's table is asked; where we may not see
// into HAProxy's process (another user), the frontends are asked for the mark that only our Frame knows.
func (d *Driver) ownsListeners(ctx context.Context, p processes) error {
	var table []listener
	files := []string{"tcp"}
	if slices.ContainsFunc(d.o.Frontends, bindsIPv6) {
		files = append(files, "tcp6")
	}
	for _, file := range files {
		rows, err := readListeners(fmt.Sprintf("/proc/%d/net/%s", p.current[0], file))
		if err != nil {
			return fmt.Errorf("%w: listeners of worker %d: %w", driver.ErrProxyDown, p.current[0], err)
		}
		table = append(table, rows...)
	}
	ours := map[string]bool{}
	for _, pid := range slices.Concat([]int{p.master}, p.current, p.leaving) {
		inodes, err := socketInodes(pid)
		switch {
		case errors.Is(err, fs.ErrPermission):
			return d.asksFrontends(ctx, p)
		case errors.Is(err, fs.ErrNotExist) && pid != p.current[0]:
			continue // it has left
		case err != nil:
			return fmt.Errorf("%w: sockets of process %d: %w", driver.ErrProxyDown, pid, err)
		}
		for _, inode := range inodes {
			ours[inode] = true
		}
	}
	for _, f := range d.o.Frontends {
		for _, bind := range f.Binds {
			if err := owned(bind, table, ours); err != nil {
				return fmt.Errorf("frontend %s: %w", f.Name, err)
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

// owned says whether all that listens on the bind address is ours, and something is.
func owned(bind netip.AddrPort, table []listener, ours map[string]bool) error {
	mine := false
	for _, l := range table {
		if !clashes(bind, l.address) {
			continue
		}
		if !ours[l.inode] {
			return fmt.Errorf("%w: a foreign process listens on %s (socket inode %s): find it with `ss -ltnp` and stop it",
				driver.ErrProxyMismatch, l.address, l.inode)
		}
		mine = true
	}
	if !mine {
		return fmt.Errorf("%w: haproxy does not listen on %s: look into its log and restart it", driver.ErrProxyMismatch, bind)
	}
	return nil
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

// socketInodes lists the sockets that the process has open.
func socketInodes(pid int) ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		name, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // closed meanwhile
			}
			return nil, err
		}
		if rest, ok := strings.CutPrefix(name, "socket:["); ok {
			out = append(out, strings.TrimSuffix(rest, "]"))
		}
	}
	return out, nil
}

// readListeners reads the listening sockets of /proc/PID/net/tcp or tcp6.
func readListeners(path string) ([]listener, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseListeners(f)
}

// parseListeners reads as far as the last listening socket. The kernel lists those first, and what follows them can be
// a hundred thousand connections.
func parseListeners(r io.Reader) ([]listener, error) {
	const listen = "0A"
	var out []listener
	lines := bufio.NewScanner(r)
	for first := true; lines.Scan(); first = false {
		if first {
			continue // the header
		}
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			return nil, fmt.Errorf("a line of %d fields: %.200q", len(fields), lines.Text())
		}
		if fields[3] != listen {
			break
		}
		addr, err := parseKernelAddress(fields[1])
		if err != nil {
			return nil, err
		}
		out = append(out, listener{address: addr, inode: fields[9]})
	}
	return out, lines.Err()
}

// parseKernelAddress reads "0100007F:1F90": the address in 32-bit words of the machine's order (little endian on all
// that Debian's haproxy runs on), the port in hexadecimal.
func parseKernelAddress(text string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	number, perr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || perr != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("address %.60q", text)
	}
	for word := 0; word < len(raw); word += 4 {
		slices.Reverse(raw[word : word+4])
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr, uint16(number)), nil
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
