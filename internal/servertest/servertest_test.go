package servertest

import (
	"fmt"
	"net"
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
