package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// A task that only fails its checks leaves each proxy by that proxy's own check, and is replaced; the replacement enters a
// proxy only when it is verified there.
func TestAnIllTaskIsReplaced(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=1,nginx=1")
	ill := filepath.Join(c.dir, "ill-")
	s := shop("v1")
	s.Command = "exec " + sampleBin + " --addr $HOST:$PORT0 --version v1 --ill-file " + ill + "$PORT0"
	v := c.deploy(s).must(t, 0).View
	load := c.load("/shop")
	victimTask := v.Tasks[0]
	_, port, _ := splitAddress(victimTask.Address)
	if err := os.WriteFile(ill+port, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.eventually("the ill task is replaced on every Host", func() bool {
		for _, h := range c.refresh().Hosts {
			healthy := 0
			for _, sec := range c.show(h.Name).Sections {
				for _, u := range sec.Running {
					if u.Name == victimTask.Upstream {
						return false
					}
					if u.Healthy && u.Mode == "serving" {
						healthy++
					}
				}
			}
			if healthy != 4 {
				return false
			}
		}
		return true
	})
	if res := load.Stop(); res.Failed != 0 {
		t.Errorf("%v\n%v", res, res.Failures)
	}
}

// A task that is terminally dead leaves all proxies at once, and is replaced.
func TestADeadTaskIsReplaced(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=1,nginx=1")
	v := c.deploy(shop("v1")).must(t, 0).View
	c.killTask(v.Tasks[0].ID)
	c.eventually("the dead task is replaced on every Host", func() bool {
		for _, h := range c.refresh().Hosts {
			healthy := 0
			for _, sec := range c.show(h.Name).Sections {
				for _, u := range sec.Running {
					if u.Name == v.Tasks[0].Upstream {
						return false
					}
					if u.Healthy && u.Mode == "serving" {
						healthy++
					}
				}
			}
			if healthy != 4 {
				return false
			}
		}
		return true
	})
	c.serves("v1", "/shop")
}
