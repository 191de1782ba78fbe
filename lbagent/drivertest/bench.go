package drivertest

import (
	"fmt"
	"slices"
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

// BenchmarkCalls measures the single calls of a driver on an App of 20 upstreams, of which one comes and one goes each time:
// the medians by which package simulated keeps its pace. One App of 20 is read, and all of them, which tells what a row costs.
// One iteration is a whole measurement: run it with -benchtime 1x.
func BenchmarkCalls(b *testing.B, h Harness) {
	const ups, others, times = 20, 19, 100
	for b.Loop() {
		r := &rig{TB: b, Proxy: h.NewProxy(b)}
		task := NewBackend(b, "task")
		named := func(name string) driver.Upstream {
			up := task.Upstream(driver.Serving)
			up.Name, up.Health.Interval = name, time.Minute
			return up
		}
		app := func(name string) driver.Section {
			s := section(name)
			for i := range ups {
				s.Upstreams = append(s.Upstreams, named(fmt.Sprintf("%s-%d", name, i)))
			}
			r.publish(s)
			r.converge(s)
			return s
		}
		s := app("shop")
		for i := range others {
			app(fmt.Sprintf("other-%d", i))
		}
		took := map[string][]time.Duration{}
		call := func(name string, f func() error) {
			begin := time.Now()
			if err := f(); err != nil {
				b.Fatalf("%s: %v", name, err)
			}
			took[name] = append(took[name], time.Since(begin))
		}
		ctx := b.Context()
		for round := range times {
			next := s
			next.Upstreams = append(s.Upstreams[1:ups:ups], named(fmt.Sprintf("next-%d", round)))
			call("stage", func() error { return r.Driver().Stage(ctx, next) })
			call("publish", func() error { return r.Driver().Publish(ctx, next) })
			call("converge", func() error { return r.Driver().Converge(ctx, next) })
			call("digest", func() error { _, err := r.Driver().PublishedDigest(ctx, "shop"); return err })
			call("process", func() error { _, err := r.Driver().Process(ctx); return err })
			call("read", func() error { _, err := r.Driver().Read(ctx, "shop"); return err })
			call("read-all", func() error { _, err := r.Driver().Read(ctx); return err })
			call("request", func() error { return r.Driver().Request(ctx, "shop", next.Upstreams[ups-1].Name, "shop.example") })
			s = next
		}
		for name, ds := range took {
			slices.Sort(ds)
			b.ReportMetric(float64(ds[len(ds)/2])/1e3, "us/"+name)
		}
		row := float64(took["read-all"][times/2]-took["read"][times/2]) / 1e3 / float64(others*ups)
		b.ReportMetric(row, "us/row")
	}
}
