package nginx_test

import (
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/cutover/cutover/lbagent/driver"
)

// add writes directives into the http{} of the owner's base configuration, before our include.
func (p *proxy) add(t testing.TB, directives string) {
	t.Helper()
	text, err := os.ReadFile(p.options.BaseConfig)
	if err != nil {
		t.Fatal(err)
	}
	with := strings.Replace(string(text), "include cutover/*.conf;", directives+"\ninclude cutover/*.conf;", 1)
	if with == string(text) {
		t.Fatal("the base has no include of ours")
	}
	if err := os.WriteFile(p.options.BaseConfig, []byte(with), 0o600); err != nil {
		t.Fatal(err)
	}
}

// An owner's error pages in http{} are for the owner's servers. In ours they would route a request that failed once more: sent
// twice, and with Lua counted as one that never ends, so that nothing would ever be drained.
func TestOwnersErrorPagesDoNotRouteTwice(t *testing.T) {
	for _, k := range []kind{lua, reload} {
		t.Run(k.name, func(t *testing.T) {
			p := newProxy(t, k)
			p.add(t, "proxy_intercept_errors on; error_page 404 500 502 503 504 /50x.html;")
			p.Start(t)
			if _, err := p.driver.Check(within(t)); err != nil {
				t.Fatal(err)
			}
			// An upstream that takes a request and drops the connection: nginx makes a 502 of its own.
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			requests := make(chan string, 64)
			go func() {
				defer close(requests)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					b := make([]byte, 4096)
					n, _ := c.Read(b)
					if n > 0 {
						line, _, _ := strings.Cut(string(b[:n]), "\r\n")
						requests <- line
					}
					c.Close()
				}
			}()
			bad := driver.Upstream{Name: "bad-1", Address: l.Addr().(*net.TCPAddr).AddrPort(), Weight: 100, Mode: driver.Serving}
			p.serve(t, section("bad", bad))
			resp, err := http.Post(p.url+"/bad", "text/plain", strings.NewReader("order"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			l.Close()
			var got []string
			for line := range requests {
				if strings.Contains(line, "/bad") { // the others are checks
					got = append(got, line)
				}
			}
			if len(got) != 1 || resp.StatusCode != http.StatusBadGateway {
				t.Errorf("status %d; the upstream got %q, want one request", resp.StatusCode, got)
			}
			if n := p.row(t, "bad", "bad-1").Sessions; n != 0 {
				t.Errorf("%d sessions after the only request has ended", n)
			}
		})
	}
}
