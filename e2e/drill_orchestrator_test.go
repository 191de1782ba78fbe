package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cutover/cutover/internal/loadgen"
	"github.com/cutover/cutover/orchestrator/deploy"
)

func slowOnly(c *cluster, path string) loadgen.Options {
	return loadgen.Options{URLs: c.frontends(), SlowPath: path + "/slow?ms=3000", Slow: 2}
}

// Drill 7: the orchestrator is killed at each step of a deploy and started again. The deploy ends by itself, and the
// command line that was waiting reports the end.
func TestDrill07TheOrchestratorIsKilled(t *testing.T) {
	steps := []struct {
		name string
		// at brings a deploy to the step and returns its id and what lets it go on.
		at   func(c *cluster) (string, func())
		code []int
	}{
		{"tasks are starting", func(c *cluster) (string, func()) {
			id := c.detach(shop("v2", "--start-delay", "3s"))
			c.hold(id, "the new tasks run", func(v deploy.View) bool { return running(v, "new") })
			return id, func() {}
		}, []int{0}},
		{"at once", func(c *cluster) (string, func()) {
			return c.detach(shop("v2")), func() {}
		}, []int{0}},
		{"preparing", func(c *cluster) (string, func()) {
			hold := c.freezeAgent(third)
			id := c.detach(shop("v2"))
			c.hold(id, "one Host is Ready", func(v deploy.View) bool { return vote(v, victim) == deploy.VoteReady })
			return id, hold
		}, []int{0, 3}},
		{"activating", func(c *cluster) (string, func()) { return c.inActivate(shop("v2"), other) }, []int{0, 3}},
		{"draining", func(c *cluster) (string, func()) {
			load := c.loadWith(slowOnly(c, "/shop"))
			id := c.detach(shop("v2"))
			c.hold(id, "it is committed", func(v deploy.View) bool { return v.State == deploy.Succeeded })
			return id, func() { load.Stop() }
		}, []int{0}},
		{"restoring", func(c *cluster) (string, func()) {
			id, thaw := c.inActivate(shop("v2"), victim)
			c.cli("abort", id, "--detach")
			return id, thaw
		}, []int{3, 6}},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, "haproxy=2,nginx=1")
			c.deploy(shop("v1")).must(t, 0)
			load := c.load("/shop")
			id, goOn := step.at(c)
			watch := c.background("watch", id, "-o", "json", "--timeout", "5m", "--wait-for", "drained")
			c.eventually("the command line watches", func() bool { return strings.Contains(watch.err.String(), "step") })
			c.kill9()
			goOn()
			c.start()
			res := watch.wait()
			ok := false
			for _, code := range step.code {
				ok = ok || res.Code == code
			}
			if !ok {
				t.Fatalf("want one of %v, got %v", step.code, res)
			}
			want := "v1"
			if res.Code == 0 {
				want = "v2"
			}
			c.serves(want, "/shop")
			for _, h := range c.info.Hosts {
				c.agrees(h.Name)
			}
			c.eventually("only one version is left", func() bool {
				n := 0
				for _, u := range c.show(victim).Sections {
					n += len(u.Running)
				}
				return n == 4
			})
			if res := load.Stop(); res.Failed != 0 {
				t.Errorf("%v\n%v", res, res.Failures)
			}
			// The cluster is as good as new.
			c.deploy(shop("v9")).must(t, 0)
			c.serves("v9", "/shop")
		})
	}
}

// Drill 10: abort, Ctrl-C, a second deploy of the same App, and two command lines with one idempotency key.
func TestDrill10PeopleInterfere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=2,nginx=1")
	c.deploy(shop("v1")).must(t, 0)
	before := c.still()

	t.Run("abort", func(t *testing.T) {
		id := c.detach(shop("v2", "--start-delay", "30s"))
		c.hold(id, "it runs", func(v deploy.View) bool { return len(v.Tasks) > 0 })
		c.cli("abort", id).must(t, 0)
		c.watch(id).must(t, 6)
		c.asBefore(before, "the deploy is undone")
	})
	t.Run("abort while activating", func(t *testing.T) {
		id, thaw := c.inActivate(shop("v2"), victim)
		abort := c.background("abort", "shop", "-o", "json")
		c.hold(id, "the abort is recorded", func(v deploy.View) bool { return v.Step == "restoring" })
		thaw()
		if res := abort.wait(); res.Code != 0 {
			t.Errorf("abort: %v", res)
		}
		c.watch(id).must(t, 6)
		c.asBefore(before, "the deploy is undone")
	})
	t.Run("interrupt", func(t *testing.T) {
		r := c.background("deploy", "-f", c.spec(shop("v2", "--start-delay", "5s")), "-o", "json")
		var id string
		c.eventually("the deploy id is printed", func() bool {
			for line := range strings.SplitSeq(r.err.String()+"\n"+r.out.String(), "\n") {
				for word := range strings.FieldsSeq(line) {
					if len(word) == 26 && strings.HasPrefix(word, "01") {
						id = word
					}
				}
			}
			return id != ""
		})
		c.signal(r.cmd.Process.Pid, syscall.SIGINT)
		r.wait().must(t, 130)
		c.watch(id).must(t, 0)
		c.serves("v2", "/shop")
	})
	t.Run("a second deploy", func(t *testing.T) {
		id := c.detach(shop("v3", "--start-delay", "5s"))
		res := c.deploy(shop("v4")).must(t, 8)
		if !strings.Contains(res.Stdout, id) {
			t.Errorf("the refusal does not name the open deploy %s: %v", id, res)
		}
		c.watch(id).must(t, 0)
		c.serves("v3", "/shop")
	})
	t.Run("one key", func(t *testing.T) {
		file := c.spec(shop("v5", "--start-delay", "1s"))
		a := c.background("deploy", "-f", file, "-o", "json", "--idempotency-key", "ci-77")
		b := c.background("deploy", "-f", file, "-o", "json", "--idempotency-key", "ci-77")
		ra, rb := a.wait().must(t, 0), b.wait().must(t, 0)
		if ra.View.DeployID != rb.View.DeployID {
			t.Errorf("two deploys: %s and %s", ra.View.DeployID, rb.View.DeployID)
		}
		c.deploy(shop("v6"), "--idempotency-key", "ci-77").must(t, 8)
		c.serves("v5", "/shop")
	})
	t.Run("rollback, scale, stop", func(t *testing.T) {
		res := c.cli("rollback", "shop", "-o", "json").must(t, 0)
		c.serves("v3", "/shop")
		if res.View.Spec >= res.View.FromSpec {
			t.Errorf("rolled back from %d to %d", res.View.FromSpec, res.View.Spec)
		}
		kept := map[string]bool{} // not those that still drain
		for _, u := range c.show(victim).Sections[0].Running {
			if u.Mode == "serving" {
				kept[u.Name] = true
			}
		}
		c.cli("scale", "shop", "6").must(t, 0)
		n := 0
		for _, u := range c.show(victim).Sections[0].Running {
			if kept[u.Name] {
				n++
			}
		}
		if n != len(kept) {
			t.Errorf("scale kept %d of %d unchanged tasks", n, len(kept))
		}
		if same := c.cli("scale", "shop", "6", "-o", "json").must(t, 0); same.View.Reason != "unchanged" {
			t.Errorf("scale to the same: %q", same.View.Reason)
		}
		c.cli("stop", "shop").must(t, 0)
		for _, url := range c.frontends() {
			if code, _, err := get(url + "/shop/x"); err != nil || code != 404 {
				t.Errorf("%s: a stopped App answers %d %v", url, code, err)
			}
		}
		if apps := c.cli("apps").must(t, 0); !strings.Contains(apps.Stdout, "stopped") {
			t.Errorf("apps: %s", apps.Stdout)
		}
		c.cli("rollback", "shop").must(t, 0)
		c.serves("v3", "/shop")
	})
}

// Drill 12: bad input changes nothing, and says where and why.
func TestDrill12BadInput(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=1,nginx=1")
	c.deploy(shop("v1")).must(t, 0)
	c.deploy(func() specFile { s := shop("v1"); s.Name, s.Path, s.Instances = "nested", "/shop/deep", 1; return s }()).must(t, 0)
	before := c.still()
	good := shop("v2").yaml()
	for name, d := range map[string]struct{ source, want string }{
		"unknown key":     {good + "replicas: 3\n", "\"line\":11"},
		"wrong type":      {strings.Replace(good, "instances: 4", "instances: many", 1), "\"line\":4"},
		"no ports":        {strings.Replace(good, "ports: 1", "ports: 0", 1), "port"},
		"taken path":      {strings.Replace(good, "name: shop", "name: thief", 1), "shop"},
		"10 MB":           {good + "# " + strings.Repeat("x", 10<<20), "larger"},
		"unknown group":   {strings.Replace(good, "group: public", "group: nowhere", 1), "nowhere"},
		"strategy":        {strings.Replace(good, "strategy: blue-green", "strategy: canary", 1), "canary"},
		"not YAML":        {"{{{{", "\"line\":1,"},
		"empty":           {"", ""},
		"a key not built": {good + "container: {image: \"x\"}\n", "container"},
	} {
		file := filepath.Join(t.TempDir(), "spec.yaml")
		if err := os.WriteFile(file, []byte(d.source), 0o600); err != nil {
			t.Fatal(err)
		}
		res := c.cli("deploy", "-f", file, "-o", "json")
		if res.Code != 1 || !strings.Contains(res.Stdout+res.Stderr, d.want) {
			t.Errorf("%s: want exit 1 with %q, got %v", name, d.want, res)
		}
	}
	c.asBefore(before, "bad input is refused")
	c.serves("v1", "/shop")
	c.serves("v1", "/shop/deep")
	if list := c.cli("apps", "-o", "json").must(t, 0); strings.Contains(list.Stdout, "thief") {
		t.Errorf("a refused App is listed: %s", list.Stdout)
	}
}
