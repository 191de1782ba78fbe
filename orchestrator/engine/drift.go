package engine

import (
	"context"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	lbagentv1 "github.com/cutover/cutover/proto/gen/cutover/lbagent/v1"

	"github.com/cutover/cutover/orchestrator/api"
	"github.com/cutover/cutover/orchestrator/deploy"
	"github.com/cutover/cutover/orchestrator/txn"
)

// driftCount is the number of differences that the Host has reported and that stand.
func driftCount(h txn.HostInfo) int {
	n := len(h.State.GetDrifts())
	for _, s := range h.Sections {
		n += len(s.GetDrifts())
	}
	return n
}

// HostDrift reads every difference on one Host between what is committed, on disk and running, now.
func (e *Engine) HostDrift(ctx context.Context, name string) (api.HostDrift, error) {
	if err := e.Ready(ctx); err != nil {
		return api.HostDrift{}, err
	}
	hosts := e.ports.Coordinator.Hosts()
	i := slices.IndexFunc(hosts, func(h txn.HostInfo) bool { return h.Name == name })
	if i < 0 {
		return api.HostDrift{}, refused(deploy.RefusedNotFound, "there is no host %q: cutover lb hosts lists them", clip(name))
	}
	if err := asked(hosts[i]); err != nil {
		return api.HostDrift{}, err
	}
	answer, err := e.ports.Coordinator.HostDrift(ctx, name)
	if err != nil {
		return api.HostDrift{}, refused(deploy.RefusedUnavailable, "%v", err)
	}
	info := hosts[i]
	if st := answer.GetHost(); st != nil {
		info.State = st
	}
	out := api.HostDrift{Host: hostInfo(info), Policy: lower(strings.TrimPrefix(answer.GetPolicy().String(), "DRIFT_POLICY_")),
		LeftOut: int(answer.GetLeftOut()), Differences: []api.Drift{}, Repaired: []api.Drift{}}
	for _, d := range answer.GetDrifts() {
		out.Differences = append(out.Differences, driftView(d))
	}
	for _, d := range answer.GetRepaired() {
		out.Repaired = append(out.Repaired, driftView(d))
	}
	out.Host.Drift = len(out.Differences) + out.LeftOut
	return out, nil
}

func driftView(d *lbagentv1.Drift) api.Drift {
	out := api.Drift{
		App: d.GetApp(), Cause: strings.ReplaceAll(lower(strings.TrimPrefix(d.GetCause().String(), "DRIFT_CAUSE_")), "_", "-"),
		Since: d.GetSince().AsTime(), Place: d.GetPlace(), Summary: d.GetSummary(), Diff: d.GetDiff(), Left: d.GetLeft(), Manual: d.GetManual(),
	}
	if d.GetRepairedAt() != nil {
		at := d.GetRepairedAt().AsTime()
		out.RepairedAt = &at
	}
	return out
}

// driftCollector tells, when it is asked, how many differences each Host has reported.
type driftCollector struct {
	desc *prometheus.Desc
	e    *Engine
}

func newDriftCollector(e *Engine) driftCollector {
	return driftCollector{e: e, desc: prometheus.NewDesc("cutover_host_drift",
		"Differences between what is committed, on disk and running that the host has reported and that stand.", []string{"group", "host"}, nil)}
}

// Describe implements prometheus.Collector.
func (c driftCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c driftCollector) Collect(ch chan<- prometheus.Metric) {
	c.e.mu.Lock()
	started := c.e.started
	c.e.mu.Unlock()
	if !started {
		return
	}
	for _, h := range c.e.ports.Coordinator.Hosts() {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(driftCount(h)), h.Group, h.Name)
	}
}
