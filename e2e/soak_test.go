package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/loadgen"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// amountOf is how much a test does: from the environment, or what every day allows.
func amountOf(t *testing.T, env string, everyDay int) int {
	t.Helper()
	s := os.Getenv(env)
	if s == "" {
		return everyDay
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number from 1", env, s)
	}
	return n
}

// soak is a cluster under load in which something is killed or stopped every moment.
type soak struct {
	*cluster
	hosts []string
	loads map[string]*loadgen.Run // by Host

	mu   sync.Mutex
	out  map[string]bool // out of traffic now
	done map[string]int  // what was done, by kind
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	s := &soak{cluster: newCluster(t, "haproxy=1,nginx=1,nginx-reload=1"), loads: map[string]*loadgen.Run{}, out: map[string]bool{}, done: map[string]int{}}
	s.deploy(s.spec("v0")).must(t, 0)
	for _, h := range s.info.Hosts {
		s.hosts = append(s.hosts, h.Name)
		o := loadgen.Options{URLs: []string{h.FrontendURL}, Path: "/shop/buy", SlowPath: "/shop/slow?ms=700", Close: 2, KeepAlive: 2, Slow: 1, Think: 10 * time.Millisecond}
		if h.Driver == "nginx-reload" {
			o.KeepAlive, o.Slow = 0, 0 // a reload of this nginx resets idle connections: its stated limit
		}
		s.loads[h.Name] = s.loadWith(o)
	}
	t.Cleanup(s.keepRunning())
	return s
}

func (s *soak) spec(version string, flags ...string) specFile {
	f := shop(version, flags...)
	f.Instances, f.Interval = 2, 100*time.Millisecond
	return f
}

func (s *soak) inTraffic(host string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.out[host]
}

// takeOut takes a Host out of traffic, as the balancer before it would.
func (s *soak) takeOut(h devHost) {
	s.mu.Lock()
	s.out[h.Name] = true
	s.mu.Unlock()
	s.loads[h.Name].TakeOut(h.FrontendURL)
}

// putIn puts it in again when its proxy answers every time.
func (s *soak) putIn(h devHost) error {
	good := 0
	for deadline := time.Now().Add(generous); good < 10; <-time.After(20 * time.Millisecond) {
		if code, _, err := get(h.FrontendURL + "/shop/x"); err == nil && code == http.StatusOK {
			good++
		} else {
			good = 0
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not serve again", h.Name)
		}
	}
	s.mu.Lock()
	delete(s.out, h.Name)
	s.mu.Unlock()
	s.loads[h.Name].PutIn(h.FrontendURL)
	return nil
}

// trouble is one thing that happens to a process. It returns when the process is, or will be, back.
func (s *soak) trouble(kind string, host string, pause time.Duration) error {
	h, err := s.lookHost(host)
	if err != nil {
		return err
	}
	// A process that is between two lives cannot be killed: then nothing happens.
	kill := func(pid int, sig syscall.Signal) {
		if pid > 1 || pid < -1 {
			_ = syscall.Kill(pid, sig)
		}
	}
	stop := func(pid int) {
		kill(pid, syscall.SIGSTOP)
		<-time.After(pause)
		kill(pid, syscall.SIGCONT)
	}
	switch kind {
	case "orchestrator killed":
		kill(s.orchestratorPID(), syscall.SIGKILL)
	case "orchestrator stopped":
		stop(s.orchestratorPID())
	case "lbagent killed":
		kill(h.AgentPID, syscall.SIGKILL)
	case "lbagent stopped":
		stop(h.AgentPID)
	case "supervisor killed":
		kill(h.SupervisorPID, syscall.SIGKILL)
		return s.supervise(filepath.Join(s.dir, "hosts", host))
	case "supervisor stopped":
		stop(h.SupervisorPID)
	case "proxy killed":
		s.takeOut(h)
		kill(h.ProxyPID, syscall.SIGKILL)
		return s.putIn(h)
	case "proxy stopped":
		s.takeOut(h)
		stop(-h.ProxyPID)
		return s.putIn(h)
	default:
		return fmt.Errorf("unknown trouble %q", kind)
	}
	return nil
}

var troubles = []string{
	"orchestrator killed", "orchestrator stopped", "lbagent killed", "lbagent killed", "lbagent stopped", "supervisor killed",
	"supervisor stopped", "proxy killed", "proxy stopped",
}

// lookHost reads dev.json without failing the test: it is called from other goroutines.
func (s *soak) lookHost(name string) (devHost, error) {
	info, err := readInfo(s.dir)
	if err != nil {
		return devHost{}, err
	}
	i := slices.IndexFunc(info.Hosts, func(h devHost) bool { return h.Name == name })
	if i < 0 {
		return devHost{}, fmt.Errorf("no Host %s", name)
	}
	return info.Hosts[i], nil
}

// supervise starts the supervisor of a directory, as the init of that machine would.
func (c *cluster) supervise(dir string) error {
	log, err := os.OpenFile(filepath.Join(dir, "log", "supervisor.log"), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(c.bin, "supervise", dir)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // it ends with the cluster
	return nil
}

// torment causes trouble every second or so until stop is closed. Choices come from rng; when they happen does not.
func (s *soak) torment(rng *rand.Rand, stop <-chan struct{}) {
	for {
		kind, host := troubles[rng.IntN(len(troubles))], s.hosts[rng.IntN(len(s.hosts))]
		pause, next := time.Duration(100+rng.IntN(3000))*time.Millisecond, time.Duration(100+rng.IntN(2500))*time.Millisecond
		if err := s.trouble(kind, host, pause); err != nil {
			s.t.Errorf("%s: %v", kind, err)
			return
		}
		s.mu.Lock()
		s.done[kind]++
		s.mu.Unlock()
		select {
		case <-stop:
			return
		case <-time.After(next):
		}
	}
}

// attempt is one deploy of a soak and what has to be true of its end.
type attempt struct {
	kind string
	spec specFile
	id   string
}

// draw makes the next attempt: most should succeed, some cannot.
func (s *soak) draw(rng *rand.Rand, n int) attempt {
	version := fmt.Sprintf("v%d", n)
	switch rng.IntN(10) {
	case 0:
		sick := s.spec(version, "--never-healthy")
		sick.Grace = 2 * time.Second
		return attempt{kind: "never healthy", spec: sick}
	case 1:
		host, err := s.lookHost(s.hosts[rng.IntN(len(s.hosts))])
		if err != nil {
			s.t.Fatal(err)
		}
		refused := s.spec(version, "--refuse-from", host.address())
		refused.Deadline = s.missed(10 * time.Second)
		return attempt{kind: "refused by one Host", spec: refused}
	case 2:
		return attempt{kind: "aborted", spec: s.spec(version, "--start-delay", fmt.Sprintf("%dms", rng.IntN(1500)))}
	default:
		return attempt{kind: "good", spec: s.spec(version)}
	}
}

// Deploys under load while processes are killed and stopped at random: orchestrator, lbagents, supervisors, proxies. No success
// is false, nothing is stuck at the end, no request through a Host in traffic is lost. SOAK_DEPLOYS says how many (make soak:
// 500), SOAK_SEED draws the same again.
func TestSoak(t *testing.T) {
	deploys := amountOf(t, "SOAK_DEPLOYS", 12)
	seed, rng := seedOf(t, "SOAK_SEED")
	s := newSoak(t)
	stop, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		s.torment(rand.New(rand.NewPCG(seed, 1)), stop)
	}()
	end := sync.OnceFunc(func() { close(stop); <-over })
	t.Cleanup(end)

	began := time.Now()
	serving := "v0"
	ends := map[string]int{}
	var took []time.Duration
	stuck := 0
	for n := 1; n <= deploys && !t.Failed(); n++ {
		a := s.draw(rng, n)
		at := time.Now()
		a.id = s.cli("deploy", "-f", s.cluster.spec(a.spec), "-o", "json", "--detach", "--idempotency-key", fmt.Sprint("soak-", n)).must(t, 0).View.DeployID
		if a.kind == "aborted" {
			<-time.After(time.Duration(rng.IntN(2000)) * time.Millisecond) // anywhere in the deploy
			s.cli("abort", a.id, "--detach")
		}
		res := s.cli("watch", a.id, "-o", "json", "--timeout", "5m")
		if res.Code == deploy.ExitStuck {
			stuck++
			t.Logf("%s is stuck for now: %s", a.id, res.View.Reason)
			s.within(2*time.Minute, a.id+" gets unstuck by itself", func() bool { return s.view(a.id).State != deploy.Stuck })
			res = s.cli("watch", a.id, "-o", "json", "--timeout", "5m")
		}
		took = append(took, time.Since(at))
		ends[fmt.Sprintf("%s: %s", a.kind, res.View.State)]++
		switch {
		case res.Code == 0 && (a.kind == "good" || a.kind == "aborted"):
			serving = a.spec.Version
			s.evident(res.View)
		case res.Code == deploy.ExitAborted && a.kind == "aborted":
		case res.Code == 3:
			if a.kind == "good" {
				t.Logf("%s is rolled back: %s", a.id, res.View.Reason)
			}
		default:
			t.Fatalf("%s %s: %v", a.kind, a.id, res)
		}
		s.servesNow(serving, fmt.Sprintf("%s %s, exit %d", a.kind, a.id, res.Code))
		for host, l := range s.loads {
			if r := l.Result(); r.Failed != 0 {
				t.Fatalf("after %s %s: %s lost requests: %v\n%v", a.kind, a.id, host, r, r.Failures)
			}
		}
	}
	end()
	s.within(2*time.Minute, "every Host agrees, and only committed tasks live", func() bool {
		<-time.After(50 * time.Millisecond)
		for _, h := range s.hosts {
			show := s.show(h)
			if len(show.Sections) != 1 || !show.Sections[0].Agrees || show.Sections[0].Open != "" || len(show.Sections[0].Running) != 2 {
				return false
			}
		}
		return len(s.aliveBySpec("shop")) == 1
	})
	s.servesNow(serving, "at the end")
	var sent uint64
	for host, l := range s.loads {
		r := l.Stop()
		sent += r.Sent
		if r.Failed != 0 {
			t.Errorf("%s lost requests: %v\n%v", host, r, r.Failures)
		}
	}
	slices.Sort(took)
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Logf("SOAK_SEED=%d: %d deploys in %s: %v; stuck for a while %d, at the end 0; false successes 0; %d requests, 0 lost; troubles %v; a deploy took p50 %s, p99 %s, at most %s",
		seed, len(took), time.Since(began).Round(time.Second), ends, stuck, sent, s.done,
		took[len(took)/2].Round(time.Millisecond), took[len(took)*99/100].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
}

// servesNow: every Host in traffic serves the version and nothing else, at once: that is what the end of a deploy has said.
func (s *soak) servesNow(version, what string) {
	s.t.Helper()
	for _, h := range s.refresh().Hosts {
		for range 5 {
			if !s.inTraffic(h.Name) {
				break
			}
			code, body, err := get(h.FrontendURL + "/shop/x")
			if err == nil && code == http.StatusOK && strings.HasPrefix(body, version+" ") {
				continue
			}
			if s.inTraffic(h.Name) { // it may have been taken out meanwhile
				s.t.Fatalf("%s: %s serves %d %q %v, want %s", what, h.Name, code, body, err, version)
			}
		}
	}
}
