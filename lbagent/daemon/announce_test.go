package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const hostFile = `cluster: main
group: public
name: lb-1
dir: /var/lib/cutover/agent
proxy: {kind: haproxy, dir: /var/lib/cutover/haproxy, base: /etc/cutover/haproxy.cfg, listen: ["0.0.0.0:80"]}
`

func load(t *testing.T, more string) (Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lbagent.yaml")
	if err := os.WriteFile(file, []byte(hostFile+more), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(file)
}

func TestAnnounceConfig(t *testing.T) {
	const lan = "listen: 10.0.1.11:8600\ntls_dir: /etc/cutover/tls\n"
	const consul = "announce: {consul: \"http://127.0.0.1:8500\""
	for name, c := range map[string]struct {
		more       string
		url, ready string
		wrong      string
	}{
		"from listen":          {lan + consul + "}\n", "https://10.0.1.11:8600", "", ""},
		"with readiness":       {lan + "ready_listen: 10.0.1.11:8601\n" + consul + "}\n", "https://10.0.1.11:8600", "http://10.0.1.11:8601/readyz", ""},
		"ready everywhere":     {lan + "ready_listen: 0.0.0.0:8601\n" + consul + "}\n", "https://10.0.1.11:8600", "http://127.0.0.1:8601/readyz", ""},
		"ready everywhere, v6": {lan + "ready_listen: \"[::]:8601\"\n" + consul + "}\n", "https://10.0.1.11:8600", "http://[::1]:8601/readyz", ""},
		"on loopback":          {"listen: 127.0.0.1:8600\n" + consul + "}\n", "http://127.0.0.1:8600", "", ""},
		"another URL":          {lan + consul + ", agent_url: \"https://lb-1.example:8600\"}\n", "https://lb-1.example:8600", "", ""},
		"listens everywhere":   {"listen: 0.0.0.0:8600\ntls_dir: /etc/cutover/tls\n" + consul + "}\n", "", "", "nobody can reach"},
		"Consul in the clear":  {lan + "announce: {consul: \"http://10.0.0.1:8500\"}\n", "", "", "in the clear"},
		"no Consul":            {lan + "announce: {service: x}\n", "", "", "address of Consul"},
		"unknown key":          {lan + "announce: {consul: \"http://127.0.0.1:8500\", tags: [a]}\n", "", "", "tags"},
	} {
		got, err := load(t, c.more)
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s: %v, want %q", name, err, c.wrong)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if o := got.announcement(); o.AgentURL != c.url || o.ReadyURL != c.ready {
			t.Errorf("%s: %+v", name, o)
		}
	}
	silent, err := load(t, lan)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := silent.announcer(func(string) string { return "" }, slog.New(slog.DiscardHandler)); a != nil || err != nil {
		t.Errorf("a host that does not announce itself: %v, %v", a, err)
	}
}

// The entry is withdrawn after a stop, if that is wanted, and in no other case.
func TestWithdraw(t *testing.T) {
	for name, c := range map[string]struct {
		withdraw bool
		failed   error
		want     bool
	}{
		"stopped, and it stays":    {false, nil, false},
		"stopped, and it goes":     {true, nil, true},
		"the lbagent has a defect": {true, errors.New("defect"), false},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var asked []string
			registered := make(chan struct{}, 1)
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, r.URL.Path)
				if r.Method == http.MethodGet {
					w.WriteHeader(http.StatusNotFound)
				} else if strings.HasSuffix(r.URL.Path, "/register") {
					registered <- struct{}{}
				}
			}))
			defer srv.Close()
			conf, err := load(t, "listen: 127.0.0.1:8600\nannounce: {consul: \""+srv.URL+"\"}\n")
			if err != nil {
				t.Fatal(err)
			}
			conf.Announce.Withdraw = c.withdraw
			log := slog.New(slog.NewTextHandler(t.Output(), nil))
			a, err := conf.announcer(func(string) string { return "" }, log)
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			err = conf.announced(ctx, a, log, func(ctx context.Context) error {
				select {
				case <-registered:
				case <-time.After(time.Minute):
					t.Error("it was never announced")
				}
				if c.failed == nil {
					stop()
					<-ctx.Done()
				}
				return c.failed
			})
			stop()
			if !errors.Is(err, c.failed) {
				t.Errorf("%v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			last := asked[len(asked)-1]
			if got := strings.HasSuffix(last, "/deregister/cutover-lbagent-main-lb-1"); got != c.want {
				t.Errorf("asked for %q", asked)
			}
		})
	}
}
