package placement

import "slices"

func portCount(ranges []PortRange) int {
	n := 0
	for _, r := range ranges {
		if r.End >= r.Begin {
			n += int(r.End) - int(r.Begin) + 1
		}
	}
	return n
}

// pickPorts picks up to n free, unblocked ports of the agent, starting at a
// random one: a port that was just given back is then rarely the next one
// given out, which spares whoever still remembers it.
func (p *pass) pickPorts(a *Agent, f *free, n int) []uint16 {
	if n == 0 {
		return nil
	}
	ports := make([]uint16, 0, n)
	for k, left := p.rng.below(f.ports), f.ports; left > 0 && len(ports) < n; left-- {
		port := portAt(f.ranges, k)
		if p.opts.PortBlocked == nil || !p.opts.PortBlocked(a.ID, a.Host, port) {
			ports = append(ports, port)
		}
		if k++; k == f.ports {
			k = 0
		}
	}
	return ports
}

// portAt returns the k-th port of the ranges.
func portAt(ranges []PortRange, k int) uint16 {
	for _, r := range ranges {
		if r.End < r.Begin {
			continue
		}
		size := int(r.End) - int(r.Begin) + 1
		if k < size {
			return r.Begin + uint16(k)
		}
		k -= size
	}
	return 0
}

// without returns the ranges less the ports; the argument is not changed.
func without(ranges []PortRange, ports []uint16) []PortRange {
	if len(ports) == 0 {
		return ranges
	}
	gone := slices.Sorted(slices.Values(ports))
	out := make([]PortRange, 0, len(ranges)+len(ports))
	for _, r := range ranges {
		begin, end := int(r.Begin), int(r.End)
		for _, g := range gone {
			if v := int(g); v >= begin && v <= end {
				if v > begin {
					out = append(out, PortRange{Begin: uint16(begin), End: uint16(v - 1)})
				}
				begin = v + 1
			}
		}
		if begin <= end {
			out = append(out, PortRange{Begin: uint16(begin), End: uint16(end)})
		}
	}
	return out
}
