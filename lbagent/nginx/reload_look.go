package nginx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/cutover/cutover/internal/procfs"
	"github.com/cutover/cutover/lbagent/driver"
	"github.com/cutover/cutover/lbagent/nginx/probe"
)

type workerKey struct {
	pid   int
	ticks uint64
}

// cohort is the set of current workers, which run one generation.
type cohort struct {
	id         string
	generation uint64
	oldest     uint64 // StartTicks
	family     family
	version    string
	frame      string
}

// generationOf names the cohort of the worker that made a check; "" if it is no current worker.
func (d *Reload) generationOf(r probe.Result) string {
	pid, err := strconv.Atoi(r.Worker)
	if err != nil {
		return ""
	}
	d.mu.Lock()
	known := d.cohort
	d.mu.Unlock()
	if known.family.isCurrent(pid) && r.Generation == generationName(known.generation) {
		return known.id
	}
	ctx, cancel := context.WithTimeout(d.ctx, time.Second)
	defer cancel()
	c, err := d.look(ctx)
	if err != nil || !c.family.isCurrent(pid) || r.Generation != generationName(c.generation) {
		return ""
	}
	return c.id
}

// look finds out which generation runs, and proves it for every current worker: each holds the unix socket on which only
// that generation listens. It waits out workers that are just being started.
func (d *Reload) look(ctx context.Context) (cohort, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		c, err := d.lookOnce(ctx)
		if err == nil {
			d.adopt(c)
			return c, nil
		}
		if !errors.Is(err, errUnsettled) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return c, fmt.Errorf("%w: %w", driver.ErrProxyMismatch, err)
		case <-tick.C:
		}
	}
}

// errUnsettled: nginx is changing its workers now.
var errUnsettled = errors.New("nginx's workers are changing")

func (d *Reload) lookOnce(ctx context.Context) (cohort, error) {
	w, err := d.control.whoami(ctx)
	if err != nil {
		return cohort{}, downWithReason(err, d.o.Listen)
	}
	n, ok := generationNumber(w.generation)
	if !ok {
		return cohort{}, fmt.Errorf("%w: nginx says it runs generation %q", driver.ErrProxyMismatch, w.generation)
	}
	f, err := familyOf(w.pid, d.o.Binary)
	switch {
	case errors.Is(err, driver.ErrProxyMismatch):
		return cohort{}, fmt.Errorf("%w: %w", errUnsettled, err)
	case err != nil:
		return cohort{}, err
	case f.starting > 0:
		return cohort{}, fmt.Errorf("%w: %d are starting", errUnsettled, f.starting)
	}
	c := cohort{generation: n, family: f, version: w.version, frame: w.frame, oldest: f.current[0].StartTicks}
	for _, s := range f.current {
		c.oldest = min(c.oldest, s.StartTicks)
		switch runs, err := d.prove(s, n); {
		case err != nil:
			return c, fmt.Errorf("%w: whether worker %d holds the socket of generation %d: %w", errUnsettled, s.PID, n, err)
		case !runs:
			return c, fmt.Errorf("%w: worker %d does not hold the socket of generation %d", errUnsettled, s.PID, n)
		}
	}
	c.id = fmt.Sprintf("gen-%d.%d.%d", n, f.master.StartTicks, c.oldest)
	return c, nil
}

// prove says whether a worker runs generation n, by the socket that it holds.
func (d *Reload) prove(s procfs.Stat, n uint64) (bool, error) {
	key := workerKey{s.PID, s.StartTicks}
	d.mu.Lock()
	known, ok := d.proved[key]
	d.mu.Unlock()
	if ok {
		return known == n, nil
	}
	inodes, err := procfs.UnixListeners(d.p.generationSocket(n))
	if err != nil {
		return false, err
	}
	sockets, err := procfs.Sockets(s.PID)
	if err != nil {
		return false, err
	}
	for _, inode := range inodes {
		if _, ok := sockets[inode]; ok {
			d.mu.Lock()
			d.proved[key] = n
			d.mu.Unlock()
			return true, nil
		}
	}
	return false, nil
}

// adopt remembers what runs, and forgets what no longer does.
func (d *Reload) adopt(c cohort) {
	d.mu.Lock()
	changed := d.cohort.id != c.id
	d.cohort = c
	if len(d.proved) > 1000 {
		clear(d.proved)
	}
	d.mu.Unlock()
	if changed {
		d.log.Info("nginx runs", "generation", c.generation, "workers", len(c.family.current), "leaving", len(c.family.leaving))
	}
	d.prober.Generation(c.id)
}

// running returns the Sections of a generation.
func (d *Reload) running(n uint64) (map[string]driver.Section, error) {
	d.mu.Lock()
	sections, ok := d.loaded[n]
	if !ok && n == d.published {
		sections, ok = d.sections, true
	}
	d.mu.Unlock()
	if ok {
		return sections, nil
	}
	o := d.o
	o.Journaled = nil // what should be there is no evidence: of a damaged file, nothing is known to run
	sections, _, err := readGeneration(o, n)
	if err != nil {
		return nil, fmt.Errorf("%w: nginx runs generation %d: %w", driver.ErrProxyMismatch, n, err)
	}
	d.mu.Lock()
	clear(d.loaded) // one is enough: generations only go up
	d.loaded[n] = sections
	d.mu.Unlock()
	return sections, nil
}

// olderWorkers counts the leaving workers that may still route to a draining upstream: those from before the generation
// that dropped it. After a restart of the agent that is not known, and all leaving ones count.
func (d *Reload) olderWorkers(c cohort, app, name string) int {
	d.mu.Lock()
	since, ok := d.draining[upstreamKey{app, name}]
	d.mu.Unlock()
	n := 0
	for _, s := range c.family.leaving {
		if !ok || s.StartTicks < since {
			n++
		}
	}
	return n
}

// sessionsFor is how old a count of the sessions of what serves may be, which nothing waits for.
const sessionsFor = time.Second

// sessions returns the connections of all workers to the upstreams, by address: a new count if one of those asked for
// drains, since its end rests on it, else one that may be as old as sessionsFor. A count walks all connections of the machine.
func (d *Reload) sessions(f family, asked, all map[string]driver.Section) (map[netip.AddrPort]int, error) {
	draining := false
	for _, s := range asked {
		draining = draining || slices.ContainsFunc(s.Upstreams, func(u driver.Upstream) bool { return u.Mode == driver.Draining })
	}
	d.mu.Lock()
	counted, at := d.counted, d.countedAt
	d.mu.Unlock()
	if !draining && time.Since(at) < sessionsFor {
		return counted, nil
	}
	begun := time.Now()
	counted, err := countSessions(f, all)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if begun.After(d.countedAt) {
		d.counted, d.countedAt = counted, begun
	}
	return counted, nil
}

// countSessions counts the connections of all workers to each upstream. This Frame keeps no idle connections to upstreams,
// so each is a request in flight (or a check).
func countSessions(f family, sections map[string]driver.Section) (map[netip.AddrPort]int, error) {
	addresses := make(map[netip.AddrPort]netip.AddrPort) // as the kernel writes them -> as we do
	var families []procfs.Family
	for _, s := range sections {
		for _, u := range s.Upstreams {
			addr := u.Address.Addr().Unmap()
			addresses[netip.AddrPortFrom(addr, u.Address.Port())] = u.Address
			of := procfs.IPv4
			if addr.Is6() {
				of = procfs.IPv6
			}
			if !slices.Contains(families, of) {
				families = append(families, of)
			}
		}
	}
	rows, err := procfs.TCP(func(c procfs.Conn) bool {
		_, ok := addresses[c.Remote]
		return ok && c.Inode != 0
	}, families...)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	own := make(map[uint64]bool)
	for _, w := range f.workers() {
		sockets, err := procfs.Sockets(w.PID)
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("sessions of worker %d: %w", w.PID, err)
		}
		if err != nil {
			continue // a leaving worker that has ended
		}
		for inode := range sockets {
			own[inode] = true
		}
	}
	out := make(map[netip.AddrPort]int)
	for _, row := range rows {
		if own[row.Inode] {
			out[addresses[row.Remote]]++
		}
	}
	return out, nil
}
