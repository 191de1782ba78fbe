package nginx_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/internal/servertest"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
	"github.com/cutover/cutover/lbagent/nginx"
)

// A killed master leaves workers that hold the ports and sockets that block the next start. The driver says that nginx is
// down although they answer, and Bootstrap clears the way.
func TestKilledMaster(t *testing.T) {
	for _, k := range []kind{lua, reload} {
		t.Run(k.name, func(t *testing.T) {
			p := startProxy(t, k)
			a := drivertest.NewBackend(t, "a-1")
			s := section("shop", a.Upstream(driver.Serving))
			p.serve(t, s)
			master := p.master()
			orphans := map[int]procfs.Stat{}
			for pid := range workers(t, master) {
				stat, err := procfs.ReadStat(pid)
				if err != nil {
					t.Fatal(err)
				}
				orphans[pid] = stat
			}
			if err := syscall.Kill(master, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			drivertest.Eventually(t, "down", func() error {
				if _, err := p.driver.Process(within(t)); !errors.Is(err, driver.ErrProxyDown) {
					return fmt.Errorf("process of a killed master: %w", err)
				}
				return nil
			})
			p.Start(t)
			for pid, was := range orphans {
				if s, err := procfs.ReadStat(pid); err == nil && s.StartTicks == was.StartTicks {
					t.Errorf("orphan %d lives", pid)
				}
			}
			if got := p.status(t, "/shop"); got != 200 {
				t.Errorf("status %d after the restart", got)
			}
		})
	}
}

// nginx binds its sockets a moment before it listens on them. An lbagent that starts just then leaves them alone; whoever is
// about to start nginx does not.
func TestALbagentsStartTakesNoSocketAway(t *testing.T) {
	for _, k := range []kind{lua, reload} {
		t.Run(k.name, func(t *testing.T) {
			p := newProxy(t, k)
			name := filepath.Join(p.options.Dir, "run", "agent.sock")
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			if err == nil {
				defer syscall.Close(fd)
				err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: name})
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, starts := range []bool{false, true} {
				o := p.options
				o.Restore = starts
				if err := k.bootstrap(o); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Lstat(name); (err == nil) == starts {
					t.Errorf("nginx is about to start: %t, and the socket: %v", starts, err)
				}
			}
		})
	}
}

// Bootstrap beside a running nginx changes nothing that it uses.
func TestBootstrapIsIdempotent(t *testing.T) {
	for _, k := range []kind{lua, reload} {
		t.Run(k.name, func(t *testing.T) {
			p := startProxy(t, k)
			a := drivertest.NewBackend(t, "a-1")
			s := section("shop", a.Upstream(driver.Serving))
			p.serve(t, s)
			before, err := p.driver.Process(within(t))
			if err != nil {
				t.Fatal(err)
			}
			link, err := os.Readlink(filepath.Join(p.options.Dir, "current"))
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := k.bootstrap(p.options); err != nil {
					t.Fatal(err)
				}
			}
			if now, _ := os.Readlink(filepath.Join(p.options.Dir, "current")); now != link {
				t.Errorf("current was %s and is %s", link, now)
			}
			if after, err := p.driver.Process(within(t)); err != nil || after != before {
				t.Errorf("process %+v, %v; before %+v", after, err, before)
			}
			if got := p.status(t, "/shop"); got != 200 {
				t.Errorf("status %d", got)
			}
		})
	}
}

// A Frame that changed (an upgrade, another frontend) is published by Bootstrap; Check asks for the reload, and the Apps
// are there after it.
func TestBootstrapPublishesANewFrame(t *testing.T) {
	for _, k := range []kind{lua, reload} {
		t.Run(k.name, func(t *testing.T) {
			p := startProxy(t, k)
			a := drivertest.NewBackend(t, "a-1")
			p.serve(t, section("shop", a.Upstream(driver.Serving)))
			p.options.Listen = append(p.options.Listen, freePort(t, p.options.SourceAddress))
			if err := k.bootstrap(p.options); err != nil {
				t.Fatal(err)
			}
			p.Reopen(t)
			if _, err := p.driver.Check(within(t)); !errors.Is(err, driver.ErrProxyMismatch) || !strings.Contains(err.Error(), "kill -HUP") {
				t.Errorf("check of an older Frame: %v; want the reload to do", err)
			}
			p.OwnerReload(t)
			if _, err := p.driver.Check(within(t)); err != nil {
				t.Errorf("check after the reload: %v", err)
			}
			p.url = "http://" + p.options.Listen[1].String()
			if got := p.status(t, "/shop"); got != 200 {
				t.Errorf("status %d on the new frontend", got)
			}
		})
	}
}

// The contract with the owner's base configuration: what is missing is named, with the file and what to write.
func TestCheckNamesWhatTheBaseLacks(t *testing.T) {
	p := newProxy(t, lua)
	base, err := os.ReadFile(p.options.BaseConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, from, to, want string }{
		{"no include", "include cutover/*.conf;", "", "include cutover/*.conf;"},
		{"commented out", "include cutover/*.conf;", "# include cutover/*.conf;", "include cutover/*.conf;"},
		{"absolute include", "include cutover/*.conf;", "include " + p.dir() + "/cutover/*.conf;", "relative"},
		{"no Lua module", "load_module", "# load_module", "libnginx-mod-http-lua"},
		{"init hook taken", "access_log off;", "init_by_lua_block { }", "belong to Cutover"},
	} {
		if err := os.WriteFile(p.options.BaseConfig, []byte(strings.ReplaceAll(string(base), tt.from, tt.to)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := p.driver.Check(within(t)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want it to say %q", tt.name, err, tt.want)
		}
		// A vote must not rest on the last Check: nginx -t passes without the include, and all routes would be gone at the
		// owner's next reload.
		var refused *driver.RefusedError
		if err := p.driver.Stage(within(t), driver.Section{App: "shop"}); !errors.As(err, &refused) {
			t.Errorf("%s: Stage says %v, want it refused", tt.name, err)
		}
	}
	if err := os.WriteFile(p.options.BaseConfig, base, 0o600); err != nil {
		t.Fatal(err)
	}
	// Something else in the place of our link is not touched.
	link := filepath.Join(p.dir(), nginx.IncludeName)
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(link, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := nginx.BootstrapLua(p.options); err == nil || !strings.Contains(err.Error(), "ln -s") {
		t.Errorf("bootstrap with a directory in the place of the link: %v", err)
	}
}

// A file that the owner's base includes counts as the base: breaking it vetoes, mending it passes.
func TestStageSeesIncludedFiles(t *testing.T) {
	for _, k := range []kind{lua, reload} {
		t.Run(k.name, func(t *testing.T) {
			p := newProxy(t, k)
			base, err := os.ReadFile(p.options.BaseConfig)
			if err != nil {
				t.Fatal(err)
			}
			extra := filepath.Join(p.dir(), "conf.d", "extra.conf")
			if err := os.Mkdir(filepath.Dir(extra), 0o700); err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(string(base), "include cutover/*.conf;", "include conf.d/*.conf;\n include cutover/*.conf;", 1)
			if err := os.WriteFile(p.options.BaseConfig, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			s := section("shop", driver.Upstream{Name: "a", Address: servertest.Refused(t), Weight: 1, Mode: driver.Serving})
			var refused *driver.RefusedError
			for i := range 3 {
				good := i%2 == 0
				content := "# fine\n"
				if !good {
					content = "nonsense;\n"
				}
				if err := os.WriteFile(extra, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				err := p.driver.Stage(within(t), s)
				if good && err != nil {
					t.Errorf("stage with a good include: %v", err)
				}
				if !good && (!errors.As(err, &refused) || !strings.Contains(refused.Output, "nonsense")) {
					t.Errorf("stage with a broken include: %v", err)
				}
			}
		})
	}
}
