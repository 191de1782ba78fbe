package nginx_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// Streams pass as they come: an upgraded connection in both directions, a response that is flushed in pieces, a large
// request without a length.
func TestStreamsPassThrough(t *testing.T) {
	for _, k := range []kind{lua, reload} {
		t.Run(k.name, func(t *testing.T) {
			p := startProxy(t, k)
			more := make(chan struct{})
			mux := http.NewServeMux()
			mux.HandleFunc("/shop/upgrade", func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Upgrade") != "echo" || r.Header.Get("Connection") != "upgrade" {
					http.Error(w, "no upgrade", http.StatusBadRequest)
					return
				}
				conn, rw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					return
				}
				defer conn.Close()
				fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
				line, _ := rw.ReadString('\n')
				fmt.Fprint(conn, line)
			})
			mux.HandleFunc("/shop/pieces", func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintln(w, "one")
				_ = http.NewResponseController(w).Flush()
				<-more
				fmt.Fprintln(w, "two")
			})
			mux.HandleFunc("/shop/count", func(w http.ResponseWriter, r *http.Request) {
				n, _ := io.Copy(io.Discard, r.Body)
				fmt.Fprintln(w, n)
			})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			srv := &http.Server{Handler: mux}
			done := make(chan struct{})
			go func() { defer close(done); srv.Serve(l) }()
			t.Cleanup(func() { srv.Close(); <-done })
			p.serve(t, section("shop", driver.Upstream{
				Name: "s", Address: l.Addr().(*net.TCPAddr).AddrPort(), Weight: 1, Mode: driver.Serving, Health: driver.Health{Kind: driver.HealthTCP},
			}))

			conn, err := net.Dial("tcp", p.options.Listen[0].String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(drivertest.Deadline))
			fmt.Fprint(conn, "GET /shop/upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			br := bufio.NewReader(conn)
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("upgrade: %+v, %v", resp, err)
			}
			fmt.Fprint(conn, "hello\n")
			if line, err := br.ReadString('\n'); err != nil || line != "hello\n" {
				t.Errorf("upgraded connection: %q, %v", line, err)
			}

			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: drivertest.Deadline}
			resp, err = client.Get(p.url + "/shop/pieces")
			if err != nil {
				t.Fatal(err)
			}
			pieces := bufio.NewReader(resp.Body)
			if line, err := pieces.ReadString('\n'); err != nil || line != "one\n" {
				t.Errorf("first piece: %q, %v", line, err)
			}
			close(more)
			if line, err := pieces.ReadString('\n'); err != nil || line != "two\n" {
				t.Errorf("second piece: %q, %v", line, err)
			}
			resp.Body.Close()

			const size = 8 << 20
			resp, err = client.Post(p.url+"/shop/count", "application/octet-stream", io.LimitReader(zeros{}, size))
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(text) != fmt.Sprintln(size) {
				t.Errorf("a large request: the upstream got %q bytes, %v", text, err)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
