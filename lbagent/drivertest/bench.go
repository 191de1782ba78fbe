package drivertest

import (
	"fmt"
	"testing"
	"time"

	"github.com/cutover/cutover/lbagent/driver"
)

// BenchmarkOneChange measures one change of one App: an upstream whose task runs already is added, green by 50 ms
// checks, made routable and verified, while another drains and goes.
func BenchmarkOneChange(b *testing.B, h Harness) {
	r := &rig{TB: b, Proxy: h.NewProxy(b)}
	backends := []*Backend{NewBackend(b, "task-a"), NewBackend(b, "task-b")}
	s := r.bring("shop", backends[0])
	now := s.Upstreams[0]
	for i := 0; b.Loop(); i++ {
		// A task's incarnation has a name of its own: names are never used twice.
		next := backends[(i+1)%2].Upstream(driver.Warm)
		next.Name = fmt.Sprintf("task-%d", i)
		warm := join(s, next)
		r.stage(warm)
		r.converge(warm)
		r.awaitGreen("shop", next.Name)
		flipped := withMode(withMode(warm, driver.Serving, next.Name), driver.Draining, now.Name)
		r.publish(flipped)
		r.converge(flipped)
		r.holds(flipped)
		if err := r.Driver().Request(deadline(b), "shop", next.Name, "shop.example"); err != nil {
			b.Fatal(err)
		}

		b.StopTimer()
		next.Mode = driver.Serving
		s, now = section("shop", next), next
		r.publish(s)
		r.converge(s)
		b.StartTimer()
	}
}

// BenchmarkPrepare measures what Prepare asks of a driver (Stage, the first Converge of a new upstream, Read) beside 10
// and beside 1,000 other Apps, and reports both and the ratio: the cost must not grow with the number of Apps. One
// iteration, on a fresh proxy each, is a whole comparison: run it with -benchtime 1x.
func BenchmarkPrepare(b *testing.B, h Harness) {
	for b.Loop() {
		r := &rig{TB: b, Proxy: h.NewProxy(b)}
		task := NewBackend(b, "filler")
		filled := 0
		fill := func(n int) {
			for ; filled < n; filled++ {
				up := task.Upstream(driver.Serving)
				up.Name = fmt.Sprintf("filler-%d", filled)
				up.Health.Interval = time.Minute // idle Apps: their checks are not what is measured
				s := section(up.Name, up)
				r.publish(s)
				r.converge(s)
			}
		}
		s := r.bring("shop", NewBackend(b, "shop-1"))
		next := NewBackend(b, "shop-2")
		round := 0
		prepare := func() (stage, converge, read time.Duration) {
			const times = 20
			for range times {
				round++
				up := next.Upstream(driver.Warm)
				up.Name = fmt.Sprintf("shop-next-%d", round)
				warm := join(s, up)
				start := time.Now()
				r.stage(warm)
				staged := time.Now()
				r.converge(warm)
				converged := time.Now()
				r.holds(warm)
				stage += staged.Sub(start) / times
				converge += converged.Sub(staged) / times
				read += time.Since(converged) / times
				r.converge(s)
			}
			return stage, converge, read
		}
		report := func(apps int) time.Duration {
			fill(apps)
			prepare() // what is cached is cached at both sizes
			stage, converge, read := prepare()
			b.Logf("beside %d Apps: stage %v, converge %v, read %v", apps, stage, converge, read)
			b.ReportMetric(float64(stage+converge+read)/1e6, fmt.Sprintf("ms/%d-apps", apps))
			return stage + converge + read
		}
		small := report(10)
		large := report(1000)
		b.ReportMetric(float64(large)/float64(small), "ratio")
	}
}
