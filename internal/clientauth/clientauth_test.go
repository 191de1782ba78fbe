package clientauth_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cutover/cutover/internal/clientauth"
	"github.com/cutover/cutover/internal/pki"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestSecret(t *testing.T) {
	if got, err := clientauth.Secret(write(t, "token", " s3cret\n")); err != nil || got != "s3cret" {
		t.Errorf("%q, %v", got, err)
	}
	for name, file := range map[string]string{
		"absent": filepath.Join(t.TempDir(), "none"), "empty": write(t, "empty", " \n"), "large": write(t, "large", strings.Repeat("s3cret", 1000)),
	} {
		got, err := clientauth.Secret(file)
		if err == nil || got != "" || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestTLS(t *testing.T) {
	if conf, err := clientauth.TLS("", "", ""); conf != nil || err != nil {
		t.Errorf("nothing named: %v, %v", conf, err)
	}
	dir := t.TempDir()
	ca, err := pki.OpenAuthority(filepath.Join(dir, "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(dir, "client", "a"); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	conf, err := clientauth.TLS(in("ca.pem"), in("cert.pem"), in("key.pem"))
	if err != nil || conf.RootCAs == nil || len(conf.Certificates) != 1 {
		t.Errorf("%+v, %v", conf, err)
	}
	for name, files := range map[string][3]string{
		"no certificate in it": {write(t, "ca", "nothing"), "", ""}, "no key": {"", in("cert.pem"), ""}, "no file": {in("none"), "", ""},
	} {
		if _, err := clientauth.TLS(files[0], files[1], files[2]); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
