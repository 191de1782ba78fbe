package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// driftOf is what `cutover lb drift -o json` says.
type driftReport struct {
	Hosts []struct {
		Host        struct{ Name string }
		Policy      string
		Differences []driftEntry
		Repaired    []driftEntry
	}
	Unknown []struct{ Host, Error string }
}

type driftEntry struct{ App, Cause, Place, Summary, Diff string }

func (c *cluster) drift(args ...string) (driftReport, int) {
	c.t.Helper()
	res := c.cli(append([]string{"lb", "drift", "-o", "json"}, args...)...)
	var out driftReport
	if err := json.Unmarshal([]byte(res.Stdout), &out); err != nil {
		c.t.Fatalf("lb drift: %v\n%v", err, res)
	}
	return out, res.Code
}

// putRight waits until a difference that matches was put right by the Host and nothing differs any more.
func (c *cluster) putRight(host, what string, match func(driftEntry) bool) {
	c.t.Helper()
	c.eventually(host+": "+what+" is told and put right", func() bool {
		d, code := c.drift(host)
		return code == 0 && len(d.Hosts) == 1 && slices.ContainsFunc(d.Hosts[0].Repaired, match)
	})
}

// Whatever somebody does behind Cutover's back is told with its likely cause and a diff, and put right, without a request
// lost. The exit code is that of `plan`: 0 nothing, 2 something.
func TestDrillForeignHands(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "haproxy=1,nginx=1")
	c.deploy(shop("v1")).must(t, 0)
	if d, code := c.drift(); code != 0 || len(d.Hosts) != 2 {
		t.Fatalf("after a deploy: exit %d, %+v", code, d)
	}
	load := c.load("/shop")
	for _, h := range c.info.Hosts {
		c.putRight(h.Name, "an edited file", c.editOwnFile(h.Name))
	}
	name := "lb-haproxy-1"
	servers := c.runtime(name, "show servers state")
	var server string
	for line := range strings.Lines(servers) {
		if f := strings.Fields(line); len(f) > 5 && strings.HasPrefix(f[3], "shop") && f[6] == "0" {
			server = f[1] + "/" + f[3]
		}
	}
	if server == "" {
		t.Fatalf("no server of shop in\n%s", servers)
	}
	c.runtime(name, "set server "+server+" weight 3")
	c.putRight(name, "a foreign command", func(d driftEntry) bool {
		return d.App == "shop" && d.Cause == "foreign-command" && strings.Contains(d.Diff, "weight 3") && strings.Contains(d.Diff, "-upstream")
	})
	off := func(d driftEntry) bool { return strings.Contains(d.Diff, "switched off") }
	c.eventually("a check that was switched off is told", func() bool {
		// The repair of the weight may not be over, and put this right too before anybody has looked.
		c.runtime(name, "disable health "+server)
		d, _ := c.drift(name)
		return len(d.Hosts) == 1 && (slices.ContainsFunc(d.Hosts[0].Differences, off) || slices.ContainsFunc(d.Hosts[0].Repaired, off))
	})
	c.putRight(name, "a check that was switched off", off)

	// A base configuration that no longer includes our tree: only its owner can put that right, so it stands.
	base := c.base("lb-nginx-1")
	good, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	bad := strings.Replace(string(good), "include cutover/*.conf;", "", 1)
	if err := os.WriteFile(base, []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	var told driftReport
	c.eventually("the lost include is told", func() bool {
		var code int
		told, code = c.drift("lb-nginx-1")
		return code == 2 && len(told.Hosts) == 1 && len(told.Hosts[0].Differences) == 1 && told.Hosts[0].Differences[0].Cause == "changed-base"
	})
	c.eventually("lb hosts counts it", func() bool {
		return strings.Contains(c.cli("lb", "hosts", "-o", "json").must(t, 0).Stdout, `"drift":1`)
	})
	if res := c.cli("lb", "drift"); res.Code != 2 || !strings.Contains(res.Stdout, "the owner's configuration changed") {
		t.Errorf("in words: %v", res)
	}
	if err := os.WriteFile(base, good, 0o600); err != nil {
		t.Fatal(err)
	}
	c.eventually("nothing differs", func() bool { _, code := c.drift(); return code == 0 })
	if res := load.Stop(); res.Failed != 0 {
		t.Errorf("%v\n%v", res, res.Failures)
	}
	c.serves("v1", "/shop")
	c.deploy(shop("v2")).must(t, 0)
}

// editOwnFile changes a file of the published tree that holds the App, and returns what the report of it must say.
func (c *cluster) editOwnFile(host string) func(driftEntry) bool {
	c.t.Helper()
	path, text := c.ownFile(host)
	if err := os.WriteFile(path, append(text, "# mine\n"...), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return func(d driftEntry) bool {
		return d.Cause == "edited-file" && d.App == "shop" && d.Place == path && strings.Contains(d.Diff, "+# mine")
	}
}

// runtime gives HAProxy a command behind the agent's back.
func (c *cluster) runtime(host, command string) string {
	c.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(c.dir, "hosts", host, "run", "haproxy.sock"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(generous)); err != nil {
		c.t.Fatal(err)
	}
	fmt.Fprintln(conn, command)
	var out strings.Builder
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		out.Write(buf[:n])
		if err != nil {
			return out.String()
		}
	}
}
