package consulclient_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cutover/cutover/internal/consulclient"
)

func TestAddressesThatWouldSendSecretsInTheClear(t *testing.T) {
	for address, ok := range map[string]bool{
		"http://127.0.0.1:8500": true, "http://localhost:8500": true, "http://[::1]:8500/": true, "https://consul.example:8501": true,
		"http://consul.example:8500": false, "http://10.0.0.1:8500": false, "127.0.0.1:8500": false, "https://user:pw@consul.example": false, "": false,
	} {
		_, closeIdle, err := consulclient.New(address, consulclient.Options{})
		if (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
		if err == nil {
			closeIdle()
		} else if strings.Contains(err.Error(), "pw") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestFromEnv(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a, b := file("a", "from-a\n"), file("b", "from-b\n")
	for name, c := range map[string]struct {
		env         map[string]string
		file, token string
		fails       bool
	}{
		"nothing":                    {},
		"variable":                   {env: map[string]string{"CONSUL_HTTP_TOKEN": "t"}, token: "t"},
		"variable that names a file": {env: map[string]string{"CONSUL_HTTP_TOKEN": "t", "CONSUL_HTTP_TOKEN_FILE": a}, token: "from-a"},
		"file":                       {env: map[string]string{"CONSUL_HTTP_TOKEN_FILE": a}, file: b, token: "from-b"},
		"no such file":               {file: filepath.Join(dir, "none"), fails: true},
		"no such authority":          {env: map[string]string{"CONSUL_CACERT": filepath.Join(dir, "none")}, fails: true},
	} {
		got, err := consulclient.FromEnv(func(k string) string { return c.env[k] }, c.file)
		if (err != nil) != c.fails || got.Token != c.token || got.TLS != nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestAnswersAreBounded(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`["` + strings.Repeat("x", 2000) + `"]`))
	}))
	defer srv.Close()
	for limit, ok := range map[int64]bool{0: true, 1000: false, 4000: true} {
		client, closeIdle, err := consulclient.New(srv.URL, consulclient.Options{MaxAnswer: limit})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Status().Peers(); (err == nil) != ok {
			t.Errorf("limit %d: %v", limit, err)
		}
		closeIdle()
	}
}
