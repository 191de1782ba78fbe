// Package deployments_test keeps the files for production true: the programs themselves read the examples, and the base
// configurations are those that Cutover's own tests run.
package deployments_test

import (
	"bytes"
	"flag"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cutover/cutover/lbagent/daemon"
	"github.com/cutover/cutover/lbagent/haproxy"
	"github.com/cutover/cutover/lbagent/nginx"
	"github.com/cutover/cutover/orchestrator"
	"github.com/cutover/cutover/orchestrator/spec"
)

var update = flag.Bool("update", false, "write proxies/ anew")

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// agents are the examples of hosts; their paths are those of the units and of the base configurations.
func agents(t *testing.T) map[string]daemon.Config {
	t.Helper()
	out := map[string]daemon.Config{}
	for _, name := range []string{"lbagent.yaml", "lbagent-nginx.yaml"} {
		c, err := daemon.Load(filepath.Join("examples", name))
		if err != nil {
			t.Fatal(err)
		}
		out[c.Name] = c
	}
	return out
}

func TestExamplesAreRead(t *testing.T) {
	hosts, groups, err := orchestrator.LoadHosts("examples/hosts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := agents(t)
	if len(hosts) != len(all) || len(groups) == 0 {
		t.Errorf("%d hosts are declared, there are examples of %d", len(hosts), len(all))
	}
	env := read(t, "examples/orchestrator.env")
	for _, h := range hosts {
		c, ok := all[h.Name]
		u, err := url.Parse(h.AgentURL)
		if !ok || err != nil || c.Group != h.Group || u.Host != c.Listen || u.Scheme != "https" || c.TLSDir == "" {
			t.Errorf("%+v is declared, and its own file says %+v", h, c)
		}
		if !strings.Contains(env, "CUTOVER_CLUSTER="+c.Cluster+"\n") {
			t.Errorf("%s is of cluster %s, orchestrator.env of another", h.Name, c.Cluster)
		}
	}
	s, problems := spec.Parse([]byte(read(t, "examples/app.yaml")))
	if len(problems) > 0 {
		t.Fatalf("app.yaml: %v", problems)
	}
	if s.Name != "shop" {
		t.Errorf("app.yaml: %+v", s)
	}
}

// The base configurations are what Cutover's own examples render, with the paths of the units.
func TestProxiesAreTheEmbeddedExamples(t *testing.T) {
	all := agents(t)
	h, n := all["lb-1"].Proxy, all["lb-2"].Proxy
	haproxyBase, err := haproxy.ExampleBase(haproxy.Base{RuntimeSocket: h.RuntimeSocket})
	if err != nil {
		t.Fatal(err)
	}
	nginxBase, err := nginx.RenderExampleBase(nginx.ExampleBase{
		Lua: true, Binary: daemon.ProxyBinary(n.Kind), Workers: -1,
		PIDFile: "/run/cutover/nginx.pid", ErrorLog: "stderr", TempDir: "/var/cache/cutover",
	})
	if err != nil {
		t.Fatal(err)
	}
	for base, want := range map[string][]byte{h.Base: haproxyBase, n.Base: nginxBase} {
		file := filepath.Join("proxies", filepath.Base(base))
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(string(want), read(t, file)); diff != "" {
			t.Errorf("%s is not current (go test ./deployments -update):\n%s", file, diff)
		}
	}
}

// The units start commands that exist, with flags that they have, as one user, and never stop for good.
func TestUnits(t *testing.T) {
	units, err := filepath.Glob("systemd/*.service")
	if err != nil || len(units) != 4 {
		t.Fatalf("units %v, %v", units, err)
	}
	for _, unit := range units {
		text := read(t, unit)
		for _, line := range []string{
			"User=cutover\n", "Restart=always\n", "StartLimitIntervalSec=0\n", "NoNewPrivileges=yes\n", "ProtectSystem=strict\n",
			"StateDirectory=cutover\n", "StateDirectoryMode=0700\n",
		} {
			if !strings.Contains(text, line) {
				t.Errorf("%s lacks %q", unit, line)
			}
		}
	}
	verifyUnits(t, units)
}

// verifyUnits asks systemd itself, where it is installed. The commands of the units are not installed on this machine.
func verifyUnits(t *testing.T, units []string) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("systemd-analyze is not installed: systemd itself was not asked about the units")
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	args := []string{"--man=no", "--generators=no", "verify"}
	for _, unit := range units {
		text := strings.ReplaceAll(read(t, unit), "/usr/local/bin/cutover", self)
		file := filepath.Join(dir, filepath.Base(unit))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	if err := os.CopyFS(filepath.Join(dir, "cutover-lbagent.service.d"), os.DirFS("systemd/cutover-lbagent.service.d")); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), analyze, args...).CombinedOutput()
	for line := range bytes.Lines(out) {
		if bytes.Contains(line, []byte("cutover")) {
			t.Errorf("systemd-analyze: %s", bytes.TrimSpace(line))
		}
	}
	if err != nil {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}
