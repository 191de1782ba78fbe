package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// smallDisk is a directory of a cluster on a disk that can be full.
type smallDisk struct {
	c   *cluster
	dir string
	// pid is who writes there, where no disk can be made: then it may not write any further instead.
	pid func() int
	// says is a part of the error of a write.
	says string
}

// onSmallDisk puts a directory, which nobody uses now, on a disk of its own of so many bytes.
func (c *cluster) onSmallDisk(dir string, size int, pid func() int) *smallDisk {
	c.t.Helper()
	d := &smallDisk{c: c, dir: dir, pid: pid, says: unix.ENOSPC.Error()}
	was := dir + ".was"
	if err := os.Rename(dir, was); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size))
	switch {
	case errors.Is(err, unix.EPERM): // a container that may not mount
		d.says = unix.EFBIG.Error()
	case err != nil:
		c.t.Fatalf("mount %s: %v", dir, err)
	default:
		// Lazily: processes that are stopped later than this may still be there.
		c.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	if out, err := exec.Command("cp", "-a", was+"/.", dir).CombinedOutput(); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
	return d
}

func (d *smallDisk) filler() string { return filepath.Join(d.dir, "filler") }

// fill leaves no room.
func (d *smallDisk) fill() {
	d.c.t.Helper()
	if d.says == unix.EFBIG.Error() {
		d.limit(1)
		return
	}
	f, err := os.Create(d.filler())
	if err != nil {
		d.c.t.Fatal(err)
	}
	defer f.Close()
	for block := bytes.Repeat([]byte("x"), 64<<10); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			d.c.t.Fatal(err)
		}
	}
}

// free makes room again.
func (d *smallDisk) free() {
	d.c.t.Helper()
	if d.says == unix.EFBIG.Error() {
		d.limit(unix.RLIM_INFINITY)
		return
	}
	if err := os.Remove(d.filler()); err != nil {
		d.c.t.Fatal(err)
	}
}

// limit bounds the files that the process may write. One that is started later has no bound: that is a disk that has room.
func (d *smallDisk) limit(bytes uint64) {
	if err := unix.Prlimit(d.pid(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY}, nil); err != nil && !errors.Is(err, unix.ESRCH) {
		d.c.t.Fatal(err)
	}
}

// The disk of a Host's journal is full: before a deploy it votes no, between Ready and Activate it changes nothing and says so,
// after the decision it serves on as decided and lets go of nothing. An lbagent that was killed meanwhile starts when there is
// room. Nothing is lost, and as soon as there is room everything ends by itself.
func TestDrillAHostsDiskIsFull(t *testing.T) {
	t.Parallel()
	d := newCrashDrillOf(t, "haproxy=1,nginx=1", "--restore-deadline", "3s")
	host := d.hosts[1]
	own := filepath.Join(d.dir, "hosts", host)
	back := d.takeAway(host)
	disk := d.onSmallDisk(filepath.Join(own, "agent"), 1<<20, func() int { return d.host(host).AgentPID })
	back()
	d.agrees(host)
	before := d.still()
	named := func(what string, v deploy.View) {
		t.Helper()
		if !strings.Contains(v.Reason, host) || !strings.Contains(v.Reason, disk.says) {
			t.Errorf("%s: the reason names neither %s nor %q: %s", what, host, disk.says, v.Reason)
		}
	}
	// begins is the next deploy, whose lbagent on the small disk stands still at the moment.
	begins := func(label string) (id string, goOn func()) {
		t.Helper()
		pid := d.host(host).AgentPID
		hold := arm(t, own, label+" stop")
		id, _ = d.begin()
		d.eventually("the lbagent comes to "+label, hold.reached)
		return id, func() { d.signal(pid, syscall.SIGCONT) }
	}

	disk.fill()
	id, _ := d.begin()
	res := d.watch(id).must(t, deploy.ExitRolledBack)
	named("full before Prepare", res.View)
	disk.free()
	d.rest("full before Prepare")
	d.asBefore(before, "full before Prepare")

	id, goOn := begins("before-activating")
	disk.fill()
	goOn()
	res = d.watch(id).must(t, deploy.ExitStuck)
	named("full before Activate", res.View)
	if alive := d.aliveBySpec("shop"); len(alive) != 2 {
		t.Errorf("NO-ORPHAN-KILL: %s cannot say that it is restored, and only tasks of one version live: %v", host, alive)
	}
	disk.free()
	d.eventually("it is rolled back by itself", func() bool { return d.view(id).State == deploy.RolledBack })
	d.rest("full before Activate")
	d.asBefore(before, "full before Activate")

	id, goOn = begins("before-committed")
	disk.fill()
	goOn()
	res = d.watch(id).must(t, 0)
	d.evident(res.View)
	if disk.says == unix.ENOSPC.Error() {
		d.signal(d.host(host).AgentPID, syscall.SIGKILL)
		d.eventually("the lbagent says why it does not start", func() bool {
			log, err := os.ReadFile(filepath.Join(own, "log", "lbagent.log"))
			return err == nil && strings.Contains(tail(string(log), 500), disk.says)
		})
	}
	if alive := d.aliveBySpec("shop"); len(alive) != 2 {
		t.Errorf("NO-ORPHAN-KILL: %s has not let go, and only tasks of one version live: %v", host, alive)
	}
	disk.free()
	d.serving = fmt.Sprintf("v%d", d.version)
	d.rest("full after the decision")
	if v := d.view(id); v.State != deploy.Succeeded {
		t.Errorf("it was succeeded, and is %s", v.State)
	}
}

// The disk of the orchestrator's state is full: its process ends and says why, before it tells anybody anything that it could
// not write. Everything serves on. It starts when there is room, and every deploy ends as its record says.
func TestDrillTheOrchestratorsDiskIsFull(t *testing.T) {
	t.Parallel()
	bin, err := buildCrashing()
	if err != nil {
		t.Fatal(err)
	}
	c := newClusterOf(t, bin, "haproxy=1,nginx=1")
	c.kill9()
	var pid func() int
	disk := c.onSmallDisk(filepath.Join(c.dir, "orchestrator"), 8<<20, func() int { return pid() })
	c.start()
	pid = c.orchestratorPID
	d := newCrashDrillOn(c)
	t.Cleanup(d.keepRunning())

	// Specs that need new pages of the file: small ones would find room in what is free there for long.
	large := func(version string) string {
		s := d.spec(version)
		pad := make([]byte, 15<<10)
		_, _ = rand.Read(pad)
		s.Command = fmt.Sprintf("exec %s --addr $HOST:$PORT0 --version %s # %s", sampleBin, version, hex.EncodeToString(pad))
		return d.cluster.spec(s)
	}
	first := pid()
	hold := arm(t, d.dir, "before-write-decision stop")
	ids := []string{d.cli("deploy", "-f", large("full-0"), "-o", "json", "--detach").must(t, 0).View.DeployID}
	d.eventually("the decision is to be written", hold.reached)
	disk.fill()
	d.signal(first, syscall.SIGCONT)
	told := map[string]deploy.State{}
	for pid() == first {
		if len(ids) == 12 {
			t.Fatalf("the disk is full, and %d deploys were taken:\n%s", len(ids), tail(c.out.String(), 3000))
		}
		id := ids[len(ids)-1]
		if res := d.background("watch", id, "-o", "json", "--timeout", "10s").wait(); res.View.State != "" {
			told[id] = res.View.State
		}
		res := d.background("deploy", "-f", large(fmt.Sprintf("full-%d", len(ids))), "-o", "json", "--detach", "--timeout", "4s").wait()
		if res.View.DeployID != "" {
			ids = append(ids, res.View.DeployID)
		}
	}
	d.eventually("the orchestrator says why it ended", func() bool { return strings.Contains(c.out.String(), disk.says) })
	for _, url := range d.frontends() {
		if code, body, err := get(url + "/shop/x"); err != nil || code != 200 {
			t.Errorf("without an orchestrator %s answers %d %q %v", url, code, body, err)
		}
	}
	disk.free()
	type appStatus struct {
		deploy.AppView
		Deploy deploy.View `json:"deploy"`
	}
	var status appStatus
	d.poll(generous, "the orchestrator is back, and the last deploy has ended", func() bool {
		res := d.background("status", "shop", "-o", "json").wait()
		status = appStatus{} // what is not in the answer is empty
		return res.Code == 0 && json.Unmarshal([]byte(res.Stdout), &status) == nil && status.OpenDeploy == "" && status.Deploy.State != deploy.Running
	})
	t.Logf("%d deploys on a full disk, told %v; then the last is %s (%s), committed is %s", len(ids), told, status.Deploy.State, status.Deploy.Reason, status.Version)
	for _, id := range ids {
		v := d.view(id)
		if was, ok := told[id]; ok && was != deploy.Running && was != v.State {
			t.Errorf("deploy %s was told as %s, and is %s", id, was, v.State)
		}
		if v.State == deploy.Succeeded {
			d.evident(v)
		}
	}
	d.serving = status.Version
	d.rest("there is room again")
	id, version := d.begin()
	d.watch(id, "--wait-for", "drained").must(t, 0)
	d.serving = version
	d.rest("a deploy after that")
}
