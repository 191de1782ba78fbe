package engine

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/txn"
)

// This file is what people and their monitoring see of the catalogs that announce Hosts.

func sourceInfos(list []txn.SourceInfo) []wire.Source {
	var out []wire.Source
	for _, s := range list {
		w := wire.Source{Source: s.Source, Hosts: s.Hosts, Refused: s.Refused, Problem: s.Problem}
		if !s.HeardAt.IsZero() {
			w.HeardAt = &s.HeardAt
		}
		if !s.Since.IsZero() {
			w.Since = &s.Since
		}
		out = append(out, w)
	}
	return out
}

// sourceCollector tells, when it is asked, whether the catalogs can be read, and what they announce.
type sourceCollector struct {
	readable, hosts, refused *prometheus.Desc
	e                        *Engine
}

func newSourceCollector(e *Engine) sourceCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"source"}, nil)
	}
	return sourceCollector{
		e:        e,
		readable: desc("cutover_catalog_readable", "1 if the catalog that announces hosts can be read; 0 if not: every host stays what it is."),
		hosts:    desc("cutover_catalog_hosts", "Hosts that the catalog announces."),
		refused:  desc("cutover_catalog_refused", "Entries of the catalog that are not taken, up to a bound; cutover lb hosts says why."),
	}
}

// Describe implements prometheus.Collector.
func (c sourceCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.readable
	ch <- c.hosts
	ch <- c.refused
}

// Collect implements prometheus.Collector.
func (c sourceCollector) Collect(ch chan<- prometheus.Metric) {
	c.e.mu.Lock()
	started := c.e.started
	c.e.mu.Unlock()
	if !started {
		return
	}
	for _, s := range c.e.ports.Coordinator.Sources() {
		readable := 0.0
		if s.Problem == "" {
			readable = 1
		}
		ch <- prometheus.MustNewConstMetric(c.readable, prometheus.GaugeValue, readable, s.Source)
		ch <- prometheus.MustNewConstMetric(c.hosts, prometheus.GaugeValue, float64(s.Hosts), s.Source)
		ch <- prometheus.MustNewConstMetric(c.refused, prometheus.GaugeValue, float64(len(s.Refused)), s.Source)
	}
}
