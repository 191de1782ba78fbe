package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/pki"
	"github.com/cutover/cutover/internal/servertest/consultest"
	"github.com/cutover/cutover/internal/servertest/redistest"
	"github.com/cutover/cutover/lbagent/daemon"
	"github.com/cutover/cutover/lbagent/haproxy"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// newcomer is a Host with HAProxy that no cluster has declared: it announces itself.
type newcomer struct {
	c      *cluster
	name   string
	dir    string
	config daemon.Config
}

// newcomer starts the proxy of a Host beside the cluster's own, which announces itself in Consul when its lbagent runs.
func (c *cluster) newcomer(name, consul string, octet byte) *newcomer {
	c.t.Helper()
	ip, err := netip.ParseAddr(c.info.Hosts[0].address())
	if err != nil {
		c.t.Fatal(err)
	}
	four := ip.As4()
	four[3] = octet
	ip = netip.AddrFrom4(four)
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(ip, port) }
	n := &newcomer{c: c, name: name, dir: filepath.Join(c.dir, name)}
	in := func(path string) string { return filepath.Join(n.dir, path) }
	for _, dir := range []string{"run", "agent"} {
		if err := os.MkdirAll(in(dir), 0o700); err != nil {
			c.t.Fatal(err)
		}
	}
	ca, err := pki.OpenAuthority(filepath.Join(c.dir, "pki", "ca"), "dev")
	if err != nil {
		c.t.Fatal(err)
	}
	if err := ca.Issue(in("tls"), "lbagent", name, net.IP(ip.AsSlice())); err != nil {
		c.t.Fatal(err)
	}
	n.config = daemon.Config{
		Cluster: "dev", Group: "public", Name: name, Dir: in("agent"), Listen: at(8600).String(), ReadyListen: at(8601).String(), TLSDir: in("tls"),
		Announce: &daemon.Announce{Consul: consul},
		Proxy: daemon.Proxy{
			Kind: daemon.HAProxy, Dir: in("proxy"), Base: in("haproxy.cfg"), Listen: []netip.AddrPort{at(8080)}, Source: ip,
			RuntimeSocket: in("run/haproxy.sock"), MasterSocket: in("run/master.sock"),
		},
	}
	base, err := haproxy.ExampleBase(haproxy.Base{RuntimeSocket: n.config.Proxy.RuntimeSocket, Source: ip})
	if err != nil {
		c.t.Fatal(err)
	}
	text, err := json.Marshal(n.config)
	if err != nil {
		c.t.Fatal(err)
	}
	for file, data := range map[string][]byte{n.config.Proxy.Base: base, in("lbagent.json"): text} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	n.run("proxy")
	return n
}

// run runs one of the Host's programs; the returned function ends it, and so does the end of the test.
func (n *newcomer) run(program string) (end func(syscall.Signal)) {
	n.c.t.Helper()
	log, err := os.OpenFile(filepath.Join(n.dir, program+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.c.t.Fatal(err)
	}
	cmd := exec.Command(cutoverBin, program, "--config", filepath.Join(n.dir, "lbagent.json"))
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, n.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		n.c.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); _ = log.Close(); close(done) }()
	end = func(sig syscall.Signal) {
		_ = syscall.Kill(-cmd.Process.Pid, sig)
		<-done
	}
	n.c.t.Cleanup(func() {
		end(syscall.SIGKILL)
		if n.c.t.Failed() {
			data, _ := os.ReadFile(log.Name())
			n.c.t.Logf("%s of %s:\n%s", program, n.name, tail(string(data), 2500))
		}
	})
	return end
}

// answers is what a client gets through the Host's proxy.
func (n *newcomer) answers() string {
	code, body, err := get("http://" + n.config.Proxy.Listen[0].String() + "/shop/x")
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(code, " ", body)
}

func (n *newcomer) serves(version string) {
	n.c.t.Helper()
	n.c.eventually(n.name+" serves "+version, func() bool { return strings.HasPrefix(n.answers(), "200 "+version+" ") })
}

func (c *cluster) membership(host string, ok func(wire.Membership) bool) {
	c.t.Helper()
	c.eventually(host+" is as wanted", func() bool {
		var list wire.HostList
		if err := json.Unmarshal([]byte(c.cli("lb", "hosts", "-o", "json").must(c.t, 0).Stdout), &list); err != nil {
			c.t.Fatal(err)
		}
		i := slices.IndexFunc(list.Hosts, func(h wire.Host) bool { return h.Name == host })
		return i >= 0 && ok(list.Hosts[i].Membership)
	})
}

// proved says which Hosts have proved a deploy.
func proved(v deploy.View) (names []string) {
	for _, h := range v.Hosts {
		if h.Vote == deploy.VoteVerified {
			names = append(names, h.Name)
		}
	}
	return names
}

// A Host announces itself in Consul, an operator admits it, and from then on no deploy succeeds without it: not when it is dead,
// not when Consul is dead, and not when both are.
func TestAHostAnnouncesItself(t *testing.T) {
	t.Parallel()
	consul := consultest.Start(t, consultest.Options{})
	c := newClusterWith(t, "haproxy=1", "--catalog", consul.URL)
	c.deploy(shop("v1")).must(t, 0)
	const host, own = "lb-new", "lb-haproxy-1"
	c.membership(own, func(m wire.Membership) bool {
		return m.Standing == "member" && m.Source == "hosts-file" && m.Notice == ""
	})

	n := c.newcomer(host, consul.URL, 240)
	stop := n.run("lbagent")
	c.membership(host, func(m wire.Membership) bool { return m.Standing == "announced" && m.Source == "consul" && m.Announced })
	if v := c.deploy(shop("v2")).must(t, 0).View; !slices.Equal(proved(v), []string{own}) {
		t.Errorf("a host that is only announced takes part: %+v", v.Hosts)
	}
	c.cli("lb", "drift").must(t, 0) // nobody asks it
	if res := c.cli("lb", "show", host).must(t, 1); !strings.Contains(res.Stderr, "not admitted") {
		t.Errorf("lb show of it: %v", res)
	}
	c.cli("lb", "admit", host, "--reason", "more room").must(t, 0)
	n.serves("v2")
	both := []string{own, host}
	if v := c.deploy(shop("v3")).must(t, 0).View; !slices.Equal(proved(v), both) {
		t.Errorf("hosts of v3: %+v", v.Hosts)
	}
	n.serves("v3")

	consul.Kill()
	c.eventually("the command line says that the catalog is away", func() bool {
		return strings.Contains(c.cli("lb", "hosts").must(t, 0).Stdout, "the catalog (consul) cannot be read since")
	})
	if v := c.deploy(shop("v4")).must(t, 0).View; !slices.Equal(proved(v), both) {
		t.Errorf("hosts of v4, without Consul: %+v", v.Hosts)
	}
	stop(syscall.SIGKILL)
	c.eventually("its lbagent is away", func() bool { return !c.lbHost(host).Connected })
	dead := shop("v5")
	dead.Deadline = c.missed(10 * time.Second)
	if v := c.deploy(dead).must(t, 3).View; !strings.Contains(v.Reason, host) {
		t.Errorf("reason of v5 does not name the host: %s", v.Reason)
	}
	n.serves("v4") // its proxy does not need the lbagent

	// Without its entry it stays what it is, and says so; it comes back although Consul does not know it.
	consul.Start()
	if err := consul.Client(t).Agent().ServiceDeregister("cutover-lbagent-dev-" + host); err != nil {
		t.Fatal(err)
	}
	c.membership(host, func(m wire.Membership) bool {
		return m.Standing == "member" && !m.Announced && strings.Contains(m.Notice, "no longer")
	})
	n.run("lbagent")
	c.membership(host, func(m wire.Membership) bool { return m.Standing == "member" && m.Announced && m.Notice == "" })
	c.eventually("its lbagent is there", func() bool { return c.lbHost(host).Connected })
	if v := c.deploy(shop("v6")).must(t, 0).View; !slices.Equal(proved(v), both) {
		t.Errorf("hosts of v6: %+v", v.Hosts)
	}
	n.serves("v6")
}

// Where there are several orchestrators, the next leader hears the catalog itself, and goes by what was admitted.
func TestANewLeaderHearsTheCatalog(t *testing.T) {
	t.Parallel()
	c := &ledCluster{consul: consultest.Start(t, consultest.Options{}), redis: redistest.Start(t, redistest.Options{})}
	c.cluster = newClusterWith(t, "haproxy=1", "--orchestrators", "2", "--consul", c.consul.URL, "--store", c.redis.URL, "--session-ttl", "3s",
		"--catalog", c.consul.URL)
	const host, own = "lb-new", "lb-haproxy-1"
	leader := c.second()
	n := c.newcomer(host, c.consul.URL, 240)
	n.run("lbagent")
	c.membership(host, func(m wire.Membership) bool { return m.Standing == "announced" && m.Source == "consul" })
	handOver := func() {
		c.signal(leader.PID, syscall.SIGTERM)
		old := leader.Name
		c.eventually("another one leads", func() bool { leader = c.leader(); return leader.Name != old })
	}
	handOver()
	c.membership(host, func(m wire.Membership) bool { return m.Standing == "announced" && m.Announced })
	c.cli("lb", "admit", host, "--reason", "more room").must(t, 0)
	if v := c.deploy(shop("v1")).must(t, 0).View; !slices.Equal(proved(v), []string{own, host}) {
		t.Errorf("hosts of v1: %+v", v.Hosts)
	}
	leader = c.second()
	c.membership(host, func(m wire.Membership) bool { return m.Standing == "member" && m.Announced && m.Notice == "" })
	if v := c.deploy(shop("v2")).must(t, 0).View; !slices.Equal(proved(v), []string{own, host}) {
		t.Errorf("hosts of v2: %+v", v.Hosts)
	}
}
