package e2e

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/engine"
)

// An undo that leads to nothing: every v1 task dies while v2 is in service on some Hosts, and then the deploy is aborted.
// The Hosts stay at v2 until replacements of v1 are green on them; then v2 is gone and v1 serves on all.
func TestDrillUndoToNothing(t *testing.T) {
	for name, restart := range map[string]bool{"abort": false, "the orchestrator is killed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, "haproxy=2,nginx=2")
			// Replacements take longer than neverDown is patient: a Host that went back to nothing would be seen.
			old := c.deploy(shop("v1", "--start-delay", "8s")).must(t, 0).View
			id, thaw := c.inActivate(shop("v2"), victim)
			stop := c.neverDown(t, victim)
			for _, task := range old.Tasks {
				c.killTask(task.ID)
			}
			// A death that a Host has not noticed yet is one behind the abort; it must be one before it.
			c.eventually("no other Host holds a v1 task", func() bool {
				for _, h := range c.info.Hosts {
					if h.Name != victim && c.runs(h.Name, "shop.1.") {
						return false
					}
				}
				return true
			})
			if restart {
				c.kill9()
				thaw()
				c.start()
			} else {
				abort := c.background("abort", id, "-o", "json")
				c.hold(id, "the other Hosts are back", func(v deploy.View) bool { return all(v, deploy.VoteAborted, victim) })
				thaw()
				defer func() { abort.wait().must(t, 0) }()
			}
			res := c.watch(id)
			if restart {
				// The next term retries by itself: it may succeed with v2, or end rolled back.
				if res.Code == 0 {
					stop()
					c.serves("v2", "/shop")
					return
				}
				if res.Code != 3 {
					t.Fatalf("want exit 0 or 3, got %v", res)
				}
			} else if res.Code != 6 || res.View.State != deploy.Aborted {
				t.Fatalf("want exit 6 and aborted, got %v", res)
			}
			for _, h := range c.info.Hosts {
				c.agrees(h.Name)
			}
			c.serves("v1", "/shop")
			stop()
			dead := map[string]bool{}
			for _, task := range old.Tasks {
				dead[task.Upstream] = true
			}
			for _, h := range c.info.Hosts {
				for _, s := range c.show(h.Name).Sections {
					for _, u := range s.Committed {
						if dead[u.Name] || !strings.HasPrefix(u.Name, "shop.1.") {
							t.Errorf("%s: %s is committed", h.Name, u.Name)
						}
					}
					if len(s.Committed) != 4 {
						t.Errorf("%s: %d upstreams are committed, want 4", h.Name, len(s.Committed))
					}
				}
			}
			c.eventually("no v2 task is left, and four of v1", func() bool {
				alive := c.aliveBySpec("shop")
				return alive[2] == 0 && alive[1] == 4
			})
		})
	}
}

// aliveBySpec counts the App's tasks that have not ended.
func (c *cluster) aliveBySpec(app string) map[uint64]int {
	c.t.Helper()
	var list struct {
		Tasks []deploy.TaskView `json:"tasks"`
	}
	res := c.cli("tasks", app, "-o", "json").must(c.t, 0)
	if err := json.Unmarshal([]byte(res.Stdout), &list); err != nil {
		c.t.Fatalf("tasks: %v\n%s", err, res.Stdout)
	}
	alive := map[uint64]int{}
	for _, task := range list.Tasks {
		if !engine.TaskState(task.State).Terminal() {
			alive[task.Spec]++
		}
	}
	return alive
}

// runs reports whether the Host's proxy holds an upstream whose name begins so.
func (c *cluster) runs(host, prefix string) bool {
	c.t.Helper()
	for _, s := range c.show(host).Sections {
		for _, u := range s.Running {
			if strings.HasPrefix(u.Name, prefix) {
				return true
			}
		}
	}
	return false
}

// neverDown asks every Host but one all the time, until the returned function is called: a request that was under way to a
// task that is killed is lost with it, but no Host may fail for longer than it takes to notice a death.
func (c *cluster) neverDown(t *testing.T, but string) (stop func()) {
	t.Helper()
	const patience = 5 * time.Second
	end := make(chan struct{})
	var wg sync.WaitGroup
	for _, h := range c.refresh().Hosts {
		if h.Name == but {
			continue
		}
		wg.Go(func() {
			last, why := time.Now(), ""
			for asked := 0; ; asked++ {
				select {
				case <-end:
					if asked == 0 {
						t.Errorf("%s was never asked", h.Name)
					}
					return
				default:
				}
				code, body, err := get(h.FrontendURL + "/shop/x")
				switch {
				case err == nil && code == 200:
					last = time.Now()
				case time.Since(last) > patience:
					t.Errorf("NEVER-ZERO: %s serves nothing for %s: %d %q %v, before %s", h.Name, time.Since(last), code, body, err, why)
					return
				default:
					why = body
				}
				<-time.After(10 * time.Millisecond)
			}
		})
	}
	var once sync.Once
	stop = func() { once.Do(func() { close(end); wg.Wait() }) }
	t.Cleanup(stop)
	return stop
}
