package engine

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
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
