package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ErrMissed says that the kernel had more to tell than there was room for.
var ErrMissed = errors.New("sockdiag: connections have ended that were not told of")

// Endings is a subscription to the ends of TCP connections. It is for one goroutine at a time.
type Endings struct {
	fd     int
	buffer []byte
}

const (
	// The bits of the multicast groups SKNLGRP_INET_TCP_DESTROY, which is the first, and SKNLGRP_INET6_TCP_DESTROY, the third.
	groups = 1<<0 | 1<<2
	// room is for what ends between two calls of Read, in bytes.
	room = 8 << 20
)

// Subscribe begins to listen. It needs CAP_NET_ADMIN and Linux 4.2.
func Subscribe() (*Endings, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sockdiag: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("sockdiag: hearing of connections that end needs the capability CAP_NET_ADMIN: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("sockdiag: room for %d bytes: %w", room, err)
	}
	return &Endings{fd: fd, buffer: make([]byte, 64<<10)}, nil
}

// Close ends the subscription.
func (e *Endings) Close() error { return unix.Close(e.fd) }

// Read counts the connections that have ended since the last call (since Subscribe, at the first) and whose local address
// matches. It does not wait. ErrMissed: there may have been more.
func (e *Endings) Read(match func(local netip.AddrPort) bool) (int, error) {
	count, missed := 0, false
	for {
		n, from, err := unix.Recvfrom(e.fd, e.buffer, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if missed {
				return count, ErrMissed
			}
			return count, nil
		case errors.Is(err, unix.ENOBUFS):
			missed = true
			continue
		case err != nil:
			return count, fmt.Errorf("sockdiag: %w", err)
		}
		if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 {
			continue // another process may send to us too
		}
		if n > len(e.buffer) {
			missed = true
			continue
		}
		ends, whole := parse(e.buffer[:n])
		missed = missed || !whole
		for _, c := range ends {
			if c.remote.Port() != 0 && match(c.local) { // 0: what ended is a listener
				count++
			}
		}
	}
}

type ended struct{ local, remote netip.AddrPort }

// The layout of struct nlmsghdr and of struct inet_diag_msg behind it (linux/netlink.h, linux/inet_diag.h).
const (
	headerSize  = 16
	sourcePort  = 4
	targetPort  = 6
	source      = 8
	target      = 24
	messageSize = 72
	byFamily    = 20 // SOCK_DIAG_BY_FAMILY
)

// parse takes a datagram apart. whole: nothing of it was left out for being cut off or unknown.
func parse(data []byte) (out []ended, whole bool) {
	for len(data) >= headerSize {
		size := int(binary.NativeEndian.Uint32(data))
		if size < headerSize || size > len(data) {
			return out, false
		}
		body := data[headerSize:size]
		if kind := binary.NativeEndian.Uint16(data[4:]); kind == byFamily {
			if len(body) < messageSize {
				return out, false
			}
			address := func(at int) netip.Addr {
				if body[0] == unix.AF_INET {
					return netip.AddrFrom4([4]byte(body[at : at+4]))
				}
				return netip.AddrFrom16([16]byte(body[at : at+16])).Unmap()
			}
			out = append(out, ended{
				local:  netip.AddrPortFrom(address(source), binary.BigEndian.Uint16(body[sourcePort:])),
				remote: netip.AddrPortFrom(address(target), binary.BigEndian.Uint16(body[targetPort:])),
			})
		}
		data = data[min((size+3)&^3, len(data)):]
	}
	return out, len(data) == 0
}
