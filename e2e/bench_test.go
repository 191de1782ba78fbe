package e2e

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// The benchmarks behind `make bench`. They print figures beside their bars and never fail on time: a machine that does
// something else meanwhile is no defect. What does fail is a run that did not do what it measures.
//
// Other than the drills, benchmarks also go below the command line where a bar is about a part: they speak to real lbagents
// and real proxies through the coordinator, or through the RPC alone. Each says what runs and what is in its figure.
//
// What the pair that Cutover replaces needs is derived from its documented defaults, which poll (offers, healthchecks and
// Baragon's request states by the second), not measured here.
const (
	pollingDeploy = "12-28 s"
	pollingChange = "2-3 s"
	pollingNone   = "-"
)

// figure is one line of the table.
type figure struct {
	name    string
	bar     float64 // 0: for comparison only
	unit    string  // of bar and values
	values  []float64
	worst   bool // the bar is for the largest value, else for the median
	least   bool // the bar is what the value must reach, not what it may be
	polling string
}

// table collects figures and prints them.
type table struct {
	figures []figure
	notes   []string
}

func (t *table) add(f figure) { t.figures = append(t.figures, f) }

// times adds measured durations, in milliseconds.
func (t *table) times(name string, bar time.Duration, polling string, measured []time.Duration) {
	t.add(figure{name: name, bar: ms(bar), unit: "ms", values: milliseconds(measured), polling: polling})
}

// memory adds resident sizes of processes, in MiB; the largest is compared with the bar.
func (t *table) memory(name string, bar float64, measured []float64) {
	t.add(figure{name: name, bar: bar, unit: "MiB", values: measured, worst: true, polling: pollingNone})
}

func (t *table) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

// print writes the table. Verdicts are OK, ABOVE or BELOW; lines without a bar have none.
func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "\nFigures beside their bars (%d CPUs, load %s)\n\n", runtime.NumCPU(), loadAverage())
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "what\tbar\tp50\tp99\tmax\tn\tSingularity + Baragon\tverdict")
	for _, f := range t.figures {
		bar, verdict := "-", "-"
		if f.bar > 0 {
			compared, kind := quantile(f.values, 0.5), "p50"
			if f.worst {
				compared, kind = slices.Max(f.values), "max"
			}
			bar, verdict = fmt.Sprintf("%s <= %s", kind, amount(f.bar, f.unit)), "OK"
			switch {
			case f.least:
				if bar = ">= " + amount(f.bar, f.unit); compared < f.bar {
					verdict = "BELOW"
				}
			case compared > f.bar:
				verdict = "ABOVE"
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", f.name, bar, amount(quantile(f.values, 0.5), f.unit), amount(quantile(f.values, 0.99), f.unit),
			amount(slices.Max(f.values), f.unit), len(f.values), f.polling, verdict)
	}
	_ = tw.Flush()
	for _, n := range t.notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
	fmt.Fprintln(w)
}

func amount(v float64, unit string) string {
	switch {
	case unit == "x":
		return fmt.Sprintf("%.2fx", v)
	case v < 10:
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.0f %s", v, unit)
}

// quantile returns the smallest of the values that at least the share q of all do not exceed; 0 of none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func milliseconds(measured []time.Duration) []float64 {
	out := make([]float64, len(measured))
	for i, d := range measured {
		out[i] = ms(d)
	}
	return out
}

func median(measured []time.Duration) time.Duration {
	return time.Duration(quantile(milliseconds(measured), 0.5) * float64(time.Millisecond))
}

func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(data))[:3], " ")
}

// BenchmarkBars measures all bars of the project and prints them in one table. A part of it:
//
//	go test ./e2e -run '^$' -bench 'Bars/change' -benchtime 1x
func BenchmarkBars(b *testing.B) {
	t := &table{}
	b.Run("deploy", func(b *testing.B) { benchDeploys(b, t) })
	for _, c := range []struct {
		kind string
		bar  time.Duration
	}{{"haproxy", 150 * time.Millisecond}, {"nginx", 300 * time.Millisecond}, {"nginx-reload", 1500 * time.Millisecond}} {
		b.Run("change-"+c.kind, func(b *testing.B) { benchChanges(b, t, c.kind, c.bar) })
	}
	for _, kind := range []string{"haproxy", "nginx"} {
		b.Run("prepare-"+kind, func(b *testing.B) { benchPrepare(b, t, kind) })
	}
	b.Run("scale", func(b *testing.B) { benchScale(b, t) })
	b.Run("restart", func(b *testing.B) { benchRestart(b, t) })
	b.Run("handover", func(b *testing.B) { benchHandover(b, t) })
	b.Run("growth", func(b *testing.B) { benchGrowth(b, t) })
	b.Run("sustained", func(b *testing.B) { benchSustained(b, t, 4, 100) })
	b.Run("sustained-one", func(b *testing.B) { benchSustained(b, t, 1, 0) })
	b.Run("memory", func(b *testing.B) { benchMemory(b, t) })
	if len(t.figures) > 0 {
		t.print(os.Stdout)
	}
}
