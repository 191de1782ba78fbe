package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/simulated"
	"github.com/cutover/cutover/mesosframework/localmesos/manytasks"
	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/auth"
	"github.com/cutover/cutover/orchestrator/client"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/lead"
	"github.com/cutover/cutover/orchestrator/store"
	"github.com/cutover/cutover/orchestrator/store/boltstore"
)

// benchRestart measures how long a whole orchestrator takes from the start of its process until every open Deploy has made
// its next step, with 1,000 Apps of 20 tasks.
//
// What runs: `cutover orchestrator` as in production on its bbolt store, killed with -9 and started again; in the benchmark's
// process the Mesos of package manytasks, and lbagents as in production on simulated proxies. All of it shares this
// machine's processors; what the orchestrator itself needs of them is printed beside.
//
// The open Deploys are a quarter each: launching, their tasks began to run while nobody led; checking, their tasks became
// healthy meanwhile; preparing, with a transaction that the new term has to give up; and killing, the old tasks ended
// meanwhile.
func benchRestart(b *testing.B, t *table) {
	apps := envInt("BENCH_APPS", 1000)
	o := newWholeOrchestrator(b, envInt("BENCH_HOSTS", 4), nil)
	name := fmt.Sprintf("recovery: orchestrator, %d Apps x %d tasks", apps, tasksPerApp)
	b.ReportMetric(0, "ns/op") // of no meaning here
	o.start()
	began := time.Now()
	o.fill(appsDeployed)
	t.note("%s: %d of them were deployed through the API, in %.0f s", name, appsDeployed, time.Since(began).Seconds())
	o.multiply(apps / appsDeployed)
	var took, answered, used, weighs []float64
	steps := make([][]float64, len(openSteps))
	for round := range restartRounds {
		open := o.leaveOpen(round)
		o.kill()
		killed := time.Now()
		o.mesos.Release()
		started := o.start()
		answered = append(answered, ms(time.Since(started)))
		var slowest time.Duration
		for i, at := range o.moved(open, killed) {
			spent := at.Sub(started)
			slowest = max(slowest, spent)
			steps[i] = append(steps[i], ms(spent))
		}
		took = append(took, ms(slowest))
		used = append(used, ms(o.cpu()))
		weighs = append(weighs, weigh(b, o.cmd.Process.Pid).resident)
		o.settle(open)
	}
	b.ReportMetric(quantile(took, 0.5), "moving-ms")
	t.add(figure{name: name + ", process start to all open Deploys moving", bar: 2000, unit: "ms", values: took, polling: pollingNone})
	t.add(figure{name: name + ", process start to the first answer", unit: "ms", values: answered, polling: pollingNone})
	t.add(figure{name: name + ", CPU of the process until then", unit: "ms", values: used, polling: pollingNone})
	t.memory(name+", VmRSS then", 0, weighs)
	for i, s := range openSteps {
		t.note("%s: the last of %d Deploys in %s moved after %.0f ms (p50)", name, openOfEach, s.step, quantile(steps[i], 0.5))
	}
}

const (
	tasksPerApp   = 20
	appsDeployed  = 125 // the others are copies of these
	restartRounds = 3
	openOfEach    = 10 // Deploys that are open in each step
	fillAtOnce    = 64
)

// quickProxy is a simulated proxy whose own checks are quick, however seldom the prober asks, or take for ever.
type quickProxy struct {
	*simulated.Driver
	mesos *manytasks.Cluster
}

// Converge implements driver.Driver.
func (p *quickProxy) Converge(ctx context.Context, want driver.Section) error {
	want.Upstreams = slices.Clone(want.Upstreams)
	for i := range want.Upstreams {
		want.Upstreams[i].Health.Interval = 50 * time.Millisecond
		if p.mesos.Holds(want.App) == manytasks.HoldWarm {
			want.Upstreams[i].Health.Interval = time.Hour
		}
	}
	return p.Driver.Converge(ctx, want)
}

// seat is one process of an orchestrator.
type seat struct {
	args []string
	url  string
	api  *client.Client
	cmd  *exec.Cmd
}

// wholeOrchestrator is an orchestrator's process with a Mesos and Hosts that outlive it.
type wholeOrchestrator struct {
	testing.TB
	seat
	dir   string
	mesos *manytasks.Cluster
	// other is the process that leads when this one does not; it is started only if they share their stores.
	other seat
	// shared is what it has in common with a second one; nil: it is alone, on bbolt.
	shared *sharedStores
}

func newWholeOrchestrator(b testing.TB, hosts int, shared *sharedStores) *wholeOrchestrator {
	b.Helper()
	o := &wholeOrchestrator{TB: b, dir: b.TempDir(), mesos: manytasks.New(b), shared: shared}
	var declared strings.Builder
	declared.WriteString("hosts:\n")
	for _, h := range hostsOn(b, o.path("hosts"), hosts, func() driver.Driver { return &quickProxy{simulated.New(simulated.HAProxy()), o.mesos} }) {
		fmt.Fprintf(&declared, "  - {name: %s, group: %s, agent_url: %q}\n", h.Name, h.Group, h.AgentURL)
	}
	token, err := auth.NewToken()
	if err != nil {
		b.Fatal(err)
	}
	tokens, err := auth.NewTokens(auth.Entry{Actor: "bench", Hash: auth.HashOf(token), CreatedAt: time.Now()})
	if err == nil {
		err = auth.SaveTokens(o.path("tokens.json"), tokens)
	}
	if err == nil {
		err = os.WriteFile(o.path("hosts.yaml"), []byte(declared.String()), 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	for i, listen := range freeAddresses(b, 2) {
		s := seat{url: "http://" + listen}
		if s.api, err = client.New(client.Options{URL: s.url, Token: token, UserAgent: "bench"}); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(s.api.Close)
		s.args = []string{"orchestrator", "--data-dir", o.path(fmt.Sprint("data", i)), "--cluster", "dev", "--listen", listen, "--mesos", o.mesos.URL,
			"--hosts", o.path("hosts.yaml"), "--tokens", o.path("tokens.json"), "--tls-dir", "", "--log-level", "warn"}
		if shared != nil {
			s.args = append(s.args, "--name", fmt.Sprint("orch-", i), "--consul", shared.consul.URL, "--store", shared.redis.URL)
		}
		o.other, o.seat = o.seat, s
	}
	b.Cleanup(func() {
		o.kill()
		o.other.kill()
		if log, err := os.ReadFile(o.path("log")); err == nil && b.Failed() {
			b.Logf("the orchestrator:\n%s", tail(string(log), 6000))
		}
	})
	return o
}

func (o *wholeOrchestrator) path(name string) string { return filepath.Join(o.dir, name) }

// launch starts the process.
func (o *wholeOrchestrator) launch() {
	o.Helper()
	log, err := os.OpenFile(o.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		o.Fatal(err)
	}
	defer log.Close()
	o.cmd = exec.Command(cutoverBin, o.args...)
	o.cmd.Stdout, o.cmd.Stderr = log, log
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := o.cmd.Start(); err != nil {
		o.Fatal(err)
	}
}

// start returns when the process was started, once it answers.
func (o *wholeOrchestrator) start() time.Time {
	o.Helper()
	began := time.Now()
	o.launch()
	if o.shared != nil {
		o.await("the orchestrator leads", o.leads) // before that, reading would be work beside what is measured
	}
	o.await("the orchestrator answers", func() bool {
		_, err := o.api.Deploys(o.Context(), "", 1)
		return err == nil
	})
	return began
}

// openStore opens the state of a process that is stopped, and leads.
func (o *wholeOrchestrator) openStore() (store.Store, *lead.Term) {
	o.Helper()
	if o.shared != nil {
		return o.shared.open(o)
	}
	dir := o.args[2]
	st, err := boltstore.Open(filepath.Join(dir, "state.db"), boltstore.Options{})
	if err != nil {
		o.Fatal(err)
	}
	term, err := lead.Acquire(o.Context(), dir, st)
	if err != nil {
		o.Fatal(err)
	}
	return st, term
}

// stop ends the process as a supervisor does.
func (o *wholeOrchestrator) stop() {
	o.Helper()
	if err := o.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		o.Fatal(err)
	}
	if err := o.cmd.Wait(); err != nil {
		o.Fatalf("the orchestrator, told to stop: %v", err)
	}
	o.cmd = nil
}

func (s *seat) kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// await asks every few milliseconds, since there is nothing else to wait on from outside.
func (o *wholeOrchestrator) await(what string, ok func() bool) {
	o.Helper()
	for deadline := time.Now().Add(3 * generous); !ok(); {
		if time.Now().After(deadline) {
			o.Fatalf("not within %s: %s", 3*generous, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// manySpec is an App of 20 tasks.
func manySpec(app, version string) []byte {
	return []byte(fmt.Sprintf(`name: %[1]s
version: %[2]s
instances: %[3]d
command: run
resources: {cpus: 0.1, memory: 32MiB, ports: 1}
health: {http: {path: /healthz/%[1]s}, interval: 20s, rise: 1, fall: 3, grace: 5m}
routes: [{group: public, path: /%[1]s}]
deploy: {deadline: 15m, drain: 1s}
`, app, version, tasksPerApp))
}

// fill deploys Apps.
func (o *wholeOrchestrator) fill(apps int) {
	o.Helper()
	g, ctx := errgroup.WithContext(o.Context())
	g.SetLimit(fillAtOnce)
	for i := range apps {
		g.Go(func() error {
			v, err := o.api.Submit(ctx, manySpec(fmt.Sprintf("app-%04d", i), "v1"), client.Change{})
			if err != nil {
				return err
			}
			return o.awaitStep(ctx, v.DeployID, deploy.StepDone, deploy.Succeeded)
		})
	}
	if err := g.Wait(); err != nil {
		o.Fatal(err)
	}
}

// multiply makes n Apps of each: their records in the store, and their tasks at agents of their own, are those of the first
// under names of the same length. The Hosts are brought there by the orchestrator.
func (o *wholeOrchestrator) multiply(n int) {
	o.Helper()
	last, err := o.api.Deploys(o.Context(), "", 1)
	if err != nil {
		o.Fatal(err)
	}
	deploys, agents := last[0].DeployID[:4], o.mesos.AgentID()[:8]
	o.stop()
	st, term := o.openStore()
	for i := 1; i < n; i++ {
		renames := []string{"app-", fmt.Sprintf("ap%d-", i), deploys, fmt.Sprint(i) + deploys[1:], "127.20.", fmt.Sprintf("127.2%d.", i), agents, string(rune('f'+i)) + agents[1:]}
		rename := func(data []byte) []byte {
			for k := 0; k < len(renames); k += 2 {
				data = bytes.ReplaceAll(data, []byte(renames[k]), []byte(renames[k+1]))
			}
			return data
		}
		var ops []store.Op
		size := 0
		write := func() {
			if _, err := st.Commit(o.Context(), term.Fence(), ops...); err != nil {
				o.Fatal(err)
			}
			ops, size = nil, 0
		}
		for _, prefix := range []string{"app/", "spec/", "deploy/", "event/", "task/", "section/", "ended/", "decision/"} {
			records, err := st.List(o.Context(), prefix, "", 0)
			if err != nil {
				o.Fatal(err)
			}
			for _, r := range records {
				op := store.Op{Kind: store.Put, Key: string(rename([]byte(r.Key))), Value: rename(r.Value)}
				if op.Key == r.Key || !strings.Contains(r.Key+string(r.Value), "app-") {
					continue // a copy already
				}
				if size += len(op.Key) + len(op.Value); len(ops) == store.MaxOps || size > store.MaxCommitBytes/2 {
					write()
				}
				ops = append(ops, op)
			}
			write() // what decides and the rest are never in one Commit
		}
		o.mesos.Copy(rename)
	}
	if err := errors.Join(term.Release(), st.Close()); err != nil {
		o.Fatal(err)
	}
	o.start()
	o.await("every Host has the Sections of every App", func() bool {
		hosts, err := o.api.Hosts(o.Context())
		if err != nil {
			o.Fatal(err)
		}
		return !slices.ContainsFunc(hosts, func(h wire.Host) bool { return !h.Connected || h.Sections != n*appsDeployed || len(h.Problems) > 0 })
	})
}

// awaitStep returns when the Deploy is in the step. It asks seldom: many are waited for at once.
func (o *wholeOrchestrator) awaitStep(ctx context.Context, id string, step deploy.StepName, state deploy.State) error {
	for deadline := time.Now().Add(10 * time.Minute); ; {
		v, err := o.api.Deploy(ctx, id)
		switch {
		case err != nil:
			return err
		case v.Step == string(step) && v.State == state:
			return nil
		case v.Step == string(deploy.StepDone), time.Now().After(deadline):
			return fmt.Errorf("deploy %s of %s is %s in step %s (%s), not %s", id, v.App, v.State, v.Step, v.Reason, step)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// openSteps are the steps that Deploys are left in, and how.
var openSteps = []struct {
	step  deploy.StepName
	state deploy.State
	hold  manytasks.Hold
}{
	{deploy.StepLaunching, deploy.Running, manytasks.HoldStart},
	{deploy.StepChecking, deploy.Running, manytasks.HoldHealth},
	{deploy.StepPreparing, deploy.Running, manytasks.HoldWarm},
	{deploy.StepKilling, deploy.Succeeded, manytasks.HoldEnd},
}

// leaveOpen starts Deploys and returns their ids when each is in the step that it is to be found in.
func (o *wholeOrchestrator) leaveOpen(round int) []string {
	o.Helper()
	ids := make([]string, len(openSteps)*openOfEach)
	g, ctx := errgroup.WithContext(o.Context())
	for i := range ids {
		s := openSteps[i%len(openSteps)]
		app := fmt.Sprintf("app-%04d", round*len(ids)+i)
		o.mesos.Hold(app, s.hold)
		g.Go(func() error {
			v, err := o.api.Submit(ctx, manySpec(app, "v2"), client.Change{})
			if err != nil {
				return err
			}
			ids[i] = v.DeployID
			return o.awaitStep(ctx, v.DeployID, s.step, s.state)
		})
	}
	if err := g.Wait(); err != nil {
		o.Fatal(err)
	}
	return ids
}

// moved returns when the last of the Deploys in each step made its first step after the given time, as its own record says.
func (o *wholeOrchestrator) moved(ids []string, after time.Time) []time.Time {
	o.Helper()
	last := make([]time.Time, len(openSteps))
	for i, id := range ids {
		var first time.Time
		o.await("an open Deploy moves on", func() bool {
			v, err := o.api.Deploy(o.Context(), id)
			if err != nil {
				o.Fatal(err)
			}
			for _, s := range v.Steps {
				if s.At.After(after) {
					first = s.At
					return true
				}
			}
			return false
		})
		if of := &last[i%len(openSteps)]; first.After(*of) {
			*of = first
		}
	}
	return last
}

// settle waits until the Deploys are over.
func (o *wholeOrchestrator) settle(ids []string) {
	o.Helper()
	for _, id := range ids {
		o.await("a Deploy ends", func() bool {
			v, err := o.api.Deploy(o.Context(), id)
			if err != nil {
				o.Fatal(err)
			}
			return v.Step == string(deploy.StepDone)
		})
	}
}

// cpu is the processor time of the orchestrator's process so far.
func (o *wholeOrchestrator) cpu() time.Duration {
	o.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", o.cmd.Process.Pid))
	if err != nil {
		o.Fatal(err)
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		o.Fatal(err1, err2)
	}
	return time.Duration(user+system) * 10 * time.Millisecond // in ticks of 1/100 s
}
