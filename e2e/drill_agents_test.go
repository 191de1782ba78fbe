package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// restoreDeadline of the clusters of these drills: how long a Host may take to answer Aborted before the deploy is stuck.
// The default is 60 s; the drills do not need to wait for it.
const restoreDeadline = 5 * time.Second

// The Hosts of these drills: what happens to victim, and what holds the others up meanwhile.
const victim, other, third = "lb-nginx-1", "lb-haproxy-1", "lb-haproxy-2"

func agentDrill(t *testing.T) *cluster {
	t.Helper()
	t.Parallel()
	c := newClusterWith(t, "haproxy=2,nginx=1", "--restore-deadline", restoreDeadline.String())
	c.deploy(shop("v1")).must(t, 0)
	return c
}

// v2 is the next version, whose deadline a drill waits for.
func (c *cluster) v2() specFile {
	s := shop("v2")
	s.Deadline = c.missed(15 * time.Second)
	return s
}

// Drill 5, before Prepare: away and never sent Activate.
func TestDrill05AgentKilledBeforePrepare(t *testing.T) {
	c := agentDrill(t)
	before := c.still()
	back := c.takeAway(victim)
	res := c.deploy(c.v2()).must(t, 3)
	if !strings.Contains(res.View.Reason, victim) {
		t.Errorf("the reason does not name the Host: %s", res.View.Reason)
	}
	back()
	c.agrees(victim)
	c.asBefore(before, "the deploy is undone")
	c.serves("v1", "/shop")
}

// Drill 5, after Ready: back in time, or away for good.
func TestDrill05AgentKilledAfterReady(t *testing.T) {
	for _, d := range []struct {
		name string
		back bool
	}{{"back in time", true}, {"away", false}} {
		t.Run(d.name, func(t *testing.T) {
			c := agentDrill(t)
			hold := c.freezeAgent(third)
			id := c.detach(c.v2())
			c.hold(id, "the victim is Ready", func(v deploy.View) bool { return vote(v, victim) == deploy.VoteReady })
			back := c.takeAway(victim)
			if d.back {
				back()
				c.agentRuns(victim)
			}
			hold()
			res := c.watch(id)
			switch {
			case d.back && res.Code == 0:
				c.serves("v2", "/shop")
				return
			case res.Code != 3:
				t.Fatalf("want exit 3, got %v", res)
			}
			if !d.back {
				back()
			}
			c.agrees(victim)
			c.serves("v1", "/shop")
		})
	}
}

// inActivate starts a deploy and brings it to the point where every Host was sent Activate, and all but the stuck one are
// Verified: its proxy stands still, so it cannot be. An agent (the third's) is held meanwhile, so that nothing depends on
// timing. The returned function lets the stuck proxy go on.
func (c *cluster) inActivate(s specFile, stuck string) (id string, thaw func()) {
	c.t.Helper()
	hold := third
	if stuck == third {
		hold = other
	}
	release := c.freezeAgent(hold)
	id = c.detach(s)
	c.hold(id, "every other Host is Ready", func(v deploy.View) bool { return all(v, deploy.VoteReady, hold) })
	thaw = c.freezeProxy(stuck)
	release()
	c.hold(id, "all but "+stuck+" are Verified", func(v deploy.View) bool { return all(v, deploy.VoteVerified, stuck) })
	return id, thaw
}

// all reports whether every Host but one has the vote.
func all(v deploy.View, want deploy.Vote, but string) bool {
	for _, h := range v.Hosts {
		if h.Name != but && h.Vote != want {
			return false
		}
	}
	return len(v.Hosts) > 0
}

// Drill 5, after Activate before Verified: away is stuck with both colours alive, then rolled back by itself.
func TestDrill05AgentKilledAfterActivate(t *testing.T) {
	c := agentDrill(t)
	id, thaw := c.inActivate(c.v2(), victim)
	back := c.takeAway(victim)
	thaw()
	res := c.watch(id).must(t, 4)
	if res.View.State != deploy.Stuck || !strings.Contains(res.View.Reason, victim) || res.View.NextCommand == "" {
		t.Errorf("state %s, reason %q, next %q", res.View.State, res.View.Reason, res.View.NextCommand)
	}
	roles := map[string]int{}
	for _, task := range c.view(id).Tasks {
		if task.State == "running" {
			roles[task.Role]++
		}
	}
	if roles["new"] != 4 || roles["old"] != 4 {
		t.Errorf("both colours must be alive: %v", roles)
	}
	back()
	c.eventually("it is rolled back by itself", func() bool { return c.view(id).State == deploy.RolledBack })
	c.agrees(victim)
	c.serves("v1", "/shop")
}

// Drill 5, after Verified: 0 if the Commit record exists, else 4; the Host agrees with the decision after its restart.
func TestDrill05AgentKilledAfterVerified(t *testing.T) {
	t.Run("before the record", func(t *testing.T) {
		c := agentDrill(t)
		id, thaw := c.inActivate(c.v2(), other)
		back := c.takeAway(victim)
		// The victim's vote counts for two seconds; after that it would have to be asked again.
		c.eventually("the victim's vote has aged", func() bool {
			for _, h := range c.view(id).Hosts {
				if h.Name == victim && h.Evidence != nil {
					return time.Since(h.Evidence.ReadAt) > 3*time.Second
				}
			}
			return false
		})
		thaw()
		res := c.watch(id).must(t, 4)
		if !strings.Contains(res.View.Reason, victim) {
			t.Errorf("the reason does not name the Host: %s", res.View.Reason)
		}
		back()
		c.eventually("it is rolled back by itself", func() bool { return c.view(id).State == deploy.RolledBack })
		c.agrees(victim)
		c.serves("v1", "/shop")
	})
	t.Run("after the record", func(t *testing.T) {
		c := agentDrill(t)
		load := c.loadWith(slowOnly(c, "/shop"))
		res := c.deploy(c.v2()).must(t, 0)
		back := c.takeAway(victim)
		load.Stop()
		back()
		c.agrees(victim)
		c.serves("v2", "/shop")
		if st := c.view(res.View.DeployID).State; st != deploy.Succeeded {
			t.Errorf("state %s", st)
		}
	})
}

// Drill 6: an lbagent stands still until past the deadline.
func TestDrill06AgentStopped(t *testing.T) {
	t.Run("before Prepare", func(t *testing.T) {
		c := agentDrill(t)
		before := c.still()
		wake := c.freezeAgent(victim)
		res := c.deploy(c.v2()).must(t, 3)
		if !strings.Contains(res.View.Reason, victim) {
			t.Errorf("the reason does not name the Host: %s", res.View.Reason)
		}
		wake()
		c.agrees(victim)
		c.asBefore(before, "no old message moves anything")
		c.serves("v1", "/shop")
	})
	t.Run("during Activate", func(t *testing.T) {
		c := agentDrill(t)
		before := c.still()
		id, thaw := c.inActivate(c.v2(), victim)
		wake := c.freezeAgent(victim)
		thaw()
		c.watch(id).must(t, 4)
		wake()
		c.eventually("it is rolled back by itself", func() bool { return c.view(id).State == deploy.RolledBack })
		c.agrees(victim)
		c.asBefore(before, "no old message moves anything")
		c.serves("v1", "/shop")
	})
}

// agentRuns waits until the Host's lbagent is another process than the one that was killed.
func (c *cluster) agentRuns(host string) {
	c.t.Helper()
	old := c.info
	c.eventually("the lbagent of "+host+" runs again", func() bool {
		now := c.host(host)
		for _, h := range old.Hosts {
			if h.Name == host && h.AgentPID == now.AgentPID {
				return false
			}
		}
		return now.AgentPID > 0 && syscall.Kill(now.AgentPID, 0) == nil
	})
}

// agrees waits until the Host says of every Section that what runs is what its journal holds, with nothing open.
func (c *cluster) agrees(host string) {
	c.t.Helper()
	c.eventually(host+" agrees with the decision", func() bool {
		show, ok := c.look(host)
		for _, s := range show.Sections {
			ok = ok && s.Agrees && s.Open == ""
		}
		return ok
	})
}
