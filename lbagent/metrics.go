package lbagent

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one Agent.
type metrics struct {
	messages    *prometheus.CounterVec
	work        *prometheus.HistogramVec
	workErrors  *prometheus.CounterVec
	reads       prometheus.Histogram
	readErrors  prometheus.Counter
	appends     prometheus.Histogram
	journalSize prometheus.Gauge
	journalDown prometheus.Gauge
	open        prometheus.Gauge
	epoch       prometheus.Gauge
	watchers    prometheus.Gauge
	surveys     prometheus.Histogram
	repaired    *prometheus.CounterVec
}

// driftCollector tells the differences that stand when it is asked.
type driftCollector struct {
	desc *prometheus.Desc
	now  func() map[string]float64
}

// Describe implements prometheus.Collector.
func (c driftCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c driftCollector) Collect(ch chan<- prometheus.Metric) {
	for cause, n := range c.now() {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, n, cause)
	}
}

// newMetrics registers the metrics. drift tells the differences that stand, by cause; it is called after the Agent is made.
func newMetrics(reg prometheus.Registerer, drift func() map[string]float64) (*metrics, error) {
	fine := prometheus.ExponentialBuckets(0.0005, 2, 16) // 0.5 ms .. 16 s
	m := &metrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "cutover_lbagent_messages_total",
			Help: "Messages answered, by method and answer (ok or the reason of the refusal)."}, []string{"method", "answer"}),
		work: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "cutover_lbagent_driver_seconds",
			Help: "Duration of driver calls.", Buckets: fine}, []string{"call"}),
		workErrors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "cutover_lbagent_driver_errors_total",
			Help: "Driver calls that failed."}, []string{"call"}),
		reads: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "cutover_lbagent_read_seconds",
			Help: "Duration of a reading of the running proxy.", Buckets: fine}),
		readErrors: prometheus.NewCounter(prometheus.CounterOpts{Name: "cutover_lbagent_read_errors_total",
			Help: "Readings that failed."}),
		appends: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "cutover_lbagent_journal_append_seconds",
			Help: "Duration of a durable append to the journal.", Buckets: fine}),
		journalSize: prometheus.NewGauge(prometheus.GaugeOpts{Name: "cutover_lbagent_journal_bytes", Help: "Size of the journal."}),
		journalDown: prometheus.NewGauge(prometheus.GaugeOpts{Name: "cutover_lbagent_journal_down",
			Help: "1 while the journal cannot be written: the host refuses everything."}),
		open:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "cutover_lbagent_open_transactions", Help: "Transactions and Amendments under way."}),
		epoch:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "cutover_lbagent_epoch", Help: "Highest epoch seen."}),
		watchers: prometheus.NewGauge(prometheus.GaugeOpts{Name: "cutover_lbagent_watchers", Help: "Open Watch streams."}),
		surveys: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "cutover_lbagent_survey_seconds",
			Help: "Duration of a comparison of the files with the journal.", Buckets: fine}),
		repaired: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "cutover_lbagent_drift_repaired_total",
			Help: "Differences that were put right, by cause."}, []string{"cause"}),
	}
	drifts := driftCollector{now: drift, desc: prometheus.NewDesc("cutover_lbagent_drift",
		"Differences between what is committed, on disk and running that stand, by likely cause.", []string{"cause"}, nil)}
	var errs []error
	for _, c := range []prometheus.Collector{m.messages, m.work, m.workErrors, m.reads, m.readErrors, m.appends, m.journalSize,
		m.journalDown, m.open, m.epoch, m.watchers, m.surveys, m.repaired, drifts} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}
