package pki_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/cutover/cutover/internal/pki"
)

func issue(t *testing.T, a *pki.Authority, role, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := a.Issue(dir, role, name, net.IPv4(127, 0, 0, 1)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func config(t *testing.T, dir, cluster, peer string) *tls.Config {
	t.Helper()
	c, err := pki.Config(dir, cluster, peer)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOnlyTheRightPeersTalk(t *testing.T) {
	root := t.TempDir()
	a, err := pki.OpenAuthority(root, "c1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := pki.OpenAuthority(root, "c1")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := pki.OpenAuthority(t.TempDir(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	host := issue(t, a, "lbagent", "lb-1")
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello") }))
	srv.TLS = config(t, host, "c1", "orchestrator")
	srv.StartTLS()
	defer srv.Close()

	get := func(cfg *tls.Config) error {
		tr := &http.Transport{TLSClientConfig: cfg}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get(srv.URL)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	good := issue(t, again, "orchestrator", "o-1")
	if err := get(config(t, good, "c1", "lbagent")); err != nil {
		t.Fatalf("the orchestrator is refused: %v", err)
	}
	if err := get(pki.ConfigFor(config(t, good, "c1", "lbagent"), "c1", "lbagent", "lb-1")); err != nil {
		t.Fatalf("the host is refused by its own name: %v", err)
	}
	for name, cfg := range map[string]*tls.Config{
		"a host by another name":              pki.ConfigFor(config(t, good, "c1", "lbagent"), "c1", "lbagent", "lb-2"),
		"a peer of another role":              config(t, issue(t, a, "lbagent", "lb-2"), "c1", "lbagent"),
		"a peer of another authority":         config(t, issue(t, foreign, "orchestrator", "o-1"), "c1", "lbagent"),
		"a client that wants another cluster": config(t, good, "c2", "lbagent"),
		"a client without certificate":        {InsecureSkipVerify: true},
	} {
		if err := get(cfg); err == nil {
			t.Errorf("%s was let in", name)
		}
	}
	for _, f := range []string{filepath.Join(root, "ca-key.pem"), filepath.Join(host, "key.pem")} {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", filepath.Base(f), st.Mode())
		}
	}
}
