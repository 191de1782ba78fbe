package mesosframework

import (
	"math"
	"slices"

	mesos "github.com/mesos/mesos-go/api/v1/lib"

	"github.com/cutover/cutover/mesosframework/placement"
)

// usable reports whether a task of ours may use an offered resource: no
// revocable, shared or provider-made one, no volume.
func usable(r *mesos.Resource) bool {
	if r.Revocable != nil || r.Shared != nil || r.ProviderID != nil || r.Disk != nil {
		return false
	}
	switch r.Name {
	case "cpus", "mem", "disk":
		return r.Scalar != nil
	case "ports":
		return r.Ranges != nil
	}
	return false
}

func toMilli(v float64) int64 { return int64(math.Round(v * 1000)) }

// total sums what the resources hold, as placement wants it.
func total(rs []mesos.Resource) (cpus, mem, disk float64, ports []placement.PortRange) {
	sum := map[string]int64{}
	for i := range rs {
		r := &rs[i]
		if r.Name == "ports" {
			for _, x := range r.Ranges.Range {
				if x.Begin <= x.End && x.Begin >= 1 && x.End <= math.MaxUint16 {
					ports = append(ports, placement.PortRange{Begin: uint16(x.Begin), End: uint16(x.End)})
				}
			}
			continue
		}
		sum[r.Name] += toMilli(r.Scalar.Value)
	}
	slices.SortFunc(ports, func(a, b placement.PortRange) int { return int(a.Begin) - int(b.Begin) })
	// No port may count twice, whatever a master offers.
	merged := ports[:0]
	for _, r := range ports {
		if n := len(merged); n > 0 && r.Begin <= merged[n-1].End {
			merged[n-1].End = max(merged[n-1].End, r.End)
			continue
		}
		merged = append(merged, r)
	}
	ports = merged
	return float64(sum["cpus"]) / 1000, float64(sum["mem"]) / 1000, float64(sum["disk"]) / 1000, ports
}

// stock is what is left of the offers of one agent while tasks are carved out
// of them. Roles and reservations of the offered resources are kept, as a
// master demands.
type stock []mesos.Resource

// clone copies the resources deep enough for carving.
func (s stock) clone() stock {
	out := make(stock, len(s))
	for i := range s {
		out[i] = s[i]
		if s[i].Scalar != nil {
			out[i].Scalar = &mesos.Value_Scalar{Value: s[i].Scalar.Value}
		}
		if s[i].Ranges != nil {
			out[i].Ranges = &mesos.Value_Ranges{Range: slices.Clone(s[i].Ranges.Range)}
		}
	}
	return out
}

// scalar takes an amount out of the stock. It reports false if there is less.
func (s stock) scalar(name string, amount float64) ([]mesos.Resource, bool) {
	want := toMilli(amount)
	var out []mesos.Resource
	for i := range s {
		if want == 0 {
			break
		}
		r := &s[i]
		if r.Name != name || r.Scalar == nil {
			continue
		}
		have := toMilli(r.Scalar.Value)
		take := min(have, want)
		if take <= 0 {
			continue
		}
		part := *r
		part.Scalar = &mesos.Value_Scalar{Value: float64(take) / 1000}
		out = append(out, part)
		r.Scalar.Value = float64(have-take) / 1000
		want -= take
	}
	return out, want == 0
}

// ports takes ports out of the stock. It reports false if one is not there.
func (s stock) ports(ports []uint16) ([]mesos.Resource, bool) {
	left := slices.Sorted(slices.Values(ports))
	var out []mesos.Resource
	for i := range s {
		r := &s[i]
		if r.Name != "ports" || r.Ranges == nil {
			continue
		}
		var taken []mesos.Value_Range
		left = slices.DeleteFunc(left, func(port uint16) bool {
			p := uint64(port)
			for k, x := range r.Ranges.Range {
				if p < x.Begin || p > x.End {
					continue
				}
				var rest []mesos.Value_Range
				if x.Begin < p {
					rest = append(rest, mesos.Value_Range{Begin: x.Begin, End: p - 1})
				}
				if p < x.End {
					rest = append(rest, mesos.Value_Range{Begin: p + 1, End: x.End})
				}
				r.Ranges.Range = slices.Replace(r.Ranges.Range, k, k+1, rest...)
				if n := len(taken); n > 0 && taken[n-1].End+1 == p {
					taken[n-1].End = p
				} else {
					taken = append(taken, mesos.Value_Range{Begin: p, End: p})
				}
				return true
			}
			return false
		})
		if len(taken) > 0 {
			part := *r
			part.Ranges = &mesos.Value_Ranges{Range: taken}
			out = append(out, part)
		}
	}
	return out, len(left) == 0
}
