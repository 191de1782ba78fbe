package e2e

import "testing"

// deploys asks until it is taken: the term that notices what Redis lost is over.
func (c *ledCluster) deploys(version string) {
	c.t.Helper()
	c.eventually(version+" is deployed", func() bool { return c.deploy(shop(version)).Code == 0 })
	c.serves(version, "/shop")
}

// Drill 25: Redis goes back to before a committed deploy, and then loses everything. The leader notices and ends its term,
// the next one rebuilds from what Consul decided: what serves goes on without a failed request, nothing of the past comes
// back, and deploys and rollbacks go on from the committed state.
func TestDrill25RedisGoesBack(t *testing.T) {
	t.Parallel()
	c := newLedCluster(t, "2", "haproxy=1,nginx=1")
	c.deploy(shop("v1")).must(t, 0)
	load := c.load("/shop")
	backup := c.redis.Backup(t)
	c.deploy(shop("v2"), "--wait-for", "drained").must(t, 0)

	deploys := func(version string) {
		t.Helper()
		c.deploys(version)
		c.eventually("only one version is left", func() bool { return c.upstreams(c.info.Hosts[0].Name) == 4 })
	}
	c.redis.Rollback(t, backup)
	deploys("v3")
	// The Spec before it is the one whose Commit Redis had lost.
	c.cli("rollback", "shop").must(t, 0)
	c.serves("v2", "/shop")

	c.redis.Do(t, "FLUSHALL")
	c.cli("status", "shop")
	deploys("v4")
	c.cli("rollback", "shop").must(t, 0)
	c.serves("v2", "/shop")
	for _, h := range c.info.Hosts {
		c.agrees(h.Name)
	}
	if res := load.Stop(); res.Failed != 0 {
		t.Errorf("%v\n%v", res, res.Failures)
	}
}
