package resource

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// Range is an inclusive range of numbers.
type Range struct{ Begin, End uint64 }

// Set is an amount of resources. The zero value is empty.
type Set struct {
	scalars map[string]int64 // thousandths, never <= 0
	ranges  map[string][]Range
}

// Of returns the set of a list of Mesos resources; zero amounts vanish.
func Of(rs []mesos.Resource) Set {
	s := Set{scalars: map[string]int64{}, ranges: map[string][]Range{}}
	for _, r := range rs {
		switch {
		case r.Scalar != nil:
			if m := milli(r.Scalar.Value); m > 0 {
				s.scalars[r.Name] += m
			}
		case r.Ranges != nil:
			for _, g := range r.Ranges.Range {
				s.ranges[r.Name] = append(s.ranges[r.Name], Range{g.Begin, g.End})
			}
			s.ranges[r.Name] = normal(s.ranges[r.Name])
		}
	}
	s.tidy()
	return s
}

func milli(f float64) int64 { return int64(math.Round(f * 1000)) }

// Parse reads the flag form "cpus:4;mem:8192;ports:[31000-31099,31200-31200]".
func Parse(text string) (Set, error) {
	s := Set{scalars: map[string]int64{}, ranges: map[string][]Range{}}
	for part := range strings.SplitSeq(text, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, value, ok := strings.Cut(part, ":")
		if !ok || name == "" {
			return Set{}, fmt.Errorf("resource %q: want name:value", part)
		}
		if body, isRange := strings.CutPrefix(value, "["); isRange {
			body, closed := strings.CutSuffix(body, "]")
			if !closed {
				return Set{}, fmt.Errorf("resource %q: want [begin-end,...]", part)
			}
			for item := range strings.SplitSeq(body, ",") {
				b, e, _ := strings.Cut(strings.TrimSpace(item), "-")
				begin, err1 := strconv.ParseUint(b, 10, 64)
				end, err2 := strconv.ParseUint(e, 10, 64)
				if err1 != nil || err2 != nil || begin > end {
					return Set{}, fmt.Errorf("resource %q: bad range %q", part, item)
				}
				s.ranges[name] = append(s.ranges[name], Range{begin, end})
			}
			s.ranges[name] = normal(s.ranges[name])
			continue
		}
		f, err := strconv.ParseFloat(value, 64)
		if err != nil || f < 0 || math.IsInf(f, 0) || math.IsNaN(f) {
			return Set{}, fmt.Errorf("resource %q: bad amount %q", part, value)
		}
		s.scalars[name] += milli(f)
	}
	s.tidy()
	return s, nil
}

func (s *Set) tidy() {
	for n, v := range s.scalars {
		if v <= 0 {
			delete(s.scalars, n)
		}
	}
	for n, v := range s.ranges {
		if len(v) == 0 {
			delete(s.ranges, n)
		}
	}
}

func (s Set) clone() Set {
	c := Set{scalars: make(map[string]int64, len(s.scalars)), ranges: make(map[string][]Range, len(s.ranges))}
	for n, v := range s.scalars {
		c.scalars[n] = v
	}
	for n, v := range s.ranges {
		c.ranges[n] = append([]Range(nil), v...)
	}
	return c
}

// Add returns s + o.
func (s Set) Add(o Set) Set {
	c := s.clone()
	for n, v := range o.scalars {
		c.scalars[n] += v
	}
	for n, v := range o.ranges {
		c.ranges[n] = normal(append(c.ranges[n], v...))
	}
	return c
}

// Sub returns s - o, floored at zero.
func (s Set) Sub(o Set) Set {
	c := s.clone()
	for n, v := range o.scalars {
		c.scalars[n] -= v
	}
	for n, v := range o.ranges {
		c.ranges[n] = without(c.ranges[n], v)
	}
	c.tidy()
	return c
}

// Contains reports whether o is no more than s.
func (s Set) Contains(o Set) bool {
	for n, v := range o.scalars {
		if s.scalars[n] < v {
			return false
		}
	}
	for n, v := range o.ranges {
		if len(without(v, s.ranges[n])) > 0 {
			return false
		}
	}
	return true
}

// Empty reports whether there is nothing in s.
func (s Set) Empty() bool { return len(s.scalars) == 0 && len(s.ranges) == 0 }

// Scalar returns the amount of a scalar resource, 0 when there is none.
func (s Set) Scalar(name string) float64 { return float64(s.scalars[name]) / 1000 }

// Ranges returns the ranges of a range resource. The result is not to be
// changed.
func (s Set) Ranges(name string) []Range { return s.ranges[name] }

// Allocatable reports whether s is worth an offer: at least 0.01 cpus or 32 MB
// of memory, as a master's default has it.
func (s Set) Allocatable() bool { return s.scalars["cpus"] >= 10 || s.scalars["mem"] >= 32000 }

var rank = map[string]int{"ports": 0, "cpus": 1, "mem": 2, "disk": 3}

// Names returns the names in the order of an offer.
func (s Set) Names() []string {
	var names []string
	for n := range s.scalars {
		names = append(names, n)
	}
	for n := range s.ranges {
		names = append(names, n)
	}
	pos := func(n string) int {
		if r, ok := rank[n]; ok {
			return r
		}
		return len(rank)
	}
	sort.Slice(names, func(i, j int) bool {
		if a, b := pos(names[i]), pos(names[j]); a != b {
			return a < b
		}
		return names[i] < names[j]
	})
	return names
}

// Mesos returns s as Mesos resources, reserved for nobody; with a role, each
// carries the allocation to it.
func (s Set) Mesos(role string) []mesos.Resource {
	var out []mesos.Resource
	for _, n := range s.Names() {
		star := "*"
		r := mesos.Resource{Name: n, Role: &star}
		if role != "" {
			a := role
			r.AllocationInfo = &mesos.Resource_AllocationInfo{Role: &a}
		}
		if v, ok := s.scalars[n]; ok {
			r.Type = mesos.SCALAR.Enum()
			r.Scalar = &mesos.Value_Scalar{Value: float64(v) / 1000}
		} else {
			r.Type = mesos.RANGES.Enum()
			r.Ranges = &mesos.Value_Ranges{}
			for _, g := range s.ranges[n] {
				r.Ranges.Range = append(r.Ranges.Range, mesos.Value_Range{Begin: g.Begin, End: g.End})
			}
		}
		out = append(out, r)
	}
	return out
}

// String gives the flag form, ready for Parse.
func (s Set) String() string {
	var parts []string
	for _, n := range s.Names() {
		if v, ok := s.scalars[n]; ok {
			parts = append(parts, n+":"+trim(v))
		} else {
			parts = append(parts, n+":"+rangesText(s.ranges[n]))
		}
	}
	return strings.Join(parts, ";")
}

func trim(m int64) string { return strconv.FormatFloat(float64(m)/1000, 'f', -1, 64) }

func rangesText(rs []Range) string {
	var parts []string
	for _, g := range rs {
		parts = append(parts, fmt.Sprintf("%d-%d", g.Begin, g.End))
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// RangesText gives a range resource as the state endpoints print it:
// "[31000-31001, 31005-31005]".
func (s Set) RangesText(name string) string { return rangesText(s.ranges[name]) }

// Text prints Mesos resources as Mesos does in its error texts.
func Text(rs []mesos.Resource) string {
	var parts []string
	for _, r := range rs {
		parts = append(parts, textOne(r))
	}
	return strings.Join(parts, "; ")
}

// textOne prints one Mesos resource, such as "cpus(allocated: *):0.1".
func textOne(r mesos.Resource) string {
	var b strings.Builder
	b.WriteString(r.Name)
	if r.AllocationInfo != nil && r.AllocationInfo.Role != nil {
		fmt.Fprintf(&b, "(allocated: %s)", *r.AllocationInfo.Role)
	}
	if len(r.Reservations) > 0 {
		var rs []string
		for _, v := range r.Reservations {
			t := ""
			if v.Type != nil {
				t = v.Type.String()
			}
			rs = append(rs, fmt.Sprintf("(%s,%s)", t, v.GetRole()))
		}
		fmt.Fprintf(&b, "(reservations: [%s])", strings.Join(rs, ","))
	}
	b.WriteByte(':')
	switch {
	case r.Type != nil && *r.Type == mesos.RANGES:
		var g []Range
		if r.Ranges != nil {
			for _, v := range r.Ranges.Range {
				g = append(g, Range{v.Begin, v.End})
			}
		}
		b.WriteString(rangesText(normal(g)))
	default:
		v := 0.0
		if r.Scalar != nil {
			v = r.Scalar.Value
		}
		b.WriteString(strconv.FormatFloat(math.Round(v*1000)/1000, 'f', -1, 64))
	}
	return b.String()
}

// normal sorts ranges and joins those that touch.
func normal(in []Range) []Range {
	rs := append([]Range(nil), in...)
	sort.Slice(rs, func(i, j int) bool { return rs[i].Begin < rs[j].Begin })
	var out []Range
	for _, r := range rs {
		if r.End < r.Begin {
			continue
		}
		if n := len(out); n > 0 && (r.Begin <= out[n-1].End || r.Begin == out[n-1].End+1) {
			out[n-1].End = max(out[n-1].End, r.End)
			continue
		}
		out = append(out, r)
	}
	return out
}

// without returns the numbers of a that are not in b.
func without(a, b []Range) []Range {
	out := normal(a)
	for _, cut := range normal(b) {
		var next []Range
		for _, r := range out {
			if cut.End < r.Begin || cut.Begin > r.End {
				next = append(next, r)
				continue
			}
			if cut.Begin > r.Begin {
				next = append(next, Range{r.Begin, cut.Begin - 1})
			}
			if cut.End < r.End {
				next = append(next, Range{cut.End + 1, r.End})
			}
		}
		out = next
	}
	return out
}
