package nginx_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/drivertest"
)

// BenchmarkLuaChecks measures what continuous checks of 1,000 Apps with 4 upstreams each cost at an interval of 1 s: CPU of
// this process (agent, and here the upstream too) and of nginx's workers, in percent of one core.
func BenchmarkLuaChecks(b *testing.B) {
	p := startProxy(b, lua)
	task := drivertest.NewBackend(b, "task")
	const apps, each = 1000, 4
	for i := range apps {
		s := section(fmt.Sprintf("app-%d", i))
		for j := range each {
			up := task.Upstream(driver.Serving)
			up.Name = fmt.Sprintf("app-%d-%d", i, j)
			up.Health.Interval = time.Second
			s.Upstreams = append(s.Upstreams, up)
		}
		if err := p.driver.Converge(within(b), s); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		pids := []int{os.Getpid()}
		for pid := range workers(b, p.master()) {
			pids = append(pids, pid)
		}
		ticks := func() (own, nginx float64) {
			for i, pid := range pids {
				n := cpuTicks(b, pid)
				if i == 0 {
					own = n
				} else {
					nginx += n
				}
			}
			return own, nginx
		}
		const span = 10 * time.Second
		ownBefore, nginxBefore := ticks()
		checks := task.Checks()
		start := time.Now()
		<-time.After(span)
		seconds := time.Since(start).Seconds()
		own, nginx := ticks()
		b.ReportMetric(float64(task.Checks()-checks)/seconds, "checks/s")
		b.ReportMetric((own-ownBefore)/seconds, "agent-and-task-cpu-%") // a tick is 10 ms
		b.ReportMetric((nginx-nginxBefore)/seconds, "nginx-cpu-%")
	}
}

func cpuTicks(t testing.TB, pid int) float64 {
	t.Helper()
	s, err := procfs.ReadStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	return float64((s.User + s.System) / (10 * time.Millisecond))
}
