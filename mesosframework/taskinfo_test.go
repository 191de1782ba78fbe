package mesosframework

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"pgregory.net/rapid"

	"github.com/cutover/cutover/mesosframework/placement"
)

func testLaunch() *Launch {
	return &Launch{TaskID: "t1", App: "shop", AgentID: "a1", Hostname: "host-a1", Host: "10.0.0.1", Ports: []uint16{31005, 31007}}
}

func environment(c *mesos.CommandInfo) map[string]string {
	m := map[string]string{}
	for _, v := range c.Environment.Variables {
		m[v.Name] = v.GetValue()
	}
	return m
}

func TestTaskInfo(t *testing.T) {
	s := TaskSpec{
		ID: "t1", App: "shop", Command: "serve", Args: []string{"--port", "${PORT1}", "$PORT0 ${OTHER}"}, Env: map[string]string{"URL": "http://${HOST}:${PORT0}/"},
		CPUs: 0.5, MemoryMB: 64, Ports: 2, KillGrace: 10 * time.Second, Labels: map[string]string{"b": "2", "a": "1"},
		Artifacts: []Artifact{{URI: "http://x/app.tgz", Extract: true}, {URI: "file:///run", Executable: true, OutputFile: "bin/run"}},
	}
	offer := mesosOffer("o1", "a1")
	left := stock(offer.Resources).clone()
	info, err := taskInfo(&s, testLaunch(), left)
	if err != nil {
		t.Fatal(err)
	}
	wantEnv := map[string]string{
		"URL": "http://10.0.0.1:31005/", "HOST": "10.0.0.1", "PORT": "31005", "PORT0": "31005", "PORT1": "31007", "PORTS": "31005,31007",
		"TASK_ID": "t1", "CUTOVER_TASK_ID": "t1", "CUTOVER_APP": "shop", "CUTOVER_AGENT_ID": "a1", "CUTOVER_HOSTNAME": "host-a1",
	}
	if d := cmp.Diff(wantEnv, environment(info.Command)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"serve", "--port", "31007", "$PORT0 ${OTHER}"}, info.Command.Arguments); d != "" || *info.Command.Shell {
		t.Error(d, *info.Command.Shell)
	}
	if info.KillPolicy.GracePeriod.Nanoseconds != 10e9 || info.Name != "shop" || info.Labels.Labels[0].Key != "a" {
		t.Errorf("%+v", info)
	}
	if u := info.Command.URIs; !*u[0].Extract || *u[1].Extract || !*u[1].Executable || *u[1].OutputFile != "bin/run" {
		t.Errorf("uris %+v", u)
	}
	cpus, mem, _, ports := total(left)
	if cpus != 3.5 || mem != 4032 {
		t.Errorf("%g cpus and %g MiB are left", cpus, mem)
	}
	if d := cmp.Diff([]placement.PortRange{{Begin: 31000, End: 31004}, {Begin: 31006, End: 31006}, {Begin: 31008, End: 31099}}, ports); d != "" {
		t.Error(d)
	}
	if c, _, _, _ := total(offer.Resources); c != 4 {
		t.Error("the offer itself was changed")
	}
	if _, err := taskInfo(&s, testLaunch(), left); err == nil {
		t.Error("the same ports twice")
	}
}

func TestResourcesKeepTheirReservations(t *testing.T) {
	scalar := mesos.SCALAR
	role := "web"
	static := mesos.Resource_ReservationInfo_STATIC
	reserved := []mesos.Resource_ReservationInfo{{Type: &static, Role: &role}}
	s := stock{
		{Name: "cpus", Type: &scalar, Scalar: &mesos.Value_Scalar{Value: 0.3}, Reservations: reserved},
		{Name: "cpus", Type: &scalar, Scalar: &mesos.Value_Scalar{Value: 1}},
	}.clone()
	got, ok := s.scalar("cpus", 0.5)
	if !ok || len(got) != 2 || got[0].Scalar.Value != 0.3 || len(got[0].Reservations) != 1 || got[1].Scalar.Value != 0.2 || got[1].Reservations != nil {
		t.Errorf("%v %+v", ok, got)
	}
	if _, ok := s.scalar("cpus", 0.9); ok {
		t.Error("more than there is")
	}
	for _, bad := range []mesos.Resource{
		{Name: "cpus", Scalar: &mesos.Value_Scalar{}, Revocable: &mesos.Resource_RevocableInfo{}}, {Name: "disk", Scalar: &mesos.Value_Scalar{}, Disk: &mesos.Resource_DiskInfo{}},
		{Name: "gpus", Scalar: &mesos.Value_Scalar{}}, {Name: "ports"},
	} {
		if usable(&bad) {
			t.Errorf("%+v is called usable", bad)
		}
	}
}

func TestCarvingProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scalar := mesos.SCALAR
		var s stock
		var sum int64
		for range rapid.IntRange(0, 4).Draw(t, "n") {
			v := rapid.Int64Range(0, 5000).Draw(t, "milli")
			sum += v
			s = append(s, mesos.Resource{Name: "cpus", Type: &scalar, Scalar: &mesos.Value_Scalar{Value: float64(v) / 1000}})
		}
		for range 10 {
			want := rapid.Int64Range(0, 3000).Draw(t, "want")
			if want > sum {
				break
			}
			got, ok := s.scalar("cpus", float64(want)/1000)
			var took int64
			for _, r := range got {
				took += toMilli(r.Scalar.Value)
			}
			if !ok || took != want {
				t.Fatalf("took %d of %d, %v", took, want, ok)
			}
			sum -= want
			if c, _, _, _ := total(s); toMilli(c) != sum {
				t.Fatalf("%g left, want %d milli", c, sum)
			}
		}
	})
}

// TestArtifactChecks runs the command in a real shell, as an agent would.
func TestArtifactChecks(t *testing.T) {
	for _, tool := range []string{"sh", "sha256sum", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	plain := []byte("data\n")
	name := "it's; a $(touch pwned) file.txt"
	if err := os.WriteFile(filepath.Join(dir, name), plain, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "inner.txt"), []byte("inner\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", dir, "-czf", filepath.Join(dir, "pkg.tgz"), "inner.txt").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	if err := os.Remove(filepath.Join(dir, "inner.txt")); err != nil {
		t.Fatal(err)
	}
	pkg, err := os.ReadFile(filepath.Join(dir, "pkg.tgz"))
	if err != nil {
		t.Fatal(err)
	}
	sum := func(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }
	run := func(s TaskSpec) (string, string, int) {
		t.Helper()
		s.ID, s.App, s.CPUs = "t1", "shop", 1
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		c := commandInfo(&s, placedEnv(&s, testLaunch()))
		if !*c.Shell || len(c.Arguments) > 0 {
			t.Fatalf("not a shell command: %+v", c)
		}
		for i, u := range c.URIs {
			if *u.Extract && s.Artifacts[i].SHA256 != "" {
				t.Error("the agent would unpack an archive before its check")
			}
		}
		cmd := exec.Command("sh", "-c", *c.Value)
		cmd.Dir = dir
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
	}

	good := []Artifact{{URI: "http://x/y", OutputFile: name, SHA256: strings.ToUpper(sum(plain))}, {URI: "http://x/pkg.tgz?v=1", Extract: true, SHA256: sum(pkg)}}
	if out, errs, code := run(TaskSpec{Command: "cat inner.txt; echo done", Artifacts: good}); out != "inner\ndone\n" || code != 0 {
		t.Errorf("good: %q %q %d", out, errs, code)
	}
	if out, _, code := run(TaskSpec{Command: "printf", Args: []string{"<%s>", "a 'b' $HOME"}, Artifacts: good}); out != "<a 'b' $HOME>" || code != 0 {
		t.Errorf("with arguments: %q %d", out, code)
	}
	if _, _, code := run(TaskSpec{Command: "exit 9", Artifacts: good}); code != 9 {
		t.Errorf("exit status %d", code)
	}
	bad := []Artifact{{URI: "http://x/y", OutputFile: name, SHA256: sum(pkg)}}
	if out, errs, code := run(TaskSpec{Command: "echo started", Artifacts: bad}); out != "" || code != 67 || !strings.Contains(errs, "cutover: the sha256 of ./"+name+" is not the one in the spec") {
		t.Errorf("bad: %q %q %d", out, errs, code)
	}
	if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
		t.Error("a file name was run as a command")
	}
}

func TestValidate(t *testing.T) {
	for name, change := range map[string]func(*TaskSpec){
		"no id": func(s *TaskSpec) { s.ID = "" }, "slash": func(s *TaskSpec) { s.ID = "a/b" }, "dots": func(s *TaskSpec) { s.ID = ".." },
		"long id": func(s *TaskSpec) { s.ID = strings.Repeat("x", 256) }, "blank": func(s *TaskSpec) { s.ID = "a b" }, "no app": func(s *TaskSpec) { s.App = "" },
		"no command": func(s *TaskSpec) { s.Command = " " }, "nothing": func(s *TaskSpec) { s.CPUs, s.MemoryMB = 0, 0 }, "negative": func(s *TaskSpec) { s.DiskMB = -1 },
		"ports": func(s *TaskSpec) { s.Ports = 101 }, "grace": func(s *TaskSpec) { s.KillGrace = -1 },
		"reserved": func(s *TaskSpec) { s.Env = map[string]string{"PORT7": "1"} }, "reserved prefix": func(s *TaskSpec) { s.Env = map[string]string{"CUTOVER_X": "1"} },
		"env name": func(s *TaskSpec) { s.Env = map[string]string{"A=B": "1"} }, "env nul": func(s *TaskSpec) { s.Env = map[string]string{"A": "\x00"} },
		"arg nul": func(s *TaskSpec) { s.Args = []string{"\x00"} }, "constraint": func(s *TaskSpec) { s.Constraints = []placement.Constraint{{}} },
		"digest": func(s *TaskSpec) { s.Artifacts = []Artifact{{URI: "http://x/y", SHA256: "00"}} }, "uri": func(s *TaskSpec) { s.Artifacts = []Artifact{{URI: "http://x/'; rm"}} },
		"escape": func(s *TaskSpec) { s.Artifacts = []Artifact{{URI: "http://x/y", OutputFile: "../y"}} }, "absolute": func(s *TaskSpec) { s.Artifacts = []Artifact{{URI: "http://x/y", OutputFile: "/etc/y"}} },
		"no file": func(s *TaskSpec) { s.Artifacts = []Artifact{{URI: "http://x/.."}} },
	} {
		s := spec("t1")
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&s)
		if err := s.Validate(); err == nil {
			t.Errorf("%s passed", name)
		}
	}
}
