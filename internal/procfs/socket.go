package procfs

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Conn is one row of /proc/net/tcp or tcp6.
type Conn struct {
	Local, Remote netip.AddrPort
	Listening     bool
	Inode         uint64
}

const (
	stateListen   = "0A"
	stateTimeWait = "06"
)

// ParseTCP reads the text of /proc/net/tcp or tcp6 and keeps the rows that keep says. Rows that it does not understand
// are an error: a row that is skipped could be the one that matters. Rows in TIME_WAIT belong to no process and are left
// out before anything else is read of them: a busy proxy has tens of thousands.
func ParseTCP(text string, keep func(Conn) bool) ([]Conn, error) {
	var out []Conn
	first := true
	for line := range strings.Lines(text) {
		if first { // the heading
			first = false
			continue
		}
		c, ok, err := parseTCPRow(line)
		if err != nil {
			return nil, err
		}
		if ok && keep(c) {
			out = append(out, c)
		}
	}
	return out, nil
}

// parseTCPRow reads one row: sl local remote st tx:rx tr:when retrnsmt uid timeout inode ... It says false for TIME_WAIT.
func parseTCPRow(line string) (c Conn, ok bool, err error) {
	var f [10]string
	rest := line
	for i := range f {
		rest = strings.TrimLeft(rest, " ")
		end := strings.IndexAny(rest, " \n")
		if end <= 0 {
			return c, false, fmt.Errorf("socket table: row %.80q has %d fields", line, i)
		}
		f[i], rest = rest[:end], rest[end:]
		if i == 3 && f[3] == stateTimeWait {
			return c, false, nil
		}
	}
	if c.Local, err = parseHexAddr(f[1]); err != nil {
		return c, false, err
	}
	if c.Remote, err = parseHexAddr(f[2]); err != nil {
		return c, false, err
	}
	if c.Inode, err = strconv.ParseUint(f[9], 10, 64); err != nil {
		return c, false, fmt.Errorf("socket table: inode: %w", err)
	}
	c.Listening = f[3] == stateListen
	return c, true, nil
}

// parseHexAddr reads "0100007F:1F90": the address as 32-bit words in the byte order of the machine, the port as a number.
func parseHexAddr(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if !ok || err != nil || (len(raw) != 4 && len(raw) != 16) {
		return netip.AddrPort{}, fmt.Errorf("socket table: address %.60q", s)
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("socket table: port %.60q", s)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(p)), nil
}

// TCP lists the TCP sockets of the network namespace of this process that keep says. families are those to look at, both if
// none is named: the kernel walks all connections for each.
func TCP(keep func(Conn) bool, families ...Family) ([]Conn, error) {
	if len(families) == 0 {
		families = []Family{IPv4, IPv6}
	}
	var out []Conn
	for _, f := range families {
		name := "/proc/net/" + string(f)
		text, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		rows, err := ParseTCP(string(text), keep)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, rows...)
	}
	return out, nil
}

// Family is a family of TCP addresses, by the name of its table.
type Family string

// The families. Where one cannot matter its table is better left alone: the kernel walks all connections of it.
const (
	IPv4 Family = "tcp"
	IPv6 Family = "tcp6"
)

// Listeners lists the listening sockets in the network namespace of a process. The kernel writes listening sockets before
// all others, so the tens of thousands of connections of a busy proxy are not read.
func Listeners(pid int, families ...Family) ([]Conn, error) {
	var out []Conn
	for _, f := range families {
		rows, err := readListeners(path(pid, "net", string(f)))
		if err != nil {
			return nil, err
		}
		out = append(out, rows...)
	}
	return out, nil
}

// Receives says whether a listening socket gets connections to addr: bound to it, or to its wildcard.
func (c Conn) Receives(addr netip.AddrPort) bool {
	return c.Listening && c.Local.Port() == addr.Port() && (c.Local.Addr() == addr.Addr().Unmap() || c.Local.Addr().IsUnspecified())
}

func readListeners(name string) ([]Conn, error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) && strings.HasSuffix(name, "6") {
		return nil, nil // a kernel without IPv6
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out, err := ParseListeners(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}

// ParseListeners reads the text of /proc/net/tcp or tcp6 as far as the last listening socket.
func ParseListeners(r io.Reader) ([]Conn, error) {
	var out []Conn
	lines := bufio.NewScanner(r)
	lines.Scan() // the heading
	for lines.Scan() {
		c, ok, err := parseTCPRow(lines.Text() + "\n")
		if err != nil {
			return nil, err
		}
		if !ok || !c.Listening {
			break
		}
		out = append(out, c)
	}
	return out, lines.Err()
}

// ParseUnixListeners reads the text of /proc/net/unix: path -> inodes of the sockets that listen there.
func ParseUnixListeners(text string) map[string][]uint64 {
	const flagAcceptCon = 0x10000
	out := make(map[string][]uint64)
	for line := range strings.Lines(text) {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 64)
		if err != nil || flags&flagAcceptCon == 0 {
			continue
		}
		inode, err := strconv.ParseUint(f[6], 10, 64)
		if err != nil {
			continue
		}
		name := strings.Join(f[7:], " ")
		out[name] = append(out[name], inode)
	}
	return out
}

// UnixListeners returns the inodes of the unix sockets that listen under a path. A path that was unlinked and bound
// again has more than one.
func UnixListeners(path string) ([]uint64, error) {
	text, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	return ParseUnixListeners(string(text))[path], nil
}

// Sockets lists the sockets that a process has open: inode -> descriptor. The kernel shows them to root and to the process's
// own user with at least its capabilities; to others it is an error, and never an empty list.
func Sockets(pid int) (map[uint64]int, error) {
	out := make(map[uint64]int)
	err := sockets(pid, func(inode uint64, fd int) bool {
		out[inode] = fd
		return true
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Without returns those of the given sockets that the process does not have open. It stops looking when there is none left:
// what a server listens on has low numbers, and the connections of its clients, of which there may be very many, have the
// higher ones. It fails as Sockets does.
func Without(pid int, inodes map[uint64]bool) (map[uint64]bool, error) {
	left := maps.Clone(inodes)
	if len(left) == 0 {
		return left, nil
	}
	err := sockets(pid, func(inode uint64, _ int) bool {
		delete(left, inode)
		return len(left) > 0
	})
	return left, err
}

// sockets tells each socket that the process has open, in order of the descriptors, as long as more are wanted.
func sockets(pid int, more func(inode uint64, fd int) bool) error {
	const atOnce = 64
	dir, err := os.Open(path(pid, "fd"))
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(atOnce)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			target, err := os.Readlink(path(pid, "fd", name))
			if errors.Is(err, fs.ErrPermission) {
				return fmt.Errorf("%w (run as the user of process %d, with the capabilities that it has)", err, pid)
			}
			if err != nil {
				continue // closed meanwhile
			}
			text, ok := strings.CutPrefix(target, "socket:[")
			if !ok {
				continue
			}
			inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
			if err != nil {
				continue
			}
			if fd, err := strconv.Atoi(name); err == nil && !more(inode, fd) {
				return nil
			}
		}
	}
}

// Holders lists the processes that have the socket open. It looks at every process, so it is for error messages and
// for start-up only.
func Holders(inode uint64) ([]int, error) {
	all, err := Processes()
	if err != nil {
		return nil, err
	}
	var out []int
	for _, pid := range all {
		if sockets, err := Sockets(pid); err == nil {
			if _, ok := sockets[inode]; ok {
				out = append(out, pid)
			}
		}
	}
	return out, nil
}

// ShutdownConns shuts down, from outside, the TCP connections that a process has to remote, and returns how many. The
// process sees the end of the connection as if the peer had closed it. It duplicates the descriptor (pidfd_getfd, Linux
// 5.6), which needs the right to trace the process: root, CAP_SYS_PTRACE, or the same user as the
// process where kernel.yama.ptrace_scope is 0 or absent.
func ShutdownConns(pid int, remote netip.AddrPort) (int, error) {
	sockets, err := Sockets(pid)
	if err != nil {
		return 0, err
	}
	rows, err := TCP(func(c Conn) bool { return !c.Listening && c.Remote == remote })
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	n := 0
	for _, row := range rows {
		fd, ok := sockets[row.Inode]
		if !ok {
			continue
		}
		delete(sockets, row.Inode) // the kernel may list a connection twice while others come and go
		dup, err := unix.PidfdGetfd(pidfd, fd, 0)
		if errors.Is(err, unix.EBADF) {
			continue // closed meanwhile
		}
		if err != nil {
			return n, fmt.Errorf("descriptor %d of process %d: %w (closing its sessions needs CAP_SYS_PTRACE, or its own user and kernel.yama.ptrace_scope = 0)", fd, pid, err)
		}
		// The number may belong to another connection by now: compare the peer of what we really hold.
		if peerIs(dup, remote) {
			if err := unix.Shutdown(dup, unix.SHUT_RDWR); err == nil {
				n++
			}
		}
		_ = unix.Close(dup)
	}
	return n, nil
}

func peerIs(fd int, want netip.AddrPort) bool {
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return false
	}
	switch a := peer.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)) == want
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)) == want
	default:
		return false
	}
}
