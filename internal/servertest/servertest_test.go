package servertest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
)

// A port is given to one test at a time, whether or not its server listens: a server may be away for a moment.
func TestFreePortsAreNotGivenTwice(t *testing.T) {
	seen := map[int]bool{}
	for range 10 {
		for _, port := range FreePorts(t, 3) {
			if seen[port] {
				t.Errorf("port %d was given twice", port)
			}
			seen[port] = true
			if ln, err := net.Listen("tcp", fmt.Sprintf("%s:%d", reserved, port)); err == nil {
				_ = ln.Close()
				t.Errorf("another process would get port %d", port)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	addr := Refused(t)
	if conn, err := net.Dial("tcp", addr.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connected to what refuses: %v, %v", conn, err)
	}
	// What a server leaves when it closes, its connections included.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = server.Close(), l.Close()
	was := netip.MustParseAddrPort(l.Addr().String())
	now, kept, err := Refuse(was)
	if err != nil || now != was {
		t.Fatalf("%v, %v; want %v", now, err, was)
	}
	defer kept.Close()
	_ = client.Close()
	if conn, err := net.Dial("tcp", was.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connected to what refuses: %v, %v", conn, err)
	}
}
