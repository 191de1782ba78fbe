package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/loadgen"
)

// heavy is the load of the zero-drop promise: kept-alive and fresh connections, POSTs that nobody retries, slow requests;
// about 300 requests a second through each Host.
func heavy(c *cluster, path string) loadgen.Options {
	return loadgen.Options{URLs: c.frontends(), Path: path + "/buy", SlowPath: path + "/slow?ms=3000", KeepAlive: 8, Close: 3, Slow: 4, Think: 15 * time.Millisecond}
}

// 20 deploys in a row, with another App deployed and stopped meanwhile: no request fails on HAProxy nor on nginx with Lua.
func TestZeroDrop(t *testing.T) {
	c := newCluster(t, "haproxy=2,nginx=2")
	c.deploy(shop("v0")).must(t, 0)
	load := c.loadWith(heavy(c, "/shop"))
	for i := 1; i <= 20; i++ {
		version := fmt.Sprintf("v%d", i)
		var aside *run
		if i%4 == 0 {
			blog := shop("b" + version)
			blog.Name, blog.Path, blog.Instances = "blog", "/blog", 2
			aside = c.background("deploy", "-f", c.spec(blog), "-o", "json")
		} else if i%4 == 2 && i > 4 {
			aside = c.background("stop", "blog", "-o", "json")
		}
		c.deploy(shop(version)).must(t, 0)
		if aside != nil {
			aside.wait().must(t, 0)
		}
		c.serves(version, "/shop")
	}
	res := load.Stop()
	t.Log(res)
	if res.Failed != 0 {
		t.Errorf("%d requests failed: %v", res.Failed, res.Failures)
	}
	for url, n := range res.PerURL {
		// Not a rate: on a busy machine the requests are slower, and so are the deploys.
		if n.Sent < 2000 {
			t.Errorf("%s got only %d requests: the run proves too little", url, n.Sent)
		}
	}
}

// The control: a naive swap (the old tasks end, the new ones take their place) must show failures, else the detector of
// TestZeroDrop is blind.
func TestZeroDropControl(t *testing.T) {
	c := newCluster(t, "haproxy=1,nginx=1")
	v := c.deploy(shop("v1")).must(t, 0).View
	load := c.loadWith(heavy(c, "/shop"))
	for _, task := range v.Tasks {
		c.killTask(task.ID)
	}
	c.eventually("every Host has failed a request", func() bool {
		for _, n := range load.Result().PerURL {
			if n.Failed == 0 {
				return false
			}
		}
		return true
	})
	// And the App comes back by itself.
	c.eventually("the App is replaced", func() bool {
		for _, url := range c.frontends() {
			if code, _, err := get(url + "/shop/x"); err != nil || code != 200 {
				return false
			}
		}
		return true
	})
}
