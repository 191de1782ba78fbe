package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// Drill 1: the new version is ill. No proxy is touched; the reason names the task, the probe and the last output.
func TestDrill01TheNewVersionIsIll(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=1,nginx=1")
	c.deploy(shop("v1")).must(t, 0)
	before := c.still()
	for name, d := range map[string]struct {
		spec specFile
		want []string
	}{
		"never healthy": {func() specFile { s := shop("v2", "--never-healthy"); s.Grace = 5 * time.Second; return s }(), []string{"shop.", "500"}},
		"exits at once": {shop("v2", "--exit-at-once"), []string{"shop.", "status 3", "licence key"}},
		"wrong port": {func() specFile {
			s := shop("v2")
			s.Command = fmt.Sprintf("exec %s --addr $HOST:0 --version v2", sampleBin)
			s.Grace = 5 * time.Second
			return s
		}(), []string{"shop.", "refused", "listening on"}},
	} {
		res := c.deploy(d.spec).must(t, 3)
		if res.View.State != deploy.RolledBack {
			t.Errorf("%s: state %s", name, res.View.State)
		}
		for _, w := range d.want {
			if !strings.Contains(res.View.Reason, w) {
				t.Errorf("%s: the reason does not say %q: %s", name, w, res.View.Reason)
			}
		}
		for _, h := range res.View.Hosts {
			if h.Vote != deploy.VoteNone {
				t.Errorf("%s: %s voted %s although no proxy was to be touched", name, h.Name, h.Vote)
			}
		}
		c.asBefore(before, name)
	}
	c.serves("v1", "/shop")
}

// Drill 9: a task of the old version dies during the deploy. It leaves the proxies, the deploy goes on.
func TestDrill09AnOldTaskDiesDuringTheDeploy(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=1,nginx=1")
	first := c.deploy(shop("v1")).must(t, 0).View
	load := c.load("/shop")
	id := c.detach(shop("v2", "--start-delay", "4s"))
	c.hold(id, "the new tasks start", func(v deploy.View) bool { return running(v, "new") })
	victim := first.Tasks[0]
	c.killTask(victim.ID)
	c.eventually("the dead task has left every proxy", func() bool {
		for _, h := range c.refresh().Hosts {
			for _, s := range c.show(h.Name).Sections {
				for _, u := range s.Running {
					if u.Name == victim.Upstream {
						return false
					}
				}
				if len(s.Running) == 0 {
					t.Fatalf("%s has no upstream left", h.Name)
				}
			}
		}
		return true
	})
	c.watch(id).must(t, 0)
	c.serves("v2", "/shop")
	// A request in flight to a process that is killed is lost with it, one of each client at most; nothing else may be.
	if res := load.Stop(); res.Failed > uint64(clients*len(c.info.Hosts)) {
		t.Errorf("%v\n%v", res, res.Failures)
	}
}

func running(v deploy.View, role string) bool {
	n := 0
	for _, task := range v.Tasks {
		if task.Role == role {
			if task.State != "running" {
				return false
			}
			n++
		}
	}
	return n > 0
}
