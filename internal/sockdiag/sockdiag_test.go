package sockdiag

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// Connections that nobody could have seen in a look at a table are counted all the same.
func TestShortConnectionsAreHeardOf(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		e, err := Subscribe()
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		server := netip.MustParseAddrPort(l.Addr().String())
		const connections = 50
		for range connections {
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Close(), client.Close()
		}
		_ = l.Close() // a listener that ends is none of them
		heard := 0
		for deadline := time.Now().Add(20 * time.Second); heard < connections; {
			n, err := e.Read(func(local netip.AddrPort) bool { return local == server })
			if err != nil {
				t.Fatal(err)
			}
			heard += n
			if time.Now().After(deadline) {
				t.Fatalf("%s: heard of %d of %d", address, heard, connections)
			}
		}
		if n, err := e.Read(func(local netip.AddrPort) bool { return local == server }); n != 0 || err != nil || heard != connections {
			t.Errorf("%s: heard of %d, and %d more, %v", address, heard, n, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, headerSize+messageSize))
	f.Fuzz(func(_ *testing.T, data []byte) { parse(data) })
}
