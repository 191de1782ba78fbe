package engine

import (
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cutover/cutover/orchestrator/txn"
)

// Monitoring sees that the catalog is away, and that an entry was not taken.
func TestSourcesAreMetrics(t *testing.T) {
	e := &Engine{ports: Ports{Coordinator: &fakeCoordinator{}}}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(newSourceCollector(e))
	if got, err := r.Gather(); err != nil || len(got) != 0 {
		t.Errorf("before the start: %v %v", got, err)
	}
	e.started = true
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		if l := m.GetLabel(); len(l) != 1 || l[0].GetValue() != "consul" {
			t.Errorf("%s: %v", f.GetName(), l)
		}
		got[f.GetName()] = m.GetGauge().GetValue()
	}
	for name, want := range map[string]float64{"cutover_catalog_readable": 0, "cutover_catalog_hosts": 1, "cutover_catalog_refused": 1} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (%t), want %v", name, v, ok, want)
		}
	}
}

// Metrics are asked for at any time, also while the engine starts.
func TestMetricsWhileItStarts(t *testing.T) {
	for range 20 {
		w := newWorld(t)
		r := prometheus.NewPedanticRegistry()
		w.extra.Registerer = r
		var asking sync.WaitGroup
		started := make(chan struct{})
		asking.Go(func() {
			for {
				if _, err := r.Gather(); err != nil {
					t.Error(err)
				}
				select {
				case <-started:
					return
				default:
				}
			}
		})
		w.start()
		close(started)
		asking.Wait()
		w.stop()
	}
}

// Nobody asks a Host that was not admitted, and the refusal says what to do.
func TestWhoIsAsked(t *testing.T) {
	for standing, ok := range map[string]bool{"announced": false, "joining": true, "member": true, "excluded": true, "removed": false} {
		err := asked(txn.HostInfo{Name: "lb1", Membership: txn.Membership{Standing: standing}})
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "cutover lb admit lb1") {
			t.Errorf("%s: %v", standing, err)
		}
	}
}
