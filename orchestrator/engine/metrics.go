package engine

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cutover/cutover/orchestrator/deploy"
)

// metrics are the engine's counters. Names and labels are a contract with dashboards.
type metrics struct {
	deploys      *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	overhead     prometheus.Histogram
	replacements *prometheus.CounterVec
	unknown      prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	buckets := []float64{0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}
	m := &metrics{
		deploys: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cutover_deploys_total", Help: "Deploys by what asked for them and how they ended; a stuck one counts again when it resolves itself.",
		}, []string{"kind", "state", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cutover_deploy_duration_seconds", Help: "From acceptance to the outcome.", Buckets: buckets,
		}, []string{"kind", "state"}),
		overhead: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "cutover_deploy_switch_seconds", Help: "From the last new task's first healthy answer to the Commit.", Buckets: buckets,
		}),
		replacements: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cutover_replacements_total", Help: "Tasks started by the scheduler, by reason.",
		}, []string{"reason"}),
		unknown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cutover_unknown_task_updates_total", Help: "Status updates of tasks that are not in the store; they are left alone.",
		}),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.deploys, m.duration, m.overhead, m.replacements, m.unknown} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

// ended counts an outcome.
func (m *metrics) ended(d deploy.Deploy) {
	m.deploys.WithLabelValues(string(d.Kind), string(d.State), string(d.Code)).Inc()
	at := d.FinishedAt
	if at.IsZero() {
		at = d.StepAt
	}
	m.duration.WithLabelValues(string(d.Kind), string(d.State)).Observe(at.Sub(d.StartedAt).Seconds())
	if d.State == deploy.Succeeded && !d.HealthyAt.IsZero() {
		m.overhead.Observe(d.CommittedAt.Sub(d.HealthyAt).Seconds())
	}
}
